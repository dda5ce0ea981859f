-- How consent stands, as last looked at: since when, and why it does not hold though it did before.
ALTER TABLE consent_sessions ADD COLUMN standing_time BIGINT NOT NULL DEFAULT 0; -- 0: not known
ALTER TABLE consent_sessions ADD COLUMN loss          TEXT   NOT NULL DEFAULT ''; -- empty: it holds, or never did
