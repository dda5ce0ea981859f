package store_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// Streams are told when what they are given is made of other versions than before, and not of each step on the way there: thousands of them would look.
func TestCommit_TellsStreamsOfWhatTheyAreGiven(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		m := c.master()
		c.version("v4", 4, "PROPAGATING")
		for _, step := range []struct {
			name   string
			change func(f store.Facts) credential.Change
			told   int64
		}{
			{"nothing", func(store.Facts) credential.Change { return credential.Change{} }, 0},
			{"a new one is given up", func(f store.Facts) credential.Change {
				return credential.Change{Moves: []credential.Move{to(f, "v4", credential.Abandoned)}}
			}, 0},
			{"another is ACTIVE", promote("v2", "v3"), 1},
			{"the former one goes", revoke("v2"), 1},
			{"it is gone", func(f store.Facts) credential.Change {
				return credential.Change{Moves: []credential.Move{to(f, "v2", credential.Revoked)}}
			}, 0},
		} {
			before := c.newest()
			if err := c.commit(m, step.change); err != nil {
				c.t.Fatalf("%s: %v", step.name, err)
			}
			if told := c.newest() - before; told != step.told {
				c.t.Errorf("%s: %d changes", step.name, told)
			}
		}
	})
}

func TestHoldings_AreRaisedOnceAndReleasedExactly(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx, m := c.t.Context(), c.master()
		c.grant("g1")
		c.grant("g2", func(g *grant.Grant) { g.ExpireTime = start.Add(2 * time.Hour) })
		deliver := func(d store.Delivery) func() error {
			return func() error {
				_, err := c.store.Deliver(ctx, start, d)
				return err
			}
		}
		closing := func(instance string) func() error {
			return func() error { return c.store.CloseLease(ctx, start, "g1", instance, platform) }
		}
		ended := func(now time.Time, want int) func() error {
			return func() error {
				n, err := c.store.ReleaseEnded(ctx, now, 10)
				if n != want {
					c.t.Errorf("%d grants were over, want %d", n, want)
				}
				return err
			}
		}
		for _, step := range []struct {
			name string
			do   func() error
			err  error
			want []string
			// touched says that the integration's master is to look.
			touched bool
		}{
			{name: "a token holds nothing", do: deliver(order("g1", "t", "v2"))},
			{name: "first delivery", do: deliver(whole("g1", "a", "v2")), want: []string{"v2 1"}},
			{name: "the same again", do: deliver(whole("g1", "a", "v2")), want: []string{"v2 1"}},
			{name: "a token for who holds", do: deliver(order("g1", "a", "v2")), want: []string{"v2 1"}},
			{name: "another instance", do: deliver(whole("g1", "b", "v2")), want: []string{"v2 2"}},
			{name: "another grant's", do: deliver(whole("g2", "a", "v2")), want: []string{"v2 3"}},
			{name: "a version that is retiring", do: deliver(whole("g1", "c", "v1")), err: lease.ErrVersionGone, want: []string{"v2 3"}},
			{name: "a version that is not proven", do: deliver(whole("g1", "c", "v3")), err: lease.ErrVersionGone, want: []string{"v2 3"}},
			{name: "no such version", do: deliver(whole("g1", "c", "v9")), err: lease.ErrVersionGone, want: []string{"v2 3"}},
			{name: "rotation", do: func() error { return c.commit(m, promote("v2", "v3")) }, want: []string{"v2 3"}},
			{name: "the one before, to who holds it", do: deliver(whole("g1", "a", "v2")), err: lease.ErrVersionGone, want: []string{"v2 3"}},
			{name: "the new one", do: deliver(whole("g1", "a", "v3")), want: []string{"v2 3", "v3 1"}},
			{name: "what is held is not revoked", do: func() error { return c.commit(m, revoke("v2")) }, err: store.ErrHeld, want: []string{"v2 3", "v3 1"}},
			{name: "close", do: closing("a"), want: []string{"v2 2"}, touched: true},
			{name: "close again", do: closing("a"), want: []string{"v2 2"}},
			{name: "close of one that has only tokens", do: closing("t"), want: []string{"v2 2"}},
			{name: "delivery to who has closed", do: deliver(whole("g1", "a", "v3")), err: lease.ErrClosed, want: []string{"v2 2"}},
			{name: "revocation", do: func() error {
				_, err := c.store.RevokeGrant(ctx, start, "acme", "g1", platform)
				return err
			}, want: []string{"v2 1"}, touched: true},
			{name: "revocation again", do: func() error {
				_, err := c.store.RevokeGrant(ctx, start, "acme", "g1", platform)
				return err
			}, want: []string{"v2 1"}},
			{name: "before the grant's end", do: ended(start.Add(2*time.Hour-time.Microsecond), 0), want: []string{"v2 1"}},
			{name: "extension", do: func() error {
				_, err := c.store.ExtendGrant(ctx, start, "acme", "g2", start.Add(3*time.Hour), platform)
				return err
			}, want: []string{"v2 1"}},
			{name: "at the end it had", do: ended(start.Add(2*time.Hour), 0), want: []string{"v2 1"}},
			{name: "at its end", do: ended(start.Add(3*time.Hour), 1), touched: true},
			{name: "once more", do: ended(start.Add(3*time.Hour), 0)},
			{name: "what is released is revoked", do: func() error { return c.commit(m, revoke("v2")) }},
		} {
			before := c.touches()
			if err := step.do(); !errors.Is(err, step.err) {
				c.t.Errorf("%s: %v, want %v", step.name, err, step.err)
			}
			c.holders(step.name, step.want...)
			if touched := c.touches() != before; touched != step.touched {
				c.t.Errorf("%s: touched %t", step.name, touched)
			}
		}
	})
}

