package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/page"
	"phasekey.dev/services/vault/internal/store"
)

// wide is a fan-out of what an order orders, to its instance by each of the grants.
func wide(d store.Delivery, grants ...string) store.FanOut {
	f := store.FanOut{
		VersionID: d.VersionID, Material: d.Material, Reason: "ROTATED", Audience: d.Audience, PolicyAudience: d.PolicyAudience,
		ClientRequestID: d.ClientRequestID, ExpireTime: d.ExpireTime,
	}
	for _, uid := range grants {
		f.To = append(f.To, store.Recipient{GrantUID: uid, InstanceID: d.InstanceID, Caller: grant.Caller{Identity: "runner of " + uid, RequestID: "call-" + uid}})
	}
	return f
}

// crowd makes so many grants, each with an open lease of the instance "a".
func (c *counter) crowd(n int) (grants []string) {
	c.t.Helper()
	for i := range n {
		uid := fmt.Sprintf("g%03d", i)
		grants = append(grants, uid)
		c.grant(uid)
		if _, err := c.store.Deliver(c.t.Context(), start, order(uid, "a", "v1")); err != nil {
			c.t.Fatal(err)
		}
	}
	return grants
}

func (c *counter) fanOut(by *store.Store, now time.Time, f store.FanOut) []store.Reached {
	c.t.Helper()
	got, err := by.FanOut(c.t.Context(), now, f)
	if err != nil {
		c.t.Fatal(err)
	}
	return got
}

// trail is all records, of all writers, as a replica reads them; it checks that each follows the one before it.
func (c *counter) trail(by *store.Store) (all []audit.Record) {
	c.t.Helper()
	writers, err := by.AuditWriters(c.t.Context(), "", 100)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, w := range writers {
		all = append(all, c.chain(by, w)...)
	}
	return all
}

func (c *counter) chain(by *store.Store, writer string) (all []audit.Record) {
	c.t.Helper()
	var head chain.Head
	for {
		some, err := by.AuditRecords(c.t.Context(), writer, head.Seq, math.MaxInt64)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(some) == 0 {
			return all
		}
		for _, r := range some {
			content, err := audit.Content(r.Entries)
			if err != nil {
				c.t.Fatal(err)
			}
			if r.Seq != head.Seq+1 || chain.Next(head.Hash, r.Writer, r.Seq, content) != r.Hash || audit.Check(c.t.Context(), audittest.Keys(1), r) != nil {
				c.t.Fatalf("record %d of %d events does not follow record %d", r.Seq, len(r.Entries), head.Seq)
			}
			head.Seq, head.Hash = r.Seq, r.Hash
		}
		all = append(all, some...)
	}
}

// A fan-out that was recorded, and of whose replica nothing was heard since, is in every trail as if each of its deliveries had been written.
func TestFanOut_IsOneRecordAndManyEvents(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx, other := c.t.Context(), store.New(c.db, audittest.Keys(1))
		grants := c.crowd(150)
		writer := c.trail(other)[0].Writer
		at := start.Add(time.Minute)
		got := c.fanOut(c.store, at, wide(order("", "a", "v2"), append(grants, "none")...))
		if last := got[len(got)-1]; last != (store.Reached{}) {
			c.t.Errorf("by no grant: %+v", last)
		}
		for i, r := range got[:len(grants)] {
			if r.Lease.Generation != 2 || r.Lease.GrantUID != grants[i] || !r.Lease.DeliverTime.Equal(at) || r.Grant.UID != grants[i] {
				c.t.Errorf("reached %+v", r)
			}
		}
		if _, err := c.store.Deliver(ctx, at, order("g000", "a", "v2")); err != nil { // what comes after it in the chain
			c.t.Fatal(err)
		}
		if n := c.records(); len(n) != len(grants)+1 {
			c.t.Errorf("%d records have been written as events", len(n))
		}
		before := c.chain(other, writer)
		if n := len(before[len(before)-2].Entries); n != len(grants) {
			c.t.Errorf("a record of %d events", n)
		}
		events, err := other.AuditEvents(ctx, audit.Query{From: at, GrantUID: "g149", Limit: 10})
		if err != nil {
			c.t.Fatal(err)
		}
		want := []store.AuditEvent{{
			Writer: writer, Seq: before[len(before)-2].Seq, Place: 149, Time: at, Kind: store.CredentialDelivered,
			Caller: grant.Caller{Identity: "runner of g149", RequestID: "call-g149"}, Account: "acme", GrantUID: "g149", Run: "run-1", LeaseUID: got[149].Lease.UID,
			InstanceID: "a", Generation: 2, Integration: "accounts/acme/integrations/read", IntegrationUID: "uid", Project: "accounts/acme/projects/network",
			ProjectUID: "network", VersionID: "v2", Material: lease.AccessToken, Reason: "ROTATED", Audience: "https://management.azure.com",
			ClientRequestID: "asked-v2", ExpireTime: start.Add(time.Hour),
		}}
		if diff := cmp.Diff(want, events); diff != "" {
			c.t.Errorf("events differ: %s", diff)
		}
		if left := c.rows(1, `SELECT seq FROM audit_fanouts`); len(left) > 0 {
			c.t.Errorf("records %v are both", left)
		}
		if diff := cmp.Diff(before, c.chain(other, writer)); diff != "" {
			c.t.Errorf("the chain is another one since: %s", diff)
		}
		c.audit()
	})
}

