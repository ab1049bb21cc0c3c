-- Shards that were staged and never published, taken out of `shards` by `winnowd gc`, so that they never will be. They are
-- kept for a while: a worker that was stopped in the middle may still upload its object, which is then deleted again.
CREATE TABLE orphans (
    shard       TEXT   NOT NULL PRIMARY KEY,
    pipeline    TEXT   NOT NULL REFERENCES pipelines (name),
    path        TEXT,
    noted_at_ms BIGINT NOT NULL
);
