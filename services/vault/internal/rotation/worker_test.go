package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_BringsAnIntegrationToLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.lag = 5 * time.Minute
		s.serve()
		s.until("replicated", time.Hour, ready)
		time.Sleep(time.Hour)
		f := s.facts()
		if len(f.Versions) != 1 || f.Versions[0].State != credential.Staged {
			t.Errorf("before consent versions are %v", f.Versions)
		}
		report, conditions := s.registry.last()
		if want := "Replicated+ AwaitingConsent AwaitingConsent"; conditions != want {
			t.Errorf("before consent conditions are %s, want %s", conditions, want)
		}
		if report.ClientID == "" || report.ApplicationDisplayName != "Phasekey Network (11111111)" || report.PrincipalObjectID != "" {
			t.Errorf("report is %+v", report)
		}
		f = s.live()
		time.Sleep(time.Minute)
		report, conditions = s.registry.last()
		if want := "Replicated+ PrincipalFound+ Proven+"; conditions != want || report.PrincipalObjectID != "principal" {
			t.Errorf("afterwards conditions are %s for %s, want %s", conditions, report.PrincipalObjectID, want)
		}
		if strings.Contains(string(f.Versions[0].Sealed), canary) || len(f.Versions[0].Sealed) == 0 {
			t.Error("the text is not stored encrypted")
		}
		s.tidy()
		if err := s.end(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestWorker_ProvesByOneRequestEach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := alive(t)
		// One request found the consent, eight were proofs.
		if got := s.entra.granted(first.KeyID); got != 1+8 {
			t.Errorf("%d tokens were granted before it was ACTIVE, want 9", got)
		}
		if slices.Contains(s.entra.happened(), "request ID used again") {
			t.Error("a request ID was used again")
		}
		if got := s.entra.count("add"); got != 1 {
			t.Errorf("%d passwords were made", got)
		}
	})
}

func TestWorker_DoesNotPromoteWhatFlaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var asked atomic.Int64
		var replicated atomic.Bool
		// Every eighth request in the customer's tenant meets a replica that has never heard of the secret.
		s.entra.after = func(ctx context.Context, op string) error {
			if op == "token" && replicated.Load() && asked.Add(1)%8 == 0 {
				return refuse(directory.SecretRefused, "AADSTS7000215")
			}
			return ctx.Err()
		}
		s.serve()
		s.until("replicated", time.Hour, ready)
		replicated.Store(true)
		s.entra.set(func(d *fakeDirectory) { d.consented = true })
		time.Sleep(20 * time.Minute)
		if f := s.facts(); active(f) {
			t.Errorf("it was promoted: %v", f.Versions)
		}
	})
}

func TestWorker_RotatesWithOverlap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := alive(t, func(s *stage) { s.entra.lag = 15 * time.Minute })
		time.Sleep(20 * time.Minute)
		rotated, overlap := 0, time.Duration(0)
		last := first.ID
		const look = 10 * time.Minute
		for range 3 * 24 * time.Hour / look {
			time.Sleep(look)
			f := s.facts()
			v, ok := f.ByState(credential.Active)
			if !ok || !s.entra.works(v.KeyID) {
				t.Fatalf("at %s the ACTIVE version does not work everywhere: %v", time.Now(), f.Versions)
			}
			if v.ID != last {
				rotated, last = rotated+1, v.ID
			}
			if old, ok := f.ByState(credential.Retiring); ok {
				overlap += look
				if !s.entra.works(old.KeyID) {
					t.Fatalf("the RETIRING version is gone: %v", f.Versions)
				}
			}
		}
		if rotated < 2 || rotated > 3 {
			t.Errorf("%d rotations in three days", rotated)
		}
		if least := time.Duration(rotated-1) * 50 * time.Minute; overlap < least {
			t.Errorf("old and new overlapped for %s, want %s at least", overlap, least)
		}
		if got := len(s.entra.keys()); got > 2 {
			t.Errorf("%d passwords are at Entra", got)
		}
		s.tidy()
	})
}

func TestWorker_KeepsWhatIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, held := alive(t, func(s *stage) { s.config.Poll = time.Minute })
		if err := s.runner()("holds"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(29 * time.Hour)
		if f := s.facts(); len(f.Versions) != 2 || f.Versions[0].State != credential.Retiring || !slices.Contains(s.entra.keys(), held.KeyID) {
			t.Fatalf("versions are %v", f.Versions)
		}
		if err := s.store.CloseLease(t.Context(), time.Now(), "grant", "holds", grant.Caller{}); err != nil {
			t.Fatal(err)
		}
		s.until("removed", 10*time.Minute, func(store.Facts) bool { return !slices.Contains(s.entra.keys(), held.KeyID) })
	})
}

