// Package store keeps consent sessions in SQL.
//
// It guarantees that what happens to one integration's sessions happens one after another, on either engine: every
// transaction that writes them writes the integration's row in targets first, and holds it until it commits. That a
// round of work is settled by nobody but whoever claimed it. That a request ID creates one session. And that an attempt is
// used once. It does not know the rules: callers hand in what is to become of a session.
//
// The tricky idea: a claim is not a lock that somebody must release, but a time until which others leave the target
// alone, and a random word that settling must know. A replica that died holds nothing up for longer than that, and one
// that was only slow finds its word gone.
package store

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
)

//go:embed sqlite postgres
var migrations embed.FS

// Migrations are the schema's, for sqldb.Open.
func Migrations() fs.FS { return migrations }

// Store keeps sessions. It is safe for concurrent use.
type Store struct{ db *sqldb.DB }

// New uses an open database, which the caller closes.
func New(db *sqldb.DB) *Store { return &Store{db: db} }

// failed wraps an error with what was being done, and says in the domain's words that the database did not answer.
func failed(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	doing := fmt.Sprintf(format, args...)
	if errors.Is(err, sqldb.ErrUnavailable) {
		return fmt.Errorf("%s: %w: %w", doing, consent.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

const sessionColumns = `account, id, integration, integration_uid, tenant_id, cloud, display_name, subscription_id, client_id,
	application_name, return_uri, state, service_principal_object_id, last_refusal, last_callback, callback_time, nonce, version,
	create_time, expire_time, end_time, read_level, write_level, denied, standing_time, loss`

// scanOne is scanSession for queries of sessionColumns alone.
func scanOne(row sqldb.Row) (consent.Session, error) { return scanSession(row) }

// scanSession reads sessionColumns, and what a query has behind them.
func scanSession(row sqldb.Row, more ...any) (consent.Session, error) {
	var s consent.Session
	var nonce []byte
	var called, created, expires, ended, standing int64
	err := row.Scan(append([]any{&s.Name.Account, &s.Name.ID, &s.Integration, &s.IntegrationUID, &s.TenantID, &s.Cloud, &s.DisplayName,
		&s.SubscriptionID, &s.ClientID, &s.ApplicationName, &s.ReturnURI, &s.State, &s.PrincipalObjectID, &s.LastRefusal,
		&s.LastCallback, &called, &nonce, &s.Version, &created, &expires, &ended, &s.Permissions.Read, &s.Permissions.Write, &s.Permissions.Denied,
		&standing, &s.Loss}, more...)...)
	if err != nil {
		return consent.Session{}, err
	}
	if copy(s.Nonce[:], nonce) != len(s.Nonce) {
		return consent.Session{}, fmt.Errorf("session %s: nonce of %d bytes", s.Name, len(nonce))
	}
	s.CallbackTime, s.StandingTime = sqldb.Time(called), sqldb.Time(standing)
	s.CreateTime, s.ExpireTime, s.EndTime = sqldb.Time(created), sqldb.Time(expires), sqldb.Time(ended)
	return s, nil
}

// Replay returns what a request ID created, ErrNotFound if it is new, ErrRequestIDReused if it was for something else.
func (s *Store) Replay(ctx context.Context, now time.Time, r consent.Request) (consent.Session, error) {
	var found consent.Session
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		found, err = replay(ctx, tx, now, r)
		return err
	})
	return found, failed(err, "look for request %s", r.ID)
}

func replay(ctx context.Context, tx sqldb.Tx, now time.Time, r consent.Request) (consent.Session, error) {
	var fingerprint []byte
	var id string
	err := tx.QueryRow(ctx, `SELECT fingerprint, session_id FROM requests
		WHERE account = $1 AND request_id = $2 AND expire_time > $3`, r.Account, r.ID, sqldb.Micros(now)).Scan(&fingerprint, &id)
	if errors.Is(err, sqldb.ErrNoRows) {
		return consent.Session{}, consent.ErrNotFound
	}
	if err != nil {
		return consent.Session{}, err
	}
	if !bytes.Equal(fingerprint, r.Fingerprint) {
		return consent.Session{}, consent.ErrRequestIDReused
	}
	return get(ctx, tx, consent.Name{Account: r.Account, ID: id})
}

// Create stores a new session, with the hash of its link, unless its integration has limit open ones already
// (ErrTooManyOpen); and makes its integration due at once. When the request was made before, also by somebody else at
// this moment, it stores nothing and returns what Replay does.
func (s *Store) Create(ctx context.Context, now time.Time, session consent.Session, linkHash []byte, r consent.Request, limit int) (consent.Session, error) {
	created := session
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return create(ctx, tx, now, session, linkHash, r, limit)
	})
	if sqldb.UniqueOn(err, "requests", "account", "request_id") {
		return s.Replay(ctx, now, r)
	}
	if err != nil {
		return consent.Session{}, failed(err, "create session of %s", session.Integration)
	}
	return created, nil
}

