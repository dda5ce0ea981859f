package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_BringsAnIntegrationToLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.lag = 5 * time.Minute
		s.serve()
		s.until("replicated", time.Hour, func(f store.Facts) bool { return !f.Application.ReadyTime.IsZero() })
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
		s := newStage(t)
		s.serve()
		f := s.live()
		// One request found the consent, eight were proofs.
		if got := s.entra.granted(f.Versions[0].KeyID); got != 1+8 {
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
		s.until("replicated", time.Hour, func(f store.Facts) bool { return !f.Application.ReadyTime.IsZero() })
		replicated.Store(true)
		s.entra.set(func(d *fakeDirectory) { d.consented = true })
		time.Sleep(20 * time.Minute)
		if f := s.facts(); active(f) {
			t.Errorf("it was promoted: %v", f.Versions)
		}
	})
}

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
		s.tidy()
	})
}

func TestWorker_RotatesWithOverlap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.lag = 15 * time.Minute
		s.serve()
		first := s.live()
		time.Sleep(20 * time.Minute)
		rotated, overlap := 0, time.Duration(0)
		last := first.Versions[0].ID
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
		s := newStage(t)
		s.config.Poll = time.Minute
		s.serve()
		held := s.live().Versions[0]
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
		s := newStage(t)
		s.serve()
		s.live()
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

func TestWorker_DeletesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.serve()
		s.live()
		s.entra.set(func(d *fakeDirectory) { d.journal = nil })
		s.want(store.Integration{Deleting: true})
		s.until("forgotten", time.Hour, func(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() })
		if want := []string{"removed", "deleted", "purged"}; !slices.Equal(s.entra.happened(), want) {
			t.Errorf("at Entra happened %v, want %v", s.entra.happened(), want)
		}
		if report, _ := s.registry.last(); !report.Removed {
			t.Errorf("the last report is %+v", report)
		}
		taken, _ := s.registry.counts()
		time.Sleep(48 * time.Hour)
		if again, _ := s.registry.counts(); again != taken {
			t.Error("it is reported on after it is gone")
		}
	})
}

// TestWorker_PurgesWhatTheBinDoesNotShowAtFirst meets a replica that has not heard of the deletion.
func TestWorker_PurgesWhatTheBinDoesNotShowAtFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.entra.before = func(_ context.Context, op string) error {
			if op == "purge" && s.entra.count("purge") == 1 {
				return refuse(directory.NotFound, "Request_ResourceNotFound")
			}
			return nil
		}
		s.serve()
		s.live()
		s.want(store.Integration{Deleting: true})
		time.Sleep(time.Hour)
		if f := s.facts(); !f.Application.PurgeTime.IsZero() || s.entra.count("purge") != 1 {
			t.Errorf("after an hour it was asked for %d times, and is gone since %s", s.entra.count("purge"), f.Application.PurgeTime)
		}
		s.until("forgotten", 20*time.Minute, func(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() })
		if happened := s.entra.happened(); happened[len(happened)-1] != "purged" {
			t.Errorf("at Entra happened %v", happened)
		}
	})
}

// TestWorker_EndsLeasesBeforeItTakesBackWhatTheyHold deletes an integration whose secret a runner has, and will have.
func TestWorker_EndsLeasesBeforeItTakesBackWhatTheyHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.config.Poll = time.Minute
		s.serve()
		held := s.live().Versions[0]
		deliver := s.runner()
		if err := deliver("before"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(29 * time.Hour)
		if f := s.facts(); len(f.Versions) != 2 || f.Versions[0].State != credential.Retiring || f.Versions[0].Holders != 1 {
			t.Fatalf("versions are %v", f.Versions)
		}
		s.entra.before = func(_ context.Context, op string) error {
			if op == "remove" && s.facts().Application.LeaseEndTime.IsZero() {
				t.Error("a password is removed before the leases have ended")
			}
			return nil
		}
		s.want(store.Integration{Deleting: true})
		s.until("removed", 5*time.Minute, func(store.Facts) bool { return !slices.Contains(s.entra.keys(), held.KeyID) })
		if err := deliver("before"); !errors.Is(err, grant.ErrIntegrationDeleted) && !errors.Is(err, lease.ErrClosed) {
			t.Errorf("delivery afterwards: %v", err)
		}
		s.until("forgotten", time.Hour, func(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() })
		if !strings.Contains(s.log.String(), "leases of an integration that is being deleted were ended") {
			t.Error("the end of the leases is not logged")
		}
	})
}

