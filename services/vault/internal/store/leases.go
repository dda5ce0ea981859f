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

// Entitlement reads what a delivery to the instance by the grant is decided by; grant.ErrNotFound when there is no such grant.
func (s *Store) Entitlement(ctx context.Context, grantUID, instanceID string) (Entitlement, error) {
	var out Entitlement
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out = Entitlement{}
		if out.Standing, err = standing(ctx, tx, grantUID); err != nil {
			return err
		}
		out.Lease, err = scanLease(tx.QueryRow(ctx, `SELECT `+leaseColumns+` FROM leases WHERE grant_uid = $1 AND instance_id = $2`, grantUID, instanceID))
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return err
		}
		uid := out.Grant.IntegrationUID
		out.Integration, err = scanIntegration(tx.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE uid = $1`, uid))
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return err
		}
		if out.Versions, err = liveVersions(ctx, tx, uid); err != nil {
			return err
		}
		var lost int64
		err = tx.QueryRow(ctx, `SELECT COALESCE((SELECT MAX(up_to) FROM rotations WHERE integration_uid = $1 AND reason = 'COMPROMISED'), 0),
			COALESCE((SELECT consent_time FROM applications WHERE integration_uid = $1 AND consented = 0), 0)`, uid).Scan(&out.Compromised, &lost)
		out.ConsentLostTime = sqldb.Time(lost)
		return err
	})
	if err != nil {
		return Entitlement{}, fmt.Errorf("read entitlement of grant %s: %w", grantUID, err)
	}
	return out, nil
}

func standing(ctx context.Context, tx sqldb.Tx, grantUID string) (grant.Standing, error) {
	var (
		out                         grant.Standing
		bookmark                    int64
		integration, project, given bool
		labels, isFrozen            bool
	)
	g, err := scanGrant(tx.QueryRow(ctx, `SELECT `+grantColumns+`,
			COALESCE((SELECT incarnation FROM projection WHERE singleton = 1), ''),
			COALESCE((SELECT revision FROM projection WHERE singleton = 1), 0),
			COALESCE((SELECT bookmark_time FROM projection WHERE singleton = 1), 0),
			EXISTS (SELECT 1 FROM integrations i WHERE i.uid = g.integration_uid AND i.deleting = 0),
			EXISTS (SELECT 1 FROM projects p WHERE p.uid = g.project_uid), `+attached+`, `+unlabelled+`, `+frozen+`
		FROM grants g WHERE uid = $1`, grantUID),
		&out.Incarnation, &out.Revision, &bookmark, &integration, &project, &given, &labels, &isFrozen)
	if errors.Is(err, sqldb.ErrNoRows) {
		return grant.Standing{}, grant.ErrNotFound
	}
	if err != nil {
		return grant.Standing{}, err
	}
	out.Grant, out.BookmarkTime = g, sqldb.Time(bookmark)
	out.IntegrationLives, out.ProjectLives, out.Attached, out.Unlabelled, out.Frozen = integration, project, given, labels, isFrozen
	return out, nil
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
