-- Means of the clusters of a pipeline's documents, which move with its publications. Older states are forgotten; the lines stay.
CREATE TABLE clusters (
    pipeline            TEXT    NOT NULL REFERENCES pipelines (name),
    version             INTEGER NOT NULL,
    -- The version that these clusters began with.
    began               INTEGER NOT NULL,
    shard               TEXT    NOT NULL REFERENCES shards (id),
    half_life_documents INTEGER NOT NULL,
    -- Added.
    n_documents         INTEGER NOT NULL,
    state               BLOB,
    created_at_ms       INTEGER NOT NULL,
    PRIMARY KEY (pipeline, version)
) STRICT;

CREATE INDEX clusters_kept ON clusters (pipeline, version) WHERE state IS NOT NULL;
