-- A session's link now leads to a page of the broker's own, which shows what it can from the session alone.
DROP INDEX consent_sessions_state_hash;
ALTER TABLE consent_sessions RENAME COLUMN state_hash TO link_hash; -- SHA-256 of the page's link
CREATE UNIQUE INDEX consent_sessions_link_hash ON consent_sessions (link_hash);
ALTER TABLE consent_sessions ADD COLUMN display_name     TEXT   NOT NULL DEFAULT '';
ALTER TABLE consent_sessions ADD COLUMN subscription_id  TEXT   NOT NULL DEFAULT '';
ALTER TABLE consent_sessions ADD COLUMN application_name TEXT   NOT NULL DEFAULT '';
ALTER TABLE consent_sessions ADD COLUMN return_uri       TEXT   NOT NULL DEFAULT '';
ALTER TABLE consent_sessions ADD COLUMN last_callback    TEXT   NOT NULL DEFAULT '';
ALTER TABLE consent_sessions ADD COLUMN callback_time    BIGINT NOT NULL DEFAULT 0; -- 0: none

-- What was sent out before has no page: its hash is of something else. The deadline is moved, so that the next round ends it.
UPDATE consent_sessions SET expire_time = create_time WHERE end_time = 0;

-- Presses of the page's button: browsers on their way through Entra ID.
CREATE TABLE consent_attempts (
	id           TEXT   NOT NULL PRIMARY KEY, -- public: in the name of the browser's cookie
	account      TEXT   NOT NULL,
	session_id   TEXT   NOT NULL,
	state_hash   BYTEA  NOT NULL, -- SHA-256 of what goes through Entra ID
	browser_hash BYTEA  NOT NULL, -- SHA-256 of what stays in the browser
	create_time  BIGINT NOT NULL,
	expire_time  BIGINT NOT NULL,
	use_time     BIGINT NOT NULL, -- 0: unused
	FOREIGN KEY (account, session_id) REFERENCES consent_sessions (account, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX consent_attempts_state_hash ON consent_attempts (state_hash);
CREATE INDEX consent_attempts_session ON consent_attempts (account, session_id, create_time);
CREATE INDEX consent_attempts_expire_time ON consent_attempts (expire_time);
