package prover_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/prover"
	"phasekey.dev/services/broker/internal/store"
)

const (
	interval = 10 * time.Second
	uid      = "uid-1"
	net      = "accounts/acme/integrations/net"
	// slack is what scanning adds: half of Scan at least, one and a half at most.
	slack = time.Second
)

var errAway = errors.New("away")

// fakeRegistry knows integrations by name.
type fakeRegistry struct {
	mu    sync.Mutex
	known map[string]consent.Integration
	err   error
	calls int
	// takes is how long an answer takes.
	takes time.Duration
}

func (r *fakeRegistry) Integration(_ context.Context, name string) (consent.Integration, error) {
	r.mu.Lock()
	takes := r.takes
	r.mu.Unlock()
	time.Sleep(takes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.err != nil {
		return consent.Integration{}, r.err
	}
	i, ok := r.known[name]
	if !ok {
		return consent.Integration{}, fmt.Errorf("asked for %s: %w", name, consent.ErrIntegrationNotFound)
	}
	return i, nil
}

// change lets a test change what the registry says.
func (r *fakeRegistry) change(f func(*fakeRegistry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// fakeVault answers every question after a while, and remembers when it was asked.
type fakeVault struct {
	mu    sync.Mutex
	takes time.Duration
	proof consent.Proof
	err   error
	asked []time.Time
	// current counts the questions under way for an integration, most how many there were at once.
	current map[string]int
	most    int
}

func (v *fakeVault) ProbeConsent(ctx context.Context, integration string) (consent.Proof, error) {
	v.mu.Lock()
	v.asked = append(v.asked, time.Now())
	if v.current == nil {
		v.current = map[string]int{}
	}
	v.current[integration]++
	v.most = max(v.most, v.current[integration])
	takes := v.takes
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.current[integration]--
		v.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		return consent.Proof{}, ctx.Err()
	case <-time.After(takes):
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.proof, v.err
}

func (v *fakeVault) change(f func(*fakeVault)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(v)
}

// questions are when the vault was asked.
func (v *fakeVault) questions() []time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]time.Time(nil), v.asked...)
}

// world is what provers work in: one database, a registry with one integration whose application is ready, and a vault
// that refuses.
type world struct {
	t        *testing.T
	store    *store.Store
	registry *fakeRegistry
	vault    *fakeVault
	metrics  *prometheus.Registry
}

// inBubble runs a test in a bubble, with fake time and a real database.
func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t:     t,
			store: store.New(sqldbtest.SQLite(t, store.Migrations())),
			registry: &fakeRegistry{known: map[string]consent.Integration{
				net: {Name: net, UID: uid, TenantID: "tenant", Cloud: "public", ClientID: "client", ApplicationName: "phasekey net", Ready: true},
			}},
			vault:   &fakeVault{takes: 200 * time.Millisecond, proof: consent.Proof{Refusal: "AADSTS700016"}},
			metrics: prometheus.NewRegistry(),
		}
		test(t, w)
		w.vault.change(func(v *fakeVault) {
			if v.most > 1 {
				t.Errorf("%d questions about one integration were under way at once", v.most)
			}
		})
		w.checkSpacing()
	})
}

// checkSpacing fails if the vault was asked twice within an interval.
func (w *world) checkSpacing() {
	w.t.Helper()
	asked := w.vault.questions()
	for i := 1; i < len(asked); i++ {
		if apart := asked[i].Sub(asked[i-1]); apart < interval {
			w.t.Errorf("question %d came %s after the one before", i, apart)
		}
	}
}

// open stores a session of the integration as it is now.
func (w *world) open(life time.Duration) consent.Name {
	w.t.Helper()
	now := time.Now()
	var i consent.Integration
	w.registry.change(func(r *fakeRegistry) { i = r.known[net] })
	s := consent.New(now, "acme", i, now.Add(life))
	if _, err := w.store.Create(w.t.Context(), now, s, s.Nonce[:], consent.Request{}, 100); err != nil {
		w.t.Fatal(err)
	}
	return s.Name
}

