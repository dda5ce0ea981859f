package consent_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
)

var (
	created  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	deadline = created.Add(24 * time.Hour)
)

func session(change func(*consent.Session)) consent.Session {
	s := consent.Session{
		Name:           consent.Name{Account: "acme", ID: "s1"},
		Integration:    "accounts/acme/integrations/net",
		IntegrationUID: "uid-1",
		TenantID:       "tenant",
		Cloud:          "public",
		DisplayName:    "Network",
		State:          consent.WaitingForApplication,
		Version:        1,
		CreateTime:     created,
		ExpireTime:     deadline,
	}
	if change != nil {
		change(&s)
	}
	return s
}

func awaiting(s *consent.Session) {
	s.State, s.ClientID, s.ApplicationName = consent.AwaitingConsent, "client", "phasekey Network"
}

func expiredAtDeadline(s *consent.Session) {
	awaiting(s)
	s.State, s.EndTime = consent.Expired, deadline
}

func TestDecide(t *testing.T) {
	now := created.Add(time.Hour)
	proven := &consent.Proof{Consented: true, PrincipalObjectID: "oid"}
	old := &consent.Proof{Consented: true, PrincipalObjectID: "oid", Age: time.Second + 1}
	refused := &consent.Proof{Refusal: "AADSTS700016"}
	for _, tc := range []struct {
		name    string
		now     time.Time
		session consent.Session
		seen    consent.Observation
		// want is the session after; nil means unchanged.
		want func(*consent.Session)
	}{
		{"nothing known, nothing changes", now, session(nil), consent.Observation{}, nil},
		{"the application is still prepared", now, session(nil), consent.Observation{Finding: consent.Preparing}, nil},
		{"the application is ready", now, session(nil), consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network"}, awaiting},
		{"ready and refused at once", now, session(nil), consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: refused},
			func(s *consent.Session) { awaiting(s); s.LastRefusal = "AADSTS700016" }},
		{"still ready", now, session(awaiting), consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network"}, nil},
		{"made anew, with another client ID", now, session(awaiting), consent.Observation{Finding: consent.Ready, ClientID: "other", ApplicationName: "phasekey Other"},
			func(s *consent.Session) {
				s.State, s.ClientID, s.ApplicationName = consent.AwaitingConsent, "other", "phasekey Other"
			}},
		{"the application is lost", now, session(awaiting), consent.Observation{Finding: consent.Preparing},
			func(s *consent.Session) { s.ClientID, s.ApplicationName = "client", "phasekey Network" }},
		{"the same refusal again", now, session(func(s *consent.Session) { awaiting(s); s.LastRefusal = "AADSTS700016" }),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: refused}, nil},
		{"no answer keeps the refusal", now, session(func(s *consent.Session) { awaiting(s); s.LastRefusal = "AADSTS700016" }),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network"}, nil},
		{"proven", now, session(func(s *consent.Session) { awaiting(s); s.LastRefusal = "AADSTS700016" }),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: proven},
			func(s *consent.Session) {
				awaiting(s)
				s.State, s.PrincipalObjectID, s.EndTime = consent.Completed, "oid", now
			}},
		{"proven the moment it was opened", now, session(awaiting), consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: proven, AskTime: created},
			func(s *consent.Session) {
				awaiting(s)
				s.State, s.PrincipalObjectID, s.EndTime = consent.Completed, "oid", now
			}},
		{"proven before it was opened", now, session(awaiting),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: proven, AskTime: created.Add(-1)}, nil},
		{"proven before, by an answer that was kept", now, session(awaiting),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: old, AskTime: created.Add(time.Second)}, nil},
		{"refused before it was opened", now, session(awaiting),
			consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network", Proof: refused, AskTime: created.Add(-1)}, nil},
		{"a moment before the deadline", deadline.Add(-1), session(awaiting), consent.Observation{}, nil},
		{"at the deadline", deadline, session(awaiting), consent.Observation{},
			expiredAtDeadline},
		{"proven at the deadline is too late", deadline, session(awaiting), consent.Observation{Finding: consent.Ready, Proof: proven},
			expiredAtDeadline},
		{"the integration is gone", now, session(awaiting), consent.Observation{Finding: consent.Gone},
			func(s *consent.Session) {
				awaiting(s)
				s.State, s.LastRefusal, s.EndTime = consent.Expired, "INTEGRATION_DELETED", now
			}},
		{"the integration is being deleted", now, session(nil), consent.Observation{Finding: consent.Deleting},
			func(s *consent.Session) {
				s.State, s.LastRefusal, s.EndTime = consent.Expired, "INTEGRATION_DELETING", now
			}},
		{"completed stays completed", deadline, session(func(s *consent.Session) { s.State = consent.Completed }), consent.Observation{Finding: consent.Gone}, nil},
		{"expired stays expired", now, session(func(s *consent.Session) { s.State = consent.Expired }),
			consent.Observation{Finding: consent.Ready, Proof: proven}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.seen.AskTime.IsZero() {
				tc.seen.AskTime = tc.now
			}
			got, changed := consent.Decide(tc.now, tc.session, tc.seen)
			want := tc.session
			if tc.want != nil {
				want = session(tc.want)
				want.Version = tc.session.Version + 1
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("session (-want +got):\n%s", diff)
			}
			if changed != (tc.want != nil) {
				t.Errorf("changed = %v", changed)
			}
		})
	}
}

func TestNew_IsOpenWithWhatIsKnown(t *testing.T) {
	i := consent.Integration{Name: "accounts/acme/integrations/net", UID: "uid-1", TenantID: "tenant", Cloud: "public", DisplayName: "Network",
		ClientID: "client", ApplicationName: "phasekey Network", Ready: true}
	now := created.Add(999 * time.Nanosecond) // the database keeps microseconds
	got := consent.New(now, "acme", i, deadline)
	other := consent.New(now, "acme", i, deadline)
	if got.Name.ID == other.Name.ID || got.Nonce == other.Nonce || got.Nonce == (consent.Nonce{}) {
		t.Errorf("two sessions share an ID or a nonce: %v, %v", got.Name, other.Name)
	}
	want := session(awaiting)
	want.Name.ID, want.Nonce = got.Name.ID, got.Nonce
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
	i.Ready = false
	if got := consent.New(now, "acme", i, deadline); got.State != consent.WaitingForApplication || got.ClientID != "" {
		t.Errorf("not ready: state %v, client %q", got.State, got.ClientID)
	}
}

func TestObserve(t *testing.T) {
	for _, tc := range []struct {
		name string
		i    consent.Integration
		want consent.Observation
	}{
		{"deleting, though ready", consent.Integration{Deleting: true, Ready: true, ClientID: "c"}, consent.Observation{Finding: consent.Deleting}},
		{"ready", consent.Integration{Ready: true, ClientID: "c", ApplicationName: "a"}, consent.Observation{Finding: consent.Ready, ClientID: "c", ApplicationName: "a"}},
		{"ready without a client ID is not", consent.Integration{Ready: true}, consent.Observation{Finding: consent.Preparing}},
		{"not ready", consent.Integration{ClientID: "c"}, consent.Observation{Finding: consent.Preparing}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := consent.Observe(tc.i); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
