package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
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
	if s.keys == nil {
		return nil, errNoAuditKeys
	}
	t := &trail{store: s}
	var hash string
	err := tx.QueryRow(ctx, `INSERT INTO audit_writers (writer, seq, hash, time) VALUES ($1, 0, '', 0)
		ON CONFLICT (writer) DO UPDATE SET seq = audit_writers.seq RETURNING seq, hash`, s.writer).Scan(&t.seq, &hash)
	if err == nil && hash != "" {
		err = t.hash.UnmarshalText([]byte(hash))
	}
	if err != nil {
		return nil, fmt.Errorf("find the end of the audit trail: %w", err)
	}
	return t, nil
}

// next makes the next record of the entries.
func (t *trail) next(ctx context.Context, entries []audit.Entry) (audit.Record, error) {
	content, err := audit.Content(entries)
	if err != nil {
		return audit.Record{}, err
	}
	t.seq++
	t.hash = chain.Next(t.hash, t.store.writer, t.seq, content)
	r := audit.Record{Writer: t.store.writer, Seq: t.seq, Hash: t.hash, Entries: entries}
	r.KeyID, r.MAC, err = audit.Authenticate(ctx, t.store.keys, t.hash)
	return r, err
}

// end writes where the chain ends now.
func (t *trail) end(ctx context.Context, tx sqldb.Tx, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE audit_writers SET seq = $2, hash = $3, time = $4 WHERE writer = $1`, t.store.writer, t.seq, t.hash.String(), sqldb.Micros(now))
	if err != nil {
		return fmt.Errorf("end the audit trail: %w", err)
	}
	return nil
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

// auditArgs are a record's entry in the order of auditColumns.
func auditArgs(r audit.Record, place int, e audit.Entry) []any {
	hash, mac, keyID := sealOf(r, place)
	return []any{
		r.Writer, r.Seq, place, e.Time, e.Kind, e.Actor, e.RequestID, e.Account, e.GrantUID, e.Run, e.LeaseUID, e.InstanceID, e.Generation,
		e.Integration, e.IntegrationUID, e.Project, e.ProjectUID, e.VersionID, e.Material, e.Reason, e.Audience, e.ClientRequestID, e.ExpireTime,
		hash, mac, keyID,
	}
}

// insertRecords stores records as they are.
func insertRecords(ctx context.Context, tx sqldb.Tx, records []audit.Record) error {
	t := tuples{casts: auditCasts}
	for _, r := range records {
		for place, e := range r.Entries {
			t.add(auditArgs(r, place, e)...)
		}
	}
	if t.n == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO audit_events (`+auditColumns+`) SELECT * FROM (`+t.values()+`) v WHERE v.column1 <> ''`, t.args...)
	if err != nil {
		return fmt.Errorf("record %s: %w", records[0].Entries[0].Kind, err)
	}
	return nil
}

// auditCasts are the types of auditColumns.
const auditCasts = "tiiitttttttt" + "i" + "ttttttttt" + "i" + "tt" + "i"

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
	if err := insertRecords(ctx, tx, []audit.Record{r}); err != nil {
		return err
	}
	return t.end(ctx, tx, e.Time)
}

// tuples are rows of values in a statement. Their number is filled up to a power of two by rows whose texts are empty and whose numbers are 0, so that there
// are few texts of a statement, which a connection prepares once.
type tuples struct {
	// casts has a letter a column: t for text, i for an integer.
	casts string
	args  []any
	n     int
}

func (t *tuples) add(row ...any) {
	t.args = append(t.args, row...)
	t.n++
}

// roundUp is the next power of two: of sizes that are few, engines keep statements prepared.
func roundUp(n int) int {
	size := 1
	for size < n {
		size *= 2
	}
	return size
}

// values is the VALUES clause, whose columns are called column1 and so on by both engines. It completes args.
func (t *tuples) values() string {
	size := roundUp(t.n)
	for ; t.n < size; t.n++ {
		for _, c := range t.casts {
			if c == 'i' {
				t.args = append(t.args, int64(0))
			} else {
				t.args = append(t.args, "")
			}
		}
	}
	var b strings.Builder
	b.WriteString("VALUES ")
	at := 0
	for i := range size {
		if i > 0 {
			b.WriteString(", ")
		}
		for j, c := range t.casts {
			at++
			separator := ", "
			if j == 0 {
				separator = "("
			}
			switch {
			case i > 0: // as the first row
				fmt.Fprintf(&b, "%s$%d", separator, at)
			case c == 'i':
				fmt.Fprintf(&b, "%sCAST($%d AS BIGINT)", separator, at)
			default:
				fmt.Fprintf(&b, "%sCAST($%d AS TEXT)", separator, at)
			}
		}
		b.WriteString(")")
	}
	return b.String()
}
