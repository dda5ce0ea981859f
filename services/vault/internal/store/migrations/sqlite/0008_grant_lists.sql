-- Which grants a run has, and which of an account's are live: for lists, and for revoking many.
CREATE INDEX grants_by_run ON grants (account, run);
CREATE INDEX grants_live ON grants (account, expire_time) WHERE revoke_time = 0;
