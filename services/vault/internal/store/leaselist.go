package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
)

// qualified are the columns of a table of that alias.
func qualified(alias, columns string) string {
	names := strings.Split(columns, ",")
	for i, name := range names {
		names[i] = alias + "." + strings.TrimSpace(name)
	}
	return strings.Join(names, ", ")
}

var leaseListing = listing[lease.Detail]{
	columns: qualified("g", grantColumns) + ", " + qualified("l", leaseColumns),
	from:    "leases l JOIN grants g ON g.uid = l.grant_uid",
	scan: func(row sqldb.Row) (d lease.Detail, err error) {
		var open, deliver, ended int64
		d.Grant, err = scanGrant(row, &d.UID, &d.GrantUID, &d.InstanceID, &d.Generation, &open, &deliver, &ended)
		d.OpenTime, d.DeliverTime, d.CloseTime = sqldb.Time(open), sqldb.Time(deliver), sqldb.Time(ended)
		return d, err
	},
	keys:  map[string]string{lease.ByGrant: "l.grant_uid", lease.ByUID: "l.uid"},
	times: map[string]string{lease.ByOpenTime: "l.open_time", lease.ByDeliverTime: "l.deliver_time"},
	place: lease.Detail.Place,
}

// Leases returns a page of leases, and one more where there is more; rest is as of Grants.
func (s *Store) Leases(ctx context.Context, l lease.List) (found []lease.Detail, rest page.Place, err error) {
	where := []condition{{"g.account = ?", []any{l.Account}}}
	require := func(text, value string) {
		if value != "" {
			where = append(where, condition{text, []any{value}})
		}
	}
	require("l.grant_uid = ?", l.GrantUID)
	require("g.run = ?", l.Run)
	require("g.project = ?", l.Project)
	require("g.integration = ?", l.Integration)
	if !l.OpenAt.IsZero() {
		where = append(where, condition{"l.close_time = 0 AND g.revoke_time = 0 AND g.expire_time > ?", []any{sqldb.Micros(l.OpenAt)}})
	}
	err = s.readEvents(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		if found, rest, err = leaseListing.list(ctx, tx, where, l.Page, l.Passes); err != nil {
			return err
		}
		return detail(ctx, tx, found)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list leases of %s: %w", l.Account, err)
	}
	return found, rest, nil
}

// Lease returns one of an account's leases, lease.ErrNotFound when there is none.
func (s *Store) Lease(ctx context.Context, account, grantUID, uid string) (d lease.Detail, err error) {
	err = s.readEvents(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		found, err := leaseListing.scan(tx.QueryRow(ctx, `SELECT `+leaseListing.columns+` FROM `+leaseListing.from+`
			WHERE g.account = $1 AND l.grant_uid = $2 AND l.uid = $3`, account, grantUID, uid))
		if errors.Is(err, sqldb.ErrNoRows) {
			return lease.ErrNotFound
		}
		if err != nil {
			return err
		}
		one := []lease.Detail{found}
		err = detail(ctx, tx, one)
		d = one[0]
		return err
	})
	if err != nil {
		return lease.Detail{}, fmt.Errorf("read lease %s: %w", uid, err)
	}
	return d, nil
}

// detailAtOnce is of how many leases the rest is read in one statement, which has a parameter for each.
const detailAtOnce = 500

// detail reads what was delivered last to leases, and what they hold.
func detail(ctx context.Context, tx sqldb.Tx, leases []lease.Detail) error {
	for len(leases) > 0 {
		some := leases[:min(detailAtOnce, len(leases))]
		leases = leases[len(some):]
		of, args := make(map[string]*lease.Detail, len(some)), make([]any, len(some))
		for i := range some {
			of[some[i].UID], args[i] = &some[i], some[i].UID
		}
		these := `l.uid IN (` + placeholders(1, len(some)) + `)`
		_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (none struct{}, err error) {
			var uid, material, audience string
			var version, expire int64
			if err := row.Scan(&uid, &material, &audience, &expire, &version); err != nil {
				return none, err
			}
			d := of[uid]
			d.Material, d.Audience, d.Version, d.ExpireTime = lease.Material(material), audience, version, sqldb.Time(expire)
			return none, nil
		}, `SELECT l.uid, e.material, e.audience, e.expire_time, COALESCE(v.number, 0)
			FROM leases l JOIN audit_events e ON e.grant_uid = l.grant_uid AND e.lease_uid = l.uid AND e.generation = l.generation
			LEFT JOIN credential_versions v ON v.id = e.version_id
			WHERE e.kind = 'CredentialDelivered' AND `+these, args...)
		if err != nil {
			return fmt.Errorf("read last deliveries: %w", err)
		}
		_, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (none struct{}, err error) {
			var uid string
			var version int64
			if err := row.Scan(&uid, &version); err != nil {
				return none, err
			}
			of[uid].Holds = append(of[uid].Holds, version)
			return none, nil
		}, `SELECT l.uid, v.number FROM leases l JOIN holdings h ON h.lease_uid = l.uid JOIN credential_versions v ON v.id = h.version_id
			WHERE `+these+` ORDER BY v.number`, args...)
		if err != nil {
			return fmt.Errorf("read holdings: %w", err)
		}
	}
	return nil
}

// RevokeLease closes a lease and releases what it holds: once it has returned, nothing is recorded as delivered to it any more. One that
// is closed stays as it is. lease.ErrNotFound when there is none. After another error it may be closed.
func (s *Store) RevokeLease(ctx context.Context, now time.Time, account, grantUID, uid string, caller grant.Caller) (lease.Detail, error) {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		g, err := lockGrant(ctx, tx, `account = $1 AND uid = $2`, account, grantUID)
		if errors.Is(err, grant.ErrNotFound) {
			return lease.ErrNotFound
		}
		if err != nil {
			return err
		}
		l, err := scanLease(tx.QueryRow(ctx, `UPDATE leases SET close_time = $1 WHERE uid = $2 AND grant_uid = $3 AND close_time = 0
			RETURNING `+leaseColumns, sqldb.Micros(now), uid, grantUID))
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil // closed, or none
		}
		if err != nil {
			return err
		}
		if err := release(ctx, tx, now, g, uid); err != nil {
			return err
		}
		event := leaseEvent(now, LeaseRevoked, g, l, caller)
		event.Reason = "Requested"
		if err := s.audit(ctx, tx, event); err != nil {
			return err
		}
		return noteChange(ctx, tx, now, "", grantUID)
	})
	if err != nil {
		return lease.Detail{}, fmt.Errorf("revoke lease %s: %w", uid, err)
	}
	// With nobody waiting for the grant: fan-outs of a while may have to be written as events first.
	return s.Lease(ctx, account, grantUID, uid)
}
