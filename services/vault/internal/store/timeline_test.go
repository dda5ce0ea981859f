package store_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/store"
)

// Another PostgreSQL takes over, which has not heard of the last mastership, nor of the last change of the registry.
func TestFollowTimeline_OfADatabaseThatFailsOver(t *testing.T) {
	t.Parallel()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	server := sqldbtest.NewServer(t)
	config := server.Config(t)
	open := func() *counter {
		t.Helper()
		db, err := sqldb.Open(t.Context(), config, migrations)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return &counter{t: t, db: db, store: store.New(db, audittest.Keys(1))}
	}
	follow := func(c *counter, want bool) {
		t.Helper()
		if changed, err := c.store.FollowTimeline(t.Context(), start.Add(time.Hour)); err != nil || changed != want {
			t.Errorf("it has changed: %t, %v; want %t", changed, err, want)
		}
	}
	c := open()
	divide(t, c.db, 1)
	c.furnish()
	follow(c, false)
	kept := c.master()
	takeOver := server.Standby(t)
	c = open()
	follow(c, false)
	lost := c.master()
	advance := func(c *counter, revision int64) error {
		return c.store.AdvanceProjection(t.Context(), start, store.Projection{Incarnation: "registry", Revision: revision, Cursor: "c", BookmarkTime: start},
			store.Wanted{Integrations: []store.Integration{{UID: "uid", Name: "accounts/acme/integrations/read", Revision: revision}}})
	}
	if err := advance(c, 6); err != nil {
		t.Fatal(err)
	}

	takeOver()
	c = open()
	c.exec(`UPDATE applications SET next_time = $1`, sqldb.Micros(start.Add(99*time.Hour)))
	// Whoever notices dies before it can say so, and the next one after that: neither leaves a part of it undone.
	errDead := errors.New("dead")
	dying := func(last sqldbtest.Point) {
		t.Helper()
		dead := false
		if _, err := c.store.FollowTimeline(sqldbtest.WithHook(t.Context(), func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
			if dead = dead || !readOnly && at == last; dead {
				return errDead
			}
			return nil
		}), start.Add(time.Hour)); !errors.Is(err, errDead) {
			t.Errorf("at %s: %v", last, err)
		}
	}
	dying(sqldbtest.Commit)
	if f, err := c.store.Facts(t.Context(), "uid"); err != nil || !f.FailOverTime.IsZero() {
		t.Errorf("without a commit the facts say that it failed over at %s, %v", f.FailOverTime, err)
	}
	dying(sqldbtest.Committed)
	follow(c, false) // as another replica finds
	for name, m := range map[string]election.Mastership{"kept": kept, "lost": lost} {
		if err := c.commit(m, func(store.Facts) credential.Change { return credential.Change{} }); !errors.Is(err, election.ErrFenced) {
			t.Errorf("the master of before, whose mastership was %s, writes: %v", name, err)
		}
	}
	if next := c.master(); next.Epoch <= lost.Epoch {
		t.Errorf("the next epoch is %d, after %d", next.Epoch, lost.Epoch)
	}
	f, err := c.store.Facts(t.Context(), "uid")
	if err != nil || !f.FailOverTime.Equal(start.Add(time.Hour)) {
		t.Errorf("the facts say that it failed over at %s, %v", f.FailOverTime, err)
	}
	if uids, _, err := c.store.Due(t.Context(), 0, start.Add(time.Hour), 10); err != nil || len(uids) != 1 {
		t.Errorf("due are %v, %v", uids, err)
	}
	if got := c.rows(2, `SELECT kind, reason FROM audit_events WHERE kind = 'DatabaseFailedOver'`); !slices.Equal(got, []string{"DatabaseFailedOver timeline 00000002 after 00000001"}) {
		t.Errorf("recorded is %q", got)
	}
	// Whoever follows the registry must not go on from 6.
	if err := advance(c, 7); !errors.Is(err, store.ErrChanged) {
		t.Errorf("the registry is followed across what was lost: %v", err)
	}
	if p, err := c.store.Projection(t.Context()); err != nil || p.Cursor != "" || p.Incarnation != "" {
		t.Errorf("it is gone on from %+v, %v", p, err)
	}
}

func TestFollowTimeline_ThereIsNoneInSQLite(t *testing.T) {
	onBoth(t, func(b *bench) {
		for range 2 {
			if changed, err := b.store.FollowTimeline(context.WithoutCancel(b.t.Context()), start); err != nil || changed {
				b.t.Errorf("%t, %v", changed, err)
			}
		}
	})
}
