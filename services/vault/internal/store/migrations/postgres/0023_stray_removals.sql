-- How often the removal of a password that nobody can use failed in a row, and when it is tried again.
ALTER TABLE stray_passwords ADD COLUMN attempts  BIGINT NOT NULL DEFAULT 0;
ALTER TABLE stray_passwords ADD COLUMN next_time BIGINT NOT NULL DEFAULT 0;
