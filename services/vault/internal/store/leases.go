package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// Entitlement is all that a delivery to one runner instance is decided by and made from, as of one moment. Those who read it together share it: it is not to be changed.
type Entitlement struct {
	grant.Standing
	// Lease is the instance's; the zero value before its first delivery.
	Lease lease.Lease
	// Integration is the grant's; the zero value when the copy of the registry does not have it.
	Integration Integration
	// Versions are the ACTIVE one, if there is one, and after it those that are RETIRING, the newest first.
	Versions []Live
	// ConsentLostTime is since when the customer's tenant does not let the application in any more; zero while it does, or never did.
	ConsentLostTime time.Time
	// Compromised is the number of the newest version that was said to be compromised; 0 when none was.
	Compromised int64
}

// Active returns the ACTIVE version, if there is one.
func (e *Entitlement) Active() (Live, bool) {
	if len(e.Versions) == 0 || e.Versions[0].State != credential.Active {
		return Live{}, false
	}
	return e.Versions[0], true
}

// Check is nil when something may be delivered now, else why not.
func (e *Entitlement) Check(now time.Time) error {
	if err := e.Standing.Check(now); err != nil {
		return err
	}
	if !e.Lease.CloseTime.IsZero() {
		return lease.ErrClosed
	}
	return nil
}

// instance is a runner instance's name: it has at most one lease.
type instance struct{ grantUID, instanceID string }

// holder is a runner instance that shows a token.
type holder struct {
	token      grant.Hash
	instanceID string
}

// Entitlement reads what a delivery to the instance by the grant is decided by; grant.ErrNotFound when there is no such grant.
func (s *Store) Entitlement(ctx context.Context, grantUID, instanceID string) (*Entitlement, error) {
	out, err := s.entitlements.get(ctx, instance{grantUID, instanceID})
	if err != nil {
		return nil, fmt.Errorf("read entitlement of grant %s: %w", grantUID, err)
	}
	return out, nil
}

// EntitlementByToken reads what a delivery to the instance by the grant that the token opens is decided by; grant.ErrUnknown when there is none.
func (s *Store) EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*Entitlement, error) {
	out, err := s.holders.get(ctx, holder{token, instanceID})
	if err != nil && !errors.Is(err, grant.ErrUnknown) {
		err = fmt.Errorf("read entitlement: %w", err)
	}
	return out, err
}

// entitlements reads those of the instances whose grants there are.
func entitlements(tx sqldb.Tx, b *sqldb.Batch, of []instance) func() map[instance]*Entitlement {
	asked := sqldb.NewValues("tti")
	for i, k := range of {
		asked.Add(k.grantUID, k.instanceID, i)
	}
	return readEntitlements(tx, b, `uid`, asked, of)
}

// entitlementsByToken reads those of the holders whose tokens open a grant.
func entitlementsByToken(tx sqldb.Tx, b *sqldb.Batch, of []holder) func() map[holder]*Entitlement {
	asked := sqldb.NewValues("bti")
	for i, k := range of {
		asked.Add(k.token[:], k.instanceID, i)
	}
	return readEntitlements(tx, b, `token_hash`, asked, of)
}

// readEntitlements adds to a batch what reads those that are asked for: by the grant's key, the instance, and the place in of.
func readEntitlements[K comparable](tx sqldb.Tx, b *sqldb.Batch, key string, asked *sqldb.Values, of []K) func() map[K]*Entitlement {
	type reading struct {
		*Entitlement
		place int64
	}
	from, args := tx.Values(asked)
	var found []reading
	var given []*Entitlement
	sqldb.Into(b, &found, func(row sqldb.Row) (reading, error) {
		r := reading{Entitlement: &Entitlement{}}
		var err error
		r.Grant, err = scanGrant(row, append(standingOf(&r.Standing), &r.place,
			&r.Lease.UID, &r.Lease.GrantUID, &r.Lease.InstanceID, &r.Lease.Generation, at{&r.Lease.OpenTime}, at{&r.Lease.DeliverTime}, at{&r.Lease.CloseTime})...)
		return r, err
	}, `SELECT `+qualified("g", grantColumns)+`, `+standingColumns+`, v.column3, COALESCE(l.uid, ''), COALESCE(l.grant_uid, ''), COALESCE(l.instance_id, ''),
			COALESCE(l.generation, 0), COALESCE(l.open_time, 0), COALESCE(l.deliver_time, 0), COALESCE(l.close_time, 0)
		FROM `+from+` v JOIN grants g ON g.`+key+` = v.column1 LEFT JOIN leases l ON l.grant_uid = g.uid AND l.instance_id = v.column2`, args...)
	which := `SELECT integration_uid FROM grants WHERE ` + tx.In(key, `SELECT column1 FROM `+from+` v`)
	// What those have in common that are by grants of one integration.
	sqldb.Into(b, &given, func(row sqldb.Row) (*Entitlement, error) {
		var e Entitlement
		var err error
		e.Integration, err = scanIntegration(row, &e.Compromised, at{&e.ConsentLostTime})
		return &e, err
	}, `SELECT `+integrationColumns+`,
			COALESCE((SELECT MAX(r.up_to) FROM rotations r WHERE r.integration_uid = integrations.uid AND r.reason = 'COMPROMISED'), 0),
			COALESCE((SELECT a.consent_time FROM applications a WHERE a.integration_uid = integrations.uid AND a.consented = 0), 0)
		FROM integrations WHERE `+tx.In(`uid`, which), args...)
	versions := liveVersions(tx, b, which, args...)
	return func() map[K]*Entitlement {
		common := make(map[string]*Entitlement, len(given))
		for _, e := range given {
			common[e.Integration.UID] = e
		}
		for _, v := range *versions {
			if e := common[v.IntegrationUID]; e != nil {
				e.Versions = append(e.Versions, v)
			}
		}
		out := make(map[K]*Entitlement, len(found))
		for _, r := range found {
			if c := common[r.Grant.IntegrationUID]; c != nil {
				r.Integration, r.Versions, r.ConsentLostTime, r.Compromised = c.Integration, c.Versions, c.ConsentLostTime, c.Compromised
			}
			out[of[r.place]] = r.Entitlement
		}
		return out
	}
}