// Whatever is read of leases says what was delivered last, also when that was a fan-out a moment ago.
func TestFanOut_IsWhatLeasesSay(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		ctx := c.t.Context()
		grants := c.crowd(3)
		got := c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		if d, err := c.store.Lease(ctx, "acme", "g001", got[1].Lease.UID); err != nil || d.Version != 2 || d.Generation != 2 {
			c.t.Errorf("%+v, %v", d, err)
		}
		c.fanOut(c.store, start, wide(order("", "a", "v1"), grants...))
		if d, err := c.store.RevokeLease(ctx, start, "acme", "g001", got[1].Lease.UID, platform); err != nil || d.Version != 1 || d.Generation != 3 {
			c.t.Errorf("revoked: %+v, %v", d, err)
		}
		c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		listed, _, err := c.store.Leases(ctx, lease.List{Account: "acme", Page: page.Page{Order: []page.Order{{By: lease.ByUID}}, Size: 10}, Passes: func(lease.Detail) bool { return true }})
		if err != nil {
			c.t.Fatal(err)
		}
		var have []string
		for _, d := range listed {
			have = append(have, fmt.Sprint(d.GrantUID, " ", d.Version, " ", d.Generation))
		}
		slices.Sort(have)
		if want := []string{"g000 2 4", "g001 1 3", "g002 2 4"}; !slices.Equal(have, want) {
			c.t.Errorf("listed %q, want %q", have, want)
		}
	})
}

// A replica that dies while it expands a fan-out leaves it as it was; and of many that expand at once each event is written by one.
func TestFanOut_IsExpandedOnce(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(70)
		for range 4 {
			c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		}
		before := c.trail(c.store)
		killed := errors.New("killed")
		dying := sqldbtest.WithHook(c.t.Context(), func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
			if at == sqldbtest.Commit && !readOnly {
				return killed
			}
			return nil
		})
		c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		records, pending := c.records(), c.rows(1, `SELECT seq FROM audit_fanouts`)
		if err := c.store.ExpandFanOuts(dying); !errors.Is(err, killed) {
			c.t.Fatal(err)
		}
		if !slices.Equal(records, c.records()) || !slices.Equal(pending, c.rows(1, `SELECT seq FROM audit_fanouts`)) {
			c.t.Errorf("records %v, of which %v are yet to be expanded", c.records(), c.rows(1, `SELECT seq FROM audit_fanouts`))
		}
		c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				if err := store.New(c.db, audittest.Keys(1)).ExpandFanOuts(c.t.Context()); err != nil {
					c.t.Error(err)
				}
			})
		}
		group.Wait()
		if after := c.trail(c.store); len(after) != len(before)+2 {
			c.t.Errorf("%d records, and then %d", len(before), len(after))
		}
		c.audit()
	})
}

