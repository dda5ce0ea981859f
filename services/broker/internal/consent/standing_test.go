package consent_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
)

// The times of the condition, by the registry's clock, which is an hour off.
var (
	firstAsked = created.Add(-time.Hour)
	taken      = created
	refusedAt  = created.Add(5 * time.Hour)
	refusedNow = created.Add(7 * time.Hour)
)

func completed(s *consent.Session) {
	awaiting(s)
	s.State, s.PrincipalObjectID, s.EndTime, s.StandingTime = consent.Completed, "oid", created.Add(time.Hour), taken
	s.LastCallback, s.CallbackTime = consent.CallbackApproved, created.Add(time.Hour)
	s.Permissions = consent.Permissions{Read: consent.Full, Write: consent.None}
}

func lost(s *consent.Session) {
	completed(s)
	s.Loss, s.StandingTime, s.LastCallback, s.CallbackTime = "AADSTS700016", refusedAt, "", time.Time{}
}

func TestStand(t *testing.T) {
	now := created.Add(8 * time.Hour)
	is := func(standing consent.Standing) consent.Integration {
		return consent.Integration{UID: "uid-1", ClientID: "client", ApplicationName: "phasekey Network", Ready: true, Standing: standing}
	}
	holds := func(at time.Time, oid string) consent.Integration {
		return is(consent.Standing{Time: at, Holds: true, PrincipalObjectID: oid})
	}
	refuses := func(at time.Time, why string) consent.Integration { return is(consent.Standing{Time: at, Loss: why}) }
	but := func(i consent.Integration, change func(*consent.Integration)) consent.Integration {
		change(&i)
		return i
	}
	takes := &consent.Proof{Consented: true, PrincipalObjectID: "new"}
	declines := &consent.Proof{Refusal: "AADSTS700016"}
	for _, tc := range []struct {
		name    string
		session func(*consent.Session)
		is      consent.Integration
		proof   *consent.Proof
		// want is what becomes of the session; nil means nothing. Silent means that nobody who looks at it is told.
		want   func(*consent.Session)
		silent bool
	}{
		{"as it was", completed, holds(taken, "oid"), nil, nil, false},
		{"reported for the first time", func(s *consent.Session) { completed(s); s.StandingTime = firstAsked }, holds(taken, "oid"), nil, completed, true},
		{"not reported yet", func(s *consent.Session) { completed(s); s.StandingTime = firstAsked }, is(consent.Standing{Time: firstAsked}), nil, nil, false},
		{"not known", completed, is(consent.Standing{}), nil, nil, false},
		{"lost", completed, refuses(refusedAt, "AADSTS700016"), nil, lost, false},
		{"lost, and the tenant refuses still", completed, refuses(refusedAt, "AADSTS700016"), declines, lost, false},
		{"lost, of an application with another name", completed, but(refuses(refusedAt, "AADSTS700016"), func(i *consent.Integration) { i.ClientID, i.ApplicationName = "other", "phasekey Else" }), nil,
			func(s *consent.Session) { lost(s); s.ClientID, s.ApplicationName = "other", "phasekey Else" }, false},
		{"lost, and there again", completed, refuses(refusedAt, "AADSTS700016"), takes, func(s *consent.Session) {
			completed(s)
			s.StandingTime, s.PrincipalObjectID, s.EndTime, s.Permissions = refusedAt, "new", now, consent.Permissions{}
		}, false},
		{"as lost as before", lost, refuses(refusedAt, "AADSTS700016"), declines, nil, false},
		{"lost for another reason", lost, refuses(refusedAt, "AADSTS7000112"), nil, func(s *consent.Session) { lost(s); s.Loss = "AADSTS7000112" }, false},
		{"lost once more", lost, refuses(refusedNow, "AADSTS700016"), nil, func(s *consent.Session) { lost(s); s.StandingTime = refusedNow }, false},
		{"lost, and somebody approved", func(s *consent.Session) { lost(s); s.LastCallback, s.CallbackTime = consent.CallbackApproved, now }, refuses(refusedAt, "AADSTS700016"), declines, nil, false},
		{"proven again", lost, refuses(refusedAt, "AADSTS700016"), takes, func(s *consent.Session) {
			lost(s)
			s.Loss, s.PrincipalObjectID, s.EndTime, s.Permissions = "", "new", now, consent.Permissions{}
		}, false},
		{"proven again, and not reported yet", func(s *consent.Session) { lost(s); s.Loss = "" }, refuses(refusedAt, "AADSTS700016"), nil, nil, false},
		{"healed by itself", lost, holds(refusedNow, "oid"), nil, func(s *consent.Session) { lost(s); s.Loss, s.StandingTime, s.EndTime = "", refusedNow, refusedNow }, false},
		{"given again by another link", completed, holds(refusedNow, "new"), nil, func(s *consent.Session) {
			completed(s)
			s.StandingTime, s.EndTime, s.PrincipalObjectID, s.Permissions = refusedNow, refusedNow, "new", consent.Permissions{}
		}, false},
		{"another integration has its name", lost, but(holds(refusedNow, "oid"), func(i *consent.Integration) { i.UID = "uid-2" }), takes,
			func(s *consent.Session) { lost(s); s.ExpireTime, s.LastRefusal = now, consent.RefusalIntegrationGone }, false},
		{"being deleted", completed, but(refuses(refusedAt, "AADSTS700016"), func(i *consent.Integration) { i.Deleting = true }), nil,
			func(s *consent.Session) {
				completed(s)
				s.ExpireTime, s.LastRefusal = now, consent.RefusalIntegrationDeleting
			}, false},
		{"deleted", lost, consent.Integration{}, nil, func(s *consent.Session) { lost(s); s.ExpireTime, s.LastRefusal = now, consent.RefusalIntegrationGone }, false},
		{"deleted, after its deadline", func(s *consent.Session) { lost(s); s.ExpireTime = refusedAt }, consent.Integration{}, nil, func(s *consent.Session) {
			lost(s)
			s.ExpireTime, s.LastRefusal = refusedAt, consent.RefusalIntegrationGone
		}, false},
		{"open, of a deleted one", awaiting, consent.Integration{}, nil, nil, false},
		{"the application is lost too", completed, but(refuses(refusedAt, "AADSTS700016"), func(i *consent.Integration) { i.Ready = false }), nil, nil, false},
		{"open", awaiting, refuses(refusedAt, "AADSTS700016"), nil, nil, false},
		{"expired", expiredAtDeadline, refuses(refusedAt, "AADSTS700016"), takes, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := session(tc.session)
			want := before
			if tc.want != nil {
				want = session(tc.want)
				if !tc.silent {
					want.Version++
				}
			}
			got, changed := consent.Stand(now, before, tc.is, tc.proof)
			if diff := cmp.Diff(want, got); diff != "" || changed != (tc.want != nil) {
				t.Errorf("changed: %v (-want +got):\n%s", changed, diff)
			}
		})
	}
}

