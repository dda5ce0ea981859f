-- The integration's name, which never changes: so that the first by name of those that a label attaches is found without reading the others.
ALTER TABLE auto_labels ADD COLUMN integration_name TEXT NOT NULL DEFAULT '';
UPDATE auto_labels SET integration_name = (SELECT name FROM integrations WHERE uid = integration_uid);
CREATE INDEX auto_labels_by_name ON auto_labels (account, label, integration_name);
DROP INDEX auto_labels_by_label;
