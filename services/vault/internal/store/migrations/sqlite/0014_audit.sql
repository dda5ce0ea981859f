-- Records in chains: a writer's row has the hash of its newest record, and each record its own, with a MAC over it by a key of the data key
-- key_id. Those of before have none. A record of a credential that went to many leases at once is several rows of one number, by place; the first
-- of them has hash and MAC.
ALTER TABLE audit_writers ADD COLUMN hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_writers ADD COLUMN time INTEGER NOT NULL DEFAULT 0; -- of the newest record

CREATE TABLE audit_events_anew (
	writer            TEXT    NOT NULL,
	seq               INTEGER NOT NULL,
	time              INTEGER NOT NULL,
	kind              TEXT    NOT NULL,
	actor             TEXT    NOT NULL, -- the caller's identity; '' for a runner without one
	request_id        TEXT    NOT NULL, -- of the call
	account           TEXT    NOT NULL,
	grant_uid         TEXT    NOT NULL,
	lease_uid         TEXT    NOT NULL,
	instance_id       TEXT    NOT NULL,
	generation        INTEGER NOT NULL,
	integration_uid   TEXT    NOT NULL,
	project_uid       TEXT    NOT NULL,
	version_id        TEXT    NOT NULL,
	reason            TEXT    NOT NULL,
	audience          TEXT    NOT NULL,
	client_request_id TEXT    NOT NULL, -- of the token request, as the customer's sign-in log has it
	expire_time       INTEGER NOT NULL, -- of what was delivered, or the grant's end
	material          TEXT    NOT NULL DEFAULT '',
	place             INTEGER NOT NULL DEFAULT 0,
	run               TEXT    NOT NULL DEFAULT '',
	integration       TEXT    NOT NULL DEFAULT '',
	project           TEXT    NOT NULL DEFAULT '',
	hash              TEXT    NOT NULL DEFAULT '',
	mac               TEXT    NOT NULL DEFAULT '',
	key_id            INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (writer, seq, place)
);
INSERT INTO audit_events_anew (writer, seq, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation,
	integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time, material)
	SELECT writer, seq, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation,
		integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time, material FROM audit_events;
DROP TABLE audit_events;
ALTER TABLE audit_events_anew RENAME TO audit_events;
CREATE INDEX audit_events_by_grant ON audit_events (grant_uid, time);
CREATE INDEX audit_events_by_time ON audit_events (time, writer, seq, place);
CREATE INDEX audit_events_by_account ON audit_events (account, time, writer, seq, place);

-- Signed statements of how long the chains are, and, by those, from where the next one goes on.
CREATE TABLE audit_checkpoints (
	number    INTEGER NOT NULL PRIMARY KEY,
	time      INTEGER NOT NULL,
	complete  INTEGER NOT NULL, -- 1: names all chains
	key_id    INTEGER NOT NULL, -- of the data key that its key is derived from
	next_id   INTEGER NOT NULL, -- of the one that the next is signed by
	payload   BLOB    NOT NULL,
	signature BLOB    NOT NULL
);
CREATE INDEX audit_checkpoints_complete ON audit_checkpoints (time) WHERE complete = 1;
CREATE TABLE audit_heads (
	writer TEXT    NOT NULL PRIMARY KEY,
	seq    INTEGER NOT NULL,
	hash   TEXT    NOT NULL
);
