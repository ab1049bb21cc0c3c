-- JSON: what each target chose from each pool, in turn; null where neither quotas nor several targets divided the window.
ALTER TABLE windows ADD COLUMN turns TEXT;
-- JSON: KL reduction and diagnostics of each of several targets; null of one.
ALTER TABLE windows ADD COLUMN targets TEXT;
