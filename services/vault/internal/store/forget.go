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
		which := tuples{casts: "t"}
		for _, uid := range old {
			which.add(uid)
		}
		values := which.values()
		// A grant before its leases, as everybody takes them.
		if _, err := lockGrants(ctx, tx, values, which.args...); err != nil {
			return err
		}
		leases, err := tx.Exec(ctx, fmt.Sprintf(`DELETE FROM leases WHERE uid IN (SELECT uid FROM leases WHERE grant_uid IN (%s) LIMIT $%d)`,
			values, len(which.args)+1), append(which.args, limit)...)
		if err != nil {
			return fmt.Errorf("leases: %w", err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM grants WHERE uid IN (`+values+`)
			AND NOT EXISTS (SELECT 1 FROM leases WHERE grant_uid = grants.uid)`, which.args...); err != nil {
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
