-- JSON like allowed_audiences. What was there before, and what a release that does not know the column adds, names none,
-- which allows access tokens alone.
ALTER TABLE integrations ADD COLUMN delivery_materials TEXT NOT NULL DEFAULT 'null';
