-- JSON: centres, scores and thresholds of the window; null where the selection was not drawn by sensitivity.
ALTER TABLE windows ADD COLUMN sensitivity TEXT;
