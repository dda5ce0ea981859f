package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// reading is an entitlement that somebody waits for.
type reading struct {
	grant string
	found *store.Entitlement
	err   error
}

func (c *counter) read(ctx context.Context, uid, instance string) <-chan reading {
	out := make(chan reading, 1)
	go func() {
		e, err := c.store.Entitlement(ctx, uid, instance)
		out <- reading{uid, e, err}
	}()
	return out
}

// hold keeps the first of the transactions that begin in its context until it is released, and then does what it is told; it counts all.
func hold(ctx context.Context, then func() error) (held context.Context, begun <-chan struct{}, release chan<- struct{}, transactions *atomic.Int64) {
	holds, goes, n := make(chan struct{}), make(chan struct{}), new(atomic.Int64)
	return sqldbtest.WithHook(ctx, func(ctx context.Context, at sqldbtest.Point, _ bool) error {
		if at != sqldbtest.Begin || n.Add(1) > 1 {
			return nil
		}
		close(holds)
		select {
		case <-goes:
			return then()
		case <-ctx.Done():
			return ctx.Err()
		}
	}), holds, goes, n
}

func (c *counter) toRead(n int) {
	c.t.Helper()
	for late := time.After(time.Minute); c.store.WaitingToRead() != n; {
		select {
		case <-late:
			c.t.Fatalf("%d wait to read, not %d", c.store.WaitingToRead(), n)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestEntitlement_WhatComesMeanwhileIsReadTogether(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		for i := range 6 {
			c.grant(fmt.Sprint("g", i))
		}
		if _, err := c.store.Deliver(c.t.Context(), start, order("g2", "a", "v2")); err != nil {
			c.t.Fatal(err)
		}
		ctx, begun, release, transactions := hold(c.t.Context(), func() error { return nil })
		first := c.read(ctx, "g0", "a")
		<-begun
		gone, leave := context.WithCancel(ctx)
		var all []<-chan reading
		for _, uid := range []string{"g1", "g2", "g3", "g4", "g2"} {
			all = append(all, c.read(ctx, uid, "a"))
		}
		unknown, left := c.read(ctx, "none", "a"), c.read(gone, "g5", "a")
		c.toRead(len(all) + 2)
		leave()
		if r := <-left; !errors.Is(r.err, context.Canceled) {
			c.t.Errorf("who left: %v", r.err)
		}
		close(release)
		for _, one := range append(all, first) {
			r := <-one
			if r.err != nil || r.found.Grant.UID != r.grant || r.found.Integration.UID != "uid" || len(r.found.Versions) != 2 || r.found.Check(start) != nil {
				c.t.Errorf("%s: %+v, %v", r.grant, r.found, r.err)
			}
			if want := int64(0); r.grant != "g2" && r.found.Lease.Generation != want || r.grant == "g2" && r.found.Lease.Generation != 1 {
				c.t.Errorf("%s has the lease %+v", r.grant, r.found.Lease)
			}
		}
		if r := <-unknown; !errors.Is(r.err, grant.ErrNotFound) {
			c.t.Errorf("of no grant: %v", r.err)
		}
		if n := transactions.Load(); n != 2 {
			c.t.Errorf("%d transactions for what one and then six asked for", n)
		}
	})
}

func TestEntitlement_IsReadForWhoStaysAndForNobodyElse(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g0")
		c.grant("g1")
		first, begun, _, _ := hold(c.t.Context(), func() error { return nil })
		second, begunToo, release, _ := hold(c.t.Context(), func() error { return nil })
		alone, leaveAlone := context.WithCancel(first)
		leftAlone := c.read(alone, "g0", "a")
		<-begun
		together, leaveOther := context.WithCancel(second)
		left, stays := c.read(together, "g0", "a"), c.read(second, "g1", "a")
		c.toRead(2)
		leaveAlone()
		if r := <-leftAlone; !errors.Is(r.err, context.Canceled) {
			c.t.Errorf("who left: %v", r.err)
		}
		<-begunToo // so the first is over, which was not released
		leaveOther()
		if r := <-left; !errors.Is(r.err, context.Canceled) {
			c.t.Errorf("who left another: %v", r.err)
		}
		close(release)
		if r := <-stays; r.err != nil || r.found.Grant.UID != "g1" {
			c.t.Errorf("who stayed: %+v, %v", r.found, r.err)
		}
	})
}

