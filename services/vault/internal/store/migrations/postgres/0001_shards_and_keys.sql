-- How many shards the integrations are divided into: one row, written once.
CREATE TABLE shard_counts (
	id     BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
	shards BIGINT NOT NULL CHECK (shards > 0)
);

-- Who is master of each shard. Every transaction of a master begins by writing to its row, so a former master is refused.
CREATE TABLE shards (
	shard  BIGINT NOT NULL PRIMARY KEY,
	epoch  BIGINT NOT NULL,
	holder TEXT   NOT NULL,
	writes BIGINT NOT NULL
);

-- The data keys of the keyring, each encrypted by the key-encryption key. Nothing is ever deleted here: what was sealed by a key opens only with it.
CREATE TABLE data_keys (
	id          BIGINT NOT NULL PRIMARY KEY,
	wrapped     BYTEA  NOT NULL,
	create_time BIGINT NOT NULL
);
