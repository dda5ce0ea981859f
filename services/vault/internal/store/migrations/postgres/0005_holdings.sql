-- In which forms runners may be given the credential, as JSON; [] means ACCESS_TOKEN alone. With the cursor forgotten the registry
-- is listed anew, for what is here was copied without them.
ALTER TABLE integrations ADD COLUMN delivery_materials TEXT NOT NULL DEFAULT '[]';
UPDATE projection SET cursor = '';

-- In which form a credential was delivered.
ALTER TABLE audit_events ADD COLUMN material TEXT NOT NULL DEFAULT '';

-- Which lease was given the secret of which version, and may still use it. credential_versions.holders counts each version's rows;
-- both are written in one transaction, which has the grant's row. A grant ends at expire_time and must not be extended
-- beyond latest_time.
CREATE TABLE holdings (
	lease_uid   TEXT   NOT NULL REFERENCES leases (uid),
	version_id  TEXT   NOT NULL REFERENCES credential_versions (id),
	grant_uid   TEXT   NOT NULL,
	latest_time BIGINT NOT NULL,
	expire_time BIGINT NOT NULL,
	PRIMARY KEY (lease_uid, version_id)
);
CREATE INDEX holdings_by_grant ON holdings (grant_uid);
CREATE INDEX holdings_by_version ON holdings (version_id);
CREATE INDEX holdings_by_end ON holdings (expire_time);
CREATE INDEX grants_by_integration ON grants (integration_uid, expire_time);

-- When an integration that is being deleted had its leases ended; how often in a row its application was not found when it was
-- to be deleted or purged, and when last.
ALTER TABLE applications ADD COLUMN lease_end_time BIGINT NOT NULL DEFAULT 0;
ALTER TABLE applications ADD COLUMN absences BIGINT NOT NULL DEFAULT 0;
ALTER TABLE applications ADD COLUMN absence_time BIGINT NOT NULL DEFAULT 0;
