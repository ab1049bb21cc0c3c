-- JSON: how well the selection covers the documents of the window, and a random one; null where it was not measured.
ALTER TABLE windows ADD COLUMN spread TEXT;
