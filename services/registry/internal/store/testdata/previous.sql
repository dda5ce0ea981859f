-- What the release before labels, automatic attachments and quotas says to the database: its statements, as they were. A replica of it goes on
-- saying them while the others are replaced, so they have to go on working. Frozen: when a release is the previous one no more, this file is made anew.

-- name: insert integration
INSERT INTO integrations (uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences,
	rotation_period, application_display_name, client_id, service_principal_object_id, conditions, ever_active, generation,
	create_time, update_time, delete_time, delivery_materials, writes)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 1)

-- name: update integration
UPDATE integrations SET display_name = $2, default_subscription_id = $3, allowed_audiences = $4,
	rotation_period = $5, application_display_name = $6, client_id = $7, service_principal_object_id = $8, conditions = $9,
	ever_active = $10, generation = $11, update_time = $12, delete_time = $13, delivery_materials = $14
	WHERE uid = $1

-- name: lock integration
UPDATE integrations SET writes = writes + 1 WHERE name = $1 RETURNING uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences,
	rotation_period, application_display_name, client_id, service_principal_object_id, conditions, ever_active, generation,
	create_time, update_time, delete_time, delivery_materials

-- name: delete integration
DELETE FROM integrations WHERE uid = $1

-- name: insert project
INSERT INTO projects (uid, name, kind, display_name, generation, create_time, update_time, writes) VALUES ($1, $2, $3, $4, $5, $6, $7, 1)

-- name: update project
UPDATE projects SET display_name = $2, generation = $3, update_time = $4 WHERE uid = $1

-- name: lock project
UPDATE projects SET writes = writes + 1 WHERE name = $1 RETURNING uid, name, kind, display_name, generation, create_time, update_time

-- name: delete project
DELETE FROM projects WHERE uid = $1

-- name: insert attachment
INSERT INTO attachments (uid, name, integration_uid, project_uid, reads_for, writes_for, subscription_id, generation, create_time, update_time, writes)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1)

-- name: update attachment
UPDATE attachments SET reads_for = $2, writes_for = $3, subscription_id = $4, generation = $5, update_time = $6 WHERE uid = $1

-- name: delete attachment
DELETE FROM attachments WHERE uid = $1
	RETURNING uid, name, integration_uid, project_uid, reads_for, writes_for, subscription_id, generation, create_time, update_time

-- name: take revisions
UPDATE registry SET revision = revision + $1 WHERE id = 1 RETURNING revision

-- name: insert change
INSERT INTO changes (revision, kind, uid, deleted, change_time, payload) VALUES ($1, $2, $3, $4, $5, $6)

-- name: fence
INSERT INTO report_fences (shard, epoch, holder) VALUES ($1, $2, $3)
	ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, holder = excluded.holder
	WHERE report_fences.epoch < excluded.epoch OR (report_fences.epoch = excluded.epoch AND report_fences.holder = excluded.holder)

-- name: remember request
INSERT INTO requests (scope, request_id, digest, result, expire_time) VALUES ($1, $2, $3, $4, $5)

-- name: begin
INSERT INTO registry (id, incarnation, revision) VALUES (1, $1, 0) ON CONFLICT (id) DO NOTHING
