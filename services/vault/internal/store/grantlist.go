package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/page"
)

var grantListing = listing[grant.Grant]{
	columns: grantColumns, from: "grants",
	scan:  func(row sqldb.Row) (grant.Grant, error) { return scanGrant(row) },
	keys:  map[string]string{grant.ByUID: "uid"},
	times: map[string]string{grant.ByCreateTime: "create_time", grant.ByExpireTime: "expire_time"},
	place: grant.Grant.Place,
}

// Grants returns a page of an account's grants, and one more where there is more. Where it has read as many as a page may and found
// too little, rest is the place behind which the list goes on.
func (s *Store) Grants(ctx context.Context, l grant.List) (found []grant.Grant, rest page.Place, err error) {
	where := []condition{{"account = ?", []any{l.Account}}}
	require := func(text, value string) {
		if value != "" {
			where = append(where, condition{text, []any{value}})
		}
	}
	require("run = ?", l.Run)
	require("project = ?", l.Project)
	require("integration = ?", l.Integration)
	if !l.ActiveAt.IsZero() {
		where = append(where, condition{"revoke_time = 0 AND expire_time > ?", []any{sqldb.Micros(l.ActiveAt)}})
	}
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		found, rest, err = grantListing.list(ctx, tx, where, l.Page, l.Passes)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list grants of %s: %w", l.Account, err)
	}
	return found, rest, nil
}

// RevokeGrants revokes at most limit of the account's live grants that the scope means, as RevokeGrant does, in one transaction. It
// returns how many it revoked, and whether there may be more.
func (s *Store) RevokeGrants(ctx context.Context, now time.Time, account string, scope grant.Scope, limit int, caller grant.Caller) (revoked int, more bool, err error) {
	where, value := `run = $3`, scope.Run
	if scope.Integration != "" {
		where, value = `integration = $3`, scope.Integration
	}
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		// Of these others may revoke some at the same time, so how many were revoked here does not say whether there are more.
		found, err := sqldb.Collect(ctx, tx, scanUID, `SELECT uid FROM grants
			WHERE account = $1 AND revoke_time = 0 AND expire_time > $2 AND `+where+` ORDER BY uid LIMIT $4`, account, sqldb.Micros(now), value, limit)
		if err != nil {
			return err
		}
		grants, err := revokeAll(ctx, tx, now, found)
		if err != nil {
			return err
		}
		changes := make([]Change, len(grants))
		for i, g := range grants {
			if err := release(ctx, tx, now, g, ""); err != nil {
				return err
			}
			changes[i] = Change{GrantUID: g.UID}
		}
		for _, g := range grants {
			if err := s.audit(ctx, tx, grantEvent(now, GrantRevoked, g, caller)); err != nil {
				return err
			}
		}
		revoked, more = len(grants), len(found) == limit
		return noteChanges(ctx, tx, now, changes)
	})
	if err != nil {
		return 0, false, fmt.Errorf("revoke grants of %s: %w", account, err)
	}
	return revoked, more, nil
}

// revokeAll marks those of the grants as revoked that are not, and returns them in the order in which everybody releases what
// several grants hold.
func revokeAll(ctx context.Context, tx sqldb.Tx, now time.Time, uids []string) ([]grant.Grant, error) {
	if len(uids) == 0 {
		return nil, nil
	}
	args := []any{sqldb.Micros(now)}
	for _, uid := range uids {
		args = append(args, uid)
	}
	// In order first: the update takes them in whatever order its plan has.
	if _, err := lockGrants(ctx, tx, placeholders(1, len(uids)), args[1:]...); err != nil {
		return nil, err
	}
	grants, err := sqldb.Collect(ctx, tx, grantListing.scan, `UPDATE grants SET turn = turn + 1, revoke_time = $1
		WHERE revoke_time = 0 AND uid IN (`+placeholders(2, len(uids))+`) RETURNING `+grantColumns, args...)
	if err != nil {
		return nil, err
	}
	byRelease(grants)
	return grants, nil
}

// byRelease sorts grants by what is locked next: their integrations' applications.
func byRelease(grants []grant.Grant) {
	slices.SortFunc(grants, func(a, b grant.Grant) int {
		return cmp.Or(cmp.Compare(a.IntegrationUID, b.IntegrationUID), cmp.Compare(a.UID, b.UID))
	})
}

// placeholders are n parameters from the first on, separated by commas.
func placeholders(first, n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = "$" + strconv.Itoa(first+i)
	}
	return strings.Join(out, ", ")
}
