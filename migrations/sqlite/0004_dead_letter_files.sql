-- Dead letters stand in Parquet files beside the shards: as many as there are, whole, and without a row each in here.
-- JSON: path, rows, bytes, digest; null: none.
ALTER TABLE shards ADD COLUMN dead_letters TEXT;
-- The topic that they are still to be sent to.
ALTER TABLE shards ADD COLUMN forward_to TEXT;

CREATE INDEX shards_to_forward ON shards (pipeline) WHERE forward_to IS NOT NULL;

DROP TABLE dead_letters;
