-- What trainers report of published documents, and what is learnt from it.

-- One row a pipeline that takes feedback: what is learnt, changed in the transaction that moves the checkpoints of the losses' topic,
-- so that each report counts once. `state` is JSON; `predictor` and `version` are what the table below says of them.
CREATE TABLE feedback (
    pipeline      TEXT    NOT NULL PRIMARY KEY REFERENCES pipelines (name),
    state         TEXT    NOT NULL,
    predictor     BLOB    NOT NULL,
    -- The newest version; 0 is what is known before anything is.
    version       INTEGER NOT NULL,
    -- Documents published so far, which numbers them.
    n_documents   INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;

-- What selection takes of it, version by version: made in the transaction of a publication, if anything was reported since the one
-- before. `expected` is null once the version is forgotten; the newest one never is. `quotas` are shares by source, JSON.
CREATE TABLE feedback_versions (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    version       INTEGER NOT NULL,
    shard         TEXT    REFERENCES shards (id),
    quotas        TEXT    NOT NULL,
    expected      BLOB,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (pipeline, version)
) STRICT;

CREATE INDEX feedback_versions_kept ON feedback_versions (pipeline, version) WHERE expected IS NOT NULL;

-- Published documents that losses can be joined to, the newest ones only: by 64 bits of the SHA-256 of their id.
CREATE TABLE feedback_documents (
    pipeline              TEXT    NOT NULL REFERENCES pipelines (name),
    document              INTEGER NOT NULL,
    number                INTEGER NOT NULL,
    epoch                 INTEGER NOT NULL,
    source                TEXT,
    stratum               INTEGER NOT NULL,
    inclusion_probability REAL    NOT NULL,
    text_bytes            INTEGER NOT NULL,
    -- A sample of its n-grams: two bytes each, little-endian.
    ngrams                BLOB    NOT NULL,
    -- Run and step of the loss that counted last; 1 if other runs have reported the document as well.
    run                   INTEGER,
    step                  INTEGER,
    by_several_runs       INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, document)
) STRICT, WITHOUT ROWID;

CREATE INDEX feedback_documents_by_number ON feedback_documents (pipeline, number);

-- How far each rank of a run has reported: its newest step, and one bit a step for the 1,024 up to it. The ranks heard of last only.
CREATE TABLE feedback_ranks (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    run           INTEGER NOT NULL,
    rank          INTEGER NOT NULL,
    newest_step   INTEGER NOT NULL,
    seen          BLOB    NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (pipeline, run, rank)
) STRICT, WITHOUT ROWID;

-- Version of what is expected that is in the documents' weights, and its coefficient; null: none.
ALTER TABLE windows ADD COLUMN expected_loss_version INTEGER;
ALTER TABLE windows ADD COLUMN expected_loss_coefficient REAL;
-- Version of the shares of sources that divided the window; null: none, or those of the configuration.
ALTER TABLE windows ADD COLUMN quota_version INTEGER;