// What somebody writes in the place of a fan-out is as little a record of the vault's as what they write anywhere else, and keeps nobody from reading the others.
func TestFanOut_ThatWasChangedFitsNothing(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(3)
		writer := c.trail(c.store)[0].Writer
		for _, content := range []string{`no list`, `[]`, `null`, `[{"time":1,"kind":"CredentialDelivered"}]`} {
			c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
			c.exec(`UPDATE audit_fanouts SET content = $1`, []byte(content))
			for _, when := range []string{"before it is expanded", "afterwards"} {
				all, err := c.store.AuditRecords(c.t.Context(), writer, 0, math.MaxInt64)
				if err != nil {
					c.t.Fatal(err)
				}
				last := all[len(all)-1]
				given, err := audit.Content(last.Entries)
				if err != nil || len(last.Entries) != 1 {
					c.t.Fatalf("%d events, %v", len(last.Entries), err)
				}
				if chain.Next(all[len(all)-2].Hash, writer, last.Seq, given) == last.Hash {
					c.t.Errorf("%s fits %s", content, when)
				}
				if _, err := c.store.AuditEvents(c.t.Context(), audit.Query{Limit: 10}); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	})
}

func TestFanOut_IsForgottenLikeAnyRecord(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(3)
		for range 2 {
			c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		}
		all := c.trail(c.store)
		c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
		writer, upTo := all[0].Writer, all[len(all)-1].Seq+1
		for n := int64(1); n > 0; {
			var err error
			if n, err = c.store.ForgetRecords(c.t.Context(), writer, upTo, 4); err != nil {
				c.t.Fatal(err)
			}
		}
		left, err := c.store.AuditRecords(c.t.Context(), writer, 0, math.MaxInt64)
		if err != nil || len(left) != 1 || left[0].Seq != upTo+1 {
			c.t.Errorf("left %+v, %v", left, err)
		}
	})
}

// A long chain of fan-outs and others is read in parts, none of which lacks a record.
func TestFanOut_IsReadInItsPlace(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(3)
		var want []int
		for i := range 12 {
			if i%3 > 0 {
				c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
				want = append(want, len(grants))
			}
			if i == 3 {
				if err := c.store.ExpandFanOuts(c.t.Context()); err != nil {
					c.t.Fatal(err)
				}
			}
			if _, err := c.store.Deliver(c.t.Context(), start, order("g000", "a", "v2")); err != nil {
				c.t.Fatal(err)
			}
			want = append(want, 1)
		}
		writer := c.rows(1, `SELECT writer FROM audit_writers`)[0]
		var have []int
		for _, r := range c.chain(c.store, writer) {
			have = append(have, len(r.Entries))
		}
		if have = have[len(have)-len(want):]; !slices.Equal(have, want) {
			c.t.Errorf("records of %v events, want %v", have, want)
		}
	})
}

// Whoever ends what entitles waits for a fan-out that is under way, and a fan-out for them: what is recorded was not over at its commit.
func TestFanOut_TakesTurnsWithWhoeverEndsGrants(t *testing.T) {
	revoke := func(ctx context.Context, other *store.Store) error {
		_, err := other.RevokeGrant(ctx, start, "acme", "g001", platform)
		return err
	}
	closeLease := func(ctx context.Context, other *store.Store) error {
		return other.CloseLease(ctx, start, "g001", "a", platform)
	}
	for name, tt := range map[string]struct {
		end        func(ctx context.Context, other *store.Store) error
		fanOutLast bool
		want       int64
	}{
		"revocation after it": {revoke, false, 2},
		"closing after it":    {closeLease, false, 2},
		"freezing after it": {func(ctx context.Context, other *store.Store) error {
			if _, err := other.FreezeAccount(ctx, start, "acme", "because", platform); err != nil {
				return err
			}
			_, err := other.ReleaseFrozen(ctx, start, "acme", "", 100)
			return err
		}, false, 2},
		"revocation before it": {revoke, true, 0},
		"closing before it":    {closeLease, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := onPostgres(t)
			grants, other := c.crowd(3), store.New(c.db, audittest.Keys(1)) // with records of its own
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			var got []store.Reached
			first, second := func(ctx context.Context) (err error) {
				got, err = c.store.FanOut(ctx, start, wide(order("", "a", "v2"), grants...))
				return err
			}, func(ctx context.Context) error { return tt.end(ctx, other) }
			if tt.fanOutLast {
				first, second = second, first
			}
			var group sync.WaitGroup
			begin := sync.OnceFunc(func() {
				done := make(chan struct{})
				group.Go(func() {
					defer close(done)
					if err := second(ctx); err != nil {
						t.Error(err)
					}
				})
				c.waiting(ctx, 1, done)
				select {
				case <-done:
					t.Error("the second did not wait for the first")
				default:
				}
			})
			err := first(sqldbtest.WithHook(ctx, func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
				if at == sqldbtest.Commit && !readOnly {
					begin()
				}
				return nil
			}))
			if err != nil {
				t.Error(err)
			}
			group.Wait()
			if got[0].Lease.Generation == 0 || got[1].Lease.Generation != tt.want {
				t.Errorf("reached %+v", got)
			}
			if again := c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...)); again[1] != (store.Reached{}) {
				t.Errorf("reached after the end: %+v", again[1])
			}
		})
	}
}

