-- Records of credentials that went to very many leases at once, each as one row, until it has been written to audit_events as the rows that it stands for.
CREATE TABLE audit_fanouts (
	writer  TEXT   NOT NULL,
	seq     BIGINT NOT NULL,
	hash    TEXT   NOT NULL,
	mac     TEXT   NOT NULL,
	key_id  BIGINT NOT NULL,
	content BYTEA  NOT NULL, -- what is hashed
	PRIMARY KEY (writer, seq)
);
-- It is there for seconds: to compress it would cost more than to write it.
ALTER TABLE audit_fanouts ALTER COLUMN content SET STORAGE EXTERNAL;

-- Every delivery writes its lease's row. Where its page has room for another version of it, no index has to be written.
ALTER TABLE leases SET (fillfactor = 50);
