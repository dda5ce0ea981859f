package store_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// left are the grants that there are, each with how many leases it has.
func (c *counter) left() []string {
	c.t.Helper()
	return c.rows(2, `SELECT uid, (SELECT CAST(COUNT(*) AS TEXT) FROM leases WHERE grant_uid = grants.uid) FROM grants ORDER BY uid`)
}

func TestForgetGrants_TakesWhatIsOverAndNothingElse(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		deliver := func(d store.Delivery) {
			c.t.Helper()
			if _, err := c.store.Deliver(ctx, start, d); err != nil {
				c.t.Fatal(err)
			}
		}
		until := func(d time.Duration) func(*grant.Grant) {
			return func(g *grant.Grant) { g.ExpireTime = start.Add(d) }
		}
		c.grant("a-never-used", until(time.Hour))
		c.grant("b-used", until(2*time.Hour))
		deliver(order("b-used", "one", "v2"))
		deliver(order("b-used", "two", "v2"))
		if err := c.store.CloseLease(ctx, start, "b-used", "two", grant.Caller{}); err != nil {
			c.t.Fatal(err)
		}
		c.grant("c-revoked", until(3*time.Hour))
		deliver(order("c-revoked", "one", "v2"))
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "c-revoked", platform); err != nil {
			c.t.Fatal(err)
		}
		c.grant("d-holds", until(3*time.Hour))
		whole := order("d-holds", "one", "v2")
		whole.Material, whole.HoldLimit = lease.ClientSecret, start.Add(24*time.Hour)
		deliver(whole)
		c.grant("e-live", until(4*time.Hour))
		deliver(order("e-live", "one", "v2"))
		c.grant("f-extended", until(time.Hour))
		if _, err := c.store.ExtendGrant(ctx, start, "acme", "f-extended", start.Add(4*time.Hour), platform); err != nil {
			c.t.Fatal(err)
		}
		records := len(c.audit())

		forget := func(step string, before time.Time, limit int, wantMore bool, want ...string) {
			c.t.Helper()
			more, err := c.store.ForgetGrants(ctx, before, limit)
			if err != nil || more != wantMore {
				c.t.Errorf("%s: %v, %v; want more: %v", step, more, err, wantMore)
			}
			if have := c.left(); !slices.Equal(have, want) {
				c.t.Errorf("%s: left %q, want %q", step, have, want)
			}
		}
		forget("before any ended", start.Add(time.Hour-time.Microsecond), 10, false, "a-never-used 0", "b-used 2", "c-revoked 1", "d-holds 1", "e-live 1", "f-extended 0")
		forget("the first", start.Add(time.Hour), 10, false, "b-used 2", "c-revoked 1", "d-holds 1", "e-live 1", "f-extended 0")
		forget("one at a time", start.Add(3*time.Hour), 1, true, "b-used 1", "c-revoked 1", "d-holds 1", "e-live 1", "f-extended 0")
		forget("its other lease", start.Add(3*time.Hour), 1, true, "c-revoked 1", "d-holds 1", "e-live 1", "f-extended 0")
		forget("what does not hold", start.Add(3*time.Hour), 10, false, "d-holds 1", "e-live 1", "f-extended 0")
		if _, err := c.store.ReleaseEnded(ctx, start.Add(3*time.Hour), 10); err != nil {
			c.t.Fatal(err)
		}
		forget("what held", start.Add(3*time.Hour), 10, false, "e-live 1", "f-extended 0")
		c.holders("at the end")
		if now := len(c.audit()); now != records {
			c.t.Errorf("%d audit records of %d", now, records)
		}
	})
}

// Replicas that are at the same grants take turns.
func TestForgetGrants_ReplicasTogether(t *testing.T) {
	c := onPostgres(t)
	const grants = 40
	for i := range grants {
		uid := fmt.Sprintf("g%02d", i)
		c.grant(uid)
		if _, err := c.store.Deliver(t.Context(), start, order(uid, "a", "v2")); err != nil {
			t.Fatal(err)
		}
	}
	var group sync.WaitGroup
	for range 4 {
		replica := store.New(c.db, audittest.Keys(1))
		group.Go(func() {
			for more := true; more; {
				var err error
				if more, err = replica.ForgetGrants(t.Context(), start.Add(24*time.Hour), 7); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if have := c.left(); len(have) != 0 {
		t.Errorf("left %v", have)
	}
	if n := c.rows(1, `SELECT CAST(deadlocks AS TEXT) FROM pg_stat_database WHERE datname = current_database()`); !slices.Equal(n, []string{"0"}) {
		t.Errorf("%v deadlocks", n)
	}
}