func made(t *testing.T, cfg prover.Config) *prover.Prover {
	t.Helper()
	p, err := prover.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start runs a prover until the returned function is called, which waits for its end.
func (w *world) start(metrics prometheus.Registerer) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	p := made(w.t, prover.Config{
		Store: w.store, Registry: w.registry, Vault: w.vault, Log: slog.New(slog.DiscardHandler), Metrics: metrics,
		Pace: consent.Pace{Probe: interval, Poll: 2 * time.Second, MaxBackoff: time.Minute},
	})
	go func() { ended <- p.Run(ctx) }()
	return func() {
		w.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the prover ended with %v", err)
		}
	}
}

func (w *world) get(name consent.Name) consent.Session {
	w.t.Helper()
	s, err := w.store.Get(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// pass lets time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestProver_TakesNoProofFromBeforeASessionWasOpened(t *testing.T) {
	t.Run("which the vault had kept", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			w.vault.change(func(v *fakeVault) {
				v.proof = consent.Proof{Consented: true, PrincipalObjectID: "gone", Age: 3 * time.Second}
			})
			pass(time.Minute)
			name := w.open(time.Hour)
			stop := w.start(nil)
			defer stop()
			pass(interval / 2)
			if s := w.get(name); s.State != consent.AwaitingConsent || len(w.vault.questions()) != 1 {
				t.Errorf("after an old answer: state %d, %d questions", s.State, len(w.vault.questions()))
			}
			w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Refusal: "AADSTS700016"} })
			pass(interval)
			if s := w.get(name); s.State != consent.AwaitingConsent || s.LastRefusal != "AADSTS700016" {
				t.Errorf("after a new one: state %d, refusal %q", s.State, s.LastRefusal)
			}
		})
	})
	t.Run("which was on its way", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			w.vault.change(func(v *fakeVault) {
				v.proof, v.takes = consent.Proof{Consented: true, PrincipalObjectID: "oid"}, 4*time.Second
			})
			first := w.open(time.Hour)
			stop := w.start(nil)
			defer stop()
			pass(2 * time.Second)
			second := w.open(time.Hour)
			pass(4 * time.Second)
			if a, b := w.get(first), w.get(second); a.State != consent.Completed || b.State != consent.AwaitingConsent {
				t.Errorf("after the first answer: states %d and %d", a.State, b.State)
			}
			pass(interval + 4*time.Second)
			if b := w.get(second); b.State != consent.Completed {
				t.Errorf("after the second answer: state %d", b.State)
			}
		})
	})
}

func TestProver_WaitsThenCompletesByProof(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.registry.change(func(r *fakeRegistry) {
			i := r.known[net]
			i.Ready, i.ClientID, i.ApplicationName = false, "", ""
			r.known[net] = i
		})
		name := w.open(time.Hour)
		defer w.start(w.metrics)()

		pass(time.Minute)
		if s := w.get(name); s.State != consent.WaitingForApplication || s.Version != 1 {
			t.Errorf("not ready: state %d, version %d", s.State, s.Version)
		}
		if asked := w.vault.questions(); len(asked) != 0 {
			t.Errorf("the vault was asked about an application that is not ready: %v", asked)
		}

		w.registry.change(func(r *fakeRegistry) {
			i := r.known[net]
			i.Ready, i.ClientID, i.ApplicationName = true, "client", "phasekey net"
			r.known[net] = i
		})
		w.vault.change(func(v *fakeVault) { v.takes = 15 * time.Second })
		pass(2*time.Second + slack)
		if s := w.get(name); s.State != consent.AwaitingConsent || s.ClientID != "client" || s.ApplicationName != "phasekey net" || s.LastRefusal != "" {
			t.Errorf("ready, while the tenant is asked: state %d, client %q, application %q, refusal %q", s.State, s.ClientID, s.ApplicationName, s.LastRefusal)
		}
		w.vault.change(func(v *fakeVault) { v.takes = 200 * time.Millisecond })
		pass(16 * time.Second)
		if s := w.get(name); s.State != consent.AwaitingConsent || s.LastRefusal != "AADSTS700016" {
			t.Errorf("refused: state %d, refusal %q", s.State, s.LastRefusal)
		}

		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		consented := time.Now()
		pass(interval + slack)
		s := w.get(name)
		if s.State != consent.Completed || s.PrincipalObjectID != "oid" || s.LastRefusal != "" {
			t.Errorf("consented: state %d, principal %q, refusal %q", s.State, s.PrincipalObjectID, s.LastRefusal)
		}
		if s.EndTime.Before(consented.Truncate(time.Microsecond)) || s.EndTime.After(time.Now()) {
			t.Errorf("completed at %v, consented after %v", s.EndTime, consented)
		}
		asked := len(w.vault.questions())
		pass(5 * time.Minute)
		if again := len(w.vault.questions()); again != asked {
			t.Errorf("%d more questions after the end", again-asked)
		}
		if n := counted(t, w.metrics, "phasekey_broker_probes_total", "consented"); n != 1 {
			t.Errorf("%v proofs were counted", n)
		}
		if n := counted(t, w.metrics, "phasekey_broker_sessions_ended_total", "completed"); n != 1 {
			t.Errorf("%v completed sessions were counted", n)
		}
	})
}

