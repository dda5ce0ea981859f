package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// whole is an order of the version's secret, which can be held for ten hours.
func whole(grantUID, instance, version string) store.Delivery {
	d := order(grantUID, instance, version)
	d.Material, d.Audience, d.ClientRequestID, d.HoldLimit = lease.ClientSecret, "", "", start.Add(10*time.Hour)
	return d
}

// rows reads rows of texts and numbers, the columns separated by spaces.
func (c *counter) rows(columns int, query string, args ...any) (out []string) {
	c.t.Helper()
	err := c.db.ReadTx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (string, error) {
			values, pointers := make([]any, columns), make([]any, columns)
			for i := range values {
				pointers[i] = &values[i]
			}
			err := row.Scan(pointers...)
			return strings.TrimSpace(fmt.Sprintln(values...)), err
		}, query, args...)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// holders checks each version's holders, in the order of the versions' numbers, and that they are as many as the holdings there are.
func (c *counter) holders(step string, want ...string) {
	c.t.Helper()
	have := c.rows(2, `SELECT id, holders FROM credential_versions WHERE holders > 0 ORDER BY number`)
	if !slices.Equal(have, want) {
		c.t.Errorf("%s: holders %q, want %q", step, have, want)
	}
	if listed := c.rows(2, `SELECT version_id, COUNT(*) FROM holdings h JOIN credential_versions v ON v.id = h.version_id
		GROUP BY version_id, v.number ORDER BY v.number`); !slices.Equal(have, listed) {
		c.t.Errorf("%s: holders %q, holdings %q", step, have, listed)
	}
}

// touches is how often the integration was made due.
func (c *counter) touches() string {
	c.t.Helper()
	return c.rows(1, `SELECT touches FROM applications WHERE integration_uid = 'uid'`)[0]
}

// master takes the counter's shard.
func (c *counter) master() (m election.Mastership) {
	c.t.Helper()
	err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, 0, start)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// commit has the master write a change; it is read and written as a worker would.
func (c *counter) commit(m election.Mastership, decide func(f store.Facts) credential.Change) error {
	c.t.Helper()
	f, err := c.store.Facts(c.t.Context(), "uid")
	if err != nil {
		c.t.Fatal(err)
	}
	return c.store.Commit(c.t.Context(), m, store.Step{
		IntegrationUID: "uid", Now: start, Change: decide(f), NextTime: start.Add(time.Hour), Touches: f.Touches,
	})
}

// to moves a version to a state.
func to(f store.Facts, id string, state credential.State) credential.Move {
	for _, v := range f.Versions {
		if v.ID == id {
			from := v.State
			v.State = state
			return credential.Move{From: from, Version: v}
		}
	}
	return credential.Move{Version: credential.Version{ID: id, State: state}}
}

// promote makes next ACTIVE instead of old.
func promote(old, next string) func(f store.Facts) credential.Change {
	return func(f store.Facts) credential.Change {
		return credential.Change{Moves: []credential.Move{to(f, old, credential.Retiring), to(f, next, credential.Active)}}
	}
}

// revoke has a version go that was replaced.
func revoke(id string) func(f store.Facts) credential.Change {
	return func(f store.Facts) credential.Change {
		return credential.Change{Moves: []credential.Move{to(f, id, credential.Revoking)}}
	}
}

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

// beginDeleting has the registry want the integration gone.
func (c *counter) beginDeleting() {
	c.t.Helper()
	i, err := c.store.Integration(c.t.Context(), "uid")
	if err != nil {
		c.t.Fatal(err)
	}
	i.Deleting = true
	at := store.Projection{Incarnation: "registry", Revision: 9, BookmarkTime: start.Add(time.Hour)}
	if err := c.store.AdvanceProjection(c.t.Context(), start, at, store.Wanted{Integrations: []store.Integration{i}}); err != nil {
		c.t.Fatal(err)
	}
}

// endLeases is what a worker does.
func (c *counter) endLeases(m election.Mastership, now time.Time) (int, error) {
	c.t.Helper()
	f, err := c.store.Facts(c.t.Context(), "uid")
	if err != nil {
		c.t.Fatal(err)
	}
	return c.store.EndLeases(c.t.Context(), m, store.Step{IntegrationUID: "uid", Now: now, Change: f.LeasesEnded(now), NextTime: now, Touches: f.Touches})
}

