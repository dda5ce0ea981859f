package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const limit = 3

// each runs a test on each engine, with a fresh store.
func each(t *testing.T, test func(t *testing.T, db *sqldb.DB, s *store.Store)) {
	t.Helper()
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) { test(t, db, store.New(db)) })
}

func integration(uid string) consent.Integration {
	return consent.Integration{Name: "accounts/acme/integrations/" + uid, UID: uid, TenantID: "tenant", Cloud: "public", ClientID: "client", Ready: true}
}

// opened stores a new session of an integration, without a request ID.
func opened(t *testing.T, s *store.Store, now time.Time, uid string) consent.Session {
	t.Helper()
	session := consent.New(now, "acme", integration(uid), now.Add(time.Hour))
	got, err := s.Create(t.Context(), now, session, session.Nonce[:], consent.Request{}, limit)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func claimed(t *testing.T, s *store.Store, now time.Time, uid string) consent.Claim {
	t.Helper()
	c, err := s.Claim(t.Context(), now, now.Add(time.Minute), uid)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func due(t *testing.T, s *store.Store, now time.Time) []string {
	t.Helper()
	uids, err := s.Due(t.Context(), now, 100)
	if err != nil {
		t.Fatal(err)
	}
	return uids
}

func request(id, contents string) consent.Request {
	return consent.Request{Account: "acme", ID: id, Fingerprint: []byte(contents), ExpireTime: start.Add(24 * time.Hour)}
}

func TestStore_KeepsASessionAsItIs(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		want := opened(t, s, start, "uid-1")
		got, err := s.Get(t.Context(), want.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("session (-want +got):\n%s", diff)
		}
		for _, name := range []consent.Name{{Account: "umbrella", ID: want.Name.ID}, {Account: "acme", ID: "other"}} {
			if _, err := s.Get(t.Context(), name); !errors.Is(err, consent.ErrNotFound) {
				t.Errorf("%s: error %v", name, err)
			}
		}
	})
}

func TestStore_RefusesOneLinkForTwoSessions(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		for i, want := range []error{nil, sqldb.ErrUnique} {
			session := consent.New(start, "acme", integration("uid-1"), start.Add(time.Hour))
			_, err := s.Create(t.Context(), start, session, []byte("the same"), consent.Request{}, limit)
			if !errors.Is(err, want) {
				t.Errorf("session %d: error %v", i, err)
			}
		}
	})
}

func TestStore_RequestIDCreatesOneSession(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		create := func(now time.Time, r consent.Request) (consent.Session, error) {
			session := consent.New(now, r.Account, integration("uid-1"), now.Add(time.Hour))
			return s.Create(t.Context(), now, session, session.Nonce[:], r, limit)
		}
		if _, err := s.Replay(t.Context(), start, request("r1", "a")); !errors.Is(err, consent.ErrNotFound) {
			t.Errorf("before the first: error %v", err)
		}
		first, err := create(start, request("r1", "a"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := create(start.Add(time.Hour), request("r1", "a"))
		if diff := cmp.Diff(first, again); err != nil || diff != "" {
			t.Errorf("a repeat: error %v (-first +again):\n%s", err, diff)
		}
		if replayed, err := s.Replay(t.Context(), start, request("r1", "a")); err != nil || replayed != first {
			t.Errorf("replay: error %v, session %v", err, replayed.Name)
		}
		if _, err := create(start, request("r1", "b")); !errors.Is(err, consent.ErrRequestIDReused) {
			t.Errorf("other contents: error %v", err)
		}
		of := request("r1", "a")
		of.Account = "umbrella"
		if other, err := create(start, of); err != nil || other.Name == first.Name {
			t.Errorf("another account's: error %v, session %v", err, other.Name)
		}
		late := request("r1", "b")
		late.ExpireTime = start.Add(48 * time.Hour)
		if other, err := create(start.Add(24*time.Hour), late); err != nil || other.Name == first.Name {
			t.Errorf("a day later: error %v, session %v", err, other.Name)
		}
	})
}

func TestStore_RepeatsAtTheSameMomentCreateOneSession(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		var wg sync.WaitGroup
		names := make([]consent.Name, 8)
		for i := range names {
			wg.Go(func() {
				// Of different integrations, so that nothing but the request itself keeps them apart.
				session := consent.New(start, "acme", integration(fmt.Sprint("uid-", i)), start.Add(time.Hour))
				got, err := s.Create(t.Context(), start, session, session.Nonce[:], request("r1", "a"), limit)
				if err != nil {
					t.Error(err)
				}
				names[i] = got.Name
			})
		}
		wg.Wait()
		for _, name := range names[1:] {
			if name != names[0] {
				t.Errorf("two sessions: %s, %s", names[0], name)
			}
		}
		if n := count(t, db, `SELECT COUNT(*) FROM consent_sessions`); n != 1 {
			t.Errorf("%d sessions are stored", n)
		}
		if got := due(t, s, start); len(got) != 1 {
			t.Errorf("due: %v", got)
		}
	})
}

