-- Rotations that somebody asked for. Any replica takes a request, under the lock of the application's row; how far it is, the
-- shard's master writes. Times are 0 while they have not come.
CREATE TABLE rotations (
	id              TEXT   NOT NULL PRIMARY KEY,
	integration_uid TEXT   NOT NULL,
	reason          TEXT   NOT NULL CHECK (reason IN ('SCHEDULED', 'COMPROMISED')),
	immediately     BIGINT NOT NULL,
	up_to           BIGINT NOT NULL, -- the number of the newest version that is to be replaced
	batch_id        TEXT   NOT NULL, -- '' when it was asked for by itself
	creator         TEXT   NOT NULL, -- who asked
	state           TEXT   NOT NULL CHECK (state IN ('PENDING', 'PROPAGATING', 'ACTIVATED', 'COMPLETED', 'ABANDONED')),
	state_reason    TEXT   NOT NULL,
	new_number      BIGINT NOT NULL, -- of the version that replaces; 0 while there is none
	create_time     BIGINT NOT NULL,
	activate_time   BIGINT NOT NULL,
	remove_time     BIGINT NOT NULL,
	end_time        BIGINT NOT NULL
);
CREATE UNIQUE INDEX rotations_by_integration ON rotations (integration_uid, id);
CREATE UNIQUE INDEX rotations_one_begun ON rotations (integration_uid) WHERE state IN ('PENDING', 'PROPAGATING');
CREATE INDEX rotations_open ON rotations (integration_uid) WHERE end_time = 0;
CREATE INDEX rotations_compromised ON rotations (integration_uid, up_to) WHERE reason = 'COMPROMISED';
CREATE INDEX rotations_by_batch ON rotations (batch_id, integration_uid) WHERE batch_id <> '';

-- What a request made or found, so that its repeat finds the same. Forgotten after a day.
CREATE TABLE rotation_requests (
	scope       TEXT   NOT NULL, -- the resource name that it named
	request_id  TEXT   NOT NULL,
	contents    TEXT   NOT NULL,
	result      TEXT   NOT NULL, -- a rotation's ID, or a batch's
	create_time BIGINT NOT NULL,
	PRIMARY KEY (scope, request_id)
);
CREATE INDEX rotation_requests_by_time ON rotation_requests (create_time);

-- Until when nothing is rotated by schedule in an integration, an account (both by resource name), or everywhere ('accounts/-').
CREATE TABLE rotation_pauses (
	scope       TEXT   NOT NULL PRIMARY KEY,
	reason      TEXT   NOT NULL,
	creator     TEXT   NOT NULL,
	create_time BIGINT NOT NULL,
	expire_time BIGINT NOT NULL
);

-- Requests to rotate everything of an account, or everything. The masters make rotations of them, a few at a time.
CREATE TABLE rotation_batches (
	id          TEXT   NOT NULL PRIMARY KEY,
	scope       TEXT   NOT NULL, -- as in rotation_pauses
	reason      TEXT   NOT NULL CHECK (reason IN ('SCHEDULED', 'COMPROMISED')),
	tenant_id   TEXT   NOT NULL, -- '' for any
	cloud       TEXT   NOT NULL, -- '' for any
	creator     TEXT   NOT NULL,
	total       BIGINT NOT NULL, -- how many integrations there were
	create_time BIGINT NOT NULL,
	end_time    BIGINT NOT NULL
);
CREATE INDEX rotation_batches_open ON rotation_batches (id) WHERE end_time = 0;