func TestHoldings_NotOfAVersionThatWasRefused(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		m := c.master()
		c.grant("g1")
		refusals := func(n int) {
			c.t.Helper()
			if err := c.commit(m, func(f store.Facts) credential.Change {
				move := to(f, "v2", credential.Active)
				move.Version.Refusals = n
				return credential.Change{Moves: []credential.Move{move}}
			}); err != nil {
				c.t.Fatal(err)
			}
		}
		refusals(1)
		if _, err := c.store.Deliver(c.t.Context(), start, whole("g1", "a", "v2")); !errors.Is(err, lease.ErrVersionGone) {
			c.t.Errorf("refused a moment ago: %v", err)
		}
		c.holders("refused a moment ago")
		refusals(0)
		if _, err := c.store.Deliver(c.t.Context(), start, whole("g1", "a", "v2")); err != nil {
			c.t.Errorf("when it works again: %v", err)
		}
		c.holders("when it works again", "v2 1")
	})
}

func TestHoldings_LastNoLongerThanTheSecret(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		c.grant("g1") // ends after an hour
		d := whole("g1", "a", "v2")
		d.HoldLimit = start.Add(time.Hour - time.Microsecond)
		tooLong := func(name string, err error, latest time.Time) {
			c.t.Helper()
			refusal := (*lease.HoldError)(nil)
			if !errors.As(err, &refusal) || !refusal.Latest.Equal(latest) {
				c.t.Errorf("%s: %v, want a hold until %s", name, err, latest)
			}
		}
		_, err := c.store.Deliver(ctx, start, d)
		tooLong("grant outlives the secret", err, d.HoldLimit)
		c.holders("refused")
		if n := c.leases(); n != 0 {
			c.t.Errorf("refused, and yet %d leases", n)
		}
		d.HoldLimit = start.Add(time.Hour)
		if _, err := c.store.Deliver(ctx, start, d); err != nil {
			c.t.Fatal(err)
		}
		later := whole("g1", "b", "v2") // can be held for longer
		if _, err := c.store.Deliver(ctx, start, later); err != nil {
			c.t.Fatal(err)
		}
		_, err = c.store.ExtendGrant(ctx, start, "acme", "g1", start.Add(time.Hour+time.Second), platform)
		tooLong("extension", err, d.HoldLimit)
		if g, err := c.store.Grant(ctx, "acme", "g1"); err != nil || !g.ExpireTime.Equal(start.Add(time.Hour)) {
			c.t.Errorf("refused, and yet it ends at %s, %v", g.ExpireTime, err)
		}
		if _, err := c.store.ExtendGrant(ctx, start, "acme", "g1", start.Add(time.Minute), platform); err != nil {
			c.t.Errorf("extension that changes nothing: %v", err)
		}
		// That a grant is over says more than how long it might have lasted.
		d.HoldLimit = start
		if _, err := c.store.RevokeGrant(ctx, start, "acme", "g1", platform); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.Deliver(ctx, start, d); !errors.Is(err, grant.ErrRevoked) {
			c.t.Errorf("delivery by a revoked grant: %v", err)
		}
	})
}

