-- How many documents the filter refused in a window; null without a filter, and of windows from before.
ALTER TABLE windows ADD COLUMN n_filtered BIGINT;
