-- KL(target, all) - KL(target, random sample of the same share), the yardstick of `kl_reduction`.
ALTER TABLE windows ADD COLUMN random_kl_reduction DOUBLE PRECISION;
-- Version of the counts of kind 'raw' that the documents were scored with; null: the raw distribution of the model.
ALTER TABLE windows ADD COLUMN raw_version BIGINT;
-- JSON: effective sample size, quantiles of the weights, correlation with length, overlap with top-k.
ALTER TABLE windows ADD COLUMN diagnostics TEXT;

-- N-gram counts that decay and grow with each publication, version by version, in the transaction of the publication.
-- A version is the one before, decayed by half_life_ngrams, plus the n-grams of all windows of `shard`; where counts
-- begin, or begin anew for another featuriser, `shard` is null. `state` is null once the version is forgotten; the newest
-- one never is.
CREATE TABLE counts (
    pipeline         TEXT    NOT NULL REFERENCES pipelines (name),
    kind             TEXT    NOT NULL,
    version          BIGINT NOT NULL,
    shard            TEXT    REFERENCES shards (id),
    half_life_ngrams BIGINT,
    n_ngrams         BIGINT NOT NULL,
    state            BYTEA,
    created_at_ms    BIGINT NOT NULL,
    PRIMARY KEY (pipeline, kind, version)
);

CREATE INDEX counts_kept ON counts (pipeline, kind, version) WHERE state IS NOT NULL;
