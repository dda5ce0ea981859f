-- Which Azure roles were last seen, of sessions that are completed: how much of reading and of changing things they give.
ALTER TABLE consent_sessions ADD COLUMN read_level  TEXT NOT NULL DEFAULT ''; -- empty: not looked at
ALTER TABLE consent_sessions ADD COLUMN write_level TEXT NOT NULL DEFAULT '';
