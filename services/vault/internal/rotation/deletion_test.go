package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func TestWorker_DeletesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := alive(t)
		s.entra.set(func(d *fakeDirectory) { d.journal = nil })
		time.Sleep(time.Minute)
		before, _ := s.registry.counts()
		s.want(store.Integration{Deleting: true})
		s.until("forgotten", time.Hour, forgotten)
		for _, report := range s.registry.all()[before:] {
			if c := report.Conditions[2]; c.True || c.Reason != "Deleting" {
				t.Errorf("meanwhile %s is %t, %s", c.Type, c.True, c.Reason)
			}
		}
		if _, conditions := s.registry.last(); conditions != "Deleting PrincipalFound+ Deleting" {
			t.Errorf("in the end conditions are %s", conditions)
		}
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
		s.until("forgotten", 20*time.Minute, forgotten)
		if happened := s.entra.happened(); happened[len(happened)-1] != "purged" {
			t.Errorf("at Entra happened %v", happened)
		}
	})
}

// TestWorker_WhatTheRegistryForgotFirst has the registry take in that an integration is gone, and the vault not hear that it did: it lists it no more.
func TestWorker_WhatTheRegistryForgotFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := alive(t)
		s.registry.set(errors.New("away"))
		s.want(store.Integration{Deleting: true})
		s.until("purged", time.Hour, func(f store.Facts) bool { return !f.Application.PurgeTime.IsZero() })
		at := store.Projection{Incarnation: "registry", Revision: 99, Cursor: "c", BookmarkTime: time.Now()}
		if err := s.store.ReplaceProjection(t.Context(), time.Now(), at, store.Wanted{}); err != nil {
			t.Fatal(err)
		}
		s.registry.set(fmt.Errorf("report: %w", rotation.ErrUnknownIntegration))
		s.until("forgotten", 2*time.Hour, forgotten)
		if strings.Contains(s.log.String(), "not in the registry's list") {
			t.Error("it is called missing, and was deleted")
		}
	})
}

// TestWorker_GoesOnTellingThatItIsGone has the registry away when there is nothing left to do but to tell it, and then not know of what is told.
func TestWorker_GoesOnTellingThatItIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := alive(t)
		s.registry.set(errors.New("away"))
		s.want(store.Integration{Deleting: true})
		s.until("purged", time.Hour, func(f store.Facts) bool { return !f.Application.PurgeTime.IsZero() })
		time.Sleep(2 * time.Hour)
		if f := s.facts(); !f.Application.ForgetTime.IsZero() {
			t.Errorf("nobody was told, and it is forgotten since %s", f.Application.ForgetTime)
		}
		s.registry.set(fmt.Errorf("report: %w", rotation.ErrUnknownIntegration))
		s.until("forgotten", 2*time.Hour, forgotten)
	})
}

// TestWorker_EndsLeasesBeforeItTakesBackWhatTheyHold deletes an integration whose secret a runner has, and will have.
func TestWorker_EndsLeasesBeforeItTakesBackWhatTheyHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, held := alive(t, func(s *stage) { s.config.Poll = time.Minute })
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
		s.until("forgotten", time.Hour, forgotten)
		if !strings.Contains(s.log.String(), "leases of an integration that is being deleted were ended") {
			t.Error("the end of the leases is not logged")
		}
	})
}

// TestWorker_MakesNoDeletedApplicationAnew has the application deleted when it is to be repaired before it is read again.
func TestWorker_MakesNoDeletedApplicationAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := alive(t)
		made := s.facts().Application
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
		s, _ := alive(t)
		before := s.facts()
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
		s.until("forgotten", time.Hour, forgotten)
		if happened := s.entra.happened(); len(happened) != 0 {
			t.Errorf("at Entra happened %v", happened)
		}
	})
}
