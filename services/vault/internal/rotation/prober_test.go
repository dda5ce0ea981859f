package rotation_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

func (s *stage) prober() *rotation.Prober {
	return rotation.NewProber(rotation.ProberConfig{
		Store: s.store, Clouds: s.config.Clouds, Keyring: fakeKeyring{}, Timing: s.config.Timing, Timeout: 8 * time.Second,
	})
}

// replicated is a stage whose application Entra knows, without a master from then on.
func replicated(t *testing.T) *stage {
	t.Helper()
	s := newStage(t)
	s.serve()
	s.until("replicated", time.Hour, ready)
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	s.entra.set(func(d *fakeDirectory) { d.calls = map[string]int{} })
	return s
}

func TestProber_AsksOnceForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := replicated(t)
		s.entra.set(func(d *fakeDirectory) {
			d.consented = true
			d.before = func(context.Context, string) error {
				time.Sleep(time.Second)
				return nil
			}
		})
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				got, err := s.prober().Probe(t.Context(), name)
				if err != nil || got.Finding != credential.Works && got.Finding != credential.ConsentMissing {
					t.Errorf("Probe: %+v, %v", got, err)
				}
			})
		}
		callers.Wait()
		if got := s.entra.count("token"); got != 1 {
			t.Errorf("the tenant was asked %d times", got)
		}
		got, err := s.prober().Probe(t.Context(), name)
		if err != nil || got.Finding != credential.Works || got.PrincipalObjectID != "principal" || s.entra.count("token") != 1 {
			t.Errorf("within the spacing: %+v, %v", got, err)
		}
		s.entra.set(func(d *fakeDirectory) { d.consented = false })
		time.Sleep(10 * time.Second)
		got, err = s.prober().Probe(t.Context(), name)
		if err != nil || got.Finding != credential.ConsentMissing || got.Code != "AADSTS700016" || s.entra.count("token") != 2 {
			t.Errorf("after the spacing: %+v, %v", got, err)
		}
	})
}

func TestProber_LeavesStatesToTheMaster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := replicated(t)
		s.entra.set(func(d *fakeDirectory) { d.consented = true })
		if _, err := s.prober().Probe(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if f := s.facts(); f.Application.Consented || f.Versions[0].State != credential.Staged {
			t.Errorf("a probe changed %+v", f)
		}
		s.serve()
		s.until("consented", time.Minute, func(f store.Facts) bool { return f.Application.Consented })
		s.until("active", 10*time.Minute, active)
	})
}

func TestProber_SaysWhyThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fresh := newStage(t)
		if _, err := fresh.prober().Probe(t.Context(), name); !errors.Is(err, rotation.ErrNotReady) {
			t.Errorf("before there is an application: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := replicated(t)
		if _, err := s.prober().Probe(t.Context(), name+"x"); !errors.Is(err, sqldb.ErrNoRows) {
			t.Errorf("another integration: %v", err)
		}
		s.entra.set(func(d *fakeDirectory) {
			d.before = func(context.Context, string) error { return refuse(directory.Transient, "") }
		})
		if _, err := s.prober().Probe(t.Context(), name); !errors.Is(err, rotation.ErrEntra) {
			t.Errorf("while Entra errs: %v", err)
		}
		s.want(store.Integration{Deleting: true})
		if _, err := s.prober().Probe(t.Context(), name); !errors.Is(err, rotation.ErrDeleting) {
			t.Errorf("while it is being deleted: %v", err)
		}
	})
}
