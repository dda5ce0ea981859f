-- Why a version's password that is to go could not be removed when that was last tried: a rotation says so. '' when nothing is known against it.
ALTER TABLE credential_versions ADD COLUMN remove_code TEXT NOT NULL DEFAULT '';
