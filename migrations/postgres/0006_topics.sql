-- The id that a topic had when the pipeline first read it: a topic that was deleted and made again has another, and its offsets
-- name other documents.
CREATE TABLE topics (
    pipeline    TEXT    NOT NULL REFERENCES pipelines (name),
    topic       TEXT    NOT NULL,
    topic_id    TEXT    NOT NULL,
    noted_at_ms BIGINT  NOT NULL,
    PRIMARY KEY (pipeline, topic)
);