func TestEndLeases_ClosesReleasesAndRecords(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx, m := c.t.Context(), c.master()
		c.grant("g1")
		c.grant("g2")
		c.grant("over", func(g *grant.Grant) { g.ExpireTime = start.Add(time.Minute) })
		c.grant("over-and-holding", func(g *grant.Grant) { g.ExpireTime = start.Add(time.Minute) })
		c.grant("other", func(g *grant.Grant) { g.IntegrationUID = "another" })
		for _, d := range []store.Delivery{whole("g1", "a", "v2"), order("g1", "b", "v2"), whole("g2", "a", "v2"), order("over", "a", "v2"), whole("over-and-holding", "a", "v2")} {
			if _, err := c.store.Deliver(ctx, start, d); err != nil {
				c.t.Fatal(err)
			}
		}
		c.exec(`INSERT INTO leases (uid, grant_uid, instance_id, generation, open_time, deliver_time, close_time) VALUES ('foreign', 'other', 'a', 1, 1, 1, 0)`)
		if err := c.store.CloseLease(ctx, start, "g1", "b", platform); err != nil {
			c.t.Fatal(err)
		}
		if err := c.commit(m, promote("v2", "v3")); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.store.Deliver(ctx, start, whole("g1", "a", "v3")); err != nil {
			c.t.Fatal(err)
		}
		c.holders("before", "v2 3", "v3 1")
		if _, err := c.endLeases(m, start); !errors.Is(err, store.ErrChanged) {
			c.t.Errorf("leases of an integration that is wanted: %v", err)
		}
		c.holders("refused", "v2 3", "v3 1")

		c.beginDeleting()
		before, changes := c.audit(), c.newest()
		now := start.Add(2 * time.Minute)
		if n, err := c.endLeases(m, now); n != 3 || err != nil {
			c.t.Errorf("ended %d, %v", n, err)
		}
		c.holders("ended")
		if f, err := c.store.Facts(ctx, "uid"); err != nil || !f.Application.LeaseEndTime.Equal(now) {
			c.t.Errorf("facts %+v, %v", f.Application, err)
		}
		if got, want := c.audit()[len(before):], []string{"LeaseRevoked a 1", "LeaseRevoked a 1", "LeaseRevoked a 2"}; !slices.Equal(sorted(got), want) {
			c.t.Errorf("recorded %q, want %q", got, want)
		}
		if reasons := c.rows(1, `SELECT DISTINCT reason FROM audit_events WHERE kind = 'LeaseRevoked'`); !slices.Equal(reasons, []string{"Deleting"}) {
			c.t.Errorf("reasons %q", reasons)
		}
		if got := c.newest(); got != changes+1 {
			c.t.Errorf("%d changes noted", got-changes)
		}
		if open := c.rows(1, `SELECT grant_uid FROM leases WHERE close_time = 0 ORDER BY grant_uid`); !slices.Equal(open, []string{"other", "over"}) {
			c.t.Errorf("open are leases of %q", open)
		}
		for _, d := range []store.Delivery{order("g1", "new", "v3"), whole("g1", "new", "v3"), whole("g2", "new", "v3")} {
			if _, err := c.store.Deliver(ctx, start, d); !errors.Is(err, grant.ErrIntegrationDeleted) {
				c.t.Errorf("afterwards: %v", err)
			}
		}
		if n, err := c.endLeases(m, now.Add(time.Minute)); n != 0 || err != nil {
			c.t.Errorf("once more ended %d, %v", n, err)
		}
		for _, id := range []string{"v3", "v2"} {
			if id == "v3" {
				if err := c.commit(m, func(f store.Facts) credential.Change {
					return credential.Change{Moves: []credential.Move{to(f, "v3", credential.Retiring)}}
				}); err != nil {
					c.t.Fatal(err)
				}
			}
			if err := c.commit(m, revoke(id)); err != nil {
				c.t.Errorf("revoke %s: %v", id, err)
			}
		}
	})
}

func sorted(all []string) []string {
	out := make([]string, 0, len(all))
	for _, s := range all {
		out = append(out, strings.TrimSpace(s))
	}
	slices.Sort(out)
	return out
}

