-- How a shard stands is measured every minute, by what stands out and not by all there is: which secret has been ACTIVE for longest,
-- which are past two thirds of their lives, and which applications have credentials that nobody here made.
CREATE INDEX credential_versions_active_since ON credential_versions (activate_time) WHERE state = 'ACTIVE' AND end_time > 0;
CREATE INDEX credential_versions_to_renew ON credential_versions (end_time - (end_time - start_time) / 3) WHERE state = 'ACTIVE' AND end_time > 0;
CREATE INDEX applications_foreign ON applications (shard) WHERE foreign_passwords + foreign_trusts > 0;
