package rotation_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/store"
)

// The broker's public URL is in the redirect URI of every application: when it changes, so does each.
func TestWorker_AChangedRedirectURIReachesTheApplication(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		at := func() (uri string) {
			s.entra.set(func(d *fakeDirectory) {
				for _, app := range d.apps {
					uri = app.spec.RedirectURI
				}
			})
			return uri
		}
		s.serve()
		s.live()
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if got := at(); got != s.config.RedirectURI {
			t.Fatalf("the application leads back to %q", got)
		}
		s.config.RedirectURI = "https://consent.example/consent/callback"
		s.serve()
		s.until("the new redirect URI", time.Hour, func(store.Facts) bool { return at() == s.config.RedirectURI })
		s.until("still active", time.Minute, active)
	})
}

// TestWorker_ARefusedRepairIsNoLoss has Graph refuse a changed redirect URI for a day: the application is there, and is rotated.
func TestWorker_ARefusedRepairIsNoLoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, first := alive(t)
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		s.config.RedirectURI = "https://refused.example/callback"
		var refused atomic.Bool
		refused.Store(true)
		s.entra.before = func(_ context.Context, op string) error {
			if op == "ensure" && refused.Load() {
				return refuse(directory.Denied, "Authorization_RequestDenied")
			}
			return nil
		}
		s.serve()
		s.want(store.Integration{})
		s.until("rotated", 30*time.Hour, func(f store.Facts) bool {
			v, ok := f.ByState(credential.Active)
			return ok && v.Number > first.Number
		})
		if a := s.facts().Application; a.MissingReads != 0 || a.Failures == 0 || a.FailureCode != "Authorization_RequestDenied" {
			t.Errorf("while the repair is refused the application is %+v", a)
		}
		if _, conditions := s.registry.last(); conditions != "Replicated+ PrincipalFound+ Proven+" {
			t.Errorf("conditions are %s", conditions)
		}
		refused.Store(false)
		s.until("repaired", 2*time.Hour, func(f store.Facts) bool { return f.Application.Failures == 0 })
	})
}

// TestWorker_WhatIsNotListedIsAnAlarm has the registry not list an integration that was never deleted: nothing is done about it, and that is logged.
func TestWorker_WhatIsNotListedIsAnAlarm(t *testing.T) {
	t.Parallel()
	const gauge = "phasekey_vault_applications_without_integration 0"
	synctest.Test(t, func(t *testing.T) {
		s, first := alive(t)
		time.Sleep(time.Hour)
		if n, ok := s.measured()[gauge]; n != 0 || !ok {
			t.Errorf("%g are said to be without an integration, or none: %t", n, ok)
		}
		at := store.Projection{Incarnation: "registry", Revision: 99, Cursor: "c", BookmarkTime: time.Now()}
		if err := s.store.ReplaceProjection(t.Context(), time.Now(), at, store.Wanted{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Hour)
		after := s.facts()
		if len(after.Versions) != 1 || after.Versions[0].ID != first.ID || after.Versions[0].State != credential.Active {
			t.Errorf("versions are %v, was %v", after.Versions, first)
		}
		if happened := s.entra.happened(); slices.Contains(happened, "removed") || slices.Contains(happened, "deleted") {
			t.Errorf("at Entra happened %v", happened)
		}
		if !strings.Contains(s.log.String(), "level=ERROR msg=\"integration is not in the registry's list; nothing is done about it\"") {
			t.Error("it is not in the log")
		}
		if n := s.measured()[gauge]; n != 1 {
			t.Errorf("%g are said to be without an integration", n)
		}
		s.revision = at.Revision
		s.want(store.Integration{})
		s.until("listed again", 30*time.Minute, func(store.Facts) bool { return s.measured()[gauge] == 0 })
	})
}