func TestWorker_LosesConsentAndHeals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := alive(t)
		s.entra.set(func(d *fakeDirectory) { d.consented = false })
		if err := s.store.WantProbe(t.Context(), uid, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Minute)
		if f := s.facts(); !f.Application.Consented {
			t.Error("consent is lost within nine minutes")
		}
		s.until("lost", 15*time.Minute, func(f store.Facts) bool { return !f.Application.Consented })
		time.Sleep(time.Second)
		if _, conditions := s.registry.last(); conditions != "Replicated+ AADSTS700016 ConsentLost" {
			t.Errorf("conditions are %s", conditions)
		}
		// Days go by: the secret is renewed, and not proven in vain.
		time.Sleep(2 * 24 * time.Hour)
		s.tidy()
		s.entra.set(func(d *fakeDirectory) { d.consented = true })
		s.until("healed", 2*time.Hour, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			return ok && f.Application.Consented && s.entra.works(v.KeyID)
		})
		time.Sleep(time.Hour) // for the rotation that had to wait
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("conditions are %s", conditions)
		}
	})
}

// refuseSecond answers every token request so while a version of that number is being proven.
func (s *stage) refuseSecond(number int64, answer error) {
	s.entra.set(func(d *fakeDirectory) {
		d.before = func(_ context.Context, op string) error {
			if v, ok := s.facts().ByState(credential.Propagating); op == "token" && ok && v.Number == number {
				return answer
			}
			return nil
		}
	})
}

// TestWorker_RemovesTenSecondsAfterItsDecisionIsCommitted has each transaction take some seconds from its decision to its commit.
func TestWorker_RemovesTenSecondsAfterItsDecisionIsCommitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.config.Poll = time.Second
		var revoked, removed atomic.Pointer[time.Time]
		s.config.Notify = func(string) {
			if v, ok := s.facts().ByState(credential.Revoking); ok && v.Number == 1 {
				now := time.Now()
				revoked.CompareAndSwap(nil, &now)
			}
		}
		s.entra.before = func(_ context.Context, op string) error {
			if op == "remove" {
				now := time.Now()
				removed.CompareAndSwap(nil, &now)
			}
			return nil
		}
		s.serve(func(ctx context.Context) context.Context {
			return sqldbtest.WithHook(ctx, func(_ context.Context, at sqldbtest.Point, readOnly bool) error {
				if at == sqldbtest.Begin && !readOnly {
					time.Sleep(4 * time.Second)
				}
				return nil
			})
		})
		s.live()
		s.until("removed", 30*time.Hour, func(store.Facts) bool { return removed.Load() != nil })
		if waited := removed.Load().Sub(*revoked.Load()); waited < 10*time.Second {
			t.Errorf("it was removed %s after it was committed that it goes", waited)
		}
		if err := s.end(); err != nil { // it may be asleep, and the bubble's time ends with the test
			t.Error(err)
		}
	})
}

func TestWorker_ReportsWhatIsNewUntilItIsTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.registry.set(errors.New("registry is down"))
		s.serve()
		s.live() // without the registry
		time.Sleep(time.Hour)
		if taken, refused := s.registry.counts(); taken != 0 || refused < 10 || refused > 10_000 {
			t.Errorf("%d reports were taken, %d refused", taken, refused)
		}
		s.registry.set(nil)
		time.Sleep(time.Minute)
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("conditions are %s", conditions)
		}
		taken, _ := s.registry.counts()
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		s.serve() // another master, who knows what was taken
		time.Sleep(12 * time.Hour)
		if again, _ := s.registry.counts(); again != taken {
			t.Errorf("what is known was reported %d times more", again-taken)
		}
		s.registry.set(fmt.Errorf("report: %w", election.ErrFenced))
		s.want(store.Integration{Deleting: true})
		if err := <-s.served; !errors.Is(err, election.ErrFenced) {
			t.Errorf("Serve: %v, want ErrFenced", err)
		}
	})
}

// TestWorker_ReportsAnewToARestoredRegistry has the registry's database restored, which may not know what it was told since.
func TestWorker_ReportsAnewToARestoredRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := settled(t, time.Second)
		taken, _ := s.registry.counts()
		more := func() int {
			t.Helper()
			s.want(store.Integration{})
			time.Sleep(time.Minute)
			again, _ := s.registry.counts()
			return again - taken
		}
		if n := more(); n != 0 {
			t.Errorf("what is known was reported %d times more", n)
		}
		s.incarnation = "restored"
		for range 2 {
			if n := more(); n != 1 {
				t.Errorf("after the registry was restored it was told %d times, want once", n)
			}
		}
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("it was told %s", conditions)
		}
	})
}