func TestProver_ABrowsersReturnHastensTheQuestionButNoInterval(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(time.Hour)
		stop := w.start(nil)
		pass(interval / 2)
		stop()
		// Somebody did not answer for long, so nobody would be asked for a while.
		now := time.Now()
		claim, err := w.store.Claim(t.Context(), now.Add(interval), now.Add(2*interval), uid)
		if err != nil {
			t.Fatal(err)
		}
		last := claim.Target.ProbeTime
		if last.IsZero() {
			t.Fatal("the tenant was not asked")
		}
		err = w.store.Settle(t.Context(), claim, func(target consent.Target, _ []consent.Session) (consent.Target, []consent.Session) {
			target.DueTime, target.LookTime = now.Add(30*time.Minute), now.Add(30*time.Minute)
			return target, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		attempt, state, browser := consent.Begin(now, name, []byte("here"), time.Minute)
		if err := w.store.Begin(t.Context(), uid, attempt, consent.Kept{PerSource: 5, PerSession: 5}); err != nil {
			t.Fatal(err)
		}
		v, err := w.store.Return(t.Context(), now, consent.Hash(state), func(a *consent.Attempt, s consent.Session) consent.Verdict {
			return consent.Judge(now, consent.Callback{State: state}, consent.Browser{attempt.ID: {browser}}, a, s)
		})
		if err != nil || !v.Hastened {
			t.Fatalf("outcome %s, error %v", v.Outcome, err)
		}
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		before := len(w.vault.questions())
		defer w.start(nil)()
		pass(time.Until(last.Add(interval - time.Millisecond)))
		if n := len(w.vault.questions()); n != before {
			t.Errorf("%d questions within the interval", n-before)
		}
		pass(slack + time.Second)
		if s := w.get(name); s.State != consent.Completed || s.LastCallback != "APPROVED" {
			t.Errorf("state %d, callback %q", s.State, s.LastCallback)
		}
	})
}

func TestProver_ManySessionsAndReplicasCostOneQuestionAnInterval(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var names []consent.Name
		for range 20 {
			names = append(names, w.open(time.Hour))
		}
		for range 3 {
			defer w.start(nil)()
		}
		pass(5 * time.Second)
		late := w.open(time.Hour) // makes the integration due at once
		names = append(names, late)
		pass(10*interval - 5*time.Second)
		asked := len(w.vault.questions())
		if asked < 9 || asked > 10 { // each comes up to slack after its time
			t.Errorf("%d questions in ten intervals", asked)
		}
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		pass(interval + slack)
		for _, name := range names {
			if s := w.get(name); s.State != consent.Completed || s.PrincipalObjectID != "oid" {
				t.Errorf("%s: state %d, principal %q", name, s.State, s.PrincipalObjectID)
			}
		}
	})
}

func TestProver_SessionsEndWithTheirDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		short, long := w.open(25*time.Second), w.open(time.Hour)
		defer w.start(w.metrics)()
		pass(25*time.Second - time.Millisecond)
		if s := w.get(short); s.State != consent.AwaitingConsent {
			t.Errorf("before the deadline: state %d", s.State)
		}
		pass(slack)
		if s := w.get(short); s.State != consent.Expired || s.EndTime.Before(s.ExpireTime) {
			t.Errorf("after the deadline: state %d at %v", s.State, s.EndTime)
		}
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		pass(interval + slack)
		if s := w.get(short); s.State != consent.Expired || s.PrincipalObjectID != "" {
			t.Errorf("proven after the deadline: state %d, principal %q", s.State, s.PrincipalObjectID)
		}
		if s := w.get(long); s.State != consent.Completed {
			t.Errorf("the other session: state %d", s.State)
		}
		if n := counted(t, w.metrics, "phasekey_broker_sessions_ended_total", "expired"); n != 1 {
			t.Errorf("%v expired sessions were counted", n)
		}
	})
}

func TestProver_DeadlinesHoldWhileNobodyAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(25 * time.Second)
		w.registry.change(func(r *fakeRegistry) { r.err = errAway })
		defer w.start(nil)()
		pass(25*time.Second + slack)
		if s := w.get(name); s.State != consent.Expired || s.LastRefusal != "" {
			t.Errorf("state %d, refusal %q", s.State, s.LastRefusal)
		}
		calls := w.registry.calls
		pass(5 * time.Minute)
		if w.registry.calls != calls {
			t.Error("the registry is asked though nobody waits")
		}
	})
}

func TestProver_SessionsEndWithTheirIntegration(t *testing.T) {
	for _, tc := range []struct {
		name    string
		becomes func(r *fakeRegistry)
		refusal string
	}{
		{"deleted", func(r *fakeRegistry) { delete(r.known, net) }, consent.RefusalIntegrationGone},
		{"replaced by another of its name", func(r *fakeRegistry) {
			i := r.known[net]
			i.UID = "uid-2"
			r.known[net] = i
		}, consent.RefusalIntegrationGone},
		{"being deleted", func(r *fakeRegistry) {
			i := r.known[net]
			i.Deleting = true
			r.known[net] = i
		}, consent.RefusalIntegrationDeleting},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				name := w.open(time.Hour)
				defer w.start(nil)()
				pass(2 * time.Second)
				w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
				w.registry.change(tc.becomes)
				pass(interval + slack)
				if s := w.get(name); s.State != consent.Expired || s.LastRefusal != tc.refusal {
					t.Errorf("state %d, refusal %q", s.State, s.LastRefusal)
				}
			})
		})
	}
}

func TestProver_BacksOffAndComesBack(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fail  func(w *world, err error)
		calls func(w *world) int
	}{
		{"vault", func(w *world, err error) { w.vault.change(func(v *fakeVault) { v.err = err }) },
			func(w *world) int { return len(w.vault.questions()) }},
		{"registry", func(w *world, err error) { w.registry.change(func(r *fakeRegistry) { r.err = err }) },
			func(w *world) (n int) { w.registry.change(func(r *fakeRegistry) { n = r.calls }); return n }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				name := w.open(24 * time.Hour)
				defer w.start(nil)()
				pass(2 * time.Second)
				before := w.get(name)
				tc.fail(w, errAway)
				pass(5 * time.Minute)
				from := tc.calls(w)
				pass(20 * time.Minute)
				// From one to six in a minute by the bounds; by chance it is between.
				if n := tc.calls(w) - from; n < 20 || n > 60 {
					t.Errorf("%d questions in twenty minutes of failures", n)
				}
				if s := w.get(name); s != before {
					t.Errorf("failures changed the session: %+v", s)
				}
				tc.fail(w, nil)
				pass(time.Minute + slack)
				from = len(w.vault.questions())
				pass(10 * interval)
				if n := len(w.vault.questions()) - from; n < 8 {
					t.Errorf("%d questions in ten intervals after it came back", n)
				}
				w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
				pass(interval + slack)
				if s := w.get(name); s.State != consent.Completed {
					t.Errorf("state %d", s.State)
				}
			})
		})
	}
}

func TestProver_GoesOnAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(time.Hour)
		stop := w.start(nil)
		pass(3 * interval)
		stop()
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		pass(5 * time.Minute)
		defer w.start(nil)()
		pass(slack)
		if s := w.get(name); s.State != consent.Completed {
			t.Errorf("state %d", s.State)
		}
	})
}

