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

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

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