// What ends without a grant's row, as an attachment does, may end while a fan-out waits for its place in the chain: it judges afterwards, and then waits for nobody.
func TestFanOut_JudgesWhenItWaitsForNobodyAnyMore(t *testing.T) {
	c := onPostgres(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	grants := c.crowd(4)
	some, other := grants[:3], grants[3]
	var group sync.WaitGroup
	begin := sync.OnceFunc(func() {
		done := make(chan struct{})
		group.Go(func() {
			defer close(done)
			got, err := c.store.FanOut(ctx, start, wide(order("", "a", "v2"), some...))
			if err != nil || !slices.Equal(got, make([]store.Reached, len(some))) {
				t.Errorf("reached %+v, %v", got, err)
			}
		})
		c.waiting(ctx, 1, done)
		select {
		case <-done:
			t.Error("the fan-out did not wait for the chain")
		default:
		}
		c.project(6, start, store.Wanted{})
	})
	_, err := c.store.FanOut(sqldbtest.WithHook(ctx, func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
		if at == sqldbtest.Commit && !readOnly {
			begin()
		}
		return nil
	}), start, wide(order("", "a", "v2"), other))
	if err != nil {
		t.Error(err)
	}
	group.Wait()
}

// Two replicas fan out to the same leases while others deliver, revoke, close, freeze and read: nobody waits for who waits, each lease's generations are counted
// without a gap, and every chain is whole.
func TestFanOut_WhoeverComesAtOnce(t *testing.T) {
	overTheCounter(t, (*counter).fanOutAtOnce)
	t.Run("nobody waits for who waits", func(t *testing.T) {
		onPostgres(t, "deadlock_timeout=1min").fanOutAtOnce()
	})
}

func (c *counter) fanOutAtOnce() {
	ctx := c.t.Context()
	grants := c.crowd(24)
	backwards := slices.Clone(grants)
	slices.Reverse(backwards)
	replicas := []*store.Store{c.store, store.New(c.db, audittest.Keys(1))}
	var group sync.WaitGroup
	do := func(times int, what func(i int) error) {
		group.Go(func() {
			for i := range times {
				if err := what(i); err != nil {
					c.t.Error(err)
					return
				}
			}
		})
	}
	for n, s := range replicas {
		to := [][]string{grants, backwards}[n]
		do(8, func(int) error {
			got, err := s.FanOut(ctx, start, wide(order("", "a", "v2"), to...))
			for i, r := range got {
				if r != (store.Reached{}) && r.Lease.GrantUID != to[i] {
					c.t.Errorf("%+v in the place of %s", r, to[i])
				}
			}
			return err
		})
		do(8, func(i int) error {
			_, err := s.Deliver(ctx, start, order(to[i], "a", "v2"))
			for _, ended := range []error{grant.ErrRevoked, lease.ErrClosed, grant.ErrAccountFrozen, lease.ErrVersionGone /* not frozen any more */} {
				if errors.Is(err, ended) {
					return nil
				}
			}
			return err
		})
		do(4, func(int) error {
			_, err := s.AuditEvents(ctx, audit.Query{Limit: 100})
			return err
		})
		do(4, func(int) error { return s.ExpandFanOuts(ctx) })
	}
	do(4, func(i int) error {
		_, err := c.store.RevokeGrant(ctx, start, "acme", grants[i], platform)
		return err
	})
	do(4, func(i int) error { return c.store.CloseLease(ctx, start, grants[8+i], "a", platform) })
	do(2, func(int) error {
		if _, err := c.store.FreezeAccount(ctx, start, "acme", "because", platform); err != nil {
			return err
		}
		if _, err := c.store.ReleaseFrozen(ctx, start, "acme", "", 100); err != nil {
			return err
		}
		return c.store.UnfreezeAccount(ctx, start, "acme", platform)
	})
	group.Wait()
	c.trail(c.store)
	c.audit()
	if wrong := c.rows(4, `SELECT l.grant_uid, l.generation, COUNT(*), COUNT(DISTINCT e.generation) FROM leases l JOIN audit_events e ON e.lease_uid = l.uid AND e.kind = 'CredentialDelivered'
		GROUP BY l.uid, l.grant_uid, l.generation HAVING COUNT(*) <> l.generation OR COUNT(DISTINCT e.generation) <> l.generation`); len(wrong) > 0 {
		c.t.Errorf("leases, their generations, and how many deliveries: %q", wrong)
	}
}

