package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// RecoveryBegun: somebody said that the database was restored from a backup; Reason says which recovery it is.
const RecoveryBegun AuditKind = "RecoveryBegun"

// RecoveryProgress says how far the last recovery is.
type RecoveryProgress struct {
	// Recovery is zero when there never was one.
	credential.Recovery
	// Rotated counts integrations with an ACTIVE version that was begun since; Waiting those that are to have one; Unconsented those
	// that cannot, for want of consent.
	Rotated, Waiting, Unconsented int
	// Unknown counts passwords at Entra from before that no version here has: they are removed last.
	Unknown int
}

// BeginRecovery stores that the database was restored from a backup, and ends every mastership: whoever decides from then on knows.
// All integrations become due. It can be repeated after any interruption; each time counts as a restore of its own, which costs
// a rotation more.
func (s *Store) BeginRecovery(ctx context.Context, now time.Time) (credential.Recovery, error) {
	r := credential.Recovery{Time: now}
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if err := endMasterships(ctx, tx, now); err != nil {
			return err
		}
		if err := touchAll(ctx, tx, now); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `INSERT INTO recoveries (number, time) SELECT COALESCE(MAX(number), 0) + 1, $1 FROM recoveries RETURNING number`,
			sqldb.Micros(now)).Scan(&r.Number); err != nil {
			return err
		}
		return s.audit(ctx, tx, AuditEvent{Time: now, Kind: RecoveryBegun, Reason: fmt.Sprintf("recovery %d", r.Number)})
	})
	if err != nil {
		return credential.Recovery{}, fmt.Errorf("begin recovery: %w", err)
	}
	return r, nil
}

// endMasterships fences whoever is master of anything, as if each shard had been taken, by nobody: see package fence.
func endMasterships(ctx context.Context, tx sqldb.Tx, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE shards SET epoch = CASE WHEN epoch >= $1 THEN epoch + 1 ELSE $1 END, holder = ''`, sqldb.Micros(now))
	return err
}

// touchAll makes all integrations due. A hundred thousand of them take seconds, for which nobody else's touch gets through.
func touchAll(ctx context.Context, tx sqldb.Tx, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = CASE WHEN next_time < $1 THEN next_time ELSE $1 END
		WHERE forget_time = 0`, sqldb.Micros(now))
	return err
}

// RecoveryProgress says how far the last recovery is.
func (s *Store) RecoveryProgress(ctx context.Context) (RecoveryProgress, error) {
	var out RecoveryProgress
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out = RecoveryProgress{}
		if out.Recovery, err = readRecovery(ctx, tx); err != nil || out.Number == 0 {
			return err
		}
		const rotated = `EXISTS (SELECT 1 FROM credential_versions WHERE integration_uid = i.uid AND state = 'ACTIVE' AND recovery = $1)`
		if err := tx.QueryRow(ctx, `SELECT
				COALESCE(SUM(CASE WHEN `+rotated+` THEN 1 ELSE 0 END), 0),
				COALESCE(SUM(CASE WHEN NOT `+rotated+` AND a.consented = 1 THEN 1 ELSE 0 END), 0),
				COALESCE(SUM(CASE WHEN NOT `+rotated+` AND COALESCE(a.consented, 0) = 0 THEN 1 ELSE 0 END), 0)
			FROM integrations i LEFT JOIN applications a ON a.integration_uid = i.uid WHERE i.deleting = 0`, out.Number).
			Scan(&out.Rotated, &out.Waiting, &out.Unconsented); err != nil {
			return err
		}
		strays, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (p credential.Stray, err error) {
			err = row.Scan(at{&p.StartTime})
			return p, err
		}, `SELECT start_time FROM stray_passwords`)
		for _, p := range strays {
			if out.Before(p) {
				out.Unknown++
			}
		}
		return err
	})
	if err != nil {
		return RecoveryProgress{}, fmt.Errorf("read progress of the recovery: %w", err)
	}
	return out, nil
}

func readRecovery(ctx context.Context, tx sqldb.Tx) (credential.Recovery, error) {
	var r credential.Recovery
	err := tx.QueryRow(ctx, `SELECT number, time FROM recoveries ORDER BY number DESC LIMIT 1`).Scan(&r.Number, at{&r.Time})
	if errors.Is(err, sqldb.ErrNoRows) {
		return credential.Recovery{}, nil
	}
	return r, err
}
