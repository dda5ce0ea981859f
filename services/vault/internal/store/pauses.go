package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
)

// PauseRotation stores a pause, in the place of another of the same scope. For an integration or an account that the vault has not heard of
// it is stored too: it may come. What is due meanwhile notices by itself.
func (s *Store) PauseRotation(ctx context.Context, p credential.Pause, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM rotation_pauses WHERE expire_time <= $1`, sqldb.Micros(p.CreateTime)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO rotation_pauses (scope, reason, creator, create_time, expire_time) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (scope) DO UPDATE SET reason = excluded.reason, creator = excluded.creator, create_time = excluded.create_time,
				expire_time = excluded.expire_time`,
			p.Scope, p.Reason, p.Creator, sqldb.Micros(p.CreateTime), sqldb.Micros(p.ExpireTime)); err != nil {
			return err
		}
		return s.auditPause(ctx, tx, p.CreateTime, RotationPaused, p, caller)
	})
	if err != nil {
		return fmt.Errorf("pause rotation of %s: %w", p.Scope, err)
	}
	return nil
}

// resumeLimit is how many integrations are made due in one transaction.
const resumeLimit = 500

// ResumeRotation ends the scope's pause, if there is one, and makes due what may have waited for that. What other pauses cover goes on waiting.
func (s *Store) ResumeRotation(ctx context.Context, now time.Time, scope string, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `DELETE FROM rotation_pauses WHERE scope = $1`, scope)
		if err != nil || n == 0 {
			return err
		}
		return s.auditPause(ctx, tx, now, RotationResumed, credential.Pause{Scope: scope}, caller)
	})
	// Only to be sooner: each integration is looked at within a reconcile interval anyway.
	for after, more := "", true; more && err == nil; {
		err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			from, to := namesIn(scope)
			names, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (name string, err error) {
				err = row.Scan(&name)
				return name, err
			}, `SELECT name FROM integrations WHERE name >= $1 AND name < $2 AND name > $3 ORDER BY name LIMIT $4`, from, to, after, resumeLimit)
			if err != nil || len(names) == 0 {
				more = false
				return err
			}
			last := names[len(names)-1]
			if _, err := tx.Exec(ctx, `UPDATE applications SET touches = touches + 1, next_time = CASE WHEN next_time < $3 THEN next_time ELSE $3 END
				WHERE forget_time = 0 AND integration_uid IN (SELECT uid FROM integrations WHERE name >= $1 AND name <= $2)`,
				names[0], last, sqldb.Micros(now)); err != nil {
				return err
			}
			after, more = last, len(names) == resumeLimit
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("resume rotation of %s: %w", scope, err)
	}
	return nil
}

// namesIn are the bounds of the names of the integrations in a scope: from the first on, before the second.
func namesIn(scope string) (from, to string) {
	if scope == credential.Everything {
		return "accounts/", "accounts0"
	}
	if n := accountOf(scope); scope == "accounts/"+n {
		return scope + "/", scope + "0"
	}
	return scope, scope + " " // before whatever else a name can go on with
}

// Pauses returns at most limit pauses that have not ended, of the account and its integrations, or all (credential.Everything), in the
// order of their scopes, those after the given one.
func (s *Store) Pauses(ctx context.Context, now time.Time, scope, after string, limit int) ([]credential.Pause, error) {
	var out []credential.Pause
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		from, to := namesIn(scope)
		out, err = sqldb.Collect(ctx, tx, scanPause, `SELECT `+pauseColumns+` FROM rotation_pauses
			WHERE (scope = $1 OR scope >= $2 AND scope < $3) AND scope > $4 AND expire_time > $5 ORDER BY scope LIMIT $6`,
			scope, from, to, after, sqldb.Micros(now), limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list pauses of %s: %w", scope, err)
	}
	return out, nil
}

const pauseColumns = `scope, reason, creator, create_time, expire_time`

func scanPause(row sqldb.Row) (credential.Pause, error) {
	var p credential.Pause
	err := row.Scan(&p.Scope, &p.Reason, &p.Creator, at{&p.CreateTime}, at{&p.ExpireTime})
	return p, err
}

// readPause is the one that lasts longest of the pauses that cover the integration of that name; its times are zero when there is none.
func readPause(ctx context.Context, tx sqldb.Tx, integration string) (credential.Pause, error) {
	p, err := scanPause(tx.QueryRow(ctx, `SELECT `+pauseColumns+` FROM rotation_pauses WHERE scope IN ($1, $2, $3) ORDER BY expire_time DESC LIMIT 1`,
		integration, "accounts/"+accountOf(integration), credential.Everything))
	if errors.Is(err, sqldb.ErrNoRows) {
		return credential.Pause{}, nil
	}
	return p, err
}

// checkPause is a credential.PauseError when the integration of that name is paused.
func checkPause(ctx context.Context, tx sqldb.Tx, now time.Time, integration string) error {
	p, err := readPause(ctx, tx, integration)
	if err != nil {
		return fmt.Errorf("read pause: %w", err)
	}
	if now.Before(p.ExpireTime) {
		return &credential.PauseError{Pause: p}
	}
	return nil
}

func (s *Store) auditPause(ctx context.Context, tx sqldb.Tx, now time.Time, kind AuditKind, p credential.Pause, caller grant.Caller) error {
	e := AuditEvent{Time: now, Kind: kind, Caller: caller, Reason: p.Scope, ExpireTime: p.ExpireTime}
	if p.Reason != "" {
		e.Reason += ": " + p.Reason
	}
	if p.Scope != credential.Everything {
		e.Account = accountOf(p.Scope)
	}
	err := tx.QueryRow(ctx, `SELECT uid FROM integrations WHERE name = $1`, p.Scope).Scan(&e.IntegrationUID)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return err
	}
	return s.audit(ctx, tx, e)
}
