-- Times are milliseconds since 1970 UTC.

-- One row a flow, with running totals that move in the publish transaction.
CREATE TABLE pipelines (
    name              TEXT    NOT NULL PRIMARY KEY,
    created_at_ms     BIGINT NOT NULL,
    manifest_sequence BIGINT NOT NULL DEFAULT 0,
    n_records         BIGINT NOT NULL DEFAULT 0,
    n_selected        BIGINT NOT NULL DEFAULT 0,
    n_rejected        BIGINT NOT NULL DEFAULT 0,
    n_dead_letters    BIGINT NOT NULL DEFAULT 0,
    n_windows         BIGINT NOT NULL DEFAULT 0,
    n_shards          BIGINT NOT NULL DEFAULT 0,
    shard_bytes       BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE models (
    digest        TEXT    NOT NULL PRIMARY KEY,
    bytes         BYTEA    NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- The authority on offsets. `next_offset` is null until the start policy has been resolved; afterwards only a
-- publication moves it. Each claim raises `owner_epoch`, which fences whoever claimed the partition before.
CREATE TABLE checkpoints (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    topic         TEXT    NOT NULL,
    "partition"   BIGINT NOT NULL,
    next_offset   BIGINT,
    owner_epoch   BIGINT NOT NULL,
    owner         TEXT    NOT NULL,
    claimed_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (pipeline, topic, "partition")
);

-- Units of publication. A staged one may have an object in the store that nobody reads; only published ones count.
-- `path` is null when a publication moved checkpoints without selecting anything.
CREATE TABLE shards (
    id              TEXT    NOT NULL PRIMARY KEY,
    pipeline        TEXT    NOT NULL REFERENCES pipelines (name),
    state           TEXT    NOT NULL CHECK (state IN ('staged', 'published')),
    path            TEXT,
    n_rows          BIGINT NOT NULL DEFAULT 0,
    bytes           BIGINT NOT NULL DEFAULT 0,
    digest          TEXT,
    sequence        BIGINT,
    manifest        TEXT,
    staged_at_ms    BIGINT NOT NULL,
    published_at_ms BIGINT,
    UNIQUE (pipeline, sequence)
);

CREATE INDEX shards_by_state ON shards (pipeline, state, staged_at_ms);

CREATE TABLE windows (
    pipeline       TEXT    NOT NULL REFERENCES pipelines (name),
    topic          TEXT    NOT NULL,
    "partition"    BIGINT NOT NULL,
    from_offset    BIGINT NOT NULL,
    to_offset      BIGINT NOT NULL,
    shard          TEXT    NOT NULL REFERENCES shards (id),
    model          TEXT    NOT NULL REFERENCES models (digest),
    closed_by      TEXT    NOT NULL,
    n_records      BIGINT NOT NULL,
    n_selected     BIGINT NOT NULL,
    n_rejected     BIGINT NOT NULL,
    n_too_short    BIGINT NOT NULL,
    n_dead_letters BIGINT NOT NULL,
    payload_bytes  BIGINT NOT NULL,
    threshold      DOUBLE PRECISION,
    kl_reduction   DOUBLE PRECISION,
    PRIMARY KEY (pipeline, topic, "partition", from_offset),
    CHECK (to_offset > from_offset),
    CHECK (n_records = n_selected + n_rejected + n_dead_letters)
);

CREATE TABLE dead_letters (
    pipeline            TEXT    NOT NULL REFERENCES pipelines (name),
    topic               TEXT    NOT NULL,
    "partition"         BIGINT NOT NULL,
    "offset"            BIGINT NOT NULL,
    reason              TEXT    NOT NULL,
    detail              TEXT    NOT NULL,
    payload_bytes       BIGINT NOT NULL,
    payload_head        BYTEA    NOT NULL,
    record_timestamp_ms BIGINT,
    PRIMARY KEY (pipeline, topic, "partition", "offset")
);

-- Outbox of manifest.jsonl: one line a shard with rows, numbered without gaps.
CREATE TABLE manifest_entries (
    pipeline TEXT    NOT NULL REFERENCES pipelines (name),
    sequence BIGINT NOT NULL,
    entry    TEXT    NOT NULL,
    PRIMARY KEY (pipeline, sequence)
);
