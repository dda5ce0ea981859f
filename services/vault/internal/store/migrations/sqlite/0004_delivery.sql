-- Permissions of runs. The token itself is nowhere, only its SHA-256.
CREATE TABLE grants (
	uid                TEXT   NOT NULL PRIMARY KEY,
	account            TEXT   NOT NULL,
	project            TEXT   NOT NULL,
	project_uid        TEXT   NOT NULL,
	phase              TEXT   NOT NULL,
	access             TEXT   NOT NULL CHECK (access IN ('READ', 'WRITE')),
	run                TEXT   NOT NULL,
	integration        TEXT   NOT NULL,
	integration_uid    TEXT   NOT NULL,
	subscription_id    TEXT   NOT NULL,
	incarnation        TEXT   NOT NULL, -- of the registry's database, at which it was resolved
	revision           BIGINT NOT NULL,
	certificate_sha256 TEXT   NOT NULL, -- '' means any
	token_hash         BLOB   NOT NULL,
	request_id         TEXT,            -- forgotten after a day
	request_hash       BLOB  ,          -- of the request's contents
	create_time        BIGINT NOT NULL,
	expire_time        BIGINT NOT NULL,
	revoke_time        BIGINT NOT NULL, -- 0 means not revoked
	use_time           BIGINT NOT NULL, -- when its token was first shown; 0 means never
	turn               BIGINT NOT NULL  -- written first by every transaction that delivers by the grant or changes it: they take turns
);
CREATE UNIQUE INDEX grants_by_token ON grants (token_hash);
CREATE UNIQUE INDEX grants_by_request ON grants (account, request_id);
CREATE UNIQUE INDEX grants_by_account ON grants (account, uid);

-- Deliveries to one runner instance, of which a grant has four at most.
CREATE TABLE leases (
	uid          TEXT   NOT NULL PRIMARY KEY,
	grant_uid    TEXT   NOT NULL REFERENCES grants (uid),
	instance_id  TEXT   NOT NULL,
	generation   BIGINT NOT NULL,
	open_time    BIGINT NOT NULL,
	deliver_time BIGINT NOT NULL,
	close_time   BIGINT NOT NULL -- 0 means open
);
CREATE UNIQUE INDEX leases_by_instance ON leases (grant_uid, instance_id);
CREATE INDEX leases_open ON leases (grant_uid) WHERE close_time = 0;

-- What happened, by which replica's process (the writer) it was recorded, without gaps in each writer's numbers.
CREATE TABLE audit_writers (
	writer TEXT   NOT NULL PRIMARY KEY,
	seq    BIGINT NOT NULL
);
CREATE TABLE audit_events (
	writer            TEXT   NOT NULL,
	seq               BIGINT NOT NULL,
	time              BIGINT NOT NULL,
	kind              TEXT   NOT NULL,
	actor             TEXT   NOT NULL, -- the caller's identity; '' for a runner without one
	request_id        TEXT   NOT NULL, -- of the call
	account           TEXT   NOT NULL,
	grant_uid         TEXT   NOT NULL,
	lease_uid         TEXT   NOT NULL,
	instance_id       TEXT   NOT NULL,
	generation        BIGINT NOT NULL,
	integration_uid   TEXT   NOT NULL,
	project_uid       TEXT   NOT NULL,
	version_id        TEXT   NOT NULL,
	reason            TEXT   NOT NULL,
	audience          TEXT   NOT NULL,
	client_request_id TEXT   NOT NULL, -- of the token request, as the customer's sign-in log has it
	expire_time       BIGINT NOT NULL, -- of what was delivered, or the grant's end
	PRIMARY KEY (writer, seq)
);
CREATE INDEX audit_events_by_grant ON audit_events (grant_uid, time);

-- What streams must hear of. The counter is written last in each transaction, so numbers become visible in order, without gaps.
CREATE TABLE change_counter (
	id  BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
	seq BIGINT NOT NULL
);
INSERT INTO change_counter (id, seq) VALUES (1, 0);
CREATE TABLE changes (
	seq             BIGINT NOT NULL PRIMARY KEY,
	integration_uid TEXT   NOT NULL,
	grant_uid       TEXT   NOT NULL,
	time            BIGINT NOT NULL
);
