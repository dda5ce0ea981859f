package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
)

// press is one attempt, and what a browser has of it.
type press struct {
	attempt        consent.Attempt
	state, browser secret.Text
}

func begun(t *testing.T, s *store.Store, now time.Time, session consent.Session, kept int) press {
	t.Helper()
	var p press
	p.attempt, p.state, p.browser = consent.Begin(now, session.Name, []byte("here"), 30*time.Minute)
	if err := s.Begin(t.Context(), session.IntegrationUID, p.attempt, consent.Kept{PerSource: kept, PerSession: kept}); err != nil {
		t.Fatal(err)
	}
	return p
}

// back is the browser's return, with a code.
func (p press) back(ctx context.Context, s *store.Store, now time.Time, code string) (consent.Verdict, error) {
	said := consent.Callback{State: p.state, Code: code}
	return s.Return(ctx, now, consent.Hash(p.state), func(a *consent.Attempt, session consent.Session) consent.Verdict {
		return consent.Judge(now, said, consent.Browser{p.attempt.ID: {p.browser}}, a, session)
	})
}

// awaiting makes a session one that awaits consent, with its link's hash.
func awaiting(t *testing.T, s *store.Store, uid string) consent.Session {
	t.Helper()
	session := opened(t, s, start, uid)
	if session.State != consent.AwaitingConsent {
		t.Fatalf("state %d", session.State)
	}
	return session
}

func TestStore_FindsASessionByItsLink(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		want := opened(t, s, start, "uid-1")
		opened(t, s, start, "uid-2")
		got, err := s.ByLink(t.Context(), want.Nonce[:]) // what opened stores as the hash
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("error %v (-want +got):\n%s", err, diff)
		}
		if _, err := s.ByLink(t.Context(), []byte("other")); !errors.Is(err, consent.ErrNotFound) {
			t.Errorf("another link: error %v", err)
		}
	})
}

func TestStore_ReturnWritesWhatWasJudged(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session, foreign := awaiting(t, s, "uid-1"), awaiting(t, s, "uid-2")
		p := begun(t, s, start, session, 20)
		// The tenant was asked a moment ago, and is not to be asked for a while.
		asked := start.Add(time.Second)
		err := s.Settle(t.Context(), claimed(t, s, start, "uid-1"), func(target consent.Target, _ []consent.Session) (consent.Target, []consent.Session) {
			target.ProbeTime, target.DueTime, target.LookTime = asked, start.Add(10*time.Minute), start.Add(10*time.Minute)
			return target, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		now := start.Add(time.Minute)
		v, err := p.back(t.Context(), s, now, "")
		if err != nil || v.Outcome != consent.OutcomeApproved {
			t.Fatalf("outcome %s, error %v", v.Outcome, err)
		}
		want := session
		want.LastCallback, want.CallbackTime, want.Version = "APPROVED", now, 2
		for _, want := range []consent.Session{want, foreign} {
			if got, err := s.Get(t.Context(), want.Name); err != nil || !cmp.Equal(want, got) {
				t.Errorf("error %v (-want +got):\n%s", err, cmp.Diff(want, got))
			}
		}
		c := claimed(t, s, now, "uid-1")
		if diff := cmp.Diff(consent.Target{IntegrationUID: "uid-1", Integration: session.Integration, DueTime: now, LookTime: now, ProbeTime: asked}, c.Target); diff != "" {
			t.Errorf("target (-want +got):\n%s", diff)
		}
		if v, err := p.back(t.Context(), s, now.Add(time.Second), "AADSTS65004"); err != nil || v.Outcome != consent.OutcomeReplayed {
			t.Errorf("again: outcome %s, error %v", v.Outcome, err)
		}

		declined := begun(t, s, now, session, 20)
		if v, err := declined.back(t.Context(), s, now.Add(time.Minute), "AADSTS65004"); err != nil || v.Outcome != consent.OutcomeDeclined {
			t.Errorf("outcome %s, error %v", v.Outcome, err)
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || got.LastCallback != "AADSTS65004" || got.Version != 3 {
			t.Errorf("error %v, callback %q, version %d", err, got.LastCallback, got.Version)
		}
		// What the prover settles afterwards keeps it.
		err = s.Settle(t.Context(), c, func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
			next, _ := consent.Decide(now.Add(2*time.Minute), open[0], consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "new name"})
			return target, []consent.Session{next}
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || got.LastCallback != "AADSTS65004" || got.Version != 4 || got.ApplicationName != "new name" {
			t.Errorf("error %v, callback %q, version %d, application %q", err, got.LastCallback, got.Version, got.ApplicationName)
		}
	})
}

func TestStore_ReturnWithNobodysState(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		session := awaiting(t, s, "uid-1")
		p := begun(t, s, start, session, 20)
		p.state = secret.New("forged")
		if v, err := p.back(t.Context(), s, start, ""); err != nil || v.Outcome != consent.OutcomeUnknown {
			t.Errorf("outcome %s, error %v", v.Outcome, err)
		}
		if n := count(t, db, `SELECT COUNT(*) FROM consent_attempts WHERE use_time = 0`); n != 1 {
			t.Errorf("%d attempts are unused", n)
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || !cmp.Equal(session, got) {
			t.Errorf("error %v (-want +got):\n%s", err, cmp.Diff(session, got))
		}
	})
}

