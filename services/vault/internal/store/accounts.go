package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/grant"
)

// What happens to accounts.
const (
	AccountFrozen   AuditKind = "AccountFrozen"
	AccountUnfrozen AuditKind = "AccountUnfrozen"
)

// frozen is true of a grant g whose account is frozen.
const frozen = `EXISTS (SELECT 1 FROM frozen_accounts fa WHERE fa.account = g.account)`

// endedMargin is for how long after its end a grant is taken for one by which another replica, whose clock is behind, may deliver.
const endedMargin = 5 * time.Minute

// Account returns what is known of an account: of one that nobody has heard of, that it is not frozen.
func (s *Store) Account(ctx context.Context, account string) (grant.Account, error) {
	var out grant.Account
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = readAccount(ctx, tx, account)
		return err
	})
	return out, err
}

func readAccount(ctx context.Context, tx sqldb.Tx, account string) (grant.Account, error) {
	out, at := grant.Account{ID: account}, int64(0)
	err := tx.QueryRow(ctx, `SELECT reason, freeze_time FROM frozen_accounts WHERE account = $1`, account).Scan(&out.FreezeReason, &at)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return grant.Account{}, fmt.Errorf("read account %s: %w", account, err)
	}
	out.FreezeTime = sqldb.Time(at)
	return out, nil
}

// checkAccount is grant.ErrAccountFrozen of an account that is frozen.
func checkAccount(ctx context.Context, tx sqldb.Tx, account string) error {
	is, err := readAccount(ctx, tx, account)
	if err != nil {
		return err
	}
	return is.Check()
}

// FreezeAccount freezes an account, unless it is: then it stays as it is. Deliveries that had begun may yet be recorded, until
// ReleaseFrozen has been through.
func (s *Store) FreezeAccount(ctx context.Context, now time.Time, account, reason string, caller grant.Caller) (grant.Account, error) {
	var out grant.Account
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO frozen_accounts (account, reason, freeze_time) VALUES ($1, $2, $3) ON CONFLICT (account) DO NOTHING`,
			account, reason, sqldb.Micros(now))
		if err != nil {
			return err
		}
		if out, err = readAccount(ctx, tx, account); err != nil || n == 0 {
			return err
		}
		if err := s.audit(ctx, tx, AuditEvent{Time: now, Kind: AccountFrozen, Caller: caller, Account: account, Reason: reason}); err != nil {
			return err
		}
		return noteChanges(ctx, tx, now, []Change{{Account: account}})
	})
	if err != nil {
		return grant.Account{}, fmt.Errorf("freeze account %s: %w", account, err)
	}
	return out, nil
}

// ReleaseFrozen releases what the leases of at most limit live grants of a frozen account hold, those with UIDs after the given one. It
// waits for deliveries by them that are under way, and later ones find the account frozen: when it has been through all, nothing is
// recorded any more. It returns the last UID, empty when there are no more. An account that was unfrozen meanwhile is left alone.
func (s *Store) ReleaseFrozen(ctx context.Context, now time.Time, account, after string, limit int) (last string, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		last = ""
		found, err := sqldb.Collect(ctx, tx, scanUID, `SELECT uid FROM grants
			WHERE account = $1 AND revoke_time = 0 AND expire_time > $2 AND uid > $3 ORDER BY uid LIMIT $4`,
			account, sqldb.Micros(now.Add(-endedMargin)), after, limit)
		if err != nil || len(found) == 0 {
			return err
		}
		args := make([]any, len(found))
		for i, uid := range found {
			args[i] = uid
		}
		grants, err := lockGrants(ctx, tx, placeholders(1, len(found)), args...)
		if err != nil {
			return err
		}
		// Whoever holds something by one of them from here on was let in by a later state of the account.
		if is, err := readAccount(ctx, tx, account); err != nil || !is.Frozen() {
			return err
		}
		byRelease(grants)
		for _, g := range grants {
			if err := release(ctx, tx, now, g, ""); err != nil {
				return err
			}
		}
		if len(found) == limit {
			last = found[limit-1]
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("release what leases of account %s hold: %w", account, err)
	}
	return last, nil
}

// UnfreezeAccount has an account's grants deliver again.
func (s *Store) UnfreezeAccount(ctx context.Context, now time.Time, account string, caller grant.Caller) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `DELETE FROM frozen_accounts WHERE account = $1`, account)
		if err != nil || n == 0 {
			return err
		}
		return s.audit(ctx, tx, AuditEvent{Time: now, Kind: AccountUnfrozen, Caller: caller, Account: account})
	})
	if err != nil {
		return fmt.Errorf("unfreeze account %s: %w", account, err)
	}
	return nil
}

// Usage counts what an account has.
func (s *Store) Usage(ctx context.Context, now time.Time, account string) (grant.Account, grant.Usage, error) {
	var of grant.Account
	var u grant.Usage
	hour := grant.HourOf(now)
	const live = `account = $1 AND revoke_time = 0 AND expire_time > $2`
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		if of, err = readAccount(ctx, tx, account); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT
			(SELECT COUNT(*) FROM grants WHERE `+live+`),
			(SELECT COUNT(*) FROM leases WHERE close_time = 0 AND grant_uid IN (SELECT uid FROM grants WHERE `+live+`)),
			(SELECT COUNT(*) FROM holdings WHERE grant_uid IN (SELECT uid FROM grants WHERE account = $1)),
			(SELECT COUNT(*) FROM integrations WHERE name > $3 AND name < $4),
			COALESCE((SELECT SUM(deliveries) FROM delivery_counts WHERE account = $1 AND hour > $5), 0),
			COALESCE((SELECT SUM(deliveries) FROM delivery_counts WHERE account = $1 AND hour > $6), 0)`,
			account, sqldb.Micros(now), "accounts/"+account+"/integrations/", "accounts/"+account+"/integrations0",
			hour-grant.HoursOfDay, hour-grant.HoursOfMonth,
		).Scan(&u.LiveGrants, &u.OpenLeases, &u.HeldSecrets, &u.Integrations, &u.DayDeliveries, &u.MonthDeliveries)
	})
	if err != nil {
		return grant.Account{}, grant.Usage{}, fmt.Errorf("count what account %s uses: %w", account, err)
	}
	return of, u, nil
}

// CountDeliveries adds to the counts of deliveries, and forgets those that are too old for any Usage.
func (s *Store) CountDeliveries(ctx context.Context, now time.Time, counts []grant.Count) error {
	// Everybody takes the rows in this order.
	counts = slices.SortedFunc(slices.Values(counts), func(a, b grant.Count) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Hour, b.Hour))
	})
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		for _, c := range counts {
			if _, err := tx.Exec(ctx, `INSERT INTO delivery_counts (account, hour, deliveries) VALUES ($1, $2, $3)
				ON CONFLICT (account, hour) DO UPDATE SET deliveries = delivery_counts.deliveries + excluded.deliveries`,
				c.Account, c.Hour, c.Deliveries); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DELETE FROM delivery_counts WHERE hour <= $1`, grant.HourOf(now)-grant.HoursOfMonth)
		return err
	})
	if err != nil {
		return fmt.Errorf("count deliveries: %w", err)
	}
	return nil
}