func TestStore_LimitsOpenSessions(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		create := func(now time.Time, uid string, r consent.Request) error {
			session := consent.New(now, "acme", integration(uid), now.Add(time.Hour))
			_, err := s.Create(t.Context(), now, session, session.Nonce[:], r, limit)
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, 2*limit)
		for i := range errs {
			wg.Go(func() { errs[i] = create(start, "uid-1", consent.Request{}) })
		}
		wg.Wait()
		refused := 0
		for _, err := range errs {
			if errors.Is(err, consent.ErrTooManyOpen) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if refused != limit {
			t.Errorf("%d of %d were refused", refused, len(errs))
		}
		if err := create(start, "uid-1", request("r1", "a")); !errors.Is(err, consent.ErrTooManyOpen) {
			t.Errorf("one more: error %v", err)
		}
		if _, err := s.Replay(t.Context(), start, request("r1", "a")); !errors.Is(err, consent.ErrNotFound) {
			t.Errorf("a refused request is remembered: error %v", err)
		}
		if err := create(start, "uid-2", consent.Request{}); err != nil {
			t.Errorf("another integration: error %v", err)
		}
		if err := create(start.Add(time.Hour), "uid-1", consent.Request{}); err != nil {
			t.Errorf("after the deadlines: error %v", err)
		}
	})
}

func TestStore_ClaimKeepsOthersAway(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session := opened(t, s, start, "uid-1")
		if got := due(t, s, start.Add(-time.Microsecond)); len(got) != 0 {
			t.Errorf("due too early: %v", got)
		}
		if got := due(t, s, start); !cmp.Equal(got, []string{"uid-1"}) {
			t.Errorf("due: %v", got)
		}
		c := claimed(t, s, start, "uid-1")
		if diff := cmp.Diff([]consent.Session{session}, c.Open); diff != "" {
			t.Errorf("open sessions (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(consent.Target{IntegrationUID: "uid-1", Integration: session.Integration, DueTime: start, LookTime: start}, c.Target); diff != "" {
			t.Errorf("target (-want +got):\n%s", diff)
		}
		if got := due(t, s, start); len(got) != 0 {
			t.Errorf("due though claimed: %v", got)
		}
		almost := start.Add(time.Minute - time.Microsecond)
		if _, err := s.Claim(t.Context(), almost, almost.Add(time.Minute), "uid-1"); !errors.Is(err, consent.ErrClaimLost) {
			t.Errorf("second claim: error %v", err)
		}
		if got := due(t, s, start.Add(time.Minute)); len(got) != 1 {
			t.Errorf("after the claim's time, due: %v", got)
		}
		if _, err := s.Claim(t.Context(), start, start.Add(time.Minute), "unknown"); !errors.Is(err, consent.ErrClaimLost) {
			t.Errorf("unknown target: error %v", err)
		}
	})
}

func TestStore_OneOfManyClaims(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		opened(t, s, start, "uid-1")
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { _, errs[i] = s.Claim(t.Context(), start, start.Add(time.Minute), "uid-1") })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, consent.ErrClaimLost) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("%d replicas claimed the target", won)
		}
	})
}

func TestStore_SettleWritesWhatWasDecided(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		first := opened(t, s, start, "uid-1")
		c := claimed(t, s, start, "uid-1")
		second := opened(t, s, start.Add(time.Second), "uid-1") // while the round is under way
		foreign := opened(t, s, start, "uid-2")

		done := first
		done.State, done.PrincipalObjectID, done.LastRefusal, done.Version, done.EndTime = consent.Completed, "oid", "", 2, start.Add(2*time.Second)
		next := consent.Target{IntegrationUID: "uid-1", Integration: first.Integration,
			DueTime: start.Add(10 * time.Second), LookTime: start.Add(11 * time.Second), ProbeTime: start.Add(time.Second), Failures: 3}
		err := s.Settle(t.Context(), c, func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
			if target.DueTime != start.Add(time.Second) {
				t.Errorf("the target is of %v, not of now", target.DueTime)
			}
			got := map[consent.Name]consent.Session{}
			for _, o := range open {
				got[o.Name] = o
			}
			if diff := cmp.Diff(map[consent.Name]consent.Session{first.Name: first, second.Name: second}, got); diff != "" {
				t.Errorf("open sessions (-want +got):\n%s", diff)
			}
			return next, []consent.Session{done}
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []consent.Session{done, second, foreign} {
			if got, err := s.Get(t.Context(), want.Name); err != nil || !cmp.Equal(want, got) {
				t.Errorf("error %v (-want +got):\n%s", err, cmp.Diff(want, got))
			}
		}
		if got := due(t, s, next.DueTime.Add(-time.Microsecond)); !cmp.Equal(got, []string{"uid-2"}) {
			t.Errorf("due before its time: %v", got)
		}
		again := claimed(t, s, next.DueTime, "uid-1")
		if diff := cmp.Diff(next, again.Target); diff != "" {
			t.Errorf("target (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]consent.Session{second}, again.Open); diff != "" {
			t.Errorf("open sessions (-want +got):\n%s", diff)
		}
	})
}