func TestStore_DeliversWhatTheIntegrationGives(t *testing.T) {
	for _, tt := range []struct {
		name          string
		policy        []lease.Material
		token, secret bool
	}{
		{name: "nothing said", token: true},
		{name: "tokens", policy: []lease.Material{lease.AccessToken}, token: true},
		{name: "secrets alone", policy: []lease.Material{lease.ClientSecret}, secret: true},
		{name: "both", policy: []lease.Material{lease.AccessToken, lease.ClientSecret}, token: true, secret: true},
		{name: "one that is not known", policy: []lease.Material{"CLIENT_SECRET_OF_THE_FUTURE"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overTheCounter(t, func(c *counter) {
				c.grant("g1")
				i, err := c.store.Integration(c.t.Context(), "uid")
				if err != nil {
					c.t.Fatal(err)
				}
				i.DeliveryMaterials = tt.policy
				at := store.Projection{Incarnation: "registry", Revision: 6, BookmarkTime: start}
				if err := c.store.AdvanceProjection(c.t.Context(), start, at, store.Wanted{Integrations: []store.Integration{i}}); err != nil {
					c.t.Fatal(err)
				}
				e, err := c.store.Entitlement(c.t.Context(), "g1", "a")
				if err != nil || !slices.Equal(e.Integration.DeliveryMaterials, tt.policy) {
					c.t.Errorf("policy %q, %v", e.Integration.DeliveryMaterials, err)
				}
				for _, d := range []struct {
					store.Delivery
					allowed bool
				}{{order("g1", "t", "v2"), tt.token}, {whole("g1", "s", "v2"), tt.secret}, {func() store.Delivery {
					none := order("g1", "n", "v2")
					none.Material = ""
					return none
				}(), false}} {
					_, err := c.store.Deliver(c.t.Context(), start, d.Delivery)
					if d.allowed != (err == nil) || !d.allowed && !errors.Is(err, lease.ErrVersionGone) {
						c.t.Errorf("%q: %v", d.Material, err)
					}
				}
				want := []string{}
				if tt.secret {
					want = append(want, "v2 1")
				}
				c.holders("delivered", want...)
			})
		})
	}
}

func TestStore_DeliveryOfASecretIsRecorded(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g1")
		if _, err := c.store.Deliver(c.t.Context(), start, whole("g1", "a", "v2")); err != nil {
			c.t.Fatal(err)
		}
		have := c.rows(4, `SELECT material, version_id, '[' || audience || ']', '[' || client_request_id || ']' FROM audit_events WHERE kind = 'CredentialDelivered'`)
		if want := []string{"CLIENT_SECRET v2 [] []"}; !slices.Equal(have, want) {
			c.t.Errorf("recorded %q, want %q", have, want)
		}
	})
}

// TestHoldings_WhoeverComesAtOnce lets deliveries, closings, revocations, ends of grants, extensions, rotations and at last the
// deletion meet. Whatever the order, holders are as many as holdings, and nothing that is held is revoked.
func TestHoldings_WhoeverComesAtOnce(t *testing.T) {
	overTheCounter(t, (*counter).meetAtOnce)
	t.Run("nobody waits for who waits", func(t *testing.T) {
		// PostgreSQL would end a deadlock, and the transaction it ends would run again, unseen. So it is not to look for one
		// before a lock has been waited for in vain.
		onPostgres(t, "deadlock_timeout=1min").meetAtOnce()
	})
}