func TestCancel_TakesALinkThatHasDoneItsWorkToo(t *testing.T) {
	now := created.Add(8 * time.Hour)
	for name, change := range map[string]func(*consent.Session){"it holds": completed, "lost": lost} {
		t.Run(name, func(t *testing.T) {
			before := session(change)
			want := before
			want.ExpireTime, want.Version = now, before.Version+1
			got, changed := consent.Cancel(now.Add(999*time.Nanosecond), before)
			if diff := cmp.Diff(want, got); diff != "" || !changed {
				t.Fatalf("changed: %v (-want +got):\n%s", changed, diff)
			}
			if got.Lost() && consent.PageOf(now, got) != consent.PageExpired || consent.MayBegin(now, got) {
				t.Errorf("it is of use: page %d", consent.PageOf(now, got))
			}
			if again, changed := consent.Cancel(now.Add(time.Hour), got); changed || again != got {
				t.Errorf("again: changed: %v, %+v", changed, again)
			}
		})
	}
}

func TestDecide_KnowsALossFromBefore(t *testing.T) {
	ready := consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Standing: consent.Standing{Time: refusedAt, Loss: "AADSTS700016"}}
	s, changed := consent.Decide(created, session(nil), ready)
	if !changed || s.Loss != "AADSTS700016" || s.StandingTime != refusedAt || s.Lost() || consent.PageOf(created, s) != consent.PageLost {
		t.Fatalf("changed: %v, %+v", changed, s)
	}
	ready.Proof, ready.AskTime = &consent.Proof{Consented: true, PrincipalObjectID: "new"}, created
	s, _ = consent.Decide(created.Add(time.Minute), s, ready)
	if s.State != consent.Completed || s.Loss != "" {
		t.Fatalf("proven: %+v", s)
	}
	// Until the vault has reported what was proven, the registry says what it said.
	if _, changed := consent.Stand(created.Add(time.Minute), s, consent.Integration{UID: "uid-1", ClientID: "client", Ready: true, Standing: ready.Standing}, nil); changed {
		t.Error("a loss from before consent was given is taken for one since")
	}
}
