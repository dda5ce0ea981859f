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

// LeaseAcknowledged: the runner has said what it still uses, whereupon something was released.
const LeaseAcknowledged AuditKind = "LeaseAcknowledged"

// Acknowledge releases the secrets that were delivered to the instance's lease only before the generation, and returns the numbers of
// their versions. What was delivered when is in the audit, which is on record before anything leaves; a secret of whose delivery there is no
// record any more stays held. Of a closed lease nothing is held. lease.ErrNotDelivered when the lease has not come to that generation.
func (s *Store) Acknowledge(ctx context.Context, now time.Time, grantUID, instanceID string, generation int64, caller grant.Caller) (released []int64, err error) {
	type version struct {
		id     string
		number int64
	}
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		released = nil
		g, err := lockGrant(ctx, tx, `uid = $1`, grantUID)
		if err != nil {
			return err
		}
		l, err := scanLease(tx.QueryRow(ctx, `SELECT `+leaseColumns+` FROM leases WHERE grant_uid = $1 AND instance_id = $2`, grantUID, instanceID))
		if errors.Is(err, sqldb.ErrNoRows) || err == nil && generation > l.Generation {
			return lease.ErrNotDelivered
		}
		if err != nil {
			return err
		}
		const delivered = `EXISTS (SELECT 1 FROM audit_events e WHERE e.grant_uid = h.grant_uid AND e.lease_uid = h.lease_uid AND e.version_id = h.version_id
			AND e.kind = 'CredentialDelivered' AND e.material = 'CLIENT_SECRET' AND e.generation `
		versions, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (v version, err error) {
			err = row.Scan(&v.id, &v.number)
			return v, err
		}, `SELECT v.id, v.number FROM holdings h JOIN credential_versions v ON v.id = h.version_id
			WHERE h.lease_uid = $1 AND `+delivered+`< $2) AND NOT `+delivered+`>= $2) ORDER BY v.number`, l.UID, generation)
		if err != nil || len(versions) == 0 {
			return err
		}
		if err := touch(ctx, tx, g.IntegrationUID, now); err != nil {
			return err
		}
		for _, v := range versions {
			if _, err := tx.Exec(ctx, `DELETE FROM holdings WHERE lease_uid = $1 AND version_id = $2`, l.UID, v.id); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `UPDATE credential_versions SET holders = holders - 1 WHERE id = $1`, v.id); err != nil {
				return err
			}
			released = append(released, v.number)
		}
		l.Generation = generation
		return s.audit(ctx, tx, leaseEvent(now, LeaseAcknowledged, g, l, caller))
	})
	if err != nil {
		return nil, fmt.Errorf("acknowledge by grant %s: %w", grantUID, err)
	}
	return released, nil
}