func (c *counter) meetAtOnce() {
	ctx, m := c.t.Context(), c.master()
	const grants, rotations = 6, 12
	other := store.New(c.db, audittest.Keys(1)) // another replica
	for i := range grants {
		c.grant(fmt.Sprint("g", i))
	}
	for i := range rotations {
		c.version(fmt.Sprint("v", i+4), i+4, "PROPAGATING")
	}
	var group sync.WaitGroup
	for i := range grants {
		uid := fmt.Sprint("g", i)
		replica := []*store.Store{c.store, other}[i%2]
		for _, instance := range []string{"a", "b"} {
			group.Go(func() {
				for {
					e, err := replica.Entitlement(ctx, uid, instance)
					if err != nil {
						c.t.Error(err)
						return
					}
					active, ok := e.Active()
					if e.Check(start) != nil || !ok {
						return
					}
					_, err = replica.Deliver(ctx, start, whole(uid, instance, active.ID))
					final := errors.Is(err, grant.ErrRevoked) || errors.Is(err, grant.ErrIntegrationDeleted) || errors.Is(err, lease.ErrClosed)
					if err != nil && !final && !errors.Is(err, lease.ErrVersionGone) {
						c.t.Errorf("deliver: %v", err)
						return
					}
				}
			})
		}
	}
	group.Go(func() {
		for i := range rotations {
			if err := c.commit(m, promote(fmt.Sprint("v", i+2), fmt.Sprint("v", i+3))); err != nil {
				c.t.Errorf("promote: %v", err)
			}
			if err := c.commit(m, revoke(fmt.Sprint("v", i+2))); err != nil && !errors.Is(err, store.ErrHeld) {
				c.t.Errorf("revoke: %v", err)
			}
			switch uid := fmt.Sprint("g", i/2); i {
			case 2, 3: // close and revoke the same at once
				group.Go(func() {
					if err := other.CloseLease(ctx, start, "g1", "a", platform); err != nil {
						c.t.Errorf("close: %v", err)
					}
				})
			case 4, 5:
				group.Go(func() {
					if _, err := other.RevokeGrant(ctx, start, "acme", "g1", platform); err != nil {
						c.t.Errorf("revoke grant: %v", err)
					}
				})
			default:
				group.Go(func() {
					_, err := other.ExtendGrant(ctx, start, "acme", uid, start.Add(time.Duration(60+i)*time.Minute), platform)
					if err != nil && !errors.Is(err, grant.ErrRevoked) {
						c.t.Errorf("extend: %v", err)
					}
				})
				group.Go(func() { // as a replica whose clock is far ahead
					if _, err := other.ReleaseEnded(ctx, start.Add(time.Hour), 2); err != nil {
						c.t.Errorf("release: %v", err)
					}
				})
			}
		}
		c.beginDeleting()
		for range 2 {
			if _, err := c.endLeases(m, start); err != nil {
				c.t.Errorf("end leases: %v", err)
			}
			if held := c.rows(1, `SELECT COUNT(*) FROM holdings`)[0]; held != "0" {
				c.t.Errorf("%s holdings after the leases have ended", held)
			}
		}
	})
	group.Wait()
	c.holders("afterwards")
	c.audit()
	if held := c.rows(2, `SELECT id, state FROM credential_versions WHERE holders > 0`); len(held) > 0 {
		c.t.Errorf("still held: %q", held)
	}
}

func TestCredentialVersions_ByPageTheNewestFirst(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.exec(`UPDATE credential_versions SET state = 'REVOKED', sealed = NULL, holders = 3 WHERE id = 'v1'`)
		c.exec(`UPDATE credential_versions SET state = 'ABANDONED' WHERE id = 'v3'`)
		const name = "accounts/acme/integrations/read"
		list := func(before int64, limit int) (out []string) {
			c.t.Helper()
			found, err := c.store.CredentialVersions(c.t.Context(), name, before, limit)
			if err != nil {
				c.t.Fatal(err)
			}
			for _, v := range found {
				out = append(out, fmt.Sprint(v.Number, " ", v.State, " ", v.Holders))
			}
			return out
		}
		if got, want := list(0, 2), []string{"3 ABANDONED 0", "2 ACTIVE 0"}; !slices.Equal(got, want) {
			c.t.Errorf("first page %q, want %q", got, want)
		}
		c.beginDeleting()
		if got, want := list(2, 2), []string{"1 REVOKED 3"}; !slices.Equal(got, want) {
			c.t.Errorf("second page %q, want %q", got, want)
		}
		if _, err := c.store.CredentialVersions(c.t.Context(), "accounts/acme/integrations/none", 0, 2); !errors.Is(err, sqldb.ErrNoRows) {
			c.t.Errorf("no such integration: %v", err)
		}
	})
}
