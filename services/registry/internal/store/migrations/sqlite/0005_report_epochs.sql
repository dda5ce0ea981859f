-- The newest mastership that has reported on the integration, as in report_fences; 0 before the first.
ALTER TABLE integrations ADD COLUMN report_epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE integrations ADD COLUMN report_holder TEXT NOT NULL DEFAULT '';
