-- Records in chains: a writer's row has the hash of its newest record, and each record its own, with a MAC over it by a key of the data key
-- key_id. Those of before have none. A record of a credential that went to many leases at once is several rows of one number, by place; the first
-- of them has hash and MAC.
ALTER TABLE audit_writers ADD COLUMN hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_writers ADD COLUMN time BIGINT NOT NULL DEFAULT 0; -- of the newest record

ALTER TABLE audit_events ADD COLUMN place BIGINT NOT NULL DEFAULT 0;
ALTER TABLE audit_events ADD COLUMN run TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN integration TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN hash TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN mac TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN key_id BIGINT NOT NULL DEFAULT 0;
ALTER TABLE audit_events DROP CONSTRAINT audit_events_pkey;
ALTER TABLE audit_events ADD PRIMARY KEY (writer, seq, place);
CREATE INDEX audit_events_by_time ON audit_events (time, writer, seq, place);
CREATE INDEX audit_events_by_account ON audit_events (account, time, writer, seq, place);

-- Signed statements of how long the chains are, and, by those, from where the next one goes on.
CREATE TABLE audit_checkpoints (
	number    BIGINT NOT NULL PRIMARY KEY,
	time      BIGINT NOT NULL,
	complete  BIGINT NOT NULL, -- 1: names all chains
	key_id    BIGINT NOT NULL, -- of the data key that its key is derived from
	next_id   BIGINT NOT NULL, -- of the one that the next is signed by
	payload   BYTEA  NOT NULL,
	signature BYTEA  NOT NULL
);
CREATE INDEX audit_checkpoints_complete ON audit_checkpoints (time) WHERE complete = 1;
CREATE TABLE audit_heads (
	writer TEXT   NOT NULL PRIMARY KEY,
	seq    BIGINT NOT NULL,
	hash   TEXT   NOT NULL
);