func TestStore_OfReturnsAtTheSameMomentOneCounts(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session := awaiting(t, s, "uid-1")
		p := begun(t, s, start, session, 20)
		var all sync.WaitGroup
		verdicts := make([]consent.Verdict, 8)
		for i := range verdicts {
			all.Go(func() {
				var err error
				if verdicts[i], err = p.back(t.Context(), s, start.Add(time.Minute), ""); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		outcomes := map[consent.Outcome]int{}
		for _, v := range verdicts {
			outcomes[v.Outcome]++
		}
		if diff := cmp.Diff(map[consent.Outcome]int{consent.OutcomeApproved: 1, consent.OutcomeReplayed: 7}, outcomes); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || got.Version != 2 {
			t.Errorf("error %v, version %d", err, got.Version)
		}
	})
}

func TestStore_BeginReplacesUsedOnesThenTheOldest(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		session, other := awaiting(t, s, "uid-1"), awaiting(t, s, "uid-1")
		foreign := begun(t, s, start, other, limit)
		var made []press
		for i := range limit {
			made = append(made, begun(t, s, start.Add(time.Duration(i)*time.Second), session, limit))
		}
		now := start.Add(time.Minute)
		if v, err := made[1].back(t.Context(), s, now, "AADSTS65004"); err != nil || !v.Consumed {
			t.Fatalf("outcome %s, error %v", v.Outcome, err)
		}
		made = append(made, begun(t, s, now, session, limit)) // in the place of the used one
		made = append(made, begun(t, s, now.Add(time.Second), session, limit))
		for i, want := range []consent.Outcome{consent.OutcomeUnknown, consent.OutcomeUnknown, consent.OutcomeApproved, consent.OutcomeApproved, consent.OutcomeApproved} {
			if v, err := made[i].back(t.Context(), s, now.Add(time.Minute), ""); err != nil || v.Outcome != want {
				t.Errorf("attempt %d: outcome %s, error %v", i, v.Outcome, err)
			}
		}
		if v, err := foreign.back(t.Context(), s, now, ""); err != nil || v.Outcome != consent.OutcomeApproved {
			t.Errorf("another session's: outcome %s, error %v", v.Outcome, err)
		}
		var all sync.WaitGroup
		for range 4 * limit {
			all.Go(func() { begun(t, s, now.Add(time.Hour), session, limit) })
		}
		all.Wait()
		if n := count(t, db, `SELECT COUNT(*) FROM consent_attempts WHERE session_id = '`+session.Name.ID+`'`); n != limit {
			t.Errorf("%d attempts are kept", n)
		}
	})
}

func TestStore_PurgeForgetsAttempts(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		session := awaiting(t, s, "uid-1")
		p := begun(t, s, start, session, limit)
		purge := func(now, endedBefore time.Time) int {
			t.Helper()
			if err := s.Purge(t.Context(), now, endedBefore); err != nil {
				t.Fatal(err)
			}
			return count(t, db, `SELECT COUNT(*) FROM consent_attempts`)
		}
		if n := purge(p.attempt.ExpireTime.Add(-time.Microsecond), start); n != 1 {
			t.Errorf("before its time: %d left", n)
		}
		if n := purge(p.attempt.ExpireTime, start); n != 0 {
			t.Errorf("at its time: %d left", n)
		}
		// An ended session takes its attempts with it.
		p = begun(t, s, start, session, limit)
		err := s.Settle(t.Context(), claimed(t, s, start, "uid-1"), func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
			open[0].State, open[0].EndTime, target.DueTime = consent.Expired, start.Add(time.Second), time.Time{}
			return target, open
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := purge(start, start.Add(time.Minute)); n != 0 {
			t.Errorf("of a purged session: %d left", n)
		}
		if v, err := p.back(t.Context(), s, start, ""); err != nil || v.Outcome != consent.OutcomeUnknown {
			t.Errorf("outcome %s, error %v", v.Outcome, err)
		}
	})
}

func TestStore_BeginOfASessionThatIsGone(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		attempt, _, _ := consent.Begin(start, consent.Name{Account: "acme", ID: "gone"}, []byte("here"), time.Minute)
		if err := s.Begin(t.Context(), "uid-1", attempt, consent.Kept{PerSource: limit, PerSession: limit}); err == nil {
			t.Error("it was stored")
		}
	})
}

