-- On which timeline of its history the database was last seen, and when that last changed: what was committed shortly before may be lost.
CREATE TABLE database_timeline (
	singleton   BIGINT NOT NULL PRIMARY KEY CHECK (singleton = 1),
	timeline    TEXT   NOT NULL,
	change_time BIGINT NOT NULL DEFAULT 0
);
