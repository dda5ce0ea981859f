-- Records of credentials that went to very many leases at once, each as one row, until it has been written to audit_events as the rows that it stands for.
CREATE TABLE audit_fanouts (
	writer  TEXT    NOT NULL,
	seq     INTEGER NOT NULL,
	hash    TEXT    NOT NULL,
	mac     TEXT    NOT NULL,
	key_id  INTEGER NOT NULL,
	content BLOB    NOT NULL, -- what is hashed
	PRIMARY KEY (writer, seq)
);