func create(ctx context.Context, tx sqldb.Tx, now time.Time, session consent.Session, linkHash []byte, r consent.Request, limit int) error {
	if _, err := tx.Exec(ctx, `INSERT INTO targets
		(integration_uid, integration, due_time, look_time, probe_time, failures, claim, claim_until)
		VALUES ($1, $2, $3, $3, 0, 0, '', 0)
		ON CONFLICT (integration_uid) DO UPDATE SET due_time = $3, look_time = $3`,
		session.IntegrationUID, session.Integration, sqldb.Micros(now)); err != nil {
		return err
	}
	if r.ID != "" {
		if _, err := tx.Exec(ctx, `DELETE FROM requests WHERE account = $1 AND request_id = $2 AND expire_time <= $3`,
			r.Account, r.ID, sqldb.Micros(now)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO requests (account, request_id, fingerprint, session_id, expire_time)
			VALUES ($1, $2, $3, $4, $5)`, r.Account, r.ID, r.Fingerprint, session.Name.ID, sqldb.Micros(r.ExpireTime)); err != nil {
			return err
		}
	}
	var open int
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM consent_sessions WHERE integration_uid = $1 AND end_time = 0 AND expire_time > $2`,
		session.IntegrationUID, sqldb.Micros(now)).Scan(&open); err != nil {
		return err
	}
	if open >= limit {
		return consent.ErrTooManyOpen
	}
	_, err := tx.Exec(ctx, `INSERT INTO consent_sessions (`+sessionColumns+`, link_hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)`,
		session.Name.Account, session.Name.ID, session.Integration, session.IntegrationUID, session.TenantID, session.Cloud,
		session.DisplayName, session.SubscriptionID, session.ClientID, session.ApplicationName, session.ReturnURI, session.State,
		session.PrincipalObjectID, session.LastRefusal, session.LastCallback, sqldb.Micros(session.CallbackTime), session.Nonce[:],
		session.Version, sqldb.Micros(session.CreateTime), sqldb.Micros(session.ExpireTime), sqldb.Micros(session.EndTime),
		session.Permissions.Read, session.Permissions.Write, session.Permissions.Denied,
		sqldb.Micros(session.StandingTime), session.Loss, linkHash)
	return err
}

// RecordPermissions stores which roles were seen, of a completed session; its version changes if they did.
func (s *Store) RecordPermissions(ctx context.Context, name consent.Name, p consent.Permissions) error {
	_, err := s.Change(ctx, name, func(found consent.Session) (consent.Session, bool) {
		if found.State != consent.Completed || found.Permissions == p {
			return found, false
		}
		found.Permissions = p
		found.Version++
		return found, true
	})
	if errors.Is(err, consent.ErrNotFound) {
		return nil // it is so old that it was forgotten
	}
	return err
}

// Get returns a session, ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, name consent.Name) (consent.Session, error) {
	var found consent.Session
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		found, err = get(ctx, tx, name)
		return err
	})
	return found, failed(err, "read session %s", name)
}

func get(ctx context.Context, tx sqldb.Tx, name consent.Name) (consent.Session, error) {
	found, err := scanSession(tx.QueryRow(ctx, `SELECT `+sessionColumns+` FROM consent_sessions WHERE account = $1 AND id = $2`,
		name.Account, name.ID))
	if errors.Is(err, sqldb.ErrNoRows) {
		return consent.Session{}, consent.ErrNotFound
	}
	return found, err
}

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return failed(s.db.Ping(ctx), "ping the database") }

// Purge forgets request IDs and attempts whose time is over, and sessions that ended before a time, with targets left without any.
func (s *Store) Purge(ctx context.Context, now, endedBefore time.Time) error {
	for _, step := range []struct {
		query string
		time  time.Time
	}{
		{`DELETE FROM requests WHERE expire_time <= $1`, now},
		{`DELETE FROM consent_attempts WHERE expire_time <= $1`, now},
		{`DELETE FROM consent_sessions WHERE end_time > 0 AND end_time < $1`, endedBefore},
		{`DELETE FROM targets WHERE due_time = 0 AND look_time < $1 AND claim_until < $1
			AND NOT EXISTS (SELECT 1 FROM consent_sessions WHERE consent_sessions.integration_uid = targets.integration_uid)`, endedBefore},
	} {
		// One transaction each: they take their locks in different orders than the others do.
		err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, step.query, sqldb.Micros(step.time))
			return err
		})
		if err != nil {
			return failed(err, "purge")
		}
	}
	return nil
}

// StateKey returns the fingerprint of the key that the database's links are made with; nil if none is recorded.
func (s *Store) StateKey(ctx context.Context) ([]byte, error) {
	var fingerprint []byte
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT fingerprint FROM state_key WHERE id = 1`).Scan(&fingerprint)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	return fingerprint, failed(err, "read the state key's fingerprint")
}

// RecordStateKey records a fingerprint unless one is there, and returns the one that is there now.
func (s *Store) RecordStateKey(ctx context.Context, fingerprint []byte) ([]byte, error) {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO state_key (id, fingerprint) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, fingerprint)
		return err
	})
	if err != nil {
		return nil, failed(err, "record the state key's fingerprint")
	}
	return s.StateKey(ctx)
}
