package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
)

// ByLink returns the session whose link has this hash, ErrNotFound if there is none.
func (s *Store) ByLink(ctx context.Context, linkHash []byte) (consent.Session, error) {
	var found consent.Session
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		found, err = scanSession(tx.QueryRow(ctx, `SELECT `+sessionColumns+` FROM consent_sessions WHERE link_hash = $1`, linkHash))
		if errors.Is(err, sqldb.ErrNoRows) {
			return consent.ErrNotFound
		}
		return err
	})
	return found, failed(err, "read the session of a link")
}

// manyLinks bounds the placeholders of one query.
const manyLinks = 200

// ByLinks returns the sessions whose links have these hashes, by their hashes; those that are not there are left out.
func (s *Store) ByLinks(ctx context.Context, linkHashes [][]byte) (map[string]consent.Session, error) {
	found := make(map[string]consent.Session, len(linkHashes))
	for some := range slices.Chunk(linkHashes, manyLinks) {
		places, values := make([]string, len(some)), make([]any, len(some))
		for i, hash := range some {
			places[i], values[i] = "$"+strconv.Itoa(i+1), hash
		}
		// One transaction each, so that a writer does not wait for all of them.
		err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (consent.Session, error) {
				var hash []byte
				session, err := scanSession(row, &hash)
				found[string(hash)] = session
				return session, err
			}, `SELECT `+sessionColumns+`, link_hash FROM consent_sessions WHERE link_hash IN (`+strings.Join(places, ", ")+`)`, values...)
			return err
		})
		if err != nil {
			return nil, failed(err, "read the sessions of links")
		}
	}
	return found, nil
}

// Begin stores a new attempt of an integration's session. The session then has at most as many of them as are kept.
func (s *Store) Begin(ctx context.Context, integrationUID string, a consent.Attempt, kept consent.Kept) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		if err := hold(ctx, tx, integrationUID); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM consent_attempts WHERE account = $1 AND session_id = $2 AND source = $3 AND id NOT IN (
				SELECT id FROM consent_attempts WHERE account = $1 AND session_id = $2 AND source = $3
				ORDER BY CASE WHEN use_time = 0 THEN 0 ELSE 1 END, create_time DESC, id LIMIT $4)`,
			a.Session.Account, a.Session.ID, a.Source, kept.PerSource-1); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM consent_attempts WHERE account = $1 AND session_id = $2 AND id NOT IN (
				SELECT id FROM consent_attempts WHERE account = $1 AND session_id = $2
				ORDER BY CASE WHEN use_time = 0 THEN 0 ELSE 1 END, create_time DESC, id LIMIT $3)`,
			a.Session.Account, a.Session.ID, kept.PerSession-1); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO consent_attempts
			(id, account, session_id, source, state_hash, browser_hash, create_time, expire_time, use_time)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)`,
			a.ID, a.Session.Account, a.Session.ID, a.Source, a.StateHash, a.BrowserHash, sqldb.Micros(a.CreateTime), sqldb.Micros(a.ExpireTime))
		return err
	})
	return failed(err, "begin an attempt of session %s", a.Session)
}

// hold keeps others from writing an integration's sessions until the transaction ends.
func hold(ctx context.Context, tx sqldb.Tx, integrationUID string) error {
	_, err := tx.Exec(ctx, `UPDATE targets SET failures = failures WHERE integration_uid = $1`, integrationUID)
	return err
}

// Return does what a browser's return amounts to, all of it or nothing. Judge is given the attempt whose state has this hash, nil
// if there is none, and its session; what it returns is written in the same transaction. It may be called more than once. Of
// several returns at one moment with one state, one finds the attempt unused.
func (s *Store) Return(ctx context.Context, now time.Time, stateHash []byte, judge func(*consent.Attempt, consent.Session) consent.Verdict) (consent.Verdict, error) {
	var verdict consent.Verdict
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		attempt, session, err := attemptOf(ctx, tx, stateHash)
		if errors.Is(err, sqldb.ErrNoRows) {
			verdict = judge(nil, consent.Session{})
			return nil
		}
		if err != nil {
			return err
		}
		// What changes nothing takes no locks.
		if verdict = judge(&attempt, session); !verdict.Consumed {
			return nil
		}
		if err := hold(ctx, tx, session.IntegrationUID); err != nil {
			return err
		}
		used, err := tx.Exec(ctx, `UPDATE consent_attempts SET use_time = $1 WHERE id = $2 AND use_time = 0`, sqldb.Micros(now), attempt.ID)
		if err != nil {
			return err
		}
		if used == 0 {
			attempt.UseTime = now // another was first
		}
		if session, err = get(ctx, tx, attempt.Session); err != nil {
			return err
		}
		if verdict = judge(&attempt, session); !verdict.Consumed {
			return nil
		}
		return write(ctx, tx, now, verdict)
	})
	if err != nil {
		return consent.Verdict{}, failed(err, "take a browser back")
	}
	return verdict, nil
}

func write(ctx context.Context, tx sqldb.Tx, now time.Time, v consent.Verdict) error {
	if v.Changed {
		if _, err := tx.Exec(ctx, `UPDATE consent_sessions SET last_callback = $1, callback_time = $2, version = $3 WHERE account = $4 AND id = $5`,
			v.Session.LastCallback, sqldb.Micros(v.Session.CallbackTime), v.Session.Version, v.Session.Name.Account, v.Session.Name.ID); err != nil {
			return err
		}
	}
	if v.Hastened {
		return hasten(ctx, tx, now, v.Session.IntegrationUID)
	}
	return nil
}

func attemptOf(ctx context.Context, tx sqldb.Tx, stateHash []byte) (consent.Attempt, consent.Session, error) {
	a := consent.Attempt{StateHash: stateHash}
	var created, expires, used int64
	if err := tx.QueryRow(ctx, `SELECT id, account, session_id, source, browser_hash, create_time, expire_time, use_time
		FROM consent_attempts WHERE state_hash = $1`, stateHash).
		Scan(&a.ID, &a.Session.Account, &a.Session.ID, &a.Source, &a.BrowserHash, &created, &expires, &used); err != nil {
		return consent.Attempt{}, consent.Session{}, err
	}
	a.CreateTime, a.ExpireTime, a.UseTime = sqldb.Time(created), sqldb.Time(expires), sqldb.Time(used)
	session, err := get(ctx, tx, a.Session)
	return a, session, err
}
