-- By which labels integrations are attached to projects by themselves. A row's labels are here if its labels_revision is its
-- revision. A release that does not know of labels leaves it behind: then they count as unknown, and all is listed anew.
ALTER TABLE integrations ADD COLUMN labels_revision BIGINT NOT NULL DEFAULT -1;
ALTER TABLE projects ADD COLUMN labels_revision BIGINT NOT NULL DEFAULT -1;
CREATE INDEX integrations_unlabelled ON integrations (uid) WHERE labels_revision <> revision;
CREATE INDEX projects_unlabelled ON projects (uid) WHERE labels_revision <> revision;

CREATE TABLE auto_labels (
	integration_uid TEXT NOT NULL REFERENCES integrations (uid) ON DELETE CASCADE,
	label           TEXT NOT NULL,
	PRIMARY KEY (integration_uid, label)
);
CREATE TABLE project_labels (
	project_uid TEXT NOT NULL REFERENCES projects (uid) ON DELETE CASCADE,
	label       TEXT NOT NULL,
	PRIMARY KEY (project_uid, label)
);

-- Whose streams must hear of a project.
CREATE INDEX grants_by_project ON grants (project_uid, expire_time);
