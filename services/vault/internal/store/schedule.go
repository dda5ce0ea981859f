package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// Schedule is how a shard's rotation stands at one moment.
type Schedule struct {
	// Lag is for how long the integration has been due that has been due for longest; 0 when none is.
	Lag time.Duration
	// OldestActive is when the client secret became ACTIVE that has been for longest; zero when there is none.
	OldestActive time.Time
	// Expiring counts ACTIVE versions that should have been replaced: too little of their lives is left, as the condition RotationLate has it.
	Expiring int
	// Foreign counts applications that have passwords or federated credentials which nobody here made.
	Foreign int
	// Stray counts applications with a password that is to go and that could not be removed, credential.StuckAttempts times: a stray, or a version's.
	Stray int
	// Open counts rotations that were asked for and have not ended, by reason.
	Open map[credential.RotationReason]int
}

// Schedule reads how the shard's rotation stands. It looks at what stands out, not at each integration.
func (s *Store) Schedule(ctx context.Context, shard int, now time.Time) (Schedule, error) {
	var out Schedule
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		out = Schedule{Open: map[credential.RotationReason]int{credential.Scheduled: 0, credential.Compromised: 0}}
		var first int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_time), $2) FROM applications WHERE shard = $1`, shard, int64(never)).Scan(&first); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM applications WHERE shard = $1 AND foreign_passwords + foreign_trusts > 0 AND delete_time = 0`, shard).
			Scan(&out.Foreign); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT integration_uid FROM stray_passwords WHERE attempts >= $2
				UNION SELECT integration_uid FROM credential_versions
				WHERE attempts >= $2 AND state IN ('REVOKING', 'ABANDONED') AND key_id <> '' AND remove_time = 0) stuck
			CROSS JOIN applications a WHERE a.integration_uid = stuck.integration_uid AND a.shard = $1 AND a.delete_time = 0`, shard, credential.StuckAttempts).
			Scan(&out.Stray); err != nil {
			return err
		}
		if due := sqldb.Time(first); first != never && due.Before(now) {
			out.Lag = now.Sub(due)
		}
		// The outer table first, by its index: what is of other shards is few.
		err := tx.QueryRow(ctx, `SELECT v.activate_time FROM credential_versions v CROSS JOIN integrations i
			WHERE v.state = 'ACTIVE' AND v.end_time > 0 AND i.uid = v.integration_uid AND i.shard = $1 AND i.deleting = 0
			ORDER BY v.activate_time LIMIT 1`, shard).Scan(at{&out.OldestActive})
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return err
		}
		// As credential.Version's late has it, for which a third of the life is left at most.
		if err := tx.QueryRow(ctx, `SELECT COALESCE(SUM(CASE WHEN end_time - $2 < CASE WHEN life / 3 < period THEN life / 4 ELSE period END THEN 1 ELSE 0 END), 0)
			FROM (SELECT v.end_time, v.end_time - v.start_time AS life, CASE WHEN i.rotation_period > 0 THEN i.rotation_period ELSE $3 END AS period
				FROM credential_versions v CROSS JOIN integrations i
				WHERE v.state = 'ACTIVE' AND v.end_time > 0 AND v.end_time - (v.end_time - v.start_time) / 3 <= $2
					AND i.uid = v.integration_uid AND i.shard = $1 AND i.deleting = 0) active`,
			shard, sqldb.Micros(now), credential.DefaultPeriod.Microseconds()).Scan(&out.Expiring); err != nil {
			return err
		}
		type count struct {
			reason credential.RotationReason
			n      int
		}
		counts, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (c count, err error) {
			err = row.Scan(&c.reason, &c.n)
			return c, err
		}, `SELECT r.reason, COUNT(*) FROM rotations r JOIN integrations i ON i.uid = r.integration_uid
			WHERE r.end_time = 0 AND i.shard = $1 GROUP BY r.reason`, shard)
		for _, c := range counts {
			out.Open[c.reason] = c.n
		}
		return err
	})
	if err != nil {
		return Schedule{}, fmt.Errorf("read schedule of shard %d: %w", shard, err)
	}
	return out, nil
}
