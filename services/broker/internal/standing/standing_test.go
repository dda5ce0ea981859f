package standing_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/standing"
)

// fakeStore keeps one session.
type fakeStore struct {
	session consent.Session
	err     error
}

func (s *fakeStore) Change(_ context.Context, _ consent.Name, decide func(consent.Session) (consent.Session, bool)) (consent.Session, error) {
	if s.err != nil {
		return consent.Session{}, s.err
	}
	if next, changed := decide(s.session); changed {
		s.session = next
	}
	return s.session, nil
}

type fakeRegistry struct {
	uid   string // empty: the session's
	is    consent.Standing
	err   error
	asked int
}

func (r *fakeRegistry) Integration(_ context.Context, name string) (consent.Integration, error) {
	r.asked++
	return consent.Integration{Name: name, UID: cmp.Or(r.uid, "uid"), ClientID: "client", Ready: true, Standing: r.is}, r.err
}

type fakeVault struct {
	proof consent.Proof
	err   error
	asked int
}

func (v *fakeVault) ProbeConsent(context.Context, string) (consent.Proof, error) {
	v.asked++
	return v.proof, v.err
}

func TestLook_AnAnswerThatAnotherOvertookIsNone(t *testing.T) {
	session := consent.Session{IntegrationUID: "uid", State: consent.Completed, PrincipalObjectID: "oid", ClientID: "client", Version: 2}
	in := &fakeStore{session: session}
	in.session.Version = 3
	registry := &fakeRegistry{is: consent.Standing{Time: time.Now(), Loss: "AADSTS700016"}}
	l := standing.New(standing.Config{Store: in, Registry: registry, Vault: &fakeVault{}, Interval: time.Second, Log: slog.New(slog.DiscardHandler)})
	if got, err := l.Look(t.Context(), session); err != nil || got.Lost() || got.Version != 3 {
		t.Errorf("error %v, %+v", err, got)
	}
}

func TestLook_ALinkEndsWithItsIntegration(t *testing.T) {
	for name, registry := range map[string]fakeRegistry{
		"gone":                     {err: consent.ErrIntegrationNotFound},
		"another one has its name": {uid: "other", is: consent.Standing{Time: time.Now(), Loss: "AADSTS700016"}},
	} {
		t.Run(name, func(t *testing.T) {
			session := consent.Session{IntegrationUID: "uid", State: consent.Completed, PrincipalObjectID: "oid", ClientID: "client", Loss: "AADSTS700016", ExpireTime: time.Now().Add(time.Hour)}
			vault := &fakeVault{proof: consent.Proof{Consented: true, PrincipalObjectID: "other"}}
			l := standing.New(standing.Config{Store: &fakeStore{session: session}, Registry: &registry, Vault: vault, Interval: time.Second, Log: slog.New(slog.DiscardHandler)})
			got, err := l.Look(t.Context(), session)
			if err != nil || got.PrincipalObjectID != "oid" || got.Awaits(time.Now()) || vault.asked != 0 {
				t.Errorf("error %v, the tenant was asked %d times, %+v", err, vault.asked, got)
			}
		})
	}
}

func TestLook(t *testing.T) {
	given := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	holds := consent.Standing{Time: given, Holds: true, PrincipalObjectID: "oid"}
	refuses := consent.Standing{Time: given.Add(time.Hour), Loss: "AADSTS700016"}
	for _, tc := range []struct {
		name     string
		session  func(*consent.Session)
		registry fakeRegistry
		vault    fakeVault
		store    error
		// registered and probed are how often who is asked by one look.
		registered, probed int
		loss, principal    string
		fails              error
	}{
		{name: "it holds", registry: fakeRegistry{is: holds}, registered: 1, principal: "oid"},
		{name: "lost", registry: fakeRegistry{is: refuses}, vault: fakeVault{proof: consent.Proof{Refusal: "AADSTS700016"}}, registered: 1, probed: 1, loss: "AADSTS700016", principal: "oid"},
		{name: "lost, and there again", registry: fakeRegistry{is: refuses}, vault: fakeVault{proof: consent.Proof{Consented: true, PrincipalObjectID: "new"}}, registered: 1, probed: 1, principal: "new"},
		{name: "lost, the vault is away", registry: fakeRegistry{is: refuses}, vault: fakeVault{err: consent.ErrUnavailable}, registered: 1, probed: 1, loss: "AADSTS700016", principal: "oid"},
		{name: "lost, not ready", registry: fakeRegistry{is: refuses}, vault: fakeVault{err: fmt.Errorf("%w: %w", consent.ErrUnavailable, consent.ErrNotReady)}, registered: 1, probed: 1, loss: "AADSTS700016", principal: "oid"},
		{name: "the registry is away", registry: fakeRegistry{err: consent.ErrUnavailable}, registered: 1, principal: "oid"},
		{name: "the integration is gone", registry: fakeRegistry{err: consent.ErrIntegrationNotFound}, registered: 1, principal: "oid"},
		{name: "the database is away", registry: fakeRegistry{is: holds}, store: consent.ErrUnavailable, registered: 1, principal: "oid", fails: consent.ErrUnavailable},
		{name: "an open session", session: func(s *consent.Session) { s.State = consent.AwaitingConsent }, registry: fakeRegistry{is: refuses}, principal: "oid"},
		{name: "an expired session", session: func(s *consent.Session) { s.State = consent.Expired }, registry: fakeRegistry{is: refuses}, principal: "oid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				session := consent.Session{Name: consent.Name{Account: "acme", ID: "s"}, IntegrationUID: "uid", State: consent.Completed, PrincipalObjectID: "oid", StandingTime: given, ClientID: "client"}
				if tc.session != nil {
					tc.session(&session)
				}
				in, registry, vault := &fakeStore{session: session, err: tc.store}, tc.registry, tc.vault
				l := standing.New(standing.Config{Store: in, Registry: &registry, Vault: &vault, Interval: 10 * time.Second, Log: slog.New(slog.DiscardHandler)})
				got, err := l.Look(t.Context(), session)
				if !errors.Is(err, tc.fails) || got.Loss != tc.loss || got.PrincipalObjectID != tc.principal {
					t.Errorf("error %v, loss %q, principal %q", err, got.Loss, got.PrincipalObjectID)
				}
				for range 4 { // which are too soon
					if again, err := l.Look(t.Context(), got); err != nil || again != got {
						t.Errorf("again: error %v, %v", err, again)
					}
				}
				if registry.asked != tc.registered || vault.asked != tc.probed {
					t.Errorf("the registry was asked %d times, the tenant %d times", registry.asked, vault.asked)
				}
				time.Sleep(11 * time.Second)
				if _, err := l.Look(t.Context(), got); !errors.Is(err, tc.fails) || registry.asked != 2*tc.registered {
					t.Errorf("eleven seconds later: error %v, the registry was asked %d times", err, registry.asked)
				}
			})
		})
	}
}
