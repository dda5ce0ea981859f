-- Which grants ended long ago, to be deleted.
CREATE INDEX grants_by_end ON grants (expire_time);
