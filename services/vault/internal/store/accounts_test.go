package store_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/grant"
)

// freeze freezes acme, and releases what its leases hold, so many grants at once.
func (c *counter) freeze(limit int) grant.Account {
	c.t.Helper()
	is, err := c.store.FreezeAccount(c.t.Context(), start, "acme", "chargeback", platform)
	if err != nil {
		c.t.Fatal(err)
	}
	for after, more := "", true; more; more = after != "" {
		if after, err = c.store.ReleaseFrozen(c.t.Context(), start, "acme", after, limit); err != nil {
			c.t.Fatal(err)
		}
	}
	return is
}

func TestFreezeAccount_EndsDeliveriesAndReleases(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for i := range 5 {
			c.grant(fmt.Sprint("g", i))
		}
		c.grant("other", func(g *grant.Grant) { g.Account = "other" })
		for _, uid := range []string{"g0", "g2", "g4", "other"} {
			if _, err := c.store.Deliver(ctx, start, whole(uid, "instance-1", "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		c.holders("delivered", "v2 4")
		before := c.newest()
		if is := c.freeze(2); is.ID != "acme" || is.FreezeReason != "chargeback" || !is.FreezeTime.Equal(start) {
			c.t.Errorf("frozen: %+v", is)
		}
		c.holders("frozen", "v2 1")
		changes, _, err := c.store.Changes(ctx, before, 10)
		if err != nil || len(changes) != 1 || changes[0].Account != "acme" || changes[0].GrantUID != "" || changes[0].IntegrationUID != "" {
			c.t.Errorf("told of %+v, %v", changes, err)
		}
		again, err := c.store.FreezeAccount(ctx, start.Add(time.Minute), "acme", "another reason", platform)
		if err != nil || again.FreezeReason != "chargeback" || !again.FreezeTime.Equal(start) || c.newest() != before+1 {
			c.t.Errorf("frozen again: %+v, %v", again, err)
		}

		e, err := c.store.Entitlement(ctx, "g0", "instance-1")
		if err != nil {
			c.t.Fatal(err)
		}
		refusedWith(c.t, "entitlement", e.Check(start), grant.ErrAccountFrozen)
		_, err = c.store.Deliver(ctx, start, order("g0", "instance-1", "v2"))
		refusedWith(c.t, "delivery of a token", err, grant.ErrAccountFrozen)
		_, err = c.store.Deliver(ctx, start, whole("g1", "instance-1", "v2"))
		refusedWith(c.t, "delivery of a secret", err, grant.ErrAccountFrozen)
		c.holders("refused", "v2 1")
		fresh, _, hash := c.fresh("g9")
		_, err = c.store.CreateGrant(ctx, start, fresh, hash, grant.RequestKey{}, platform)
		refusedWith(c.t, "a new grant", err, grant.ErrAccountFrozen)
		_, _, err = c.store.RepeatGrant(ctx, start, "acme", hash, grant.RequestKey{ID: "r"}, platform)
		refusedWith(c.t, "a repeated grant", err, grant.ErrAccountFrozen)
		_, err = c.store.ExtendGrant(ctx, start, "acme", "g0", start.Add(2*time.Hour), platform)
		refusedWith(c.t, "an extension", err, grant.ErrAccountFrozen)
		if _, err := c.store.Deliver(ctx, start, order("other", "instance-1", "v2")); err != nil {
			c.t.Errorf("another account: %v", err)
		}
		if err := c.store.CloseLease(ctx, start, "g2", "instance-1", platform); err != nil {
			c.t.Errorf("close a lease: %v", err)
		}

		for range 2 {
			if err := c.store.UnfreezeAccount(ctx, start, "acme", platform); err != nil {
				c.t.Fatal(err)
			}
		}
		if is, err := c.store.Account(ctx, "acme"); err != nil || is.Frozen() {
			c.t.Errorf("unfrozen: %+v, %v", is, err)
		}
		if _, err := c.store.Deliver(ctx, start, whole("g0", "instance-1", "v2")); err != nil {
			c.t.Errorf("unfrozen: %v", err)
		}
		c.holders("unfrozen", "v2 2")
		if got := c.rows(4, `SELECT kind, account, reason, actor FROM audit_events WHERE kind LIKE 'Account%' ORDER BY writer, seq`); !slices.Equal(got, []string{
			"AccountFrozen acme chargeback spiffe://phasekey.dev/platform", "AccountUnfrozen acme  spiffe://phasekey.dev/platform",
		}) {
			c.t.Errorf("recorded %q", got)
		}
	})
}

// Freezing meets deliveries under way, and unfreezing meets what is left of freezing.
func TestFreezeAccount_NothingIsRecordedAfterItReturned(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for i := range 6 {
			c.grant(fmt.Sprint("g", i))
		}
		frozen := make(chan struct{})
		var group sync.WaitGroup
		for i := range 6 {
			group.Go(func() {
				for {
					after := false
					select {
					case <-frozen:
						after = true
					default:
					}
					_, err := c.store.Deliver(ctx, start, whole(fmt.Sprint("g", i), "instance-1", "v2"))
					switch {
					case err == nil && after:
						c.t.Error("delivered after the account was frozen")
						return
					case errors.Is(err, grant.ErrAccountFrozen) && after:
						return
					case err != nil && !errors.Is(err, grant.ErrAccountFrozen):
						c.t.Errorf("deliver: %v", err)
						return
					}
				}
			})
		}
		c.freeze(2)
		close(frozen)
		group.Wait()
		c.holders("frozen")

		// An unfreezing that comes before the last release keeps what is delivered after it.
		if err := c.store.UnfreezeAccount(ctx, start, "acme", platform); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.Deliver(ctx, start, whole("g0", "instance-1", "v2")); err != nil {
			c.t.Fatal(err)
		}
		if last, err := c.store.ReleaseFrozen(ctx, start, "acme", "", 2); err != nil || last != "" {
			c.t.Errorf("release after unfreezing: %q, %v", last, err)
		}
		c.holders("unfrozen", "v2 1")
	})
}

