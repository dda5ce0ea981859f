-- Whose attempts they are, so that one source does not use up another's.
ALTER TABLE consent_attempts ADD COLUMN source BLOB NOT NULL DEFAULT x''; -- HMAC of the browser's address; empty: not known
