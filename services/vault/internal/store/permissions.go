package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/permission"
)

// DuePermissions returns the UIDs of integrations whose principal's roles are to be looked at, those never looked at first, at most
// limit: with consent, a default subscription and an ACTIVE version. One whose default subscription is another than was looked at is due too.
func (s *Store) DuePermissions(ctx context.Context, now time.Time, limit int) ([]string, error) {
	var uids []string
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		uids, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (uid string, err error) {
			err = row.Scan(&uid)
			return uid, err
		}, `SELECT i.uid FROM integrations i JOIN applications a ON a.integration_uid = i.uid
				LEFT JOIN permission_checks p ON p.integration_uid = i.uid
			WHERE a.consented = 1 AND i.deleting = 0 AND i.default_subscription_id <> ''
				AND (p.next_time IS NULL OR p.next_time <= $1 OR (p.time > 0 AND p.subscription_id <> i.default_subscription_id))
				AND EXISTS (SELECT 1 FROM credential_versions v WHERE v.integration_uid = i.uid AND v.state = 'ACTIVE')
			ORDER BY COALESCE(p.next_time, 0), i.uid LIMIT $2`, sqldb.Micros(now), limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list integrations whose permissions are due: %w", err)
	}
	return uids, nil
}

// ClaimPermissions has the other replicas leave an integration alone until a time; claimed is false when one of them was first.
func (s *Store) ClaimPermissions(ctx context.Context, uid string, now, until time.Time) (claimed bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO permission_checks (integration_uid, next_time) VALUES ($1, $2)
			ON CONFLICT (integration_uid) DO UPDATE SET next_time = excluded.next_time
			WHERE permission_checks.next_time <= $3 OR EXISTS (SELECT 1 FROM integrations i
				WHERE i.uid = $1 AND permission_checks.time > 0 AND i.default_subscription_id <> permission_checks.subscription_id)`,
			uid, sqldb.Micros(until), sqldb.Micros(now))
		claimed = n == 1
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim permissions of integration %s: %w", uid, err)
	}
	return claimed, nil
}

// RecordPermissions stores what was found, and when to look again. If that says something else than before, the integration becomes
// due, so that its master reports it. What was found earlier than what is known is left out.
func (s *Store) RecordPermissions(ctx context.Context, uid string, now time.Time, found permission.Check, next time.Time) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		before, err := readPermissions(ctx, tx, uid)
		if err != nil {
			return err
		}
		if !found.Time.After(before.Time) {
			return nil
		}
		if _, err := tx.Exec(ctx, `INSERT INTO permission_checks
				(integration_uid, next_time, time, subscription_id, principal_object_id, read_level, write_level, denied)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (integration_uid) DO UPDATE SET next_time = excluded.next_time, time = excluded.time,
				subscription_id = excluded.subscription_id, principal_object_id = excluded.principal_object_id,
				read_level = excluded.read_level, write_level = excluded.write_level, denied = excluded.denied`,
			uid, sqldb.Micros(next), sqldb.Micros(found.Time), found.SubscriptionID, found.PrincipalObjectID, string(found.Read), string(found.Write), bit(found.Denied)); err != nil {
			return err
		}
		before.Time = found.Time
		if before == found {
			return nil
		}
		return touch(ctx, tx, uid, now)
	})
	if err != nil {
		return fmt.Errorf("record permissions of integration %s: %w", uid, err)
	}
	return nil
}

// readPermissions is what was found last; its Time is zero when nothing was.
func readPermissions(ctx context.Context, tx sqldb.Tx, uid string) (permission.Check, error) {
	var p permission.Check
	var denied int64
	err := tx.QueryRow(ctx, `SELECT time, subscription_id, principal_object_id, read_level, write_level, denied FROM permission_checks
		WHERE integration_uid = $1`, uid).Scan(at{&p.Time}, &p.SubscriptionID, &p.PrincipalObjectID, &p.Read, &p.Write, &denied)
	p.Denied = denied != 0
	if errors.Is(err, sqldb.ErrNoRows) {
		return permission.Check{}, nil
	}
	return p, err
}