func (c *counter) newest() int64 {
	c.t.Helper()
	_, newest, err := c.store.Changes(c.t.Context(), 0, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	return newest
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

// onPostgres is a counter whose transactions do not take turns by themselves; settings are for the database's sessions.
func onPostgres(t *testing.T, settings ...string) *counter {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	config := sqldbtest.MigratedPostgresConfig(t, migrations)
	config.DSN += " " + strings.Join(settings, " ")
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	divide(t, db, 1)
	c := &counter{t: t, db: db, store: store.New(db, audittest.Keys(1))}
	c.furnish()
	return c
}

func TestReleaseEnded_LeavesWhatIsExtendedMeanwhile(t *testing.T) {
	c := onPostgres(t)
	c.grant("g1")
	if _, err := c.store.Deliver(t.Context(), start, whole("g1", "a", "v2")); err != nil {
		t.Fatal(err)
	}
	var released error
	var group sync.WaitGroup
	done := make(chan struct{})
	// An extension that has not been committed when the grant is found to be over.
	err := c.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE grants SET expire_time = expire_time + 1`); err != nil {
			return err
		}
		group.Go(func() {
			defer close(done)
			_, released = c.store.ReleaseEnded(t.Context(), start.Add(time.Hour), 10)
		})
		c.waiting(ctx, 1, done)
		_, err := tx.Exec(ctx, `UPDATE holdings SET expire_time = expire_time + 1`)
		return err
	})
	group.Wait()
	if err != nil || released != nil {
		t.Fatal(err, released)
	}
	c.holders("afterwards", "v2 1")
}

// A delivery that opens a lease is held up here before its commit; the leases' end must wait for it, and see what it delivered.
func TestEndLeases_WaitsForADeliveryThatWasEntitled(t *testing.T) {
	for name, uid := range map[string]string{"by a grant with a lease": "g1", "by one that had none": "g2"} {
		t.Run(name, func(t *testing.T) {
			c := onPostgres(t)
			m := c.master()
			c.grant("g1")
			c.grant("g2")
			if _, err := c.store.Deliver(t.Context(), start, order("g1", "instance", "v2")); err != nil {
				t.Fatal(err)
			}
			other := store.New(c.db, audittest.Keys(1)) // another replica, with records of its own
			var delivered, ended error
			var n int
			var group sync.WaitGroup
			deliveryDone, endDone := make(chan struct{}), make(chan struct{})
			rollBack := errors.New("roll back")
			err := c.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				// A record of the number that the delivery will use, after that of the lease's opening, keeps it from its commit.
				if _, err := tx.Exec(ctx, `INSERT INTO audit_events SELECT writer, seq + 2, time, kind, actor, request_id, account, grant_uid, lease_uid, instance_id,
					generation, integration_uid, project_uid, version_id, reason, audience, client_request_id, expire_time, material
					FROM audit_events WHERE kind = 'CredentialDelivered'`); err != nil {
					return err
				}
				group.Go(func() {
					defer close(deliveryDone)
					_, delivered = c.store.Deliver(t.Context(), start, whole(uid, "another", "v2"))
				})
				c.waiting(ctx, 1, deliveryDone)
				c.beginDeleting()
				group.Go(func() {
					defer close(endDone)
					n, ended = other.EndLeases(t.Context(), m, store.Step{IntegrationUID: "uid", Now: start, NextTime: start})
				})
				c.waiting(ctx, 2, endDone)
				select {
				case <-endDone:
					t.Error("leases ended while a delivery was under way")
				default:
				}
				return rollBack
			})
			if !errors.Is(err, rollBack) {
				t.Fatal(err)
			}
			group.Wait()
			if delivered != nil || ended != nil || n != 2 {
				t.Errorf("delivery: %v, end: %d, %v", delivered, n, ended)
			}
			c.holders("afterwards")
		})
	}
}

// TestEndLeases_OfManyGrantsOneAfterAnother has more than may be ended while a shard's other integrations wait.
func TestEndLeases_OfManyGrantsOneAfterAnother(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx, m := c.t.Context(), c.master()
		const grants, most = 120, 60
		for i := range grants {
			uid := fmt.Sprint("g", i)
			c.grant(uid)
			if _, err := c.store.Deliver(ctx, start, whole(uid, "a", "v2")); err != nil {
				c.t.Fatal(err)
			}
		}
		c.beginDeleting()
		for left := grants; left > 0; {
			n, err := c.endLeases(m, start)
			if err != nil || n == 0 || n > most {
				c.t.Fatalf("ended %d of %d, %v", n, left, err)
			}
			left -= n
			f, err := c.store.Facts(ctx, "uid")
			if err != nil || left > 0 != f.Application.LeaseEndTime.IsZero() {
				c.t.Errorf("%d leases are left, and their end is at %s, %v", left, f.Application.LeaseEndTime, err)
			}
			if due, _, err := c.store.Due(ctx, 0, start, 1); err != nil || len(due) != 1 {
				c.t.Errorf("due are %q, %v", due, err)
			}
		}
		c.holders("afterwards")
	})
}

// model is what the store should hold, kept beside it.
type model struct {
	c    *counter
	rand *rand.Rand
	m    election.Mastership
	now  time.Time
	// states and limits are the versions', by ID; versions their IDs by number.
	versions []string
	states   map[string]credential.State
	limits   map[string]time.Time
	grants   map[string]*modelGrant
}

type modelGrant struct {
	end     time.Time
	revoked bool
	// leases are by instance.
	leases map[string]*modelLease
}

type modelLease struct {
	closed bool
	held   map[string]bool
}

func (g *modelGrant) live(now time.Time) bool { return !g.revoked && now.Before(g.end) }

func (g *modelGrant) release() {
	for _, l := range g.leases {
		clear(l.held)
	}
}

func (g *modelGrant) holds() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(g.leases)), func(l *modelLease) bool { return len(l.held) > 0 })
}

// holders counts who holds a version.
func (w *model) holders(id string) (n int) {
	for _, g := range w.grants {
		for _, l := range g.leases {
			if l.held[id] {
				n++
			}
		}
	}
	return n
}

// pick is one of the keys.
func pick[T any](r *rand.Rand, of map[string]T) string {
	keys := slices.Sorted(maps.Keys(of))
	return keys[r.IntN(len(keys))]
}

// fresh is a moment that no other grant ends at.
func (w *model) fresh(within time.Duration) time.Time {
	return w.now.Add(time.Duration(1+w.rand.Int64N(within.Microseconds())) * time.Microsecond)
}

func (w *model) deliver() (string, error) {
	uid, instance, id := pick(w.rand, w.grants), fmt.Sprint("i", w.rand.IntN(6)), pick(w.rand, w.states)
	if w.rand.IntN(4) > 0 {
		for v, state := range w.states {
			if state == credential.Active {
				id = v
			}
		}
	}
	d := whole(uid, instance, id)
	d.HoldLimit = w.limits[id]
	_, err := w.c.store.Deliver(w.c.t.Context(), w.now, d)
	g := w.grants[uid]
	l, known := g.leases[instance]
	open := 0
	for _, other := range g.leases {
		if !other.closed {
			open++
		}
	}
	may := g.live(w.now) && w.states[id] == credential.Active && !g.end.After(d.HoldLimit) && (known && !l.closed || !known && open < lease.MaxPerGrant)
	if may != (err == nil) {
		return "", fmt.Errorf("deliver %s to %s of %s: %w, want success %t", id, instance, uid, err, may)
	}
	if err == nil {
		if !known {
			l = &modelLease{held: map[string]bool{}}
			g.leases[instance] = l
		}
		l.held[id] = true
	}
	return fmt.Sprintf("deliver %s to %s of %s: %v", id, instance, uid, err), nil
}

func (w *model) close() (string, error) {
	uid, instance := pick(w.rand, w.grants), fmt.Sprint("i", w.rand.IntN(6))
	if l, known := w.grants[uid].leases[instance]; known {
		l.closed = true
		clear(l.held)
	}
	return fmt.Sprintf("close %s of %s", instance, uid), w.c.store.CloseLease(w.c.t.Context(), w.now, uid, instance, platform)
}

func (w *model) revokeGrant() (string, error) {
	uid := pick(w.rand, w.grants)
	w.grants[uid].revoked = true
	w.grants[uid].release()
	_, err := w.c.store.RevokeGrant(w.c.t.Context(), w.now, "acme", uid, platform)
	return "revoke " + uid, err
}

func (w *model) extend() (string, error) {
	uid := pick(w.rand, w.grants)
	g, end := w.grants[uid], w.fresh(3*time.Hour)
	may := g.live(w.now)
	for _, l := range g.leases {
		for id := range l.held {
			may = may && (!end.After(w.limits[id]) || !end.After(g.end))
		}
	}
	_, err := w.c.store.ExtendGrant(w.c.t.Context(), w.now, "acme", uid, end, platform)
	if may != (err == nil) {
		return "", fmt.Errorf("extend %s: %w, want success %t", uid, err, may)
	}
	if err == nil && end.After(g.end) {
		g.end = end
	}
	return fmt.Sprintf("extend %s: %v", uid, err), nil
}

func (w *model) release() (string, error) {
	limit := 1 + w.rand.IntN(3)
	var over []*modelGrant
	for _, g := range w.grants {
		if g.holds() && !w.now.Before(g.end) {
			over = append(over, g)
		}
	}
	slices.SortFunc(over, func(a, b *modelGrant) int { return a.end.Compare(b.end) })
	over = over[:min(len(over), limit)]
	for _, g := range over {
		g.release()
	}
	n, err := w.c.store.ReleaseEnded(w.c.t.Context(), w.now, limit)
	if err == nil && n != len(over) {
		err = fmt.Errorf("released %d grants, want %d", n, len(over))
	}
	return fmt.Sprintf("release %d", n), err
}

func (w *model) rotate() (string, error) {
	old := w.versions[len(w.versions)-1]
	if w.states[old] != credential.Active {
		return "", fmt.Errorf("%s is %s", old, w.states[old])
	}
	id := fmt.Sprint("v", len(w.versions)+1)
	w.c.version(id, len(w.versions)+1, "PROPAGATING")
	w.versions = append(w.versions, id)
	w.states[old], w.states[id], w.limits[id] = credential.Retiring, credential.Active, w.now.Add(time.Duration(1+w.rand.IntN(6))*time.Hour)
	return "rotate to " + id, w.c.commit(w.m, promote(old, id))
}

func (w *model) retire() (string, error) {
	id := pick(w.rand, w.states)
	if w.states[id] != credential.Retiring {
		return "nothing", nil
	}
	err := w.c.commit(w.m, revoke(id))
	held := w.holders(id) > 0
	if held != errors.Is(err, store.ErrHeld) || !held && err != nil {
		return "", fmt.Errorf("revoke %s, which %d hold: %w", id, w.holders(id), err)
	}
	if !held {
		w.states[id] = credential.Revoking
	}
	return fmt.Sprintf("revoke %s: %v", id, err), nil
}

// check compares the versions' rows with the model.
func (w *model) check(step string) {
	w.c.t.Helper()
	var want []string
	for _, id := range w.versions {
		want = append(want, fmt.Sprint(id, " ", w.states[id], " ", w.holders(id), " ", w.holders(id)))
	}
	have := w.c.rows(4, `SELECT id, state, holders, (SELECT COUNT(*) FROM holdings WHERE version_id = credential_versions.id)
		FROM credential_versions ORDER BY number`)
	if !slices.Equal(have, want) {
		w.c.t.Fatalf("%s: versions %q, want %q", step, have, want)
	}
}

func TestHoldings_AsTheModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			overTheCounter(t, func(c *counter) {
				c.exec(`DELETE FROM credential_versions WHERE id <> 'v1'`)
				c.exec(`UPDATE credential_versions SET state = 'ACTIVE'`)
				c.exec(`UPDATE projection SET bookmark_time = $1`, sqldb.Micros(start.Add(1000*time.Hour)))
				w := &model{
					c: c, rand: rand.New(rand.NewPCG(seed, 7)), m: c.master(), now: start, versions: []string{"v1"},
					states: map[string]credential.State{"v1": credential.Active}, limits: map[string]time.Time{"v1": start.Add(4 * time.Hour)},
					grants: map[string]*modelGrant{},
				}
				for range 250 {
					if len(w.grants) == 0 || w.rand.IntN(10) == 0 {
						uid, end := fmt.Sprint("g", len(w.grants)), w.fresh(3*time.Hour)
						c.grant(uid, func(g *grant.Grant) { g.CreateTime, g.ExpireTime = w.now, end })
						w.grants[uid] = &modelGrant{end: end, leases: map[string]*modelLease{}}
					}
					ops := []func() (string, error){
						w.deliver, w.deliver, w.deliver, w.deliver, w.deliver, w.close, w.extend, w.release, w.retire, w.retire, w.rotate, w.revokeGrant,
					}
					step, err := ops[w.rand.IntN(len(ops))]()
					if err != nil {
						c.t.Fatal(err)
					}
					w.check(step)
					w.now = w.now.Add(time.Duration(w.rand.IntN(600)) * time.Second)
				}
				c.beginDeleting()
				if _, err := c.endLeases(w.m, w.now); err != nil {
					c.t.Fatal(err)
				}
				for _, g := range w.grants {
					g.release()
				}
				w.check("end leases")
			})
		})
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