// TestWorker_MakesNoDeletedApplicationAnew has the application deleted when it is to be repaired before it is read again.
func TestWorker_MakesNoDeletedApplicationAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.serve()
		made := s.live().Application
		var deleted *fakeApp
		s.entra.set(func(d *fakeDirectory) {
			for _, deleted = range d.apps {
				deleted.deleted = true
			}
		})
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		s.config.RedirectURI = "https://moved.example/callback"
		s.serve()
		s.want(store.Integration{})
		s.until("not found", 11*time.Minute, func(f store.Facts) bool { return f.Application.MissingReads == 1 })
		time.Sleep(30 * time.Hour)
		if f := s.facts(); f.Application.ObjectID != made.ObjectID || s.entra.happened()[0] != "made" || slices.Contains(s.entra.happened()[1:], "made") {
			t.Errorf("it was made anew: %+v; at Entra happened %v", f.Application, s.entra.happened())
		}
		if _, conditions := s.registry.last(); !strings.HasPrefix(conditions, "ApplicationMissing ") {
			t.Errorf("conditions are %s", conditions)
		}
		s.entra.set(func(*fakeDirectory) { deleted.deleted = false })
		s.until("repaired when it is back", 2*time.Hour, func(f store.Facts) bool { return f.Application.EnsureTime.After(made.EnsureTime) })
		time.Sleep(time.Minute)
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("when it is back conditions are %s", conditions)
		}
	})
}

// TestWorker_RepairsAnotherApplicationOfTheName has somebody make it anew, otherwise than it shall be.
func TestWorker_RepairsAnotherApplicationOfTheName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.serve()
		before := s.live()
		if err := s.runner()("holds the secret"); err != nil {
			t.Fatal(err)
		}
		s.until("rotated, and the one before held", 30*time.Hour, func(f store.Facts) bool {
			return active(f) && len(f.Versions) == 2 && f.Versions[0].State == credential.Retiring
		})
		s.entra.set(func(d *fakeDirectory) {
			for name, app := range d.apps {
				d.apps[name] = &fakeApp{
					object: "another", spec: directory.Spec{UniqueName: app.spec.UniqueName, DisplayName: "theirs"}, passwords: map[string]*fakePassword{}, trusts: map[string]*fakeTrust{},
				}
			}
		})
		s.until("found", 2*time.Hour, func(f store.Facts) bool { return f.Application.ObjectID == "another" })
		time.Sleep(time.Minute)
		s.entra.set(func(d *fakeDirectory) {
			for _, app := range d.apps {
				if app.spec.DisplayName != before.Application.DisplayName || app.spec.RedirectURI == "" {
					t.Errorf("it is as it was made: %+v", app.spec)
				}
			}
		})
		f := s.until("active again", 2*time.Hour, active)
		if v, _ := f.ByState(credential.Active); !s.entra.works(v.KeyID) {
			t.Errorf("%v does not work", v)
		}
		if got := s.measured()["phasekey_vault_rotations_total"]; got != 1 {
			t.Errorf("%v rotations are counted: that the application was another is none", got)
		}
	})
}

func TestWorker_DeletesWhatWasNeverMade(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.want(store.Integration{Deleting: true})
		s.serve()
		s.until("forgotten", time.Hour, func(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() })
		if happened := s.entra.happened(); len(happened) != 0 {
			t.Errorf("at Entra happened %v", happened)
		}
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
		s.until("forgotten", 10*time.Minute, func(f store.Facts) bool { return !f.Application.ForgetTime.IsZero() })
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

func TestWorker_ObeysRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var asked []time.Time
		s.entra.before = func(_ context.Context, op string) error {
			if op != "add" {
				return nil
			}
			asked = append(asked, time.Now())
			if len(asked) <= 3 {
				return &directory.Error{Op: op, Class: directory.Throttled, Code: "TooManyRequests", RetryAfter: 5 * time.Minute, Err: errors.New("throttled")}
			}
			return nil
		}
		s.serve()
		f := s.live()
		for i := range asked[1:] {
			if gap := asked[i+1].Sub(asked[i]); gap < 5*time.Minute {
				t.Errorf("attempt %d came %s after the one before", i+2, gap)
			}
		}
		if len(asked) != 4 || f.LastNumber != 1 {
			t.Errorf("%d attempts for %d versions, want 4 for one", len(asked), f.LastNumber)
		}
	})
}

func TestWorker_ShortensLivesForAPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		limited := &limitedDirectory{fakeDirectory: s.entra, limit: 20 * time.Hour}
		s.config.Clouds = rotation.Clouds{"public": limited}
		s.serve()
		f := s.live()
		if life := f.Versions[0].Life(); life > limited.limit {
			t.Errorf("it lives for %s", life)
		}
		time.Sleep(2 * 24 * time.Hour)
		if f := s.facts(); !active(f) || f.LastNumber < 4 {
			t.Errorf("after two days there were %d versions: %v", f.LastNumber, f.Versions)
		}
	})
}

