package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_LosesNoPasswordToALostReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.after = func(_ context.Context, op string) error {
			if op == "add" && s.entra.count("add") <= 2 {
				return refuse(directory.OutcomeUnknown, "")
			}
			return nil
		}
		s.serve()
		s.live()
		if got := len(s.entra.keys()); got < 3 {
			t.Fatalf("%d passwords are at Entra, the case is not what it should be", got)
		}
		time.Sleep(4 * time.Hour)
		if got := len(s.entra.keys()); got != 1 {
			t.Errorf("%d passwords are at Entra after three intervals, want one", got)
		}
		if got := strings.Count(s.log.String(), "password that nobody can use was removed"); got != 2 {
			t.Errorf("by the log %d passwords were removed, want 2", got)
		}
		s.tidy()
	})
}

// TestWorker_AFencedMasterChangesNothing takes the shard over while Graph makes a password.
func TestWorker_AFencedMasterChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var before store.Facts
		s.entra.after = func(context.Context, string) error {
			if s.entra.count("add") == 1 {
				s.take()
				before = s.facts()
			}
			return nil
		}
		s.serve()
		if err := <-s.served; !errors.Is(err, election.ErrFenced) {
			t.Fatalf("Serve: %v, want ErrFenced", err)
		}
		if after := s.facts(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the fenced master changed\n%v to\n%v", before, after)
		}
		if got := s.entra.count("add"); got != 1 {
			t.Errorf("it went on to make %d passwords", got)
		}
	})
}

// TestWorker_KeepsWhatItLearntWhenItsMastershipEnds loses the lock while Graph makes a password: its text, which is told once, is stored, for nobody
// else has taken the shard.
func TestWorker_KeepsWhatItLearntWhenItsMastershipEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.after = func(_ context.Context, op string) error {
			if op == "add" {
				s.stop()
			}
			return nil
		}
		s.serve()
		if err := <-s.served; err != nil {
			t.Fatal(err)
		}
		v, ok := s.facts().ByState(credential.Staged)
		if !ok || len(v.Sealed) == 0 || v.KeyID == "" {
			t.Errorf("of the password that was made there is %+v", s.facts().Versions)
		}
	})
}

// TestWorker_KeepsWhatItLearntWhileTheDatabaseIsAway has the database away for two seconds from when Graph makes a password, whose text is told once.
func TestWorker_KeepsWhatItLearntWhileTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var back atomic.Pointer[time.Time]
		s.entra.after = func(_ context.Context, op string) error {
			if op == "add" {
				at := time.Now().Add(2 * time.Second)
				back.CompareAndSwap(nil, &at)
			}
			return nil
		}
		s.serve(func(ctx context.Context) context.Context {
			return sqldbtest.WithHook(ctx, func(context.Context, sqldbtest.Point, bool) error {
				if at := back.Load(); at != nil && time.Now().Before(*at) {
					return fmt.Errorf("%w: for a moment", sqldb.ErrUnavailable)
				}
				return nil
			})
		})
		if f := s.live(); s.entra.count("add") != 1 || f.LastNumber != 1 {
			t.Errorf("%d passwords were made for %v", s.entra.count("add"), f.Versions)
		}
	})
}

// sealOnce fails to encrypt the first text.
type sealOnce struct {
	fakeKeyring
	texts atomic.Int64
}

func (k *sealOnce) Seal(identity string, text secret.Text) ([]byte, error) {
	if k.texts.Add(1) == 1 {
		return nil, errors.New("no key")
	}
	return k.fakeKeyring.Seal(identity, text)
}

func TestWorker_RemovesAtOnceWhatItCannotKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.config.Poll = time.Second
		s.config.Keyring = &sealOnce{}
		s.serve()
		s.until("another", 5*time.Minute, func(f store.Facts) bool { return s.entra.count("add") == 2 && len(s.entra.keys()) == 1 })
		s.tidy()
	})
}

