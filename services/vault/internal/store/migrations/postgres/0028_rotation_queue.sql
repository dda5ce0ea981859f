-- What a batch has yet to begin with: a row for each integration that had something to replace when it was asked for, removed once
-- there is a rotation of it or nothing to replace any more. The shard's master takes the next few, the longest due first.
CREATE TABLE rotation_queue (
	batch_id        TEXT   NOT NULL,
	integration_uid TEXT   NOT NULL,
	shard           BIGINT NOT NULL,
	up_to           BIGINT NOT NULL, -- the number of the newest version that is to be replaced
	next_time       BIGINT NOT NULL, -- when it is to be looked at next
	PRIMARY KEY (batch_id, integration_uid)
);
CREATE INDEX rotation_queue_due ON rotation_queue (batch_id, shard, next_time);

-- Of a batch that the previous release took on nothing is queued: the first master that finds it does that.
ALTER TABLE rotation_batches ADD COLUMN queued BIGINT NOT NULL DEFAULT 0;

-- How far a batch is, which has ended rotations by the ten thousand, is counted in the index.
DROP INDEX rotations_by_batch;
CREATE INDEX rotations_by_batch ON rotations (batch_id, state, state_reason, create_time) WHERE batch_id <> '';