// first are the migrations as they were before there were pages.
func first(t *testing.T) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
		name := driver + "/0001_consent_sessions.sql"
		text, err := fs.ReadFile(store.Migrations(), name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = &fstest.MapFile{Data: text}
	}
	return out
}

func TestMigrations_OfADatabaseWithoutPages(t *testing.T) {
	sqlite := sqldb.Config{Driver: sqldb.DriverSQLite, Path: t.TempDir() + "/broker.db", Volatile: true}
	for _, config := range []sqldb.Config{sqlite, sqldbtest.PostgresConfig(t)} {
		t.Run(config.Driver, func(t *testing.T) {
			db, err := sqldb.Open(t.Context(), config, first(t))
			if err != nil {
				t.Fatal(err)
			}
			err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				for i, ended := range []int64{0, sqldb.Micros(start.Add(time.Minute))} {
					if _, err := tx.Exec(ctx, `INSERT INTO consent_sessions (account, id, integration, integration_uid, tenant_id, cloud, client_id, state,
							service_principal_object_id, last_refusal, nonce, state_hash, version, create_time, expire_time, end_time)
						VALUES ('acme', $1, 'accounts/acme/integrations/net', 'uid-1', 'tenant', 'public', 'client', $2, '', '', $3, $4, 1, $5, $6, $7)`,
						fmt.Sprint("s", i), 2+i, make([]byte, 32), []byte{byte(i)}, sqldb.Micros(start), sqldb.Micros(start.Add(time.Hour)), ended); err != nil {
						return err
					}
				}
				_, err := tx.Exec(ctx, `INSERT INTO targets (integration_uid, integration, due_time, look_time, probe_time, failures, claim, claim_until)
					VALUES ('uid-1', 'accounts/acme/integrations/net', $1, $1, 0, 0, '', 0)`, sqldb.Micros(start))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}

			if db, err = sqldb.Open(t.Context(), config, store.Migrations()); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			s := store.New(db)
			ended, err := s.Get(t.Context(), consent.Name{Account: "acme", ID: "s1"})
			if err != nil || ended.State != consent.Completed || !ended.ExpireTime.Equal(start.Add(time.Hour)) || ended.LastCallback != "" || !ended.CallbackTime.IsZero() {
				t.Errorf("ended: %+v, error %v", ended, err)
			}
			// The open one has a link that leads to no page, so it ends at the next round.
			c := claimed(t, s, start.Add(time.Minute), "uid-1")
			if len(c.Open) != 1 {
				t.Fatalf("open: %v", c.Open)
			}
			if next, changed := consent.Decide(start.Add(time.Minute), c.Open[0], consent.Observation{}); !changed || next.State != consent.Expired {
				t.Errorf("open: state %d", next.State)
			}
		})
	}
}

func TestStore_OneSourceDoesNotUseUpAnothersAttempts(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB, s *store.Store) {
		session := awaiting(t, s, "uid-1")
		kept := consent.Kept{PerSource: 2, PerSession: 5}
		press := func(at time.Time, source string) (p press) {
			t.Helper()
			p.attempt, p.state, p.browser = consent.Begin(at, session.Name, []byte(source), 30*time.Minute)
			if err := s.Begin(t.Context(), session.IntegrationUID, p.attempt, kept); err != nil {
				t.Fatal(err)
			}
			return p
		}
		mine := press(start, "mine")
		for i := range 10 {
			press(start.Add(time.Duration(i+1)*time.Second), "another's")
		}
		now := start.Add(time.Minute)
		if v, err := mine.back(t.Context(), s, now, ""); err != nil || v.Outcome != consent.OutcomeApproved {
			t.Errorf("outcome %s, error %v", v.Outcome, err)
		}
		for i := range 10 {
			press(now.Add(time.Duration(i)*time.Second), fmt.Sprint("source ", i))
		}
		if n := count(t, db, `SELECT COUNT(*) FROM consent_attempts`); n != kept.PerSession {
			t.Errorf("%d attempts are kept", n)
		}
	})
}

func TestStore_ByLinksReadsManyAtOnce(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		want := map[string]consent.Session{}
		hashes := [][]byte{[]byte("nobody's")}
		for i := range 205 {
			session := opened(t, s, start, fmt.Sprint("uid-", i))
			want[string(session.Nonce[:])] = session // what opened stores as the hash
			hashes = append(hashes, session.Nonce[:])
		}
		got, err := s.ByLinks(t.Context(), hashes)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("error %v (-want +got):\n%s", err, diff)
		}
		if got, err := s.ByLinks(t.Context(), nil); err != nil || len(got) != 0 {
			t.Errorf("of none: %v, error %v", got, err)
		}
	})
}
