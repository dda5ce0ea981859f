-- Which Azure roles an integration's principal was last seen to hold in the default subscription, and when to look again.
CREATE TABLE permission_checks (
	integration_uid     TEXT   NOT NULL PRIMARY KEY,
	next_time           BIGINT NOT NULL,
	time                BIGINT NOT NULL DEFAULT 0, -- 0: never
	subscription_id     TEXT   NOT NULL DEFAULT '',
	principal_object_id TEXT   NOT NULL DEFAULT '',
	read_level          TEXT   NOT NULL DEFAULT '',
	write_level         TEXT   NOT NULL DEFAULT ''
);