func TestStore_SettleAfterTheClaimWasLost(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session := opened(t, s, start, "uid-1")
		slow := claimed(t, s, start, "uid-1")
		settle := func(c consent.Claim, oid string) error {
			return s.Settle(t.Context(), c, func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
				target.DueTime = time.Time{}
				for i := range open {
					open[i].State, open[i].PrincipalObjectID, open[i].EndTime = consent.Completed, oid, start.Add(time.Minute)
				}
				return target, open
			})
		}
		other := claimed(t, s, start.Add(time.Minute), "uid-1")
		if err := settle(slow, "slow"); !errors.Is(err, consent.ErrClaimLost) {
			t.Errorf("slow replica: error %v", err)
		}
		if err := settle(other, "other"); err != nil {
			t.Error(err)
		}
		if err := settle(other, "twice"); !errors.Is(err, consent.ErrClaimLost) {
			t.Errorf("twice: error %v", err)
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || got.PrincipalObjectID != "other" {
			t.Errorf("error %v, completed by %q", err, got.PrincipalObjectID)
		}
		if got := due(t, s, start.Add(24*time.Hour)); len(got) != 0 {
			t.Errorf("due though nobody waits: %v", got)
		}
		opened(t, s, start.Add(2*time.Minute), "uid-1")
		if got := due(t, s, start.Add(2*time.Minute)); len(got) != 1 {
			t.Error("a new session does not make its integration due again")
		}
	})
}

func TestStore_DueIsTheLongestDueFirst(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		for i, uid := range []string{"b", "c", "a"} {
			opened(t, s, start.Add(time.Duration(i)*time.Second), uid)
		}
		got, err := s.Due(t.Context(), start.Add(time.Minute), 2)
		if diff := cmp.Diff([]string{"b", "c"}, got); err != nil || diff != "" {
			t.Errorf("error %v (-want +got):\n%s", err, diff)
		}
	})
}

func TestStore_PurgeForgetsOnlyWhatIsOver(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		end := func(uid string, at time.Time) consent.Session {
			session := opened(t, s, start, uid)
			err := s.Settle(t.Context(), claimed(t, s, start, uid), func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
				target.DueTime = time.Time{}
				open[0].State, open[0].EndTime = consent.Expired, at
				return target, open
			})
			if err != nil {
				t.Fatal(err)
			}
			return session
		}
		old, recent := end("old", start.Add(time.Hour)), end("recent", start.Add(10*time.Hour))
		open := opened(t, s, start, "open")
		for id, life := range map[string]time.Duration{"over": time.Hour, "lives": 10 * time.Hour} {
			r := request(id, id)
			r.ExpireTime = start.Add(life)
			session := consent.New(start, "acme", integration("open"), start.Add(time.Hour))
			if _, err := s.Create(t.Context(), start, session, session.Nonce[:], r, limit); err != nil {
				t.Fatal(err)
			}
		}

		if err := s.Purge(t.Context(), start.Add(5*time.Hour), start.Add(5*time.Hour)); err != nil {
			t.Fatal(err)
		}

		for name, want := range map[consent.Name]error{old.Name: consent.ErrNotFound, recent.Name: nil, open.Name: nil} {
			if _, err := s.Get(t.Context(), name); !errors.Is(err, want) {
				t.Errorf("%s: error %v, want %v", name, err, want)
			}
		}
		if n := count(t, db, `SELECT COUNT(*) FROM targets`); n != 2 {
			t.Errorf("%d targets are left", n)
		}
		if n := count(t, db, `SELECT COUNT(*) FROM requests`); n != 1 {
			t.Errorf("%d requests are left", n)
		}
	})
}

func TestStore_StateKeyIsRecordedOnce(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		if got, err := s.StateKey(t.Context()); err != nil || got != nil {
			t.Errorf("of an empty database: %x, error %v", got, err)
		}
		for _, mine := range []string{"first", "second"} {
			if got, err := s.RecordStateKey(t.Context(), []byte(mine)); err != nil || !bytes.Equal(got, []byte("first")) {
				t.Errorf("recording %s: %q, error %v", mine, got, err)
			}
		}
	})
}

func TestStore_SaysThatTheDatabaseDoesNotAnswer(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, store.Migrations())
	config.LockTimeout = 50 * time.Millisecond
	db, err := sqldb.Open(t.Context(), config, store.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(db)
	opened(t, s, start, "uid-1")
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE targets SET failures = 0`); err != nil {
			return err
		}
		_, err := s.Claim(ctx, start, start.Add(time.Minute), "uid-1")
		return err
	})
	if !errors.Is(err, consent.ErrUnavailable) {
		t.Errorf("a row that stays locked: error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, consent.Name{}); !errors.Is(err, context.Canceled) || errors.Is(err, consent.ErrUnavailable) {
		t.Errorf("a caller that went away: error %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a closed database answers")
	}
}

func count(t *testing.T, db *sqldb.DB, query string) (n int) {
	t.Helper()
	err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}