// limitedDirectory has a policy on the life of passwords.
type limitedDirectory struct {
	*fakeDirectory
	limit time.Duration
}

func (d *limitedDirectory) AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (directory.Password, secret.Text, error) {
	if time.Until(end) > d.limit {
		return directory.Password{}, secret.Text{}, refuse(directory.LifetimeRefused, "CredentialInvalidLifetimeAsPerAppPolicy")
	}
	return d.fakeDirectory.AddPassword(ctx, objectID, displayName, end)
}

// TestWorker_SaysThatNoPasswordMayBeMade forbids it, by policies, while Graph is now and then too busy to say so.
func TestWorker_SaysThatNoPasswordMayBeMade(t *testing.T) {
	for code, class := range map[string]directory.Class{
		"CredentialTypeNotAllowedAsPerAppPolicy":  directory.BlockedByPolicy,
		"CredentialInvalidLifetimeAsPerAppPolicy": directory.LifetimeRefused, // however short a life is asked for
	} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.serve()
				s.live()
				asked := 0
				forbid := func(_ context.Context, op string) error {
					if op != "add" {
						return nil
					}
					if asked++; asked%3 == 0 {
						return refuse(directory.Transient, "")
					}
					return refuse(class, code)
				}
				s.entra.set(func(d *fakeDirectory) { d.before = forbid })
				reported := func(want string) {
					t.Helper()
					s.until(want, 80*time.Hour, func(store.Facts) bool {
						_, conditions := s.registry.last()
						return conditions == "Replicated+ PrincipalFound+ "+want
					})
				}
				reported(code + "+")
				taken, _ := s.registry.counts()
				time.Sleep(24 * time.Hour)
				if now, _ := s.registry.counts(); now != taken {
					_, conditions := s.registry.last()
					t.Errorf("in a day in which nothing changed the registry was told %d times, last %s", now-taken, conditions)
				}
				reported(code) // the secret is over
				report, _ := s.registry.last()
				if message := report.Conditions[2].Message; !strings.Contains(message, "exempt") || !strings.Contains(message, "FEDERATED") {
					t.Errorf("people are told %q", message)
				}
				s.entra.set(func(d *fakeDirectory) { d.before = nil })
				reported("Proven+")
			})
		})
	}
}

// TestWorker_GivesUpWhatIsAlwaysRefused refuses one version for days, by a code that says nothing about secret or consent.
func TestWorker_GivesUpWhatIsAlwaysRefused(t *testing.T) {
	for _, class := range []directory.Class{directory.Unclassified, directory.Malformed, directory.IssuerUnread, directory.Denied} {
		t.Run(class.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.serve()
				first, _ := s.live().ByState(credential.Active)
				s.refuseSecond(first.Number+1, refuse(class, "AADSTS999"))
				f := s.until("another one is proven", 30*time.Hour, func(f store.Facts) bool {
					v, ok := f.ByState(credential.Active)
					return ok && v.Number == first.Number+2
				})
				if v, ok := f.ByState(credential.Retiring); !ok || v.ID != first.ID {
					t.Errorf("the first one is gone: %v", f.Versions)
				}
				s.until("what was refused is removed", 2*time.Hour, func(store.Facts) bool { return len(s.entra.keys()) == 1 })
			})
		})
	}
}

// TestWorker_GivesNothingUpWhileEntraIsAway has it answer for hours that it does not.
func TestWorker_GivesNothingUpWhileEntraIsAway(t *testing.T) {
	for _, class := range []directory.Class{directory.Throttled, directory.Transient} {
		t.Run(class.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.serve()
				first, _ := s.live().ByState(credential.Active)
				s.refuseSecond(first.Number+1, refuse(class, "AADSTS90033"))
				f := s.until("propagating", 30*time.Hour, func(f store.Facts) bool {
					_, ok := f.ByState(credential.Propagating)
					return ok
				})
				time.Sleep(12 * time.Hour)
				if v, ok := s.facts().ByState(credential.Propagating); !ok || v.Number != f.LastNumber {
					t.Errorf("there are %v", s.facts().Versions)
				}
			})
		})
	}
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

// keyLost is a keyring that cannot open what was sealed up to some time.
type keyLost struct {
	fakeKeyring
	lost atomic.Pointer[map[string]bool]
	made sync.Map
}

func (k *keyLost) Seal(identity string, text secret.Text) ([]byte, error) {
	k.made.Store(identity, true)
	return k.fakeKeyring.Seal(identity, text)
}