// How a grant stands is read once for all that are like it. Each is judged: by that, and by what is its own.
func TestFanOut_JudgesEachGrant(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(9)
		for uid, change := range map[string]string{
			"g002": `project_uid = 'other'`,
			"g003": `phase = 'APPLYING', access = 'WRITE'`,
			"g004": `revoke_time = 1, revision = 9`,
			"g005": `expire_time = 1, revision = 9`,
			"g006": `incarnation = 'before', revision = 9`,
			"g007": `account = 'other'`,
			"g008": `integration_uid = 'other'`,
		} {
			c.exec(`UPDATE grants SET `+change+` WHERE uid = $1`, uid)
		}
		c.exec(`INSERT INTO frozen_accounts (account, reason, freeze_time) VALUES ('other', 'because', 1)`)
		reached := func(step string, want ...string) {
			c.t.Helper()
			f := wide(order("", "a", "v2"), grants...)
			entitled, err := c.store.Entitled(c.t.Context(), start, f)
			if err != nil {
				c.t.Fatal(err)
			}
			var have []string
			for i, r := range c.fanOut(c.store, start, f) {
				if r != (store.Reached{}) {
					have = append(have, r.Grant.UID)
					r.Lease.Generation-- // nothing else has been written in between
					entitled[i].Lease.DeliverTime = r.Lease.DeliverTime
				}
				if r != entitled[i] {
					c.t.Errorf("%s: %+v was entitled, and reached was %+v", step, entitled[i], r)
				}
			}
			if !slices.Equal(have, want) {
				c.t.Errorf("%s: reached %q, want %q", step, have, want)
			}
		}
		reached("at first", "g000", "g001", "g006")
		c.exec(`UPDATE grants SET revision = 6 WHERE uid = 'g001'`)
		reached("when the copy of the registry is behind one of them", "g000", "g006")
	})
}

// A fan-out costs so many statements, however many it reaches.
func TestFanOut_IsFewStatements(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		grants := c.crowd(100)
		statements := func(to []string) (n int) {
			ctx := sqldbtest.WithCount(c.t.Context(), func(string) { n++ })
			if _, err := c.store.FanOut(ctx, start, wide(order("", "a", "v2"), to...)); err != nil {
				c.t.Fatal(err)
			}
			return n
		}
		if one, all := statements(grants[:1]), statements(grants); one != all || all > 10 {
			c.t.Errorf("%d statements for one, %d for all", one, all)
		}
	})
}

// Whoever waited for another that was writing the same fan-out goes on with those behind it: what a lease was given last is among the events by then.
func TestFanOut_WhoeverWaitedGoesOn(t *testing.T) {
	c := onPostgres(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	grants := c.crowd(2)
	got := c.fanOut(c.store, start, wide(order("", "a", "v1"), grants...))
	c.fanOut(c.store, start, wide(order("", "a", "v2"), grants...))
	var group sync.WaitGroup
	begin := sync.OnceFunc(func() {
		done := make(chan struct{})
		group.Go(func() {
			defer close(done)
			d, err := c.store.RevokeLease(ctx, start, "acme", "g001", got[1].Lease.UID, platform)
			if err != nil || d.Generation != 3 || d.Version != 2 {
				t.Errorf("%+v, %v", d, err)
			}
		})
		c.waiting(ctx, 1, done)
		// It waits to say what the lease was given. The lease is closed, and nobody waits for it.
		if _, err := c.store.Deliver(ctx, start, order("g001", "a", "v2")); !errors.Is(err, lease.ErrClosed) {
			t.Errorf("after the revocation: %v", err)
		}
	})
	first := true
	err := c.store.ExpandFanOuts(sqldbtest.WithHook(ctx, func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
		if at == sqldbtest.Commit && !readOnly && first {
			begin()
			first = false
		}
		if at == sqldbtest.Begin && !first {
			group.Wait()
		}
		return nil
	}))
	if err != nil {
		t.Error(err)
	}
	group.Wait()
	c.audit()
}
