package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// MaxFanOut is to how many leases a fan-out goes at most: its record is one message of an export.
const MaxFanOut = 1000

// FanOut is one token for many leases that are open. None of them holds anything by it.
type FanOut struct {
	VersionID string
	// Material is no client secret, and nothing that names a lease.
	Material lease.Material
	Reason   string
	// Audience, PolicyAudience and ClientRequestID are as a Delivery's.
	Audience        string
	PolicyAudience  bool
	ClientRequestID string
	ExpireTime      time.Time
	// To are at most MaxFanOut leases, each another one, by grants of one integration.
	To []Recipient
}

// Recipient is the lease of a runner instance, and by which call it gets what is delivered to it.
type Recipient struct {
	GrantUID, InstanceID string
	Caller               grant.Caller
}

// Reached is a lease that a fan-out went to.
type Reached struct {
	Lease lease.Lease
	Grant grant.Grant
}

// FanOut counts up the generations of the leases for which it finds everything that entitles them to the credential, and records its delivery to them, all
// in one transaction. What it returned may leave the vault, and nothing else: there is a Reached for each of To, which is the zero value for a lease that was not found open and
// entitled. Deliver says why, and is the way for one. After an error nothing was recorded, except that after a sqldb.ErrUnknownOutcome, or when ctx has ended,
// deliveries may be on record that never were.
//
// It takes the grants' rows, in their order, as all do who deliver by them or end them: what is recorded was not revoked before the commit. Then it takes the writer's
// row, and waits for nobody any more once it has found what entitles.
//
// The record is one row of audit_fanouts, in the chain like any other, and becomes rows of audit_events later: see ExpandFanOuts.
func (s *Store) FanOut(ctx context.Context, now time.Time, f FanOut) ([]Reached, error) {
	var out []Reached
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = s.fanOut(ctx, tx, now, f)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("deliver %s to %d leases: %w", f.VersionID, len(f.To), err)
	}
	return out, nil
}

func (s *Store) fanOut(ctx context.Context, tx sqldb.Tx, now time.Time, f FanOut) ([]Reached, error) {
	var ends *[]trail
	out, err := entitledLeases(ctx, tx, now, f, tx.ForUpdate(), func(b *sqldb.Batch) { ends = s.lockingTrail(b) })
	if err != nil {
		return nil, err
	}
	entries := make([]audit.Entry, 0, len(f.To))
	reached := make([]string, 0, len(f.To))
	for i, r := range f.To {
		g, l := &out[i].Grant, &out[i].Lease
		if l.UID == "" {
			continue
		}
		l.Generation++
		l.DeliverTime = now
		reached = append(reached, l.UID)
		e := leaseEvent(now, CredentialDelivered, *g, *l, r.Caller)
		e.VersionID, e.Material, e.Reason, e.Audience, e.ClientRequestID, e.ExpireTime = f.VersionID, f.Material, f.Reason, f.Audience, f.ClientRequestID, f.ExpireTime
		entries = append(entries, e.Entry())
	}
	if len(entries) == 0 {
		return out, nil
	}
	t, err := s.trailAt(*ends)
	if err != nil {
		return nil, err
	}
	var b sqldb.Batch
	from, args := tx.Values(listed(reached), sqldb.Micros(now))
	b.Exec(`UPDATE leases SET generation = generation + 1, deliver_time = $1 WHERE `+tx.In(`uid`, `SELECT column1 FROM `+from+` v`), args...)
	return out, recordFanOut(ctx, tx, &b, now, t, entries)
}

// Entitled returns whom a fan-out would reach at this moment, with the leases and the grants as they are. Nothing is written.
func (s *Store) Entitled(ctx context.Context, now time.Time, f FanOut) ([]Reached, error) {
	var out []Reached
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = entitledLeases(ctx, tx, now, f, "", func(*sqldb.Batch) {})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find who is entitled to %s of %d leases: %w", f.VersionID, len(f.To), err)
	}
	return out, nil
}

