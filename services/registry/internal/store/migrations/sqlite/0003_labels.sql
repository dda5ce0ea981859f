-- JSON like allowed_audiences.
ALTER TABLE integrations ADD COLUMN labels TEXT NOT NULL DEFAULT 'null';
ALTER TABLE integrations ADD COLUMN auto_attach BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE projects ADD COLUMN labels TEXT NOT NULL DEFAULT 'null';

-- Which labels attach an integration by itself: those of its labels that say so, while it may be attached. They go with the
-- integration, also when a release removes it that does not know of them.
CREATE TABLE auto_labels (
    integration_uid TEXT NOT NULL REFERENCES integrations (uid) ON DELETE CASCADE,
    account         TEXT NOT NULL,
    label           TEXT NOT NULL,
    PRIMARY KEY (integration_uid, label)
);

CREATE INDEX auto_labels_by_label ON auto_labels (account, label);

CREATE TABLE project_labels (
    project_uid TEXT NOT NULL REFERENCES projects (uid) ON DELETE CASCADE,
    account     TEXT NOT NULL,
    label       TEXT NOT NULL,
    PRIMARY KEY (project_uid, label)
);

CREATE INDEX project_labels_by_label ON project_labels (account, label);
