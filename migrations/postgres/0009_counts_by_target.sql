-- Counts of kind 'selected' are kept for each of several targets: the n-grams of what it has selected. All targets of a kind have
-- the same versions. The name is empty of the raw distribution, and of a model's only target.
ALTER TABLE counts ADD COLUMN target TEXT NOT NULL DEFAULT '';
ALTER TABLE counts ALTER COLUMN target DROP DEFAULT;
ALTER TABLE counts DROP CONSTRAINT counts_pkey;
ALTER TABLE counts ADD PRIMARY KEY (pipeline, kind, version, target);
