package store

import (
	"context"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// AuditKind is what an audit event records.
type AuditKind string

// The kinds there are.
const (
	GrantCreated        AuditKind = "GrantCreated"
	GrantTokenReplaced  AuditKind = "GrantTokenReplaced"
	GrantExtended       AuditKind = "GrantExtended"
	GrantRevoked        AuditKind = "GrantRevoked"
	LeaseOpened         AuditKind = "LeaseOpened"
	CredentialDelivered AuditKind = "CredentialDelivered" //nolint:gosec // a kind of event, no credential
	LeaseClosed         AuditKind = "LeaseClosed"
	// LeaseRevoked: closed by the vault.
	LeaseRevoked AuditKind = "LeaseRevoked"
)

// Kinds of events about rotation.
const (
	// RotationRequested: somebody wants an integration rotated; Reason says why, and whether immediately.
	RotationRequested AuditKind = "RotationRequested"
	// RotationBatchCreated: somebody wants all integrations of an account, or of all, rotated; Reason says why.
	RotationBatchCreated AuditKind = "RotationBatchCreated"
	// RotationPaused and RotationResumed: of what, Reason says.
	RotationPaused  AuditKind = "RotationPaused"
	RotationResumed AuditKind = "RotationResumed"
)

// AuditEvent is one record. It never holds a secret.
type AuditEvent struct {
	// Writer is the process that recorded it, Seq its place among that writer's records, from 1, without gaps. Both are
	// given when it is stored.
	Writer string
	Seq    int64

	Time   time.Time
	Kind   AuditKind
	Caller grant.Caller
	// Account is the account's ID.
	Account        string
	GrantUID       string
	LeaseUID       string
	InstanceID     string
	Generation     int64
	IntegrationUID string
	ProjectUID     string
	// VersionID, Material, Reason, Audience and ClientRequestID are a delivery's: the credential version it was made from, its
	// form, why it was sent, and of a token what it opens and the ID that the token request carried. Reason is also why a
	// lease was revoked.
	VersionID       string
	Material        lease.Material
	Reason          string
	Audience        string
	ClientRequestID string
	// ExpireTime is when what was delivered stops working, or the grant's end.
	ExpireTime time.Time
}

// nextAudit numbers the next record. The writer's row stays locked until the commit, so that a record which is rolled back
// leaves no gap.
func (s *Store) nextAudit(ctx context.Context, tx sqldb.Tx) (seq int64, err error) {
	err = tx.QueryRow(ctx, `INSERT INTO audit_writers (writer, seq) VALUES ($1, 1)
		ON CONFLICT (writer) DO UPDATE SET seq = audit_writers.seq + 1 RETURNING seq`, s.writer).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("number audit event: %w", err)
	}
	return seq, nil
}

const auditColumns = `writer, seq, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id, generation,
	integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time, material`

// audit records an event in the transaction that makes it true.
func (s *Store) audit(ctx context.Context, tx sqldb.Tx, e AuditEvent) error {
	seq, err := s.nextAudit(ctx, tx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO audit_events (`+auditColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		s.writer, seq, sqldb.Micros(e.Time), string(e.Kind), e.Caller.Identity, e.Caller.RequestID, e.Account, e.GrantUID, e.LeaseUID,
		e.InstanceID, e.Generation, e.IntegrationUID, e.ProjectUID, e.VersionID, e.Reason, e.Audience, e.ClientRequestID,
		sqldb.Micros(e.ExpireTime), string(e.Material))
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Kind, err)
	}
	return nil
}

// auditDelivery records a delivery only where it finds, at this very moment, everything that entitles to it: the grant
// live, its account not frozen, the lease open at this generation, the version usable (for its secret: ACTIVE), integration and project there, the
// integration one that gives the material, the version one that has it, an attachment or labels that give the access, and a copy of the registry that is
// fresh and no older than the grant. It reports whether it did.
func (s *Store) auditDelivery(ctx context.Context, tx sqldb.Tx, now time.Time, leaseUID string, generation int64, d Delivery, fresh time.Time) (bool, error) {
	seq, err := s.nextAudit(ctx, tx)
	if err != nil {
		return false, err
	}
	// What else than ACTIVE the version may be, and what else than a policy that names the material will do.
	orState, orMaterials := "ACTIVE", "none"
	if d.Material == lease.AccessToken || d.Material == lease.FederatedToken {
		orState, orMaterials = "RETIRING", "[]"
	}
	n, err := tx.Exec(ctx, `INSERT INTO audit_events (`+auditColumns+`)
		SELECT w.writer, w.seq, CAST($3 AS BIGINT), $4, $5, $6, g.account, g.uid, l.uid, l.instance_id, l.generation,
			g.integration_uid, g.project_uid, v.id, $7, $8, $9, CAST($10 AS BIGINT), $16
		FROM audit_writers w, grants g, leases l, credential_versions v, integrations i, projects p, projection r
		WHERE w.writer = $1 AND w.seq = $2
			AND g.uid = $11 AND g.revoke_time = 0 AND g.expire_time > $3
			AND l.uid = $12 AND l.grant_uid = g.uid AND l.close_time = 0 AND l.generation = $13
			AND v.id = $14 AND v.integration_uid = g.integration_uid AND v.state IN ('ACTIVE', $17)
			AND i.uid = g.integration_uid AND i.deleting = 0
			AND (i.delivery_materials LIKE $18 OR i.delivery_materials = $19)
			AND ($16 = 'ACCESS_TOKEN' OR ($16 = 'FEDERATED_TOKEN') = (i.credential_kind = 'FEDERATED'))
			AND ($16 = 'ACCESS_TOKEN' OR ($16 = 'FEDERATED_TOKEN') = (v.signing_key <> ''))
			AND p.uid = g.project_uid
			AND r.singleton = 1 AND r.bookmark_time > $15 AND r.incarnation <> ''
			AND (r.incarnation <> g.incarnation OR r.revision >= g.revision)
			AND NOT `+frozen+` AND `+attached,
		s.writer, seq, sqldb.Micros(now), string(CredentialDelivered), d.Caller.Identity, d.Caller.RequestID, d.Reason, d.Audience,
		d.ClientRequestID, sqldb.Micros(d.ExpireTime), d.GrantUID, leaseUID, generation, d.VersionID, sqldb.Micros(fresh),
		string(d.Material), orState, `%"`+string(d.Material)+`"%`, orMaterials)
	if err != nil {
		return false, fmt.Errorf("record %s: %w", CredentialDelivered, err)
	}
	return n == 1, nil
}