// standing reads that of a grant.
func standing(ctx context.Context, tx sqldb.Tx, grantUID string) (grant.Standing, error) {
	var s grant.Standing
	var err error
	s.Grant, err = scanGrant(tx.QueryRow(ctx, `SELECT `+grantColumns+`, `+standingColumns+` FROM grants g WHERE uid = $1`, grantUID), standingOf(&s)...)
	if errors.Is(err, sqldb.ErrNoRows) {
		return grant.Standing{}, grant.ErrNotFound
	}
	return s, err
}

// standingColumns are a grant g's standing but for the grant; standingOf is where they go.
const standingColumns = `COALESCE((SELECT incarnation FROM projection WHERE singleton = 1), ''),
	COALESCE((SELECT revision FROM projection WHERE singleton = 1), 0),
	COALESCE((SELECT bookmark_time FROM projection WHERE singleton = 1), 0),
	EXISTS (SELECT 1 FROM integrations i WHERE i.uid = g.integration_uid AND i.deleting = 0),
	EXISTS (SELECT 1 FROM projects p WHERE p.uid = g.project_uid), ` + attached + `, ` + unlabelled + `, ` + frozen

func standingOf(s *grant.Standing) []any {
	return []any{&s.Incarnation, &s.Revision, at{&s.BookmarkTime}, &s.IntegrationLives, &s.ProjectLives, &s.Attached, &s.Unlabelled, &s.Frozen}
}

// Delivery is one credential, about to leave.
type Delivery struct {
	GrantUID   string
	InstanceID string
	// Token is noted as shown, as by UseGrant; zero when that was done.
	Token grant.Hash
	// VersionID is the credential version that it was made from.
	VersionID string
	// Material is its form. With a client secret the lease holds the version from then on.
	Material lease.Material
	// HoldLimit is when the grant must have ended that holds the version's secret; without meaning for a token.
	HoldLimit time.Time
	// LeaseUID is what the lease must have for UID, or is given if it is opened by this; empty for any. An assertion names its lease.
	LeaseUID string
	// Reason is why it is sent; of a token, Audience is what it opens and ClientRequestID what the request for it carried, or an assertion's own ID.
	Reason          string
	Audience        string
	ClientRequestID string
	// PolicyAudience says that the integration must allow the audience; all give the others.
	PolicyAudience bool
	// ExpireTime is when it stops working.
	ExpireTime time.Time
	Caller     grant.Caller
}

func leaseEvent(now time.Time, kind AuditKind, g grant.Grant, l lease.Lease, caller grant.Caller) AuditEvent {
	event := grantEvent(now, kind, g, caller)
	event.LeaseUID, event.InstanceID, event.Generation = l.UID, l.InstanceID, l.Generation
	return event
}

// CloseLease closes the instance's lease and releases what it holds. One that never was, or is closed, is closed.
func (s *Store) CloseLease(ctx context.Context, now time.Time, grantUID, instanceID string, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		g, err := lockGrant(ctx, tx, `uid = $1`, grantUID)
		if err != nil {
			return err
		}
		l, err := scanLease(tx.QueryRow(ctx, `UPDATE leases SET close_time = $1 WHERE grant_uid = $2 AND instance_id = $3 AND close_time = 0
			RETURNING `+leaseColumns, sqldb.Micros(now), grantUID, instanceID))
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := release(ctx, tx, now, g, l.UID); err != nil {
			return err
		}
		if err := s.audit(ctx, tx, leaseEvent(now, LeaseClosed, g, l, caller)); err != nil {
			return err
		}
		return noteChange(ctx, tx, now, "", grantUID)
	})
	if err != nil {
		return fmt.Errorf("close lease of grant %s: %w", grantUID, err)
	}
	return nil
}

const leaseColumns = `uid, grant_uid, instance_id, generation, open_time, deliver_time, close_time`

func scanLease(row sqldb.Row) (lease.Lease, error) {
	var (
		l                    lease.Lease
		open, deliver, ended int64
	)
	if err := row.Scan(&l.UID, &l.GrantUID, &l.InstanceID, &l.Generation, &open, &deliver, &ended); err != nil {
		return lease.Lease{}, err
	}
	l.OpenTime, l.DeliverTime, l.CloseTime = sqldb.Time(open), sqldb.Time(deliver), sqldb.Time(ended)
	return l, nil
}
