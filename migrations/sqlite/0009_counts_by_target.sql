-- Counts of kind 'selected' are kept for each of several targets: the n-grams of what it has selected. All targets of a kind have
-- the same versions. The name is empty of the raw distribution, and of a model's only target.
CREATE TABLE counts_by_target (
    pipeline         TEXT    NOT NULL REFERENCES pipelines (name),
    kind             TEXT    NOT NULL,
    version          INTEGER NOT NULL,
    target           TEXT    NOT NULL,
    shard            TEXT    REFERENCES shards (id),
    half_life_ngrams INTEGER,
    n_ngrams         INTEGER NOT NULL,
    state            BLOB,
    created_at_ms    INTEGER NOT NULL,
    PRIMARY KEY (pipeline, kind, version, target)
) STRICT;

INSERT INTO counts_by_target
SELECT pipeline, kind, version, '', shard, half_life_ngrams, n_ngrams, state, created_at_ms FROM counts;

DROP TABLE counts;
ALTER TABLE counts_by_target RENAME TO counts;

CREATE INDEX counts_kept ON counts (pipeline, kind, version) WHERE state IS NOT NULL;
