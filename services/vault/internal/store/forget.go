package store

import (
	"context"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
)

// ForgetGrants deletes grants that ended before, also those that were revoked sooner, the oldest first, and their leases: at most limit of each. It leaves
// grants whose leases hold a secret. It reports whether there may be more.
func (s *Store) ForgetGrants(ctx context.Context, before time.Time, limit int) (more bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		more = false
		old, err := sqldb.Collect(ctx, tx, scanUID, `SELECT uid FROM grants WHERE expire_time <= $1
			AND NOT EXISTS (SELECT 1 FROM holdings WHERE grant_uid = grants.uid) ORDER BY expire_time LIMIT $2`, sqldb.Micros(before), limit)
		if err != nil || len(old) == 0 {
			return err
		}
		which := sqldb.NewValues("t")
		for _, uid := range old {
			which.Add(uid)
		}
		these, args := tx.Values(which)
		// A grant before its leases, as everybody takes them.
		if _, err := lockGrants(ctx, tx, `SELECT column1 FROM `+these+` v`, args...); err != nil {
			return err
		}
		limited, limitedArgs := tx.Values(which, limit)
		leases, err := tx.Exec(ctx, `DELETE FROM leases WHERE uid IN (SELECT uid FROM leases WHERE grant_uid IN (SELECT column1 FROM `+limited+` v) LIMIT $1)`, limitedArgs...)
		if err != nil {
			return fmt.Errorf("leases: %w", err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM grants WHERE uid IN (SELECT column1 FROM `+these+` v)
			AND NOT EXISTS (SELECT 1 FROM leases WHERE grant_uid = grants.uid)`, args...); err != nil {
			return err
		}
		more = len(old) == limit || leases == int64(limit)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("forget grants that ended before %s: %w", before.UTC().Format(time.RFC3339), err)
	}
	return more, nil
}
