package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
)

// AuditKind is what an audit event records.
type AuditKind = audit.Kind

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

// AuditEvent is something that is recorded.
type AuditEvent = audit.Event

var errNoAuditKeys = errors.New("there are no keys to record by")

// trail is this process's chain while its row is locked, and what is to be appended to it.
type trail struct {
	store *Store
	seq   int64
	hash  chain.Hash
}

// lockTrail takes the writer's row until the commit, so that a record which is rolled back leaves no gap.
func (s *Store) lockTrail(ctx context.Context, tx sqldb.Tx) (*trail, error) {
	var b sqldb.Batch
	ends := s.lockingTrail(&b)
	if err := tx.Do(ctx, &b); err != nil {
		return nil, fmt.Errorf("find the end of the audit trail: %w", err)
	}
	return s.trailAt(*ends)
}

// lockingTrail adds to a batch what takes the writer's row; trailAt makes a trail of what that finds.
func (s *Store) lockingTrail(b *sqldb.Batch) *[]trail {
	ends := new([]trail)
	sqldb.Into(b, ends, func(row sqldb.Row) (trail, error) {
		t := trail{store: s}
		var hash string
		err := row.Scan(&t.seq, &hash)
		if err == nil && hash != "" {
			err = t.hash.UnmarshalText([]byte(hash))
		}
		return t, err
	}, `INSERT INTO audit_writers (writer, seq, hash, time) VALUES ($1, 0, '', 0)
		ON CONFLICT (writer) DO UPDATE SET seq = audit_writers.seq RETURNING seq, hash`, s.writer)
	return ends
}

func (s *Store) trailAt(ends []trail) (*trail, error) {
	if s.keys == nil {
		return nil, errNoAuditKeys
	}
	return &ends[0], nil
}

// next makes the next record of the entries.
func (t *trail) next(ctx context.Context, entries []audit.Entry) (audit.Record, error) {
	content, err := audit.Content(entries)
	if err != nil {
		return audit.Record{}, err
	}
	r, err := t.nextOf(ctx, content)
	r.Entries = entries
	return r, err
}

// nextOf makes the next record, without its entries, of what is hashed of them.
func (t *trail) nextOf(ctx context.Context, content []byte) (r audit.Record, err error) {
	t.seq++
	t.hash = chain.Next(t.hash, t.store.writer, t.seq, content)
	r = audit.Record{Writer: t.store.writer, Seq: t.seq, Hash: t.hash}
	r.KeyID, r.MAC, err = audit.Authenticate(ctx, t.store.keys, t.hash)
	return r, err
}

// end adds to a batch what writes where the chain ends now.
func (t *trail) end(b *sqldb.Batch, now time.Time) {
	b.Exec(`UPDATE audit_writers SET seq = $2, hash = $3, time = $4 WHERE writer = $1`, t.store.writer, t.seq, t.hash.String(), sqldb.Micros(now))
}

const auditColumns = `writer, seq, place, time, kind, actor, request_id, account, grant_uid, run, lease_uid, instance_id, generation,
	integration, integration_uid, project, project_uid, version_id, material, reason, audience, client_request_id, expire_time, hash, mac, key_id`

// sealOf is what the row of a record's entry says in the columns hash, mac and key_id: the first entry has the record's.
func sealOf(r audit.Record, place int) (hash, mac string, keyID int64) {
	if place > 0 {
		return "", "", 0
	}
	return r.Hash.String(), hex.EncodeToString(r.MAC), int64(r.KeyID)
}

// unseal gives a record what sealOf made of it.
func unseal(r *audit.Record, hash, mac string, keyID int64) {
	// What is no hash was not written by the vault, and is as good as none: it fits nothing.
	if r.Hash.UnmarshalText([]byte(hash)) != nil {
		r.Hash = chain.Hash{}
	}
	r.MAC, _ = hex.DecodeString(mac)
	r.KeyID = uint32(keyID) //nolint:gosec // cut off it is no key's
}

// auditArgs are a record's entry in the order of auditColumns.
func auditArgs(r audit.Record, place int, e audit.Entry) []any {
	hash, mac, keyID := sealOf(r, place)
	return []any{
		r.Writer, r.Seq, place, e.Time, e.Kind, e.Actor, e.RequestID, e.Account, e.GrantUID, e.Run, e.LeaseUID, e.InstanceID, e.Generation,
		e.Integration, e.IntegrationUID, e.Project, e.ProjectUID, e.VersionID, e.Material, e.Reason, e.Audience, e.ClientRequestID, e.ExpireTime,
		hash, mac, keyID,
	}
}

// insertRecords adds to a batch what stores records as they are.
func insertRecords(tx sqldb.Tx, b *sqldb.Batch, records []audit.Record) {
	rows := sqldb.NewValues(auditKinds)
	for _, r := range records {
		for place, e := range r.Entries {
			rows.Add(auditArgs(r, place, e)...)
		}
	}
	if rows.Len() == 0 {
		return
	}
	from, args := tx.Values(rows)
	b.Exec(`INSERT INTO audit_events (`+auditColumns+`) SELECT * FROM `+from+` v`, args...)
}

// auditKinds are the kinds of auditColumns.
const auditKinds = "tiiitttttttt" + "i" + "ttttttttt" + "i" + "tt" + "i"

// audit records an event in the transaction that makes it true.
func (s *Store) audit(ctx context.Context, tx sqldb.Tx, e AuditEvent) error {
	t, err := s.lockTrail(ctx, tx)
	if err != nil {
		return err
	}
	r, err := t.next(ctx, []audit.Entry{e.Entry()})
	if err != nil {
		return err
	}
	var b sqldb.Batch
	insertRecords(tx, &b, []audit.Record{r})
	t.end(&b, e.Time)
	if err := tx.Do(ctx, &b); err != nil {
		return fmt.Errorf("record %s: %w", e.Kind, err)
	}
	return nil
}
