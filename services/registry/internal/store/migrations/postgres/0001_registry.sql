CREATE TABLE registry (
    id          BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    incarnation TEXT   NOT NULL,
    revision    BIGINT NOT NULL
);

CREATE TABLE integrations (
    uid                         TEXT    NOT NULL PRIMARY KEY,
    name                        TEXT    NOT NULL UNIQUE,
    display_name                TEXT    NOT NULL,
    tenant_id                   TEXT    NOT NULL,
    cloud                       TEXT    NOT NULL,
    default_subscription_id     TEXT    NOT NULL,
    credential_kind             TEXT    NOT NULL,
    allowed_audiences           TEXT    NOT NULL,
    rotation_period             BIGINT  NOT NULL,
    application_display_name    TEXT    NOT NULL,
    client_id                   TEXT    NOT NULL,
    service_principal_object_id TEXT    NOT NULL,
    conditions                  TEXT    NOT NULL,
    ever_active                 BOOLEAN NOT NULL,
    generation                  BIGINT  NOT NULL,
    writes                      BIGINT  NOT NULL,
    create_time                 BIGINT  NOT NULL,
    update_time                 BIGINT  NOT NULL,
    delete_time                 BIGINT  NOT NULL
);

CREATE TABLE projects (
    uid          TEXT   NOT NULL PRIMARY KEY,
    name         TEXT   NOT NULL UNIQUE,
    kind         TEXT   NOT NULL,
    display_name TEXT   NOT NULL,
    generation   BIGINT NOT NULL,
    writes       BIGINT NOT NULL,
    create_time  BIGINT NOT NULL,
    update_time  BIGINT NOT NULL
);

-- reads_for and writes_for are the project's UID where the attachment is for READ or WRITE, else null: being unique, they
-- let a project have at most one attachment for each.
CREATE TABLE attachments (
    uid             TEXT   NOT NULL PRIMARY KEY,
    name            TEXT   NOT NULL UNIQUE,
    integration_uid TEXT   NOT NULL REFERENCES integrations (uid),
    project_uid     TEXT   NOT NULL REFERENCES projects (uid),
    reads_for       TEXT   UNIQUE,
    writes_for      TEXT   UNIQUE,
    subscription_id TEXT   NOT NULL,
    generation      BIGINT NOT NULL,
    writes          BIGINT NOT NULL,
    create_time     BIGINT NOT NULL,
    update_time     BIGINT NOT NULL
);

CREATE INDEX attachments_of_integration ON attachments (integration_uid);
CREATE INDEX attachments_of_project ON attachments (project_uid);

CREATE TABLE changes (
    revision    BIGINT  NOT NULL PRIMARY KEY,
    kind        TEXT    NOT NULL,
    uid         TEXT    NOT NULL,
    deleted     BOOLEAN NOT NULL,
    change_time BIGINT  NOT NULL,
    payload     TEXT    NOT NULL
);

CREATE INDEX changes_deleted ON changes (uid) WHERE deleted;

CREATE TABLE requests (
    scope       TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    digest      TEXT   NOT NULL,
    result      TEXT   NOT NULL,
    expire_time BIGINT NOT NULL,
    PRIMARY KEY (scope, request_id)
);

CREATE INDEX requests_expire_time ON requests (expire_time);

CREATE TABLE report_fences (
    shard  BIGINT NOT NULL PRIMARY KEY,
    epoch  BIGINT NOT NULL,
    holder TEXT   NOT NULL
);
