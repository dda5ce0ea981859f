-- Which passwords of versions are to go and could not be removed time and again is counted every minute, and is few of all versions.
CREATE INDEX credential_versions_to_remove ON credential_versions (attempts) WHERE state IN ('REVOKING', 'ABANDONED') AND key_id <> '' AND remove_time = 0;
