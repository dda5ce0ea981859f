-- What is known of each integration's application at Entra, and when it has to be looked at next. Written by the shard's
-- master, under the fence; others only bring next_time forward, and count that in touches. Times are 0 while they have not come.
CREATE TABLE applications (
	integration_uid       TEXT   NOT NULL PRIMARY KEY,
	shard                 BIGINT NOT NULL,
	revision              BIGINT NOT NULL DEFAULT 0, -- of the integration, as last adopted
	next_time             BIGINT NOT NULL,
	touches               BIGINT NOT NULL DEFAULT 0,
	object_id             TEXT   NOT NULL DEFAULT '',
	client_id             TEXT   NOT NULL DEFAULT '',
	display_name          TEXT   NOT NULL DEFAULT '',
	spec_digest           TEXT   NOT NULL DEFAULT '',
	ensure_send_time      BIGINT NOT NULL DEFAULT 0,
	ensure_time           BIGINT NOT NULL DEFAULT 0,
	read_time             BIGINT NOT NULL DEFAULT 0,
	write_time            BIGINT NOT NULL DEFAULT 0,
	foreign_passwords     BIGINT NOT NULL DEFAULT 0,
	missing_reads         BIGINT NOT NULL DEFAULT 0,
	missing_time          BIGINT NOT NULL DEFAULT 0,
	home_proofs           BIGINT NOT NULL DEFAULT 0,
	home_time             BIGINT NOT NULL DEFAULT 0,
	ready_time            BIGINT NOT NULL DEFAULT 0,
	consented             BIGINT NOT NULL DEFAULT 0,
	consent_time          BIGINT NOT NULL DEFAULT 0,
	activate_time         BIGINT NOT NULL DEFAULT 0,
	principal_object_id   TEXT   NOT NULL DEFAULT '',
	observe_time          BIGINT NOT NULL DEFAULT 0,
	seen_probe_time       BIGINT NOT NULL DEFAULT 0,
	seen_want_time        BIGINT NOT NULL DEFAULT 0,
	consent_refusals      BIGINT NOT NULL DEFAULT 0,
	consent_refused_since BIGINT NOT NULL DEFAULT 0,
	consent_code          TEXT   NOT NULL DEFAULT '',
	failures              BIGINT NOT NULL DEFAULT 0,
	failure_code          TEXT   NOT NULL DEFAULT '',
	retry_time            BIGINT NOT NULL DEFAULT 0,
	add_failures          BIGINT NOT NULL DEFAULT 0,
	add_code              TEXT   NOT NULL DEFAULT '',
	add_retry_time        BIGINT NOT NULL DEFAULT 0,
	life_limit            BIGINT NOT NULL DEFAULT 0, -- microseconds
	delete_time           BIGINT NOT NULL DEFAULT 0,
	purge_time            BIGINT NOT NULL DEFAULT 0,
	forget_time           BIGINT NOT NULL DEFAULT 0,
	report_digest         TEXT   NOT NULL DEFAULT '',
	report_time           BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX applications_due ON applications (shard, next_time);
CREATE INDEX applications_forgotten ON applications (shard) WHERE forget_time > 0;
CREATE INDEX integrations_by_revision ON integrations (shard, revision);

-- The client secrets of each integration, through their lives. Only holders is written by others than the master, and only
-- while the version is ACTIVE (raised) or whenever (lowered).
CREATE TABLE credential_versions (
	id              TEXT   NOT NULL PRIMARY KEY,
	integration_uid TEXT   NOT NULL,
	number          BIGINT NOT NULL,
	state           TEXT   NOT NULL CHECK (state IN
		('INTENDED', 'STAGED', 'PROPAGATING', 'ACTIVE', 'RETIRING', 'REVOKING', 'REVOKED', 'ABANDONED')),
	name            TEXT   NOT NULL,
	key_id          TEXT   NOT NULL,
	sealed          BYTEA, -- the secret's text, encrypted; absent when there is none
	intend_time     BIGINT NOT NULL,
	send_time       BIGINT NOT NULL,
	add_time        BIGINT NOT NULL,
	start_time      BIGINT NOT NULL,
	end_time        BIGINT NOT NULL,
	propagate_time  BIGINT NOT NULL,
	prove_time      BIGINT NOT NULL,
	activate_time   BIGINT NOT NULL,
	retire_time     BIGINT NOT NULL,
	revoke_time     BIGINT NOT NULL,
	remove_time     BIGINT NOT NULL,
	proofs          BIGINT NOT NULL,
	probe_time      BIGINT NOT NULL,
	refusals        BIGINT NOT NULL,
	refused_since   BIGINT NOT NULL,
	attempts        BIGINT NOT NULL,
	next_time       BIGINT NOT NULL,
	holders         BIGINT NOT NULL DEFAULT 0 CHECK (holders >= 0),
	reason          TEXT   NOT NULL
);
CREATE UNIQUE INDEX credential_versions_one_active ON credential_versions (integration_uid) WHERE state = 'ACTIVE';
CREATE UNIQUE INDEX credential_versions_by_number ON credential_versions (integration_uid, number);

-- Passwords at Entra that bear this deployment's name and that nobody here can use.
CREATE TABLE stray_passwords (
	integration_uid TEXT   NOT NULL,
	key_id          TEXT   NOT NULL,
	name            TEXT   NOT NULL,
	first_time      BIGINT NOT NULL,
	last_time       BIGINT NOT NULL,
	PRIMARY KEY (integration_uid, key_id)
);

-- What the customer's tenant last said when it was asked for a token, whichever replica asked. claim_time and busy_until keep
-- it to one at a time; want_time is when somebody had reason to have it asked again.
CREATE TABLE consent_probes (
	integration_uid     TEXT   NOT NULL PRIMARY KEY,
	claim_time          BIGINT NOT NULL DEFAULT 0,
	busy_until          BIGINT NOT NULL DEFAULT 0,
	want_time           BIGINT NOT NULL DEFAULT 0,
	time                BIGINT NOT NULL DEFAULT 0,
	version_id          TEXT   NOT NULL DEFAULT '',
	finding             TEXT   NOT NULL DEFAULT '',
	code                TEXT   NOT NULL DEFAULT '',
	principal_object_id TEXT   NOT NULL DEFAULT ''
);
