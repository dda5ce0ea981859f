-- When this database was brought back from a backup, each time: what Entra has from before may be used by somebody whom it does not know.
CREATE TABLE recoveries (
	number BIGINT NOT NULL PRIMARY KEY,
	time   BIGINT NOT NULL
);

-- Which recovery was the last when a version was intended.
ALTER TABLE credential_versions ADD COLUMN recovery BIGINT NOT NULL DEFAULT 0;

-- When Entra made the password; 0 where it was not asked.
ALTER TABLE stray_passwords ADD COLUMN start_time BIGINT NOT NULL DEFAULT 0;
