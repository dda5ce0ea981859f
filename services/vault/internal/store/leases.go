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

// Entitlement is all that a delivery to one runner instance is decided by and made from, as of one moment.
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
func (e Entitlement) Active() (Live, bool) {
	if len(e.Versions) == 0 || e.Versions[0].State != credential.Active {
		return Live{}, false
	}
	return e.Versions[0], true
}

// Check is nil when something may be delivered now, else why not.
func (e Entitlement) Check(now time.Time) error {
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

// Entitlement reads what a delivery to the instance by the grant is decided by; grant.ErrNotFound when there is no such grant.
func (s *Store) Entitlement(ctx context.Context, grantUID, instanceID string) (Entitlement, error) {
	out, err := s.entitlements.get(ctx, instance{grantUID, instanceID})
	if err != nil {
		return Entitlement{}, fmt.Errorf("read entitlement of grant %s: %w", grantUID, err)
	}
	return out, nil
}

// entitlements reads those of the instances whose grants there are.
func entitlements(ctx context.Context, tx sqldb.Tx, of []instance) (map[instance]Entitlement, error) {
	grants, leases := make([]string, len(of)), tuples{casts: "tt"}
	for i, k := range of {
		grants[i] = k.grantUID
		leases.add(k.grantUID, k.instanceID)
	}
	standings, err := standings(ctx, tx, grants)
	if err != nil {
		return nil, err
	}
	held := make(map[instance]lease.Lease, len(of))
	found, err := sqldb.Collect(ctx, tx, scanLease, `SELECT `+leaseColumns+` FROM (`+leases.values()+`) v, leases
		WHERE grant_uid = v.column1 AND instance_id = v.column2`, leases.args...)
	if err != nil {
		return nil, err
	}
	for _, l := range found {
		held[instance{l.GrantUID, l.InstanceID}] = l
	}
	given, err := integrationsOf(ctx, tx, standings)
	if err != nil {
		return nil, err
	}
	out := make(map[instance]Entitlement, len(of))
	for _, k := range of {
		found, ok := standings[k.grantUID]
		if !ok {
			continue
		}
		e := given[found.Grant.IntegrationUID]
		e.Standing, e.Lease = found, held[k]
		out[k] = e
	}
	return out, nil
}

// integrationsOf reads what entitlements have in common that are by grants of one integration, by its UID.
func integrationsOf(ctx context.Context, tx sqldb.Tx, standings map[string]grant.Standing) (map[string]Entitlement, error) {
	var args []any
	seen := map[string]bool{}
	for _, found := range standings {
		if uid := found.Grant.IntegrationUID; !seen[uid] {
			seen[uid] = true
			args = append(args, uid)
		}
	}
	args = append(args, make([]any, roundUp(len(args))-len(args))...)
	which := placeholders(1, len(args))
	out := make(map[string]Entitlement, len(seen))
	_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (struct{}, error) {
		var e Entitlement
		var err error
		e.Integration, err = scanIntegration(row, &e.Compromised, at{&e.ConsentLostTime})
		if err == nil {
			out[e.Integration.UID] = e
		}
		return struct{}{}, err
	}, `SELECT `+integrationColumns+`,
			COALESCE((SELECT MAX(r.up_to) FROM rotations r WHERE r.integration_uid = integrations.uid AND r.reason = 'COMPROMISED'), 0),
			COALESCE((SELECT a.consent_time FROM applications a WHERE a.integration_uid = integrations.uid AND a.consented = 0), 0)
		FROM integrations WHERE uid IN (`+which+`)`, args...)
	if err != nil {
		return nil, err
	}
	versions, err := liveVersions(ctx, tx, which, args...)
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		e := out[v.IntegrationUID]
		e.Versions = append(e.Versions, v)
		out[v.IntegrationUID] = e
	}
	return out, nil
}

func standing(ctx context.Context, tx sqldb.Tx, grantUID string) (grant.Standing, error) {
	found, err := standings(ctx, tx, []string{grantUID})
	if err != nil {
		return grant.Standing{}, err
	}
	out, ok := found[grantUID]
	if !ok {
		return grant.Standing{}, grant.ErrNotFound
	}
	return out, nil
}

// standings reads those of the grants that there are, by their UIDs.
func standings(ctx context.Context, tx sqldb.Tx, grantUIDs []string) (map[string]grant.Standing, error) {
	args := make([]any, roundUp(len(grantUIDs)))
	for i, uid := range grantUIDs {
		args[i] = uid
	}
	out := make(map[string]grant.Standing, len(grantUIDs))
	_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (struct{}, error) {
		var s grant.Standing
		var err error
		s.Grant, err = scanGrant(row, &s.Incarnation, &s.Revision, at{&s.BookmarkTime}, &s.IntegrationLives, &s.ProjectLives, &s.Attached, &s.Unlabelled, &s.Frozen)
		if err == nil {
			out[s.Grant.UID] = s
		}
		return struct{}{}, err
	}, `SELECT `+grantColumns+`,
			COALESCE((SELECT incarnation FROM projection WHERE singleton = 1), ''),
			COALESCE((SELECT revision FROM projection WHERE singleton = 1), 0),
			COALESCE((SELECT bookmark_time FROM projection WHERE singleton = 1), 0),
			EXISTS (SELECT 1 FROM integrations i WHERE i.uid = g.integration_uid AND i.deleting = 0),
			EXISTS (SELECT 1 FROM projects p WHERE p.uid = g.project_uid), `+attached+`, `+unlabelled+`, `+frozen+`
		FROM grants g WHERE uid IN (`+placeholders(1, len(args))+`)`, args...)
	return out, err
}

// Delivery is one credential, about to leave.
type Delivery struct {
	GrantUID   string
	InstanceID string
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