// TestWorker_SurvivesADeathAnywhere lets the master die before and after each request, and after each step that streams hear
// of: whatever it was about to write is refused, as if it had been killed. The next one goes on.
func TestWorker_SurvivesADeathAnywhere(t *testing.T) {
	for _, where := range []string{"before", "after", "notified"} {
		places := dies(t, where, -1)
		if places < 10 {
			t.Errorf("there are only %d places to die at", places)
		}
		// Before a request is after the step before it: every other place of either kind will do.
		for n := 0; n < places; n += 2 {
			t.Run(fmt.Sprint(where, " ", n+1), func(t *testing.T) {
				t.Parallel()
				// No two lives have quite the same number of steps; near the end nobody may die.
				if got := dies(t, where, n+1); got < n+1 && n < places/2 {
					t.Errorf("nobody died: there were %d places", got)
				}
			})
		}
	}
}

// dies has the master die at the nth place of a life from making to rotation and deletion. It counts the places there were.
func dies(t *testing.T, where string, n int) (places int) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.config.Timing = credential.Development()
		s.config.Timing.Proofs = 2
		s.config.Timing.ReconcileInterval, s.config.Timing.ConsentInterval = 40*time.Second, time.Minute
		s.entra.lag = 2 * time.Second
		s.look = 20 * time.Second
		var place atomic.Int64
		death := func() error {
			if place.Add(1) != int64(n) {
				return nil
			}
			s.take()
			return refuse(directory.OutcomeUnknown, "")
		}
		hook := func(context.Context, string) error { return death() }
		switch where {
		case "before":
			s.entra.before = hook
		case "after":
			s.entra.after = hook
		case "notified":
			s.config.Notify = func(string) { _ = death() }
		}
		s.want(store.Integration{RotationPeriod: 2 * time.Minute})
		proofs := s.config.Timing.Proofs
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { // one master after another
			defer close(ended)
			for ctx.Err() == nil {
				if err := s.serveOnce(ctx); !errors.Is(err, election.ErrFenced) && ctx.Err() == nil {
					t.Errorf("place %d: Serve: %v", n, err)
				}
			}
		}()
		first := s.live().Versions[0]
		f := s.until("rotated", 20*time.Minute, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			return ok && v.Number > first.Number
		})
		if v, _ := f.ByState(credential.Active); !s.entra.works(v.KeyID) || s.entra.granted(v.KeyID) < proofs {
			t.Errorf("place %d: the ACTIVE version was not proven", n)
		}
		time.Sleep(time.Minute)
		// A look between two steps would see one half; so look until it is tidy, for a while.
		s.until("tidy", 5*time.Minute, func(f store.Facts) bool { return len(s.entra.keys()) <= 2 && len(f.Strays) == 0 })
		made := 0
		for _, event := range s.entra.happened() {
			if event == "made" {
				made++
			}
		}
		if made != 1 {
			t.Errorf("place %d: %d applications were made", n, made)
		}
		s.want(store.Integration{Deleting: true})
		s.until("forgotten", 10*time.Minute, forgotten)
		if got := s.entra.keys(); len(got) != 0 {
			t.Errorf("place %d: passwords %v are left", n, got)
		}
		stop()
		<-ended
		places = int(place.Load())
	})
	return places
}

func TestWorker_StartsNothingWithTooLittleMastership(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var left atomic.Int64
		left.Store(int64(7 * time.Second))
		s.serve(func(ctx context.Context) context.Context {
			return election.WithLeft(ctx, func() time.Duration { return time.Duration(left.Load()) })
		})
		time.Sleep(time.Hour)
		if made := s.entra.count("ensure") + s.entra.count("find"); made != 0 {
			t.Errorf("%d requests were made", made)
		}
		left.Store(int64(time.Minute))
		s.until("made", time.Hour, func(f store.Facts) bool { return f.Application.ObjectID != "" })
	})
}

func TestWorker_EndsWhenTheRegistryHasHeardALaterMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.registry.set(fmt.Errorf("report: %w", election.ErrFenced))
		s.serve()
		select {
		case err := <-s.served:
			if !errors.Is(err, election.ErrFenced) {
				t.Errorf("Serve: %v, want ErrFenced", err)
			}
		case <-time.After(time.Hour):
			t.Error("it works on")
		}
		if asked := s.entra.count("ensure") + s.entra.count("find"); asked != 0 {
			t.Errorf("%d requests were made", asked)
		}
	})
}