func TestProver_StoppedInTheMiddleOfAQuestion(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(time.Hour)
		w.vault.change(func(v *fakeVault) { v.takes = 15 * time.Second })
		stop := w.start(nil)
		pass(5 * time.Second)
		if len(w.vault.questions()) != 1 {
			t.Fatalf("questions: %v", w.vault.questions())
		}
		stopped := time.Now()
		stop()
		if took := time.Since(stopped); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		w.vault.change(func(v *fakeVault) {
			v.takes = 0
			v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"}
		})
		defer w.start(nil)()
		pass(interval - 4*time.Second + slack) // the claim was given back
		if s := w.get(name); s.State != consent.Completed {
			t.Errorf("state %d", s.State)
		}
	})
}

// A replica that is killed does not settle, but its question to the vault goes on to its end.
func TestProver_KilledInTheMiddleOfAQuestion(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(time.Hour)
		ctx, kill := context.WithCancel(t.Context())
		dying := made(t, prover.Config{
			Store: &deadStore{Store: w.store}, Registry: w.registry, Vault: w.vault, Log: slog.New(slog.DiscardHandler),
			Pace: consent.Pace{Probe: interval, Poll: 2 * time.Second, MaxBackoff: time.Minute},
		})
		ended := make(chan error, 1)
		go func() { ended <- dying.Run(ctx) }()
		pass(2 * time.Second)
		kill()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		defer w.start(nil)()
		pass(20 * time.Second)
		if s := w.get(name); s.State != consent.AwaitingConsent {
			t.Errorf("while the claim lasts: state %d", s.State)
		}
		pass(20 * time.Second)
		if s := w.get(name); s.State != consent.Completed {
			t.Errorf("after the claim: state %d", s.State)
		}
		if n := len(w.vault.questions()); n != 2 {
			t.Errorf("%d questions", n)
		}
	})
}

// Whoever takes over keeps the interval also from a question that was asked at the very end of a round.
func TestProver_KilledAfterALateQuestion(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.open(time.Hour)
		w.registry.change(func(r *fakeRegistry) { r.takes = 19 * time.Second })
		ctx, kill := context.WithCancel(t.Context())
		dying := made(t, prover.Config{
			Store: &deadStore{Store: w.store}, Registry: w.registry, Vault: w.vault, Log: slog.New(slog.DiscardHandler),
			Pace: consent.Pace{Probe: interval, Poll: 2 * time.Second, MaxBackoff: time.Minute},
		})
		ended := make(chan error, 1)
		go func() { ended <- dying.Run(ctx) }()
		pass(21 * time.Second)
		kill()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		w.registry.change(func(r *fakeRegistry) { r.takes = 0 })
		defer w.start(nil)()
		pass(20 * time.Second)
		if n := len(w.vault.questions()); n < 2 { // whose distance is looked at in the end
			t.Errorf("%d questions", n)
		}
	})
}

// deadStore is that of a replica which dies before it can settle.
type deadStore struct{ *store.Store }

func (s *deadStore) Settle(context.Context, consent.Claim, func(consent.Target, []consent.Session) (consent.Target, []consent.Session)) error {
	return errAway
}

func TestProver_DatabaseComesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		name := w.open(time.Hour)
		w.vault.change(func(v *fakeVault) { v.proof = consent.Proof{Consented: true, PrincipalObjectID: "oid"} })
		away := &awayStore{Store: w.store, until: time.Now().Add(time.Minute)}
		ctx, cancel := context.WithCancel(t.Context())
		p := made(t, prover.Config{
			Store: away, Registry: w.registry, Vault: w.vault, Log: slog.New(slog.DiscardHandler),
			Pace: consent.Pace{Probe: interval, Poll: 2 * time.Second, MaxBackoff: time.Minute},
		})
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		pass(time.Minute - time.Millisecond)
		if s := w.get(name); s.State != consent.AwaitingConsent {
			t.Errorf("while it is away: state %d", s.State)
		}
		pass(2 * slack)
		if s := w.get(name); s.State != consent.Completed {
			t.Errorf("after it came back: state %d", s.State)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// awayStore does not answer for a while.
type awayStore struct {
	*store.Store
	until time.Time
}

func (s *awayStore) Due(ctx context.Context, now time.Time, limit int) ([]string, error) {
	if now.Before(s.until) {
		return nil, consent.ErrUnavailable
	}
	return s.Store.Due(ctx, now, limit)
}

// counted returns the value of a counter with one label.
func counted(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
