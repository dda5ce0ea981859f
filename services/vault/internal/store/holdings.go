package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// hold notes that the leases are given the version's secret: each that did not have it raises the version's holders, which it can only
// while that is ACTIVE and was not refused when it was last asked with. The caller has the grants' rows, so nobody else holds or releases by them, and has checked that none lasts longer than the
// secret may be held. lease.ErrVersionGone when the version is not ACTIVE.
func hold(ctx context.Context, tx sqldb.Tx, versionID, integrationUID string, holds []holding) error {
	leases := sqldb.NewValues("t")
	for _, h := range holds {
		leases.Add(h.leaseUID)
	}
	these, args := tx.Values(leases, versionID)
	have, err := sqldb.Collect(ctx, tx, scanUID, `SELECT lease_uid FROM holdings WHERE lease_uid IN (SELECT column1 FROM `+these+` v) AND version_id = $1`, args...)
	if err != nil {
		return fmt.Errorf("read holdings: %w", err)
	}
	fresh := sqldb.NewValues("tttii")
	for _, h := range holds {
		if !slices.Contains(have, h.leaseUID) {
			fresh.Add(h.leaseUID, versionID, h.grantUID, sqldb.Micros(h.latest), sqldb.Micros(h.end))
		}
	}
	raise := fresh.Len()
	if raise == 0 {
		return nil
	}
	raised, err := tx.Exec(ctx, `UPDATE credential_versions SET holders = holders + $3 WHERE id = $1 AND integration_uid = $2 AND state = 'ACTIVE' AND refusals = 0`,
		versionID, integrationUID, raise)
	if err != nil {
		return fmt.Errorf("raise holders: %w", err)
	}
	if raised == 0 {
		return lease.ErrVersionGone
	}
	rows, args := tx.Values(fresh)
	if _, err := tx.Exec(ctx, `INSERT INTO holdings (lease_uid, version_id, grant_uid, latest_time, expire_time) SELECT * FROM `+rows+` v`, args...); err != nil {
		return fmt.Errorf("note holdings: %w", err)
	}
	return nil
}

// holding is that a lease of a grant has a version's secret: until the grant's end, which must not come after latest.
type holding struct {
	leaseUID, grantUID string
	latest, end        time.Time
}

// release ends the holdings of one of the grant's leases, or with an empty leaseUID of all: it lowers each version's holders by
// exactly as many, and makes the integration due, since its master may have waited for that. The caller has the grant's row.
func release(ctx context.Context, tx sqldb.Tx, now time.Time, g grant.Grant, leaseUID string) error {
	const which = ` FROM holdings WHERE grant_uid = $1 AND ($2 = '' OR lease_uid = $2)`
	type count struct {
		versionID string
		n         int64
	}
	counts, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (c count, err error) {
		err = row.Scan(&c.versionID, &c.n)
		return c, err
	}, `SELECT h.version_id, h.n FROM (SELECT version_id, COUNT(*) AS n`+which+` GROUP BY version_id) h
		JOIN credential_versions v ON v.id = h.version_id ORDER BY v.number`, g.UID, leaseUID)
	if err != nil {
		return fmt.Errorf("read holdings: %w", err)
	}
	if len(counts) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `DELETE`+which, g.UID, leaseUID); err != nil {
		return fmt.Errorf("end holdings: %w", err)
	}
	if err := touch(ctx, tx, g.IntegrationUID, now); err != nil {
		return err
	}
	for _, c := range counts {
		if _, err := tx.Exec(ctx, `UPDATE credential_versions SET holders = holders - $2 WHERE id = $1`, c.versionID, c.n); err != nil {
			return fmt.Errorf("lower holders: %w", err)
		}
	}
	return nil
}

