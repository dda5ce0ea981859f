package roles_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/roles"
)

type fakeStore struct {
	kept []consent.Permissions
	err  error
}

func (s *fakeStore) RecordPermissions(_ context.Context, _ consent.Name, p consent.Permissions) error {
	s.kept = append(s.kept, p)
	return s.err
}

type fakeVault struct {
	principal string
	answer    consent.Permissions
	err       error
	asked     int
}

func (v *fakeVault) CheckPermissions(context.Context, string) (string, consent.Permissions, error) {
	v.asked++
	return v.principal, v.answer, v.err
}

func TestLook(t *testing.T) {
	reader := consent.Permissions{Read: consent.Full, Write: consent.None}
	for _, tc := range []struct {
		name    string
		session func(*consent.Session)
		vault   fakeVault
		asked   int
		kept    int
	}{
		{"a role", nil, fakeVault{principal: "oid", answer: reader}, 1, 1},
		{"of another principal", nil, fakeVault{principal: "other", answer: reader}, 1, 0},
		{"not proven yet", nil, fakeVault{err: fmt.Errorf("%w: %w", consent.ErrUnavailable, consent.ErrNotReady)}, 1, 0},
		{"the vault is away", nil, fakeVault{err: consent.ErrUnavailable}, 1, 0},
		{"before consent", func(s *consent.Session) { s.State = consent.AwaitingConsent }, fakeVault{principal: "oid", answer: reader}, 0, 0},
		{"after consent was lost", func(s *consent.Session) { s.Loss = "AADSTS700016" }, fakeVault{principal: "oid", answer: reader}, 0, 0},
		{"without a subscription", func(s *consent.Session) { s.SubscriptionID = "" }, fakeVault{principal: "oid", answer: reader}, 0, 0},
		{"with all there is", func(s *consent.Session) { s.Permissions.Write = consent.Full }, fakeVault{principal: "oid", answer: reader}, 0, 0},
		{"long ago", func(s *consent.Session) { s.EndTime = s.EndTime.Add(-24 * time.Hour) }, fakeVault{principal: "oid", answer: reader}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				session := consent.Session{Name: consent.Name{Account: "acme", ID: "s"}, State: consent.Completed, SubscriptionID: "sub", PrincipalObjectID: "oid", EndTime: time.Now()}
				if tc.session != nil {
					tc.session(&session)
				}
				in, vault := &fakeStore{}, tc.vault
				l := roles.New(in, &vault, slog.New(slog.DiscardHandler))
				for range 5 { // all but the first are too soon
					if err := l.Look(t.Context(), session); err != nil {
						t.Error(err)
					}
				}
				if vault.asked != tc.asked || len(in.kept) != tc.kept {
					t.Errorf("asked %d times, kept %v", vault.asked, in.kept)
				}
				time.Sleep(9 * time.Second)
				if err := l.Look(t.Context(), session); err != nil || vault.asked != tc.asked {
					t.Errorf("nine seconds later: error %v, asked %d times", err, vault.asked)
				}
				time.Sleep(2 * time.Second)
				if err := l.Look(t.Context(), session); err != nil || vault.asked != 2*tc.asked {
					t.Errorf("eleven seconds later: error %v, asked %d times", err, vault.asked)
				}
			})
		})
	}
}

func TestLook_TellsThatTheDatabaseIsAway(t *testing.T) {
	away := errors.New("away")
	session := consent.Session{State: consent.Completed, SubscriptionID: "sub", PrincipalObjectID: "oid", EndTime: time.Now()}
	l := roles.New(&fakeStore{err: away}, &fakeVault{principal: "oid"}, slog.New(slog.DiscardHandler))
	if err := l.Look(t.Context(), session); !errors.Is(err, away) {
		t.Errorf("error %v", err)
	}
}
