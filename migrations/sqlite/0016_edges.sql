-- Sketches of the numbers that strata of a pipeline are cut by, which follow its publications. Only the newest state is kept: windows record
-- the edges that they took.
CREATE TABLE edges (
    pipeline            TEXT    NOT NULL REFERENCES pipelines (name),
    -- What the numbers are. Workers that are configured otherwise have sketches of their own.
    numbers             TEXT    NOT NULL,
    version             INTEGER NOT NULL,
    -- The publication that made it.
    shard               TEXT    NOT NULL REFERENCES shards (id),
    half_life_documents INTEGER NOT NULL,
    -- Added.
    n_documents         INTEGER NOT NULL,
    state               BLOB    NOT NULL,
    updated_at_ms       INTEGER NOT NULL,
    PRIMARY KEY (pipeline, numbers)
) STRICT;