func TestEntitlement_PanicFailsWhoSharesItAlone(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		c.grant("g0")
		ctx, begun, release, _ := hold(c.t.Context(), func() error { panic("a row too many") }) //nolint:forbidigo // what is tested
		broken := c.read(ctx, "g0", "a")
		<-begun
		whole := c.read(ctx, "g0", "a")
		c.toRead(1)
		close(release)
		if p, ok := errors.AsType[*caught.PanicError]((<-broken).err); !ok || p.Value != "a row too many" {
			c.t.Errorf("the panic: %+v", p)
		}
		if r := <-whole; r.err != nil {
			c.t.Errorf("who came after it: %v", r.err)
		}
	})
}

// alone is a counter on PostgreSQL with one connection, whose reading is counted.
func alone(t *testing.T) *counter {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	config := sqldbtest.MigratedPostgresConfig(t, migrations)
	config.MaxConns = 1
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	divide(t, db, 1)
	c := &counter{t: t, db: db, store: store.New(db, audittest.Keys(1))}
	c.furnish()
	return c
}

// multiply makes as many more of the only grant, each with an open lease.
func (c *counter) multiply(grants int) {
	c.t.Helper()
	c.exec(`INSERT INTO grants (uid, account, project, project_uid, phase, run, integration, integration_uid, subscription_id, incarnation, revision,
			certificate_sha256, create_time, expire_time, revoke_time, use_time, access, token_hash, turn)
		SELECT uid || n, account, project, project_uid, phase, run, integration, integration_uid, subscription_id, incarnation, revision,
			certificate_sha256, create_time, expire_time, revoke_time, use_time, access, decode(md5(CAST(n AS TEXT)), 'hex'), 0
		FROM grants, generate_series(1, $1) n`, grants)
	c.exec(`INSERT INTO leases (uid, grant_uid, instance_id, generation, open_time, deliver_time, close_time)
		SELECT 'l' || uid, uid, 'a', 1, create_time, create_time, 0 FROM grants WHERE uid <> 'g'`)
}

// What a connection planned when there was next to nothing must do for all that comes.
func TestDeliver_ReadsNoMoreAfterThereCameMany(t *testing.T) {
	t.Parallel()
	c := alone(t)
	_, token := c.grant("g")
	reads := func() int64 {
		before := c.rowsRead()
		if _, err := c.store.EntitlementByToken(t.Context(), token, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.store.Deliver(t.Context(), start, order("g", "a", "v2")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.store.DeliverByToken(t.Context(), start, token, "a", version("v2")); err != nil {
			t.Fatal(err)
		}
		return c.rowsRead() - before
	}
	few := reads()
	const grants = 2000
	c.multiply(grants)
	if many := reads(); many > few+grants/10 {
		t.Errorf("a delivery reads %d rows with one grant, %d with %d", few, many, grants)
	}
}

// A delivery must not cost the more the more grants there are.
func TestDeliver_ReadsTheGrantAndNotAllThatAreLive(t *testing.T) {
	t.Parallel()
	c := alone(t)
	c.grant("g")
	const grants = 2000
	c.multiply(grants)
	const deliveries = 64
	ctx, begun, release, _ := hold(t.Context(), func() error { return nil })
	first := c.deliver(ctx, order("g", "a", "v2"))
	<-begun
	var all []<-chan result
	for i := range deliveries {
		all = append(all, c.deliver(ctx, order(fmt.Sprint("g", 1+i), "a", "v2")))
	}
	c.queued(deliveries)
	before := c.rowsRead()
	close(release)
	for _, one := range append(all, first) {
		if r := <-one; r.err != nil {
			t.Fatal(r.err)
		}
	}
	if read := (c.rowsRead() - before) / deliveries; read > grants/10 {
		t.Errorf("with %d grants a delivery reads %d rows", grants, read)
	} else {
		t.Logf("with %d grants a delivery reads %d rows", grants, read)
	}
}

// rowsRead is how many rows and entries of indexes the session of a database's only connection has read of its tables so far.
func (c *counter) rowsRead() (rows int64) {
	c.t.Helper()
	for _, query := range []string{
		`SELECT 0 FROM pg_stat_force_next_flush()`, // at this transaction's end
		`SELECT (SELECT SUM(seq_tup_read + COALESCE(idx_tup_fetch, 0)) FROM pg_stat_user_tables) + (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes)`,
	} {
		if err := c.db.Tx(c.t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return tx.QueryRow(ctx, query).Scan(&rows) }); err != nil {
			c.t.Fatal(err)
		}
	}
	return rows
}
