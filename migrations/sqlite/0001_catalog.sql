-- Times are milliseconds since 1970 UTC.

-- One row a flow, with running totals that move in the publish transaction.
CREATE TABLE pipelines (
    name              TEXT    NOT NULL PRIMARY KEY,
    created_at_ms     INTEGER NOT NULL,
    manifest_sequence INTEGER NOT NULL DEFAULT 0,
    n_records         INTEGER NOT NULL DEFAULT 0,
    n_selected        INTEGER NOT NULL DEFAULT 0,
    n_rejected        INTEGER NOT NULL DEFAULT 0,
    n_dead_letters    INTEGER NOT NULL DEFAULT 0,
    n_windows         INTEGER NOT NULL DEFAULT 0,
    n_shards          INTEGER NOT NULL DEFAULT 0,
    shard_bytes       INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE models (
    digest        TEXT    NOT NULL PRIMARY KEY,
    bytes         BLOB    NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

-- The authority on offsets. `next_offset` is null until the start policy has been resolved; afterwards only a
-- publication moves it. Each claim raises `owner_epoch`, which fences whoever claimed the partition before.
CREATE TABLE checkpoints (
    pipeline      TEXT    NOT NULL REFERENCES pipelines (name),
    topic         TEXT    NOT NULL,
    "partition"   INTEGER NOT NULL,
    next_offset   INTEGER,
    owner_epoch   INTEGER NOT NULL,
    owner         TEXT    NOT NULL,
    claimed_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (pipeline, topic, "partition")
) STRICT, WITHOUT ROWID;

-- Units of publication. A staged one may have an object in the store that nobody reads; only published ones count.
-- `path` is null when a publication moved checkpoints without selecting anything.
CREATE TABLE shards (
    id              TEXT    NOT NULL PRIMARY KEY,
    pipeline        TEXT    NOT NULL REFERENCES pipelines (name),
    state           TEXT    NOT NULL CHECK (state IN ('staged', 'published')),
    path            TEXT,
    n_rows          INTEGER NOT NULL DEFAULT 0,
    bytes           INTEGER NOT NULL DEFAULT 0,
    digest          TEXT,
    sequence        INTEGER,
    manifest        TEXT,
    staged_at_ms    INTEGER NOT NULL,
    published_at_ms INTEGER,
    UNIQUE (pipeline, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX shards_by_state ON shards (pipeline, state, staged_at_ms);

CREATE TABLE windows (
    pipeline       TEXT    NOT NULL REFERENCES pipelines (name),
    topic          TEXT    NOT NULL,
    "partition"    INTEGER NOT NULL,
    from_offset    INTEGER NOT NULL,
    to_offset      INTEGER NOT NULL,
    shard          TEXT    NOT NULL REFERENCES shards (id),
    model          TEXT    NOT NULL REFERENCES models (digest),
    closed_by      TEXT    NOT NULL,
    n_records      INTEGER NOT NULL,
    n_selected     INTEGER NOT NULL,
    n_rejected     INTEGER NOT NULL,
    n_too_short    INTEGER NOT NULL,
    n_dead_letters INTEGER NOT NULL,
    payload_bytes  INTEGER NOT NULL,
    threshold      REAL,
    kl_reduction   REAL,
    PRIMARY KEY (pipeline, topic, "partition", from_offset),
    CHECK (to_offset > from_offset),
    CHECK (n_records = n_selected + n_rejected + n_dead_letters)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    pipeline            TEXT    NOT NULL REFERENCES pipelines (name),
    topic               TEXT    NOT NULL,
    "partition"         INTEGER NOT NULL,
    "offset"            INTEGER NOT NULL,
    reason              TEXT    NOT NULL,
    detail              TEXT    NOT NULL,
    payload_bytes       INTEGER NOT NULL,
    payload_head        BLOB    NOT NULL,
    record_timestamp_ms INTEGER,
    PRIMARY KEY (pipeline, topic, "partition", "offset")
) STRICT, WITHOUT ROWID;

-- Outbox of manifest.jsonl: one line a shard with rows, numbered without gaps.
CREATE TABLE manifest_entries (
    pipeline TEXT    NOT NULL REFERENCES pipelines (name),
    sequence INTEGER NOT NULL,
    entry    TEXT    NOT NULL,
    PRIMARY KEY (pipeline, sequence)
) STRICT, WITHOUT ROWID;
