-- What trainers report of published documents, and what is learnt from it.

-- One row a pipeline that takes feedback: what is learnt, changed in the transaction that moves the checkpoints of the losses' topic,
-- so that each report counts once. `state` is JSON; `predictor` and `version` are what the table below says of them.
CREATE TABLE feedback (
    pipeline      TEXT    NOT NULL PRIMARY KEY REFERENCES pipelines (name),
    state         TEXT    NOT NULL,
    predictor     BYTEA   NOT NULL,
    -- The newest version; 0 is what is known before anything is.
    version       BIGINT NOT NULL,
    -- Documents published so far, which numbers them.
    n_documents   BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

-- What selection takes of it, version by version: made in the transaction of a publication, if anything was reported since the one
-- before. `expected` is null once the version is forgotten; the newest one never is. `quotas` are shares by source, JSON.
CREATE TABLE feedback_versions (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    version       BIGINT NOT NULL,
    shard         TEXT    REFERENCES shards (id),
    quotas        TEXT    NOT NULL,
    expected      BYTEA,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (pipeline, version)
);

CREATE INDEX feedback_versions_kept ON feedback_versions (pipeline, version) WHERE expected IS NOT NULL;

-- Published documents that losses can be joined to, the newest ones only: by 64 bits of the SHA-256 of their id.
CREATE TABLE feedback_documents (
    pipeline              TEXT    NOT NULL REFERENCES pipelines (name),
    document              BIGINT NOT NULL,
    number                BIGINT NOT NULL,
    epoch                 BIGINT NOT NULL,
    source                TEXT,
    stratum               BIGINT NOT NULL,
    inclusion_probability DOUBLE PRECISION NOT NULL,
    text_bytes            BIGINT NOT NULL,
    -- A sample of its n-grams: two bytes each, little-endian.
    ngrams                BYTEA  NOT NULL,
    -- Run and step of the loss that counted last; 1 if other runs have reported the document as well.
    run                   BIGINT,
    step                  BIGINT,
    by_several_runs       BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, document)
);

CREATE INDEX feedback_documents_by_number ON feedback_documents (pipeline, number);

-- How far each rank of a run has reported: its newest step, and one bit a step for the 1,024 up to it. The ranks heard of last only.
CREATE TABLE feedback_ranks (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    run           BIGINT NOT NULL,
    rank          BIGINT NOT NULL,
    newest_step   BIGINT NOT NULL,
    seen          BYTEA   NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (pipeline, run, rank)
);

-- Version of what is expected that is in the documents' weights, and its coefficient; null: none.
ALTER TABLE windows ADD COLUMN expected_loss_version BIGINT;
ALTER TABLE windows ADD COLUMN expected_loss_coefficient DOUBLE PRECISION;
-- Version of the shares of sources that divided the window; null: none, or those of the configuration.
ALTER TABLE windows ADD COLUMN quota_version BIGINT;
