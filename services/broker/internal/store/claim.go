package store

import (
	"context"
	"crypto/rand"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
)

// Due returns the UIDs of integrations that are due and nobody's, the longest due first, at most limit.
func (s *Store) Due(ctx context.Context, now time.Time, limit int) ([]string, error) {
	var uids []string
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		uids, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (uid string, err error) {
			err = row.Scan(&uid)
			return uid, err
		}, `SELECT integration_uid FROM targets WHERE due_time > 0 AND due_time <= $1 AND claim_until <= $1
			ORDER BY due_time, integration_uid LIMIT $2`, sqldb.Micros(now), limit)
		return err
	})
	return uids, failed(err, "list due targets")
}

// Claim keeps other replicas away from a due target until a time, or until Settle. ErrClaimLost if it is not due, or
// somebody else's.
func (s *Store) Claim(ctx context.Context, now, until time.Time, uid string) (consent.Claim, error) {
	c := consent.Claim{Word: rand.Text()}
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		claimed, err := tx.Exec(ctx, `UPDATE targets SET claim = $1, claim_until = $2
			WHERE integration_uid = $3 AND due_time > 0 AND due_time <= $4 AND claim_until <= $4`,
			c.Word, sqldb.Micros(until), uid, sqldb.Micros(now))
		if err != nil {
			return err
		}
		if claimed == 0 {
			return consent.ErrClaimLost
		}
		c.Target, c.Open, err = read(ctx, tx, uid)
		return err
	})
	if err != nil {
		return consent.Claim{}, failed(err, "claim target %s", uid)
	}
	return c, nil
}

// Settle ends a claim. Decide is given the target and all its sessions that are open now, in the transaction that
// writes what it returns: the target, and those sessions that changed. It may be called more than once. ErrClaimLost
// if the claim is somebody else's by now; then nothing is written.
func (s *Store) Settle(ctx context.Context, c consent.Claim, decide func(consent.Target, []consent.Session) (consent.Target, []consent.Session)) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		uid := c.Target.IntegrationUID
		mine, err := tx.Exec(ctx, `UPDATE targets SET claim = '', claim_until = 0 WHERE integration_uid = $1 AND claim = $2`, uid, c.Word)
		if err != nil {
			return err
		}
		if mine == 0 {
			return consent.ErrClaimLost
		}
		target, open, err := read(ctx, tx, uid)
		if err != nil {
			return err
		}
		target, changed := decide(target, open)
		if _, err := tx.Exec(ctx, `UPDATE targets SET due_time = $1, look_time = $2, probe_time = $3, failures = $4 WHERE integration_uid = $5`,
			sqldb.Micros(target.DueTime), sqldb.Micros(target.LookTime), sqldb.Micros(target.ProbeTime), target.Failures, uid); err != nil {
			return err
		}
		for _, session := range changed {
			if err := update(ctx, tx, session); err != nil {
				return err
			}
		}
		return nil
	})
	return failed(err, "settle target %s", c.Target.IntegrationUID)
}

// Change writes what decide makes of a session, given it as it is in the transaction, if it is a change; and returns it. Decide may be
// called more than once. ErrNotFound if there is no such session.
func (s *Store) Change(ctx context.Context, name consent.Name, decide func(consent.Session) (consent.Session, bool)) (consent.Session, error) {
	var next consent.Session
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		found, err := get(ctx, tx, name)
		if err != nil {
			return err
		}
		// What changes nothing takes no locks.
		var changed bool
		if next, changed = decide(found); !changed {
			return nil
		}
		if err := hold(ctx, tx, found.IntegrationUID); err != nil {
			return err
		}
		// Somebody may have written it before the row was held.
		if found, err = get(ctx, tx, name); err != nil {
			return err
		}
		if next, changed = decide(found); !changed {
			return nil
		}
		return update(ctx, tx, next)
	})
	return next, failed(err, "change session %s", name)
}

// Hasten makes an integration due at once, if any session waits for it. When its tenant was last asked stays as it is, and with it
// the time before which nobody asks again.
func (s *Store) Hasten(ctx context.Context, now time.Time, integrationUID string) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return hasten(ctx, tx, now, integrationUID)
	})
	return failed(err, "hasten target %s", integrationUID)
}

func hasten(ctx context.Context, tx sqldb.Tx, now time.Time, integrationUID string) error {
	_, err := tx.Exec(ctx, `UPDATE targets SET due_time = $1, look_time = $1 WHERE integration_uid = $2 AND due_time > 0`,
		sqldb.Micros(now), integrationUID)
	return err
}

// update writes a session's changes. The transaction holds its integration's row.
func update(ctx context.Context, tx sqldb.Tx, session consent.Session) error {
	_, err := tx.Exec(ctx, `UPDATE consent_sessions SET state = $1, client_id = $2, application_name = $3,
		service_principal_object_id = $4, last_refusal = $5, last_callback = $6, callback_time = $7, version = $8, end_time = $9,
		read_level = $10, write_level = $11, denied = $12, standing_time = $13, loss = $14, expire_time = $15 WHERE account = $16 AND id = $17`,
		session.State, session.ClientID, session.ApplicationName, session.PrincipalObjectID, session.LastRefusal,
		session.LastCallback, sqldb.Micros(session.CallbackTime), session.Version, sqldb.Micros(session.EndTime),
		session.Permissions.Read, session.Permissions.Write, session.Permissions.Denied, sqldb.Micros(session.StandingTime), session.Loss, sqldb.Micros(session.ExpireTime),
		session.Name.Account, session.Name.ID)
	return err
}

// read returns a target, whose row the transaction has written, and its open sessions.
func read(ctx context.Context, tx sqldb.Tx, uid string) (consent.Target, []consent.Session, error) {
	t := consent.Target{IntegrationUID: uid}
	var due, look, probe int64
	if err := tx.QueryRow(ctx, `SELECT integration, due_time, look_time, probe_time, failures FROM targets WHERE integration_uid = $1`,
		uid).Scan(&t.Integration, &due, &look, &probe, &t.Failures); err != nil {
		return consent.Target{}, nil, err
	}
	t.DueTime, t.LookTime, t.ProbeTime = sqldb.Time(due), sqldb.Time(look), sqldb.Time(probe)
	open, err := sqldb.Collect(ctx, tx, scanOne, `SELECT `+sessionColumns+` FROM consent_sessions
		WHERE integration_uid = $1 AND end_time = 0 ORDER BY account, id`, uid)
	return t, open, err
}
