-- Version of the counts of kind 'selected' in the denominator of the documents' weights, and its share there; null: the raw
-- distribution alone.
ALTER TABLE windows ADD COLUMN selected_version BIGINT;
ALTER TABLE windows ADD COLUMN selected_share DOUBLE PRECISION;
