-- Whether deny assignments take away from what the principal's roles give, or may.
ALTER TABLE permission_checks ADD COLUMN denied BIGINT NOT NULL DEFAULT 0;
