-- Means of the clusters of a pipeline's documents, which move with its publications. Older states are forgotten; the lines stay.
CREATE TABLE clusters (
    pipeline            TEXT    NOT NULL REFERENCES pipelines (name),
    version             BIGINT  NOT NULL,
    -- The version that these clusters began with.
    began               BIGINT  NOT NULL,
    shard               TEXT    NOT NULL REFERENCES shards (id),
    half_life_documents BIGINT  NOT NULL,
    -- Added.
    n_documents         BIGINT  NOT NULL,
    state               BYTEA,
    created_at_ms       BIGINT  NOT NULL,
    PRIMARY KEY (pipeline, version)
);

CREATE INDEX clusters_kept ON clusters (pipeline, version) WHERE state IS NOT NULL;
