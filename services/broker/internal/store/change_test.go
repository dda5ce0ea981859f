package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
)

func TestStore_ChangeWritesWhatWasDecided(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session, other := opened(t, s, start, "uid-1"), opened(t, s, start, "uid-1")
		cancel := func(at time.Time) func(consent.Session) (consent.Session, bool) {
			return func(found consent.Session) (consent.Session, bool) { return consent.Cancel(at, found) }
		}
		want, _ := consent.Cancel(start, session)
		for i, at := range []time.Time{start, start.Add(time.Minute)} {
			got, err := s.Change(t.Context(), session.Name, cancel(at))
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("call %d: error %v (-want +got):\n%s", i, err, diff)
			}
			got, err = s.Get(t.Context(), session.Name)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("after call %d: error %v (-want +got):\n%s", i, err, diff)
			}
		}
		if got, err := s.Get(t.Context(), other.Name); err != nil || got != other {
			t.Errorf("another session: error %v, %v", err, got)
		}
		if _, err := s.Change(t.Context(), consent.Name{Account: "acme", ID: "none"}, cancel(start)); !errors.Is(err, consent.ErrNotFound) {
			t.Errorf("no session: error %v", err)
		}
	})
}

func TestStore_ChangesOfCompletedSessionsAreKept(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		session := opened(t, s, start, "uid-1")
		proven := integration("uid-1")
		proof := consent.Observation{Finding: consent.Ready, ClientID: "client", AskTime: start, Proof: &consent.Proof{Consented: true, PrincipalObjectID: "oid"}}
		step := func(what string, decide func(consent.Session) (consent.Session, bool)) {
			t.Helper()
			want, changed := decide(session)
			got, err := s.Change(t.Context(), session.Name, decide)
			if diff := cmp.Diff(want, got); err != nil || diff != "" || !changed {
				t.Errorf("%s: error %v, changed: %v (-want +got):\n%s", what, err, changed, diff)
			}
			if session, err = s.Get(t.Context(), session.Name); err != nil || !cmp.Equal(want, session) {
				t.Errorf("after %s: error %v (-want +got):\n%s", what, err, cmp.Diff(want, session))
			}
		}
		stand := func(standing consent.Standing, p *consent.Proof) func(consent.Session) (consent.Session, bool) {
			is := proven
			is.Standing = standing
			return func(found consent.Session) (consent.Session, bool) {
				return consent.Stand(start.Add(time.Minute), found, is, p)
			}
		}
		for _, name := range []consent.Name{session.Name, {Account: "acme", ID: "forgotten"}} {
			if err := s.RecordPermissions(t.Context(), name, consent.Permissions{Read: consent.Full}); err != nil {
				t.Errorf("of a session that is open or gone: %v", err)
			}
		}
		if got, err := s.Get(t.Context(), session.Name); err != nil || got != session {
			t.Errorf("roles of nobody are recorded: error %v, %+v", err, got)
		}
		step("the proof", func(found consent.Session) (consent.Session, bool) { return consent.Decide(start, found, proof) })
		if err := s.RecordPermissions(t.Context(), session.Name, consent.Permissions{Read: consent.Full, Write: consent.None, Denied: true}); err != nil {
			t.Fatal(err)
		}
		version := session.Version
		if got, err := s.Get(t.Context(), session.Name); err != nil || got.Permissions.Read != consent.Full || !got.Permissions.Denied || got.Version != version+1 {
			t.Fatalf("error %v, %+v", err, got)
		}
		session, _ = s.Get(t.Context(), session.Name)
		step("the loss", stand(consent.Standing{Time: start.Add(time.Hour), Loss: "AADSTS700016"}, nil))
		step("consent given again", stand(consent.Standing{Time: start.Add(time.Hour), Loss: "AADSTS700016"}, &consent.Proof{Consented: true, PrincipalObjectID: "new"}))
		if session.Permissions != (consent.Permissions{}) {
			t.Errorf("the new principal has the old one's roles: %v", session.Permissions)
		}
		step("the withdrawal", func(found consent.Session) (consent.Session, bool) {
			return consent.Cancel(start.Add(time.Minute), found)
		})
		if uids := due(t, s, start.Add(time.Hour)); len(uids) != 1 { // as Create left it: nobody has settled
			t.Errorf("due: %v", uids)
		}
	})
}

func TestStore_HastenMakesDueWhoeverWaits(t *testing.T) {
	each(t, func(t *testing.T, _ *sqldb.DB, s *store.Store) {
		opened(t, s, start, "uid-1")
		later := func(due time.Time) func(consent.Target, []consent.Session) (consent.Target, []consent.Session) {
			return func(target consent.Target, _ []consent.Session) (consent.Target, []consent.Session) {
				target.DueTime, target.LookTime, target.ProbeTime = due, due, start
				return target, nil
			}
		}
		if err := s.Settle(t.Context(), claimed(t, s, start, "uid-1"), later(start.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"uid-1", "uid-none"} {
			if err := s.Hasten(t.Context(), start.Add(time.Minute), uid); err != nil {
				t.Fatal(err)
			}
		}
		if uids := due(t, s, start.Add(time.Minute)); !cmp.Equal(uids, []string{"uid-1"}) {
			t.Errorf("due: %v", uids)
		}
		claim := claimed(t, s, start.Add(time.Minute), "uid-1")
		if !claim.Target.ProbeTime.Equal(start) {
			t.Errorf("hastening changed when the tenant was asked to %s", claim.Target.ProbeTime)
		}
		// Nobody waits any more.
		if err := s.Settle(t.Context(), claim, later(time.Time{})); err != nil {
			t.Fatal(err)
		}
		if err := s.Hasten(t.Context(), start.Add(time.Hour), "uid-1"); err != nil {
			t.Fatal(err)
		}
		if uids := due(t, s, start.Add(2*time.Hour)); len(uids) != 0 {
			t.Errorf("nobody waits, and due are %v", uids)
		}
	})
}
