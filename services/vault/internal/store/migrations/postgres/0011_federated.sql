-- How an integration's application proves who it is. With the cursor forgotten the registry is listed anew, for what is here was copied without it.
ALTER TABLE integrations ADD COLUMN credential_kind TEXT NOT NULL DEFAULT 'CLIENT_SECRET';
UPDATE projection SET cursor = '';

-- For which federated credentials the digest stands that the application was found to have, and when; and when giving it some was last tried.
ALTER TABLE applications ADD COLUMN trust_digest TEXT NOT NULL DEFAULT '';
ALTER TABLE applications ADD COLUMN trust_time BIGINT NOT NULL DEFAULT 0;
ALTER TABLE applications ADD COLUMN trust_send_time BIGINT NOT NULL DEFAULT 0;
