package rotation_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func throttled(code string, after time.Duration) error {
	return &directory.Error{Op: "fake", Class: directory.Throttled, Code: code, RetryAfter: after, Err: errors.New("throttled")}
}

func TestWorker_AThrottledGraphIsLeftAloneByAll(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, op string
		answer   error
		pauses   bool
	}{
		{"a read is throttled", "find", throttled("TooManyRequests", 4*time.Minute), true},
		{"a write is throttled", "ensure", throttled("TooManyRequests", 4*time.Minute), true},
		{"graph is away, and says for how long", "ensure",
			&directory.Error{Op: "fake", Class: directory.OutcomeUnknown, RetryAfter: 4 * time.Minute, Err: errors.New("503")}, true},
		{"graph errs", "ensure", refuse(directory.OutcomeUnknown, ""), false},
		{"a write conflicts", "ensure", refuse(directory.Conflict, "Directory_ConcurrencyViolation"), false},
		{"an application's tokens are throttled", "token", throttled("AADSTS50196", time.Minute), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				met := make(chan time.Time, 1)
				s.entra.before = func(_ context.Context, op string) error {
					if op != test.op {
						return nil
					}
					select {
					case met <- time.Now():
					default:
					}
					return test.answer
				}
				s.serve()
				var at time.Time
				select {
				case at = <-met:
				case <-time.After(time.Hour):
					t.Fatalf("%s was not asked for within an hour", test.op)
				}
				synctest.Wait()
				time.Sleep(2 * time.Second)
				next := s.config.Budget.Take(t.Context(), homeTenant, budget.Write, budget.Upkeep, "another")
				if paused := next.After(at.Add(time.Minute)); paused != test.pauses {
					t.Errorf("another integration may write at %v, %v after", next, next.Sub(at))
				}
				if test.pauses && next.Before(at.Add(4*time.Minute)) {
					t.Errorf("another integration may write after %v", next.Sub(at))
				}
			})
		})
	}
}

func TestWorker_StartsNothingWithoutAPermit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.config.Budget.Throttled(t.Context(), homeTenant, 5*time.Minute)
		end := time.Now().Add(5 * time.Minute)
		s.serve()
		time.Sleep(5*time.Minute - time.Second)
		if f := s.facts(); !f.Application.EnsureSendTime.IsZero() || s.entra.count("ensure")+s.entra.count("find") != 0 {
			t.Errorf("asked, or about to: %+v", f.Application)
		}
		s.until("made", time.Minute, func(f store.Facts) bool { return f.Application.ObjectID != "" })
		if time.Since(end) > time.Minute {
			t.Errorf("made %v after the pause", time.Since(end))
		}
	})
}

// TestWorker_MeasuresWhatWaitsForGraph keeps from an integration what it needs of Graph for an hour, in each way that there is, and then lets it.
func TestWorker_MeasuresWhatWaitsForGraph(t *testing.T) {
	t.Parallel()
	const lag = "phasekey_vault_schedule_lag_seconds 0"
	for _, test := range []struct {
		name string
		// keep is called every minute.
		keep func(s *stage, since time.Duration)
		// behind is for how long it is; a quarter of an hour later it is not, if not before.
		behind time.Duration
	}{
		{"no budget", func(s *stage, _ time.Duration) { s.config.Budget.Throttled(s.t.Context(), homeTenant, 5*time.Minute) }, time.Hour},
		{"graph asks to come back later, each time", func(s *stage, _ time.Duration) {
			s.entra.set(func(d *fakeDirectory) {
				d.before = func(_ context.Context, op string) error {
					if op == "add" {
						return throttled("TooManyRequests", 4*time.Minute)
					}
					return nil
				}
			})
		}, time.Hour},
		{"graph asks to come back later, and then refuses", func(s *stage, since time.Duration) {
			s.entra.set(func(d *fakeDirectory) {
				d.before = func(_ context.Context, op string) error {
					switch {
					case op != "add":
						return nil
					case since < 10*time.Minute:
						return throttled("TooManyRequests", 4*time.Minute)
					}
					return refuse(directory.Denied, "Authorization_RequestDenied")
				}
			})
		}, 10 * time.Minute},
		{"graph refuses, which is nothing that waits", func(s *stage, _ time.Duration) {
			s.entra.set(func(d *fakeDirectory) {
				d.before = func(_ context.Context, op string) error {
					if op == "add" {
						return refuse(directory.Denied, "Authorization_RequestDenied")
					}
					return nil
				}
			})
		}, -time.Hour},
		{"nothing is to be done", func(*stage, time.Duration) {}, -time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _ := settled(t, 10*time.Second)
				test.keep(s, 0)
				r := s.request(credential.Scheduled, false)
				began := time.Now()
				for time.Since(began) < time.Hour {
					time.Sleep(time.Minute)
					since := time.Since(began)
					test.keep(s, since)
					least, most := time.Duration(0), since
					switch {
					case since <= test.behind:
						least = since - 2*time.Minute // it is measured every minute, and not in step
					case since > test.behind+15*time.Minute:
						most = 5 * time.Second
					}
					if got := time.Duration(s.measured()[lag] * float64(time.Second)); got < least || got > most {
						t.Fatalf("after %s it is behind by %s", since, got)
					}
				}
				s.entra.set(func(d *fakeDirectory) { d.before = nil })
				s.untilRotation(r.ID, credential.RotationActivated, 2*time.Hour)
				time.Sleep(time.Minute)
				if got := s.measured()[lag]; got > 5 {
					t.Errorf("it is behind by %g s when all is done", got)
				}
			})
		})
	}
}