func (k *keyLost) Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error) {
	if lost := k.lost.Load(); lost != nil && (*lost)[identity] {
		return secret.Text{}, fmt.Errorf("open %s: %w 7", identity, keyring.ErrUnknownKey)
	}
	return k.fakeKeyring.Open(ctx, identity, sealed)
}

// lose loses the key of everything that was sealed so far.
func (k *keyLost) lose() {
	lost := map[string]bool{}
	k.made.Range(func(identity, _ any) bool {
		lost[identity.(string)] = true
		return true
	})
	k.lost.Store(&lost)
}

// TestWorker_ReplacesWhatItCannotOpen loses the key of the secret there is, at each stage of its life.
func TestWorker_ReplacesWhatItCannotOpen(t *testing.T) {
	is := func(states ...credential.State) func(store.Facts) bool {
		return func(f store.Facts) bool {
			_, ok := f.ByState(states...)
			return ok && !f.Application.ReadyTime.IsZero()
		}
	}
	for _, tt := range []struct {
		name    string
		consent bool
		lose    func(store.Facts) bool
	}{
		{"before the home tenant knows", false, func(f store.Facts) bool { _, ok := f.ByState(credential.Staged); return ok }},
		{"before consent", false, is(credential.Staged)},
		{"while it is being proven", true, is(credential.Propagating)},
		{"while it is in use", true, is(credential.Active)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.config.Poll = time.Second
				s.look = time.Second
				keys := &keyLost{}
				s.config.Keyring = keys
				s.entra.set(func(d *fakeDirectory) { d.consented = tt.consent })
				s.serve()
				lost := s.until("there", time.Hour, tt.lose).LastNumber
				keys.lose()
				if tt.name == "while it is in use" {
					s.entra.set(func(d *fakeDirectory) {
						d.after = func(_ context.Context, op string) error {
							if op == "add" {
								return refuse(directory.Transient, "")
							}
							return nil
						}
					})
					s.until("it says so", 2*time.Hour, func(store.Facts) bool {
						_, short := s.registry.last()
						return strings.HasSuffix(short, " SecretUnreadable")
					})
					s.entra.set(func(d *fakeDirectory) { d.after = nil })
				}
				s.entra.set(func(d *fakeDirectory) { d.consented = true })
				f := s.until("another works", 3*time.Hour, func(f store.Facts) bool {
					v, ok := f.ByState(credential.Active)
					return ok && v.Number > lost && v.Refusals == 0
				})
				if f.LastNumber > lost+2 {
					t.Errorf("it took %d more versions", f.LastNumber-lost)
				}
				s.until("what was lost is removed", 2*time.Hour, func(store.Facts) bool { return len(s.entra.keys()) == 1 })
				if n := s.measured()["phasekey_vault_secrets_unreadable_total"]; n != 1 {
					t.Errorf("it counts %v", n)
				}
				s.tidy()
			})
		})
	}
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

// TestWorker_ClassifiesEveryRefusal lets each class be the answer to every proof: none is taken for a grant, and each has a
// name of its own in the metrics.
func TestWorker_ClassifiesEveryRefusal(t *testing.T) {
	names := map[string]directory.Class{}
	for class := directory.Unclassified; class <= directory.Malformed; class++ {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(t)
			s.serve()
			s.until("replicated", time.Hour, func(f store.Facts) bool { return !f.Application.ReadyTime.IsZero() })
			s.entra.set(func(d *fakeDirectory) { d.consented = true })
			s.until("propagating", time.Hour, func(f store.Facts) bool {
				_, ok := f.ByState(credential.Propagating)
				return ok
			})
			s.entra.set(func(d *fakeDirectory) {
				d.after = func(_ context.Context, op string) error {
					if op == "token" {
						return refuse(class, "Code")
					}
					return nil
				}
			})
			time.Sleep(10 * time.Minute)
			if f := s.facts(); active(f) {
				t.Errorf("class %d promotes: %v", class, f.Versions)
			}
			families, err := s.metrics.Load().Gather()
			if err != nil {
				t.Fatal(err)
			}
			seen := ""
			for _, family := range families {
				for _, m := range family.GetMetric() {
					labels := map[string]string{}
					for _, l := range m.GetLabel() {
						labels[l.GetName()] = l.GetValue()
					}
					if labels["op"] == "prove" && labels["class"] != "ok" {
						seen = labels["class"]
					}
				}
			}
			if other, twice := names[seen]; seen == "" || twice {
				t.Errorf("class %d is called %q, as is class %d", class, seen, other)
			}
			names[seen] = class
		})
	}
}