// entitledLeases finds the leases of a fan-out and their grants: those for which it finds everything that entitles them. The grants are read, or locked, first, then the leases, and last,
// after what more is to be done, what entitles.
func entitledLeases(ctx context.Context, tx sqldb.Tx, now time.Time, f FanOut, lock string, more func(b *sqldb.Batch)) ([]Reached, error) {
	asked := make([]string, len(f.To))
	for i, r := range f.To {
		asked[i] = r.GrantUID
	}
	var b sqldb.Batch
	tx.ByIndex(&b)
	grants, open := make([]grant.Grant, 0, len(f.To)), make([]lease.Lease, 0, len(f.To))
	from, args := tx.Values(listed(asked))
	these := tx.In(`uid`, `SELECT column1 FROM `+from+` v`)
	sqldb.Into(&b, &grants, grantListing.scan, orderedGrants(these)+lock, args...)
	sqldb.Into(&b, &open, scanLease, `SELECT `+leaseColumns+` FROM leases WHERE close_time = 0 AND `+tx.In(`grant_uid`, `SELECT column1 FROM `+from+` v`), args...)
	more(&b)
	given := readPremises(tx, &b, these, args...)
	if err := tx.Do(ctx, &b); err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	known := given()
	entitled := make(map[string]*grant.Grant, len(grants))
	for i := range grants {
		e := known.entitlement(&grants[i])
		if e.admits(now, f.VersionID, f.Material, f.PolicyAudience, f.Audience) == nil {
			entitled[grants[i].UID] = &grants[i]
		}
	}
	leases := make(map[instance]*lease.Lease, len(open))
	for i := range open {
		leases[instance{open[i].GrantUID, open[i].InstanceID}] = &open[i]
	}
	out := make([]Reached, len(f.To))
	for i, r := range f.To {
		if g, l := entitled[r.GrantUID], leases[instance{r.GrantUID, r.InstanceID}]; g != nil && l != nil {
			out[i] = Reached{Lease: *l, Grant: *g}
		}
	}
	return out, nil
}

// listed are rows of one text each.
func listed(texts []string) *sqldb.Values {
	v := sqldb.NewValues("t")
	for _, text := range texts {
		v.Add(text)
	}
	return v
}

// recordFanOut does what is to be written, and appends the record to the trail.
func recordFanOut(ctx context.Context, tx sqldb.Tx, b *sqldb.Batch, now time.Time, t *trail, entries []audit.Entry) error {
	content, err := audit.Content(entries)
	if err != nil {
		return err
	}
	r, err := t.nextOf(ctx, content)
	if err != nil {
		return err
	}
	hash, mac, keyID := sealOf(r, 0)
	b.Exec(`INSERT INTO audit_fanouts (`+fanOutColumns+`) VALUES ($1, $2, $3, $4, $5, $6)`, r.Writer, r.Seq, hash, mac, keyID, content)
	t.end(b, now)
	tx.Last(b)
	return nil
}

const fanOutColumns = `writer, seq, hash, mac, key_id, content`

func scanFanOut(row sqldb.Row) (audit.Record, error) {
	var (
		r         audit.Record
		hash, mac string
		keyID     int64
		content   []byte
	)
	if err := row.Scan(&r.Writer, &r.Seq, &hash, &mac, &keyID, &content); err != nil {
		return audit.Record{}, err
	}
	unseal(&r, hash, mac, keyID)
	// What is no content was not written by the vault, and is as good as an empty event: it does not fit the hash.
	if json.Unmarshal(content, &r.Entries) != nil || len(r.Entries) == 0 {
		r.Entries = make([]audit.Entry, 1)
	}
	return r, nil
}

// ExpandFanOuts writes the fan-outs that have been recorded as the events that they stand for. Any replica may, and any number of them at once: each record is written
// whole, and once.
func (s *Store) ExpandFanOuts(ctx context.Context) error {
	for more := true; more; {
		err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
			more, err = expandFanOut(ctx, tx)
			return err
		})
		if err != nil {
			return fmt.Errorf("expand audit records of fan-outs: %w", err)
		}
	}
	return nil
}

// expandFanOut writes a fan-out as its events, and reports whether there may be another one. Whoever wants the same one waits for it, finds nothing, and looks again.
func expandFanOut(ctx context.Context, tx sqldb.Tx) (more bool, err error) {
	r, err := scanFanOut(tx.QueryRow(ctx, `DELETE FROM audit_fanouts WHERE (writer, seq) IN (SELECT writer, seq FROM audit_fanouts ORDER BY writer, seq LIMIT 1)
		RETURNING `+fanOutColumns))
	if errors.Is(err, sqldb.ErrNoRows) {
		err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM audit_fanouts)`).Scan(&more)
		return more, err
	}
	if err != nil {
		return false, err
	}
	var b sqldb.Batch
	insertRecords(tx, &b, []audit.Record{r})
	return true, tx.Do(ctx, &b)
}

// readEvents reads as ReadTx does, and finds all that has been recorded among the events.
func (s *Store) readEvents(ctx context.Context, read func(ctx context.Context, tx sqldb.Tx) error) error {
	for {
		var pending bool
		err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM audit_fanouts)`).Scan(&pending); err != nil || pending {
				return err
			}
			return read(ctx, tx)
		})
		if err != nil || !pending {
			return err
		}
		if err := s.ExpandFanOuts(ctx); err != nil {
			return err
		}
	}
}
