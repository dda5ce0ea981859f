package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
)

// CreateGrant stores a grant and the hash of its token. If a grant of the same request ID exists, that one is returned
// instead, as by RepeatGrant. grant.ErrAccountFrozen when its account is; so do RepeatGrant and ExtendGrant end.
func (s *Store) CreateGrant(ctx context.Context, now time.Time, g grant.Grant, token grant.Hash, request grant.RequestKey, caller grant.Caller) (grant.Grant, error) {
	var out grant.Grant
	create := func(ctx context.Context, tx sqldb.Tx) error {
		if err := checkAccount(ctx, tx, g.Account); err != nil {
			return err
		}
		if request.ID != "" {
			repeated, found, err := s.repeat(ctx, tx, now, g.Account, token, request, caller)
			if err != nil || found {
				out = repeated
				return err
			}
		}
		out = g
		return s.insertGrant(ctx, tx, now, g, token, request, caller)
	}
	err := s.db.Tx(ctx, create)
	if sqldb.UniqueOn(err, "grants", "account", "request_id") {
		// The same request came first, at the same moment. It is there now.
		err = s.db.Tx(ctx, create)
	}
	if err != nil {
		return grant.Grant{}, fmt.Errorf("create grant: %w", err)
	}
	return out, nil
}

// RepeatGrant returns the grant that a request made before, and makes token its token instead of the one that nobody has
// shown yet; found is false when there is no such grant. grant.ErrRequestIDReused when the contents are others,
// grant.ErrInUse when the token has been shown.
func (s *Store) RepeatGrant(ctx context.Context, now time.Time, account string, token grant.Hash, request grant.RequestKey, caller grant.Caller) (g grant.Grant, found bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		if err := checkAccount(ctx, tx, account); err != nil {
			return err
		}
		g, found, err = s.repeat(ctx, tx, now, account, token, request, caller)
		return err
	})
	if err != nil {
		return grant.Grant{}, false, fmt.Errorf("repeat grant: %w", err)
	}
	return g, found, nil
}

func (s *Store) repeat(ctx context.Context, tx sqldb.Tx, now time.Time, account string, token grant.Hash, request grant.RequestKey, caller grant.Caller) (grant.Grant, bool, error) {
	if _, err := tx.Exec(ctx, `UPDATE grants SET request_id = NULL WHERE account = $1 AND request_id = $2 AND create_time <= $3`,
		account, request.ID, sqldb.Micros(now.Add(-grant.RequestIDLife))); err != nil {
		return grant.Grant{}, false, err
	}
	g, err := lockGrant(ctx, tx, `account = $1 AND request_id = $2`, account, request.ID)
	if errors.Is(err, grant.ErrNotFound) {
		return grant.Grant{}, false, nil
	}
	if err != nil {
		return grant.Grant{}, false, err
	}
	var fingerprint []byte
	if err := tx.QueryRow(ctx, `SELECT request_hash FROM grants WHERE uid = $1`, g.UID).Scan(&fingerprint); err != nil {
		return grant.Grant{}, false, err
	}
	switch {
	case !slices.Equal(fingerprint, request.Fingerprint[:]):
		return grant.Grant{}, false, grant.ErrRequestIDReused
	case !g.UseTime.IsZero():
		return grant.Grant{}, false, grant.ErrInUse
	}
	if _, err := tx.Exec(ctx, `UPDATE grants SET token_hash = $1 WHERE uid = $2`, token[:], g.UID); err != nil {
		return grant.Grant{}, false, err
	}
	return g, true, s.audit(ctx, tx, grantEvent(now, GrantTokenReplaced, g, caller))
}

func (s *Store) insertGrant(ctx context.Context, tx sqldb.Tx, now time.Time, g grant.Grant, token grant.Hash, request grant.RequestKey, caller grant.Caller) error {
	var requestID, fingerprint any
	if request.ID != "" {
		requestID, fingerprint = request.ID, request.Fingerprint[:]
	}
	if _, err := tx.Exec(ctx, `INSERT INTO grants (`+grantColumns+`, access, token_hash, request_id, request_hash, turn)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, 0)`,
		g.UID, g.Account, g.Project, g.ProjectUID, string(g.Phase), g.Run, g.Integration, g.IntegrationUID, g.SubscriptionID, g.Incarnation,
		g.Revision, g.CertificateSHA256, sqldb.Micros(g.CreateTime), sqldb.Micros(g.ExpireTime), sqldb.Micros(g.RevokeTime),
		sqldb.Micros(g.UseTime), string(g.Access()), token[:], requestID, fingerprint); err != nil {
		return err
	}
	return s.audit(ctx, tx, grantEvent(now, GrantCreated, g, caller))
}

// GrantByToken returns the grant that the token opens, grant.ErrUnknown when there is none.
func (s *Store) GrantByToken(ctx context.Context, token grant.Hash) (grant.Grant, error) {
	g, err := s.findGrant(ctx, `token_hash = $1`, token[:])
	if errors.Is(err, grant.ErrNotFound) {
		err = grant.ErrUnknown
	}
	return g, err
}

