package rotation_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// request asks for a rotation, as any replica may.
func (s *stage) request(reason credential.RotationReason, immediately bool) credential.RotationStatus {
	s.t.Helper()
	r, err := s.store.RequestRotation(s.t.Context(), time.Now(), credential.RotationRequest{
		Integration: name, Reason: reason, Immediately: immediately,
	}, grant.Caller{Identity: "operator"})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *stage) rotation(id string) credential.RotationStatus {
	s.t.Helper()
	r, err := s.store.Rotation(s.t.Context(), name, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// untilRotation waits in fake time for a rotation to be in a state.
func (s *stage) untilRotation(id string, state credential.RotationState, limit time.Duration) credential.RotationStatus {
	s.t.Helper()
	s.until("rotation "+string(state), limit, func(store.Facts) bool { return s.rotation(id).State == state })
	return s.rotation(id)
}

// settled brings an integration to an ACTIVE version that all of Entra knows.
func settled(t *testing.T, poll time.Duration) (s *stage, first credential.Version) {
	s, first = alive(t, func(s *stage) { s.config.Poll, s.entra.lag = poll, 10*time.Minute })
	time.Sleep(20 * time.Minute)
	return s, first
}

func TestWorker_RotatesOnRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, time.Second)
		began := time.Now()
		r := s.request(credential.Scheduled, false)
		time.Sleep(5 * time.Second)
		if got := s.rotation(r.ID); got.State != credential.RotationPropagating || got.New != 2 {
			t.Errorf("after five seconds it is %+v", got)
		}
		got := s.untilRotation(r.ID, credential.RotationActivated, 25*time.Minute)
		if since := got.ActivateTime.Sub(began); since < 20*time.Minute || got.Proofs != 8 || !s.entra.works(first.KeyID) {
			t.Errorf("it is %+v after %s", got, since)
		}
		got = s.untilRotation(r.ID, credential.RotationCompleted, 65*time.Minute)
		if kept := got.RemoveTime.Sub(got.ActivateTime); kept < time.Hour || s.entra.works(first.KeyID) || got.EndTime.IsZero() {
			t.Errorf("it is %+v, and the old one was kept for %s", got, kept)
		}
		s.tidy()
	})
}

// TestWorker_TakesRequestsAcrossMasters has every master die, as soon as anything was asked of Entra.
func TestWorker_TakesRequestsAcrossMasters(t *testing.T) {
	for _, immediately := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, first := settled(t, time.Second)
			r := s.request(credential.Compromised, immediately)
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				s.entra.set(func(d *fakeDirectory) {
					d.after = func(_ context.Context, op string) error {
						if op == "add" || op == "remove" {
							cancel()
						}
						return nil
					}
				})
				if err := s.end(); err != nil {
					t.Fatal(err)
				}
				s.serve(func(context.Context) context.Context { return ctx })
				time.Sleep(time.Minute)
				cancel()
			}
			if got := s.rotation(r.ID); got.State != credential.RotationCompleted || slices.Contains(s.entra.keys(), first.KeyID) {
				t.Errorf("after an hour it is %+v", got)
			}
		})
	}
}

func TestWorker_PausesAndGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 10*time.Minute)
		now := time.Now()
		if err := s.store.PauseRotation(t.Context(), credential.Pause{Scope: "accounts/acme", CreateTime: now, ExpireTime: now.Add(credential.LongestPause)}, grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * 24 * time.Hour)
		if v, _ := s.facts().ByState(credential.Active); v.ID != first.ID {
			t.Errorf("after two days it is %s", v)
		}
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ RotationPaused+" {
			t.Errorf("conditions are %s", conditions)
		}
		// The last secret does not die of it.
		for time.Now().Before(first.EndTime.Add(24 * time.Hour)) {
			wait := 10 * time.Minute
			if left := time.Until(first.EndTime); left > 0 {
				wait = min(wait, left) // when a gap would begin, however short
			}
			time.Sleep(wait)
			if v, ok := s.facts().ByState(credential.Active); !ok || !s.entra.works(v.KeyID) {
				t.Fatalf("at %s nothing works", time.Now())
			}
		}
		if err := s.store.ResumeRotation(t.Context(), time.Now(), "accounts/acme", grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		second, _ := s.facts().ByState(credential.Active)
		if second.Number != 2 {
			t.Errorf("in three days it was rotated to %s", second)
		}
		s.until("the next", time.Hour, func(f store.Facts) bool { v, _ := f.ByState(credential.Active); return v.Number == 3 })
	})
}

// TestWorker_MakesTheNextInTimeAfterAnOutage has Graph away from before the next secret is due until forty minutes before the end of the only one: by then an hour lies
// between two tries, and one has just failed.
func TestWorker_MakesTheNextInTimeAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := settled(t, 10*time.Minute)
		away := true
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if !away || op == "token" {
					return nil
				}
				away = op != "add" || time.Until(first.EndTime) > 45*time.Minute
				return refuse(directory.Transient, "")
			}
		})
		time.Sleep(time.Until(first.EndTime) - time.Second)
		if v, _ := s.facts().ByState(credential.Active); v.ID == first.ID || !s.entra.works(v.KeyID) {
			t.Errorf("a second before the end of %s, the newest is %s", first, v)
		}
	})
}

// TestWorker_TriesAtOnceForWhoAsksAgain has somebody mend the policy that refused what is asked for, and say so by asking again.
func TestWorker_TriesAtOnceForWhoAsksAgain(t *testing.T) {
	t.Parallel()
	for _, reason := range []credential.RotationReason{credential.Scheduled, credential.Compromised} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _ := settled(t, 30*time.Second)
				s.refuseOps(directory.Denied, "CredentialTypeNotAllowedAsPerAppPolicy", "add")
				r := s.request(reason, false)
				time.Sleep(6 * time.Hour) // until the next try is an hour away
				s.refuseOps(0, "")
				if again := s.request(reason, false); again.ID != r.ID {
					t.Fatalf("asked again it is %s, and was %s", again.ID, r.ID)
				}
				s.untilRotation(r.ID, credential.RotationPropagating, time.Minute)
				s.tidy()
			})
		})
	}
}

// TestWorker_TriesOnceForARequestByAReplicaThatIsAhead has somebody ask a replica whose clock is ahead of the master's, while a policy refuses what is asked for.
func TestWorker_TriesOnceForARequestByAReplicaThatIsAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, 30*time.Second)
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(_ context.Context, op string) error {
				if op == "add" {
					return refuse(directory.Denied, "CredentialTypeNotAllowedAsPerAppPolicy")
				}
				return nil
			}
		})
		before := s.entra.count("add")
		s.request(credential.Scheduled, false)
		time.Sleep(6 * time.Hour) // until the next try is an hour away
		tried := s.entra.count("add")
		const ahead = 2 * time.Minute
		if _, err := s.store.RequestRotation(t.Context(), time.Now().Add(ahead), credential.RotationRequest{
			Integration: name, Reason: credential.Compromised,
		}, grant.Caller{Identity: "operator"}); err != nil {
			t.Fatal(err)
		}
		s.want(store.Integration{}) // whatever makes it due meanwhile
		time.Sleep(ahead + time.Minute)
		if tried == before || s.entra.count("add") != tried+1 {
			t.Errorf("it was tried %d times before, and then %d times", tried-before, s.entra.count("add")-tried)
		}
	})
}
