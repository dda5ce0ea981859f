-- Attempts to get an administrator to consent. Ended ones are kept for a while.
CREATE TABLE consent_sessions (
	account                     TEXT    NOT NULL,
	id                          TEXT    NOT NULL,
	integration                 TEXT    NOT NULL,
	integration_uid             TEXT    NOT NULL,
	tenant_id                   TEXT    NOT NULL,
	cloud                       TEXT    NOT NULL,
	client_id                   TEXT    NOT NULL,
	state                       INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
	service_principal_object_id TEXT    NOT NULL,
	last_refusal                TEXT    NOT NULL,
	nonce                       BYTEA   NOT NULL,
	state_hash                  BYTEA   NOT NULL, -- SHA-256 of the link's state
	version                     BIGINT  NOT NULL,
	create_time                 BIGINT  NOT NULL,
	expire_time                 BIGINT  NOT NULL,
	end_time                    BIGINT  NOT NULL, -- 0 while open
	PRIMARY KEY (account, id)
);
CREATE UNIQUE INDEX consent_sessions_state_hash ON consent_sessions (state_hash);
CREATE INDEX consent_sessions_open ON consent_sessions (integration_uid) WHERE end_time = 0;
CREATE INDEX consent_sessions_ended ON consent_sessions (end_time) WHERE end_time > 0;

-- Integrations that sessions wait for. A row is what every transaction about its integration writes first.
CREATE TABLE targets (
	integration_uid TEXT    NOT NULL PRIMARY KEY,
	integration     TEXT    NOT NULL,
	due_time        BIGINT  NOT NULL, -- 0: nothing to do
	look_time       BIGINT  NOT NULL,
	probe_time      BIGINT  NOT NULL,
	failures        INTEGER NOT NULL,
	claim           TEXT    NOT NULL, -- empty: nobody's
	claim_until     BIGINT  NOT NULL
);
CREATE INDEX targets_due ON targets (due_time) WHERE due_time > 0;

-- What callers' request IDs created, for a day.
CREATE TABLE requests (
	account     TEXT   NOT NULL,
	request_id  TEXT   NOT NULL,
	fingerprint BYTEA  NOT NULL, -- SHA-256 of what was asked for
	session_id  TEXT   NOT NULL,
	expire_time BIGINT NOT NULL,
	PRIMARY KEY (account, request_id)
);
CREATE INDEX requests_expire_time ON requests (expire_time);

-- Which key makes the states of links: one row.
CREATE TABLE state_key (
	id          INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
	fingerprint BYTEA   NOT NULL
);
