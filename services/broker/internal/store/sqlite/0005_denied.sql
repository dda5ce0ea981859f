-- Whether deny assignments take away from what the roles give, or may.
ALTER TABLE consent_sessions ADD COLUMN denied BOOLEAN NOT NULL DEFAULT FALSE;
