-- Why no password can be made until people mend it, beside add_code, which says as much of what passes by itself.
ALTER TABLE applications ADD COLUMN add_refusal TEXT NOT NULL DEFAULT '';
