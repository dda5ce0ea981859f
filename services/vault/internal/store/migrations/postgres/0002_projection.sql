-- What the registry wants, as far as the vault has been told: projection says up to which revision, the others hold what
-- was true then. Rows are removed when the registry says that the resource is gone.
CREATE TABLE projection (
  singleton     BIGINT PRIMARY KEY CHECK (singleton = 1),
  incarnation   TEXT   NOT NULL,
  revision      BIGINT NOT NULL,
  cursor        TEXT   NOT NULL,
  bookmark_time BIGINT NOT NULL
);

CREATE TABLE integrations (
  uid                     TEXT PRIMARY KEY,
  name                    TEXT   NOT NULL,
  shard                   BIGINT NOT NULL,
  display_name            TEXT   NOT NULL,
  tenant_id               TEXT   NOT NULL,
  cloud                   TEXT   NOT NULL,
  default_subscription_id TEXT   NOT NULL,
  allowed_audiences       TEXT   NOT NULL,
  rotation_period         BIGINT NOT NULL,
  deleting                BIGINT NOT NULL,
  revision                BIGINT NOT NULL
);
CREATE INDEX integrations_by_name ON integrations (name);
CREATE INDEX integrations_by_shard ON integrations (shard, uid);

CREATE TABLE projects (
  uid      TEXT PRIMARY KEY,
  name     TEXT   NOT NULL,
  revision BIGINT NOT NULL
);

CREATE TABLE attachments (
  uid             TEXT PRIMARY KEY,
  integration_uid TEXT   NOT NULL,
  project_uid     TEXT   NOT NULL,
  reads           BIGINT NOT NULL,
  writes          BIGINT NOT NULL,
  subscription_id TEXT   NOT NULL,
  revision        BIGINT NOT NULL
);
CREATE INDEX attachments_by_project ON attachments (project_uid, integration_uid);
CREATE INDEX attachments_by_integration ON attachments (integration_uid);
