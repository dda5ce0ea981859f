package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

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
