-- Since when what is to be done next about an application waits for Graph's budget; 0 while nothing does. next_time is when to ask again, and goes on.
ALTER TABLE applications ADD COLUMN due_time BIGINT NOT NULL DEFAULT 0;
CREATE INDEX applications_waiting ON applications (shard, due_time) WHERE due_time > 0;
-- 1 while the registry does not list the integration, as its master found when it last looked, and nothing is done about it.
ALTER TABLE applications ADD COLUMN unlisted BIGINT NOT NULL DEFAULT 0;
CREATE INDEX applications_unlisted ON applications (shard) WHERE unlisted = 1;
-- How many had consent and have lost it is measured too.
CREATE INDEX applications_consent_lost ON applications (shard) WHERE consented = 0 AND consent_time > 0;
