package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// busy keeps a delivery that is under way from its commit until it is released, so that others gather.
func (c *counter) busy() (release func()) {
	c.t.Helper()
	first := order("g0", "first", "v2")
	if _, err := c.store.Deliver(c.t.Context(), start, first); err != nil {
		c.t.Fatal(err)
	}
	// Whoever made it may not have seen yet that nothing is left to do.
	for c.store.Busy() {
		<-time.After(time.Millisecond)
	}
	begun, done, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.db.Tx(context.WithoutCancel(c.t.Context()), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE audit_writers SET seq = seq`)
			close(begun)
			<-done
			return err
		})
	}()
	<-begun
	under := c.deliver(c.t.Context(), first)
	for !c.store.Busy() {
		<-time.After(time.Millisecond)
	}
	return sync.OnceFunc(func() {
		close(done)
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
		if r := <-under; r.err != nil || r.lease.Generation != 2 {
			c.t.Errorf("the delivery that was under way: %+v", r)
		}
	})
}

// result is of a delivery that somebody waits for.
type result struct {
	lease lease.Lease
	err   error
}

func (c *counter) deliver(ctx context.Context, d store.Delivery) <-chan result {
	out := make(chan result, 1)
	go func() {
		l, err := c.store.Deliver(ctx, start, d)
		out <- result{l, err}
	}()
	return out
}

// queued returns when so many deliveries wait behind the one that is under way.
func (c *counter) queued(n int) {
	c.t.Helper()
	for late := time.After(time.Minute); c.store.Waiting() != n; {
		select {
		case <-late:
			c.t.Fatalf("%d deliveries wait, not %d", c.store.Waiting(), n)
		case <-time.After(time.Millisecond):
		}
	}
}

// records counts the records of deliveries, by how many leases each went to.
func (c *counter) records() []string {
	return c.rows(1, `SELECT CAST(n AS TEXT) FROM (SELECT writer, seq, COUNT(*) AS n FROM audit_events WHERE kind = 'CredentialDelivered'
		GROUP BY writer, seq) x ORDER BY n`)
}

func TestDeliver_WhatComesMeanwhileSharesACommit(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		for i := range 12 {
			c.grant(fmt.Sprint("g", i))
		}
		release := c.busy()
		defer release()
		gone, leave := context.WithCancel(ctx)
		var waiting []<-chan result
		for i := 2; i < 8; i++ {
			waiting = append(waiting, c.deliver(ctx, order(fmt.Sprint("g", i), "a", "v2")))
		}
		other := c.deliver(ctx, order("g8", "a", "v1"))     // another version: a record of its own
		refused := c.deliver(ctx, order("g9", "a", "v3"))   // which nobody may have yet
		unknown := c.deliver(ctx, order("none", "a", "v2")) // no such grant
		left := c.deliver(gone, order("g10", "a", "v2"))    // whose caller leaves
		c.queued(len(waiting) + 4)
		leave()
		if r := <-left; !errors.Is(r.err, context.Canceled) {
			c.t.Errorf("who left: %v", r.err)
		}
		release()
		for _, d := range append(waiting, other) {
			if r := <-d; r.err != nil || r.lease.Generation != 1 {
				c.t.Errorf("delivery: %+v", r)
			}
		}
		if r := <-refused; !errors.Is(r.err, lease.ErrVersionGone) {
			c.t.Errorf("of a version that is not active: %v", r.err)
		}
		if r := <-unknown; !errors.Is(r.err, grant.ErrNotFound) {
			c.t.Errorf("by no grant: %v", r.err)
		}
		if have := c.records(); !slices.Equal(have, []string{"1", "1", "1", "6"}) {
			c.t.Errorf("records to so many leases: %v", have)
		}
		if n := c.leases(); n != 8 {
			c.t.Errorf("%d leases", n)
		}
		c.audit()
	})
}

// By a token that was replaced nothing is delivered, and a token by which something was is not replaced.
func TestDeliver_NotesThatTheTokenWasShown(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		c.grant("g0")
		request := grant.RequestKey{ID: "request"}
		g, _, old := c.fresh("g1")
		if _, err := c.store.CreateGrant(ctx, start, g, old, request, platform); err != nil {
			c.t.Fatal(err)
		}
		shown := order("g1", "a", "v2")
		shown.Token = old
		_, fresh := grant.Mint()
		if _, found, err := c.store.RepeatGrant(ctx, start, "acme", fresh, request, platform); !found || err != nil {
			c.t.Fatalf("replacement: %v, %v", found, err)
		}
		release := c.busy() // so that the two are one batch
		other, late := c.deliver(ctx, order("g0", "b", "v2")), c.deliver(ctx, shown)
		c.queued(2)
		release()
		if r := <-other; r.err != nil {
			c.t.Errorf("by another grant: %v", r.err)
		}
		if r := <-late; !errors.Is(r.err, grant.ErrUnknown) {
			c.t.Errorf("by the token that was replaced: %+v", r)
		}
		shown.Token = fresh
		for _, now := range []time.Time{start, start.Add(time.Second)} {
			if _, err := c.store.Deliver(ctx, now, shown); err != nil {
				c.t.Fatal(err)
			}
		}
		if g, err := c.store.GrantByToken(ctx, fresh); err != nil || !g.UseTime.Equal(start) {
			c.t.Errorf("used at %v, %v", g.UseTime, err)
		}
		if _, _, err := c.store.RepeatGrant(ctx, start, "acme", grant.Hash{1}, request, platform); !errors.Is(err, grant.ErrInUse) {
			c.t.Errorf("replacement after use: %v", err)
		}
	})
}

func TestDeliver_OneDeliveryALeaseAtATime(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g0")
		c.grant("g1")
		release := c.busy()
		defer release()
		var all []<-chan result
		for range 5 {
			all = append(all, c.deliver(c.t.Context(), order("g1", "a", "v2")))
		}
		c.queued(5)
		release()
		var generations []int64
		for _, d := range all {
			r := <-d
			if r.err != nil {
				c.t.Error(r.err)
			}
			generations = append(generations, r.lease.Generation)
		}
		slices.Sort(generations)
		if !slices.Equal(generations, []int64{1, 2, 3, 4, 5}) {
			c.t.Errorf("generations %v", generations)
		}
	})
}

func TestDeliver_FourLeasesInOneBatch(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g0")
		c.grant("g1")
		release := c.busy()
		defer release()
		var all []<-chan result
		for i := range 7 {
			all = append(all, c.deliver(c.t.Context(), order("g1", fmt.Sprint("i", i), "v2")))
		}
		c.queued(7)
		release()
		admitted := 0
		for _, d := range all {
			switch r := <-d; {
			case r.err == nil:
				admitted++
			case !errors.Is(r.err, lease.ErrTooMany):
				c.t.Error(r.err)
			}
		}
		if admitted != lease.MaxPerGrant || c.leases() != lease.MaxPerGrant+1 {
			c.t.Errorf("%d were admitted, there are %d leases", admitted, c.leases())
		}
	})
}

func TestDeliver_SecretsOfABatchAreHeld(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i := range 5 {
			c.grant(fmt.Sprint("g", i))
		}
		release := c.busy()
		defer release()
		var all []<-chan result
		all = append(all, c.deliver(c.t.Context(), whole("g1", "z", "v2")))
		for i := 1; i < 5; i++ {
			all = append(all, c.deliver(c.t.Context(), whole(fmt.Sprint("g", i), "a", "v2")))
		}
		gone := c.deliver(c.t.Context(), whole("g2", "b", "v1")) // RETIRING: nobody new may hold it
		c.queued(6)
		release()
		for _, d := range all {
			if r := <-d; r.err != nil {
				c.t.Error(r.err)
			}
		}
		if r := <-gone; !errors.Is(r.err, lease.ErrVersionGone) {
			c.t.Errorf("the secret that is retiring: %v", r.err)
		}
		c.holders("after the batch", "v2 5")
		if n := c.rows(1, `SELECT CAST(COUNT(*) AS TEXT) FROM holdings`); !slices.Equal(n, []string{"5"}) {
			c.t.Errorf("%v holdings", n)
		}
	})
}

// A commit that fails fails everybody in it, and nothing is on record of any of them.
func TestDeliver_FailedCommitFailsAll(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i := range 5 {
			c.grant(fmt.Sprint("g", i))
		}
		release := c.busy()
		defer release()
		broken := errors.New("disk is full")
		ctx := sqldbtest.WithHook(c.t.Context(), func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
			if at == sqldbtest.Commit && !readOnly {
				return broken
			}
			return nil
		})
		var all []<-chan result
		for i := 1; i < 5; i++ {
			all = append(all, c.deliver(ctx, order(fmt.Sprint("g", i), "a", "v2")))
		}
		c.queued(4)
		release()
		for _, d := range all {
			if r := <-d; !errors.Is(r.err, broken) {
				c.t.Errorf("delivery: %v", r.err)
			}
		}
		if have := c.records(); !slices.Equal(have, []string{"1", "1"}) || c.leases() != 1 {
			c.t.Errorf("%v records, %d leases", have, c.leases())
		}
	})
}

// A panic is the failure of those who shared the commit: nothing is on record of them, and whoever comes next is served.
func TestDeliver_PanicFailsItsBatchAlone(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i := range 5 {
			c.grant(fmt.Sprint("g", i))
		}
		release := c.busy()
		defer release()
		ctx := sqldbtest.WithHook(c.t.Context(), func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
			if at == sqldbtest.Commit && !readOnly {
				panic("a row too many") //nolint:forbidigo // what is tested
			}
			return nil
		})
		var all []<-chan result
		for i := 1; i < 5; i++ {
			all = append(all, c.deliver(ctx, order(fmt.Sprint("g", i), "a", "v2")))
		}
		c.queued(4)
		release()
		for _, d := range all {
			r := <-d
			if p := (*caught.PanicError)(nil); !errors.As(r.err, &p) || p.Value != "a row too many" || !strings.Contains(string(p.Stack), "deliveries_test.go") {
				c.t.Errorf("delivery: %+v", r)
			}
		}
		if have := c.records(); !slices.Equal(have, []string{"1", "1"}) || c.leases() != 1 {
			c.t.Errorf("%v records, %d leases", have, c.leases())
		}
		if l, err := c.store.Deliver(c.t.Context(), start, order("g1", "a", "v2")); err != nil || l.Generation != 1 {
			c.t.Errorf("the next: %+v, %v", l, err)
		}
	})
}

// Whoever delivers by many grants and whoever ends the leases of them all take their rows in one order: PostgreSQL finds no deadlock, at which somebody would
// have to wait for a second.
func TestDeliver_BatchesOfTwoReplicasDoNotDeadlock(t *testing.T) {
	c := onPostgres(t)
	const grants = 30
	for i := range grants {
		c.grant(fmt.Sprintf("g%02d", i))
	}
	replicas := []*store.Store{c.store, store.New(c.db, audittest.Keys(1)), store.New(c.db, audittest.Keys(1))}
	var group sync.WaitGroup
	for n, replica := range replicas {
		for i := range grants {
			group.Go(func() {
				for range 5 {
					at := i
					if n%2 == 1 {
						at = grants - 1 - i
					}
					if _, err := replica.Deliver(t.Context(), start, order(fmt.Sprintf("g%02d", at), fmt.Sprint("r", n), "v2")); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	group.Wait()
	if n := c.rows(1, `SELECT CAST(deadlocks AS TEXT) FROM pg_stat_database WHERE datname = current_database()`); !slices.Equal(n, []string{"0"}) {
		t.Errorf("%v deadlocks", n)
	}
	c.audit()
}