func TestUsage_CountsWhatThereIs(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for i := range 5 {
			c.grant(fmt.Sprint("g", i), func(g *grant.Grant) {
				if i == 4 {
					g.ExpireTime = start
				}
			})
		}
		c.grant("other", func(g *grant.Grant) { g.Account = "other" })
		for _, uid := range []string{"g0", "g1", "g2", "other"} {
			if _, err := c.store.Deliver(ctx, start, whole(uid, "instance-1", "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		if err := c.store.CloseLease(ctx, start, "g1", "instance-1", platform); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "g2", platform); err != nil {
			c.t.Fatal(err)
		}
		hour := grant.HourOf(start)
		for range 2 {
			if err := c.store.CountDeliveries(ctx, start, []grant.Count{
				{Account: "other", Hour: hour, Deliveries: 1000}, {Account: "acme", Hour: hour, Deliveries: 1}, {Account: "acme", Hour: hour - 23, Deliveries: 10},
				{Account: "acme", Hour: hour - 24, Deliveries: 100}, {Account: "acme", Hour: hour - 719, Deliveries: 1000}, {Account: "acme", Hour: hour - 720, Deliveries: 10_000},
			}); err != nil {
				c.t.Fatal(err)
			}
		}
		of, u, err := c.store.Usage(ctx, start, "acme")
		want := grant.Usage{LiveGrants: 3, OpenLeases: 1, HeldSecrets: 1, Integrations: 1, DayDeliveries: 22, MonthDeliveries: 2222}
		if err != nil || of.ID != "acme" || of.Frozen() || u != want {
			c.t.Errorf("%+v uses %+v, %v; want %+v", of, u, err, want)
		}
		if _, u, err := c.store.Usage(ctx, start, "nobody"); err != nil || u != (grant.Usage{}) {
			c.t.Errorf("an unknown account uses %+v, %v", u, err)
		}
		if err := c.store.CountDeliveries(ctx, start.Add(700*time.Hour), nil); err != nil {
			c.t.Fatal(err)
		}
		if kept := c.rows(2, `SELECT account, deliveries FROM delivery_counts ORDER BY account, hour`); !slices.Equal(kept, []string{"acme 2", "other 2000"}) {
			c.t.Errorf("kept %q", kept)
		}
	})
}
