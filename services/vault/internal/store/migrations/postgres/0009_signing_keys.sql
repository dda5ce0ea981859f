-- The keys by which the vault signs assertions, as an OpenID issuer. Written by shard 0's master under its fence; a compromised one is removed by
-- any replica. Times are 0 while they have not come.
CREATE TABLE signing_keys (
	id           TEXT   NOT NULL PRIMARY KEY, -- kid
	number       BIGINT NOT NULL UNIQUE,
	state        TEXT   NOT NULL CHECK (state IN ('PUBLISHED', 'SIGNING', 'RETIRED', 'REMOVED')),
	public       BYTEA  NOT NULL,
	sealed       BYTEA, -- the private half, encrypted; absent once it is REMOVED
	publish_time BIGINT NOT NULL,
	sign_time    BIGINT NOT NULL,
	replace_time BIGINT NOT NULL,
	retire_time  BIGINT NOT NULL,
	remove_time  BIGINT NOT NULL,
	reason       TEXT   NOT NULL,
	uses         BIGINT NOT NULL DEFAULT 0 -- written by whoever makes a version under it, and by whoever looks whether there is one: they take turns
);
CREATE UNIQUE INDEX signing_keys_one_published ON signing_keys (state) WHERE state = 'PUBLISHED';

-- Under which signing key a federated version is; empty for a client secret.
ALTER TABLE credential_versions ADD COLUMN signing_key TEXT NOT NULL DEFAULT '';
CREATE INDEX credential_versions_by_signing_key ON credential_versions (signing_key, state) WHERE signing_key <> '';
