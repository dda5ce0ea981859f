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
	// Lag is for how long the integration has been due that has been due for longest; 0 when none is. That one waits for Graph's budget, and so is looked at later, makes it no
	// less; what waits only because it was refused is not due.
	Lag time.Duration
	// OldestActive is when the client secret became ACTIVE that has been for longest; zero when there is none. Expiring counts ACTIVE versions that should have been replaced:
	// see credential.Version's Expiring. Neither looks at integrations whose consent was lost: their secrets open nothing, and their successors cannot be proven.
	OldestActive time.Time
	Expiring     int
	// ConsentLost counts applications that had consent and have it no more.
	ConsentLost int
	// Unlisted counts applications whose integrations the registry does not list, as their turns last found, although nobody had them deleted.
	Unlisted int
	// Foreign counts applications that have passwords or federated credentials which nobody here made.
	Foreign int
	// Stray counts applications with a password that is to go and that could not be removed, credential.StuckAttempts times: a stray, or a version's.
	Stray int
	// Open counts rotations that were asked for, by reason: by schedule those that are under way, for a compromise those of which an old secret is there still,
	// and has not ended.
	Open map[credential.RotationReason]int
}

// Schedule reads how the shard's rotation stands. It looks at what stands out, not at each integration.
func (s *Store) Schedule(ctx context.Context, shard int, now time.Time, timing credential.Timing) (Schedule, error) {
	var out Schedule
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		out = Schedule{Open: map[credential.RotationReason]int{credential.Scheduled: 0, credential.Compromised: 0}}
		var first, waiting int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE((SELECT MIN(next_time) FROM applications WHERE shard = $1), $2),
				COALESCE((SELECT MIN(due_time) FROM applications WHERE shard = $1 AND due_time > 0), $2)`, shard, int64(never)).Scan(&first, &waiting); err != nil {
			return err
		}
		first = min(first, waiting)
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM applications WHERE shard = $1 AND foreign_passwords + foreign_trusts > 0 AND delete_time = 0`, shard).
			Scan(&out.Foreign); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM applications WHERE shard = $1 AND consented = 0 AND consent_time > 0 AND delete_time = 0),
				(SELECT COUNT(*) FROM applications WHERE shard = $1 AND unlisted = 1)`, shard).Scan(&out.ConsentLost, &out.Unlisted); err != nil {
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
		err := tx.QueryRow(ctx, `SELECT v.activate_time FROM credential_versions v CROSS JOIN integrations i CROSS JOIN applications a
			WHERE v.state = 'ACTIVE' AND v.end_time > 0 AND i.uid = v.integration_uid AND i.shard = $1 AND i.deleting = 0
				AND a.integration_uid = i.uid AND a.consented = 1
			ORDER BY v.activate_time LIMIT 1`, shard).Scan(at{&out.OldestActive})
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return err
		}
		if out.Expiring, err = expiring(ctx, tx, shard, now, timing); err != nil {
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
			WHERE r.end_time = 0 AND i.shard = $1 AND (r.reason <> 'COMPROMISED' AND r.state <> 'ABANDONED' OR r.reason = 'COMPROMISED' AND r.remove_time = 0
				AND EXISTS (SELECT 1 FROM credential_versions v WHERE v.integration_uid = r.integration_uid AND v.number <= r.up_to
					AND (v.state IN ('STAGED', 'PROPAGATING', 'ACTIVE', 'RETIRING', 'REVOKING') OR v.state = 'ABANDONED' AND v.key_id <> '' AND v.remove_time = 0)
					AND (v.end_time = 0 OR v.end_time > $2)))
			GROUP BY r.reason`, shard, sqldb.Micros(now))
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

// expiring counts the shard's versions that should have been replaced. A third of such a one's life is left at most.
func expiring(ctx context.Context, tx sqldb.Tx, shard int, now time.Time, timing credential.Timing) (n int, err error) {
	type candidate struct {
		name    string
		period  int64
		version credential.Version
	}
	old, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (c candidate, err error) {
		c.version.State = credential.Active
		err = row.Scan(&c.name, &c.period, at{&c.version.StartTime}, at{&c.version.EndTime}, &c.version.Refusals)
		return c, err
	}, `SELECT i.name, i.rotation_period, v.start_time, v.end_time, v.refusals FROM credential_versions v CROSS JOIN integrations i CROSS JOIN applications a
		WHERE v.state = 'ACTIVE' AND v.end_time > 0 AND v.end_time - (v.end_time - v.start_time) / 3 <= $2
			AND i.uid = v.integration_uid AND i.shard = $1 AND i.deleting = 0 AND a.integration_uid = i.uid AND a.consented = 1`, shard, sqldb.Micros(now))
	if err != nil || len(old) == 0 {
		return 0, err
	}
	pauses, err := sqldb.Collect(ctx, tx, scanPause, `SELECT `+pauseColumns+` FROM rotation_pauses WHERE expire_time > $1`, sqldb.Micros(now))
	if err != nil {
		return 0, err
	}
	ends := map[string]time.Time{}
	for _, p := range pauses {
		ends[p.Scope] = p.ExpireTime
	}
	for _, c := range old {
		var end time.Time
		for _, scope := range []string{c.name, "accounts/" + accountOf(c.name), credential.Everything} {
			if ends[scope].After(end) {
				end = ends[scope]
			}
		}
		if c.version.Expiring(now, time.Duration(c.period)*time.Microsecond, end, timing) {
			n++
		}
	}
	return n, nil
}
