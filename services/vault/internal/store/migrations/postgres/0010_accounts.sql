-- Accounts by whose grants nothing is delivered. One that is not here is not frozen.
CREATE TABLE frozen_accounts (
	account     TEXT   NOT NULL PRIMARY KEY,
	reason      TEXT   NOT NULL,
	freeze_time BIGINT NOT NULL
);

-- Set for a change of a whole account.
ALTER TABLE changes ADD COLUMN account TEXT NOT NULL DEFAULT '';

-- How much was delivered, by hours since 1970: for people, and about right. What was delivered, exactly, is in audit_events.
CREATE TABLE delivery_counts (
	account    TEXT   NOT NULL,
	hour       BIGINT NOT NULL,
	deliveries BIGINT NOT NULL,
	PRIMARY KEY (account, hour)
);
CREATE INDEX delivery_counts_by_hour ON delivery_counts (hour);
