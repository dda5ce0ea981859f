package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// Now is the time by which claims and answers are stored: the database server's, which is the same to all replicas. now is the caller's.
func (s *Store) Now(ctx context.Context, now time.Time) (time.Time, error) { return s.db.Now(ctx, now) }

// ClaimProbe claims the next question to the integration's tenant for one caller, in all replicas: not within spacing of
// the last claim, and not while one that may take until its limit has not been answered. Whoever gets the claim asks, and says
// so with RecordProbe. The others go by the last answer, Probe. now is by Now here and there, or a replica whose clock is ahead would keep the others from asking.
func (s *Store) ClaimProbe(ctx context.Context, uid string, now time.Time, spacing, limit time.Duration) (claimed bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO consent_probes (integration_uid, claim_time, busy_until) VALUES ($1, $2, $3)
			ON CONFLICT (integration_uid) DO UPDATE SET claim_time = excluded.claim_time, busy_until = excluded.busy_until
			WHERE consent_probes.claim_time <= $4 AND consent_probes.busy_until <= $2`,
			uid, sqldb.Micros(now), sqldb.Micros(now.Add(limit)), sqldb.Micros(now.Add(-spacing)))
		claimed = n == 1
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim probe of integration %s: %w", uid, err)
	}
	return claimed, nil
}

// RecordProbe ends a claim with what the tenant said, and makes the integration due so that its master takes it in. An
// Unsure answer only ends the claim: the last sure one stays. rest is how long the tenant asked not to be asked again.
func (s *Store) RecordProbe(ctx context.Context, uid string, now time.Time, p credential.Probe, rest time.Duration) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if p.Finding == credential.Unsure {
			_, err := tx.Exec(ctx, `UPDATE consent_probes SET busy_until = $2 WHERE integration_uid = $1`, uid, sqldb.Micros(now.Add(rest)))
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE consent_probes SET busy_until = 0, time = $2, version_id = $3, finding = $4, code = $5,
			principal_object_id = $6 WHERE integration_uid = $1 AND time < $2`,
			uid, sqldb.Micros(p.Time), p.VersionID, string(p.Finding), p.Code, p.PrincipalObjectID); err != nil {
			return err
		}
		return touch(ctx, tx, uid, now)
	})
	if err != nil {
		return fmt.Errorf("record probe of integration %s: %w", uid, err)
	}
	return nil
}

// WantProbe has the integration's tenant asked again soon: somebody was refused a token by it.
func (s *Store) WantProbe(ctx context.Context, uid string, now time.Time) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO consent_probes (integration_uid, want_time) VALUES ($1, $2)
			ON CONFLICT (integration_uid) DO UPDATE SET want_time = excluded.want_time`, uid, sqldb.Micros(now)); err != nil {
			return err
		}
		return touch(ctx, tx, uid, now)
	})
	if err != nil {
		return fmt.Errorf("want probe of integration %s: %w", uid, err)
	}
	return nil
}

// Probe returns the last sure answer of the integration's tenant; its Time is zero when there is none.
func (s *Store) Probe(ctx context.Context, uid string) (credential.Probe, error) {
	var out credential.Probe
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = readProbe(ctx, tx, uid)
		return err
	})
	if err != nil {
		return credential.Probe{}, fmt.Errorf("read probe of integration %s: %w", uid, err)
	}
	return out, nil
}

func readProbe(ctx context.Context, tx sqldb.Tx, uid string) (credential.Probe, error) {
	var p credential.Probe
	err := tx.QueryRow(ctx, `SELECT time, version_id, finding, code, principal_object_id, want_time FROM consent_probes WHERE integration_uid = $1`, uid).
		Scan(at{&p.Time}, &p.VersionID, &p.Finding, &p.Code, &p.PrincipalObjectID, at{&p.WantTime})
	if errors.Is(err, sqldb.ErrNoRows) {
		return credential.Probe{}, nil
	}
	return p, err
}
