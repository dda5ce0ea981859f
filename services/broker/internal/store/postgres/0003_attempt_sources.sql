-- Whose attempts they are, so that one source does not use up another's.
ALTER TABLE consent_attempts ADD COLUMN source BYTEA NOT NULL DEFAULT ''; -- HMAC of the browser's address; empty: not known
