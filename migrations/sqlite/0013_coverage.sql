-- JSON: the strata of the window, and what its cut-off removed; null where the selection was not spread over strata.
ALTER TABLE windows ADD COLUMN coverage TEXT;
