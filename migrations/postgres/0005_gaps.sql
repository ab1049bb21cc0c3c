-- Offsets that are never decided: retention removed them before ('retention'), or a person moved the checkpoint past them
-- ('reset'). Each is noted in the transaction that moves the checkpoint. Windows and gaps of a partition follow one another.
CREATE TABLE gaps (
    pipeline    TEXT    NOT NULL REFERENCES pipelines (name),
    topic       TEXT    NOT NULL,
    "partition" BIGINT  NOT NULL,
    from_offset BIGINT  NOT NULL,
    to_offset   BIGINT  NOT NULL,
    reason      TEXT    NOT NULL CHECK (reason IN ('retention', 'reset')),
    noted_at_ms BIGINT  NOT NULL,
    PRIMARY KEY (pipeline, topic, "partition", from_offset),
    CHECK (to_offset > from_offset)
);