// UseGrant notes that the token has been shown: from then on it is not replaced. grant.ErrUnknown when another token has
// replaced it meanwhile.
func (s *Store) UseGrant(ctx context.Context, now time.Time, token grant.Hash) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE grants SET use_time = CASE WHEN use_time = 0 THEN $1 ELSE use_time END WHERE token_hash = $2`,
			sqldb.Micros(now), token[:])
		if err == nil && n == 0 {
			return grant.ErrUnknown
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("note use of grant: %w", err)
	}
	return nil
}

// Grant returns one of an account's grants, grant.ErrNotFound when there is none.
func (s *Store) Grant(ctx context.Context, account, uid string) (grant.Grant, error) {
	return s.findGrant(ctx, `account = $1 AND uid = $2`, account, uid)
}

// ExtendGrant moves the grant's end, as grant.Extend decides; a lease.HoldError when a secret that its leases hold ends too soon
// for that.
func (s *Store) ExtendGrant(ctx context.Context, now time.Time, account, uid string, end time.Time, caller grant.Caller) (grant.Grant, error) {
	var g grant.Grant
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		if g, err = lockGrant(ctx, tx, `account = $1 AND uid = $2`, account, uid); err != nil {
			return err
		}
		if err := checkAccount(ctx, tx, account); err != nil {
			return err
		}
		extended, err := g.Extend(now, end)
		if err != nil || extended.Equal(g.ExpireTime) {
			return err
		}
		if err := extendHoldings(ctx, tx, g.UID, extended); err != nil {
			return err
		}
		g.ExpireTime = extended
		if _, err := tx.Exec(ctx, `UPDATE grants SET expire_time = $1 WHERE uid = $2`, sqldb.Micros(extended), g.UID); err != nil {
			return err
		}
		if err := s.audit(ctx, tx, grantEvent(now, GrantExtended, g, caller)); err != nil {
			return err
		}
		return noteChange(ctx, tx, now, "", g.UID)
	})
	if err != nil {
		return grant.Grant{}, fmt.Errorf("extend grant %s: %w", uid, err)
	}
	return g, nil
}

// RevokeGrant ends the grant and releases what its leases hold: once it has returned, nothing is recorded as delivered by it any
// more. A grant that was revoked stays as it is.
func (s *Store) RevokeGrant(ctx context.Context, now time.Time, account, uid string, caller grant.Caller) (grant.Grant, error) {
	var g grant.Grant
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		if g, err = lockGrant(ctx, tx, `account = $1 AND uid = $2`, account, uid); err != nil {
			return err
		}
		if !g.RevokeTime.IsZero() {
			return nil
		}
		g.RevokeTime = now
		if _, err := tx.Exec(ctx, `UPDATE grants SET revoke_time = $1 WHERE uid = $2`, sqldb.Micros(now), g.UID); err != nil {
			return err
		}
		if err := release(ctx, tx, now, g, ""); err != nil {
			return err
		}
		if err := s.audit(ctx, tx, grantEvent(now, GrantRevoked, g, caller)); err != nil {
			return err
		}
		return noteChange(ctx, tx, now, "", g.UID)
	})
	if err != nil {
		return grant.Grant{}, fmt.Errorf("revoke grant %s: %w", uid, err)
	}
	return g, nil
}

// lockGrant reads a grant, having first written to its row: whoever delivers by it or changes it does so first, so they
// take turns, and what is read is what holds until the commit.
func lockGrant(ctx context.Context, tx sqldb.Tx, where string, key ...any) (grant.Grant, error) {
	g, err := scanGrant(tx.QueryRow(ctx, `UPDATE grants SET turn = turn + 1 WHERE `+where+` RETURNING `+grantColumns, key...))
	if errors.Is(err, sqldb.ErrNoRows) {
		return grant.Grant{}, grant.ErrNotFound
	}
	return g, err
}

// lockGrants locks and reads grants as lockGrant does, many at once, in the order of their UIDs.
func lockGrants(ctx context.Context, tx sqldb.Tx, which string, args ...any) ([]grant.Grant, error) {
	return sqldb.Collect(ctx, tx, grantListing.scan, lockingGrants(tx, `uid IN (`+which+`)`), args...)
}

func lockingGrants(tx sqldb.Tx, where string) string {
	return orderedGrants(where) + tx.ForUpdate()
}

func orderedGrants(where string) string {
	return `SELECT ` + grantColumns + ` FROM grants WHERE ` + where + ` ORDER BY uid`
}

func (s *Store) findGrant(ctx context.Context, where string, key ...any) (grant.Grant, error) {
	var g grant.Grant
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		g, err = scanGrant(tx.QueryRow(ctx, `SELECT `+grantColumns+` FROM grants WHERE `+where, key...))
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return grant.Grant{}, grant.ErrNotFound
	}
	if err != nil {
		return grant.Grant{}, fmt.Errorf("read grant: %w", err)
	}
	return g, nil
}

const grantColumns = `uid, account, project, project_uid, phase, run, integration, integration_uid, subscription_id, incarnation, revision,
	certificate_sha256, create_time, expire_time, revoke_time, use_time`

// scanGrant reads a row that begins with grantColumns; more are further columns.
func scanGrant(row sqldb.Row, more ...any) (grant.Grant, error) {
	var (
		g                         grant.Grant
		phase                     string
		create, expire, end, used int64
	)
	columns := []any{&g.UID, &g.Account, &g.Project, &g.ProjectUID, &phase, &g.Run, &g.Integration, &g.IntegrationUID, &g.SubscriptionID,
		&g.Incarnation, &g.Revision, &g.CertificateSHA256, &create, &expire, &end, &used}
	if err := row.Scan(append(columns, more...)...); err != nil {
		return grant.Grant{}, err
	}
	g.Phase = grant.Phase(phase)
	g.CreateTime, g.ExpireTime, g.RevokeTime, g.UseTime = sqldb.Time(create), sqldb.Time(expire), sqldb.Time(end), sqldb.Time(used)
	return g, nil
}

func grantEvent(now time.Time, kind AuditKind, g grant.Grant, caller grant.Caller) AuditEvent {
	return AuditEvent{
		Time: now, Kind: kind, Caller: caller, Account: g.Account, GrantUID: g.UID, Run: g.Run, Integration: g.Integration,
		IntegrationUID: g.IntegrationUID, Project: g.Project, ProjectUID: g.ProjectUID, ExpireTime: g.ExpireTime,
	}
}