// TestWorker_PaysForEachRequestToGraph follows an integration from its making to its end, with a password that has to be swept.
func TestWorker_PaysForEachRequestToGraph(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		metrics := prometheus.NewRegistry()
		var err error
		if s.config.Budget, err = budget.New(budget.Config{Limits: budget.DefaultLimits(), Log: s.config.Log, Metrics: metrics}); err != nil {
			t.Fatal(err)
		}
		s.config.Poll = time.Minute
		s.entra.after = func(_ context.Context, op string) error {
			if op == "add" && s.entra.count("add") == 2 {
				return refuse(directory.OutcomeUnknown, "")
			}
			return nil
		}
		writes := func() (all int) {
			for _, op := range []string{"ensure", "add", "remove", "delete", "purge"} {
				all += s.entra.count(op)
			}
			return all
		}
		// paid tells the writes that were paid for since the last time, by class.
		var before [2]int
		paid := func(what string, upkeep, change int) {
			t.Helper()
			got := gathered(t, metrics)
			now := [2]int{int(got["phasekey_vault_graph_permits_total alone upkeep write"]), int(got["phasekey_vault_graph_permits_total alone change write"])}
			if now[0]-before[0] != upkeep || now[1]-before[1] != change {
				t.Errorf("%s: %d writes were paid for as upkeep and %d as change, want %d and %d", what, now[0]-before[0], now[1]-before[1], upkeep, change)
			}
			before = now
			if reads := int(got["phasekey_vault_graph_permits_total alone upkeep read"] + got["phasekey_vault_graph_permits_total alone change read"]); now[0]+now[1] != writes() || reads != s.entra.count("find") {
				t.Errorf("%s: %d writes and %d reads were paid for, and %d and %d were made", what, now[0]+now[1], reads, writes(), s.entra.count("find"))
			}
		}
		s.serve()
		s.live()
		paid("making it", 0, 2)
		time.Sleep(30 * time.Hour)
		// Two passwords, for the answer to one was lost, two removals, and a repair.
		paid("its first rotation", 5, 0)
		b, err := s.store.RequestBatch(t.Context(), time.Now(), credential.BatchRequest{Scope: credential.Everything, Reason: credential.Scheduled}, grant.Caller{})
		if err != nil {
			t.Fatal(err)
		}
		s.until("the end of the batch", 2*time.Hour, func(store.Facts) bool {
			b, err = s.store.Batch(t.Context(), b.Scope, b.ID)
			return err == nil && !b.EndTime.IsZero()
		})
		paid("one of a batch", 1, 1)
		s.want(store.Integration{Deleting: true})
		s.until("forgotten", 2*time.Hour, forgotten)
		paid("taking it apart", 0, 3)
	})
}

func TestProber_LeavesATenantAloneAsLongAsItAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := replicated(t)
		s.entra.set(func(d *fakeDirectory) {
			d.calls["token"] = 0
			d.before = func(_ context.Context, op string) error { return throttled("AADSTS50196", time.Minute) }
		})
		for since := time.Now(); time.Since(since) < 55*time.Second; time.Sleep(11 * time.Second) {
			// The first is told so; the others go by what the master heard before.
			if _, err := s.prober().Probe(t.Context(), name); time.Since(since) == 0 && !errors.Is(err, rotation.ErrEntra) {
				t.Errorf("got %v", err)
			}
		}
		if n := s.entra.count("token"); n != 1 {
			t.Errorf("asked %d times within a minute", n)
		}
		time.Sleep(10 * time.Second)
		s.entra.set(func(d *fakeDirectory) { d.before = nil })
		if _, err := s.prober().Probe(t.Context(), name); err != nil || s.entra.count("token") != 2 {
			t.Errorf("after it: %v", err)
		}
	})
}