// extendHoldings moves the holdings' ends with the grant's; a lease.HoldError when a secret that is held ends too soon for that.
func extendHoldings(ctx context.Context, tx sqldb.Tx, grantUID string, end time.Time) error {
	var held, latest int64
	if err := tx.QueryRow(ctx, `SELECT COUNT(*), COALESCE(MIN(latest_time), 0) FROM holdings WHERE grant_uid = $1`, grantUID).Scan(&held, &latest); err != nil {
		return fmt.Errorf("read holdings: %w", err)
	}
	if held == 0 {
		return nil
	}
	if err := lease.CheckHold(end, sqldb.Time(latest)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE holdings SET expire_time = $2 WHERE grant_uid = $1`, grantUID, sqldb.Micros(end)); err != nil {
		return fmt.Errorf("extend holdings: %w", err)
	}
	return nil
}

// ReleaseEnded releases what the leases of at most limit grants hold that are over, those that ended first; any replica may, and any
// number of them at once. It returns how many there were: as many as limit means that there may be more. One that cannot be
// released does not keep the others.
func (s *Store) ReleaseEnded(ctx context.Context, now time.Time, limit int) (int, error) {
	var over []string
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		over, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (uid string, err error) {
			var end int64
			err = row.Scan(&uid, &end)
			return uid, err
		}, `SELECT grant_uid, MIN(expire_time) FROM holdings WHERE expire_time <= $1 GROUP BY grant_uid ORDER BY 2 LIMIT $2`, sqldb.Micros(now), limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read holdings that are over: %w", err)
	}
	var problems []error
	for _, uid := range over {
		err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			g, err := lockGrant(ctx, tx, `uid = $1`, uid)
			if err != nil {
				return err
			}
			if g.Check(now) == nil {
				return nil // extended meanwhile
			}
			return release(ctx, tx, now, g, "")
		})
		if err != nil {
			problems = append(problems, fmt.Errorf("release what grant %s held: %w", uid, err))
		}
		if ctx.Err() != nil || errors.Is(err, sqldb.ErrUnavailable) {
			break
		}
	}
	return len(over), errors.Join(problems...)
}

// endLimit is of how many grants the leases are ended in one transaction: whatever else its shard's masters do waits for that.
const endLimit = 50

// EndLeases closes leases of an integration that is being deleted, records that, and releases what they hold; it returns how many
// there were. They may be too many for one transaction: the step's change is committed with the last of them, and with the others
// that the integration is due at once. After the last nobody opens one: a delivery by a grant that is taken here was committed
// before and is seen, and any other begins when the integration is known to be deleted. It may be repeated. Errors: as Commit;
// ErrChanged also when the integration is not being deleted any more.
func (s *Store) EndLeases(ctx context.Context, m election.Mastership, step Step) (ended int, err error) {
	err = s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
		ended = 0
		var deleting int64
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM integrations WHERE uid = $1 AND deleting = 1`, step.IntegrationUID).Scan(&deleting); err != nil {
			return err
		}
		if deleting == 0 {
			return ErrChanged
		}
		step := step
		grants, last, err := tx.lockGrantsWithLeases(ctx, step.IntegrationUID, step.Now)
		if err != nil {
			return fmt.Errorf("lock grants: %w", err)
		}
		if !last {
			step.Change, step.NextTime = credential.Change{}, step.Now
		}
		var events []AuditEvent
		for _, g := range grants {
			closed, err := sqldb.Collect(ctx, tx.Tx, scanLease, `UPDATE leases SET close_time = $1 WHERE grant_uid = $2 AND close_time = 0
				RETURNING `+leaseColumns, sqldb.Micros(step.Now), g.UID)
			if err != nil {
				return fmt.Errorf("close leases of grant %s: %w", g.UID, err)
			}
			for _, l := range closed {
				event := leaseEvent(step.Now, LeaseRevoked, g, l, grant.Caller{})
				event.Reason = "Deleting"
				events = append(events, event)
			}
		}
		for _, g := range grants {
			if err := release(ctx, tx.Tx, step.Now, g, ""); err != nil {
				return err
			}
		}
		if _, err := tx.write(ctx, step); err != nil {
			return err
		}
		for _, e := range events {
			if err := s.audit(ctx, tx.Tx, e); err != nil {
				return err
			}
		}
		ended = len(events)
		return noteChange(ctx, tx.Tx, step.Now, step.IntegrationUID, "")
	})
	if err != nil {
		return 0, fmt.Errorf("end leases of integration %s: %w", step.IntegrationUID, err)
	}
	return ended, nil
}

// lockGrantsWithLeases takes grants of the integration that have leases to be ended: those by which something could be delivered
// now, or by which something is held. All grants there ever were may be very many. With the last of them it takes those without a
// lease too, and so finds the leases that were being opened.
func (tx masterTx) lockGrantsWithLeases(ctx context.Context, integrationUID string, now time.Time) (grants []grant.Grant, last bool, err error) {
	const (
		live    = `SELECT uid FROM grants WHERE integration_uid = $1 AND expire_time > $2 AND revoke_time = 0`
		holding = `SELECT grant_uid FROM holdings WHERE version_id IN (SELECT id FROM credential_versions WHERE integration_uid = $1)`
		leased  = `SELECT grant_uid FROM leases WHERE close_time = 0 AND grant_uid IN (` + live + `) UNION ` + holding
	)
	grants, err = lockGrants(ctx, tx.Tx, leased+` ORDER BY 1 LIMIT $3`, integrationUID, sqldb.Micros(now), endLimit)
	if err != nil || len(grants) == endLimit {
		return grants, false, err
	}
	if grants, err = lockGrants(ctx, tx.Tx, live+` UNION `+holding, integrationUID, sqldb.Micros(now)); err != nil {
		return nil, false, err
	}
	uids, err := sqldb.Collect(ctx, tx.Tx, func(row sqldb.Row) (uid string, err error) {
		err = row.Scan(&uid)
		return uid, err
	}, leased, integrationUID, sqldb.Micros(now))
	return slices.DeleteFunc(grants, func(g grant.Grant) bool { return !slices.Contains(uids, g.UID) }), true, err
}
