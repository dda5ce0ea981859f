package web_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
)

func TestSite_DoesNotSayMoreThanIsKnownOfWhatWasInstalled(t *testing.T) {
	for _, tc := range []struct{ name, code, says, not string }{
		{"declined", "AADSTS65004", "Nothing was installed in your tenant this time.", ""},
		{"not an administrator", "AADSTS90094", "Nothing was installed in your tenant this time.", ""},
		{"the principal is there", "AADSTS650051", "there or being installed already", "othing was installed"},
		{"an error that nobody knows", "AADSTS99999", "Most likely nothing was installed", "Nothing was installed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			_, link := w.open(func(s *consent.Session) { s.LastCallback, s.CallbackTime = tc.code, s.CreateTime })
			p := w.browser().get(link)
			shows(t, p, http.StatusOK, tc.says, button)
			if tc.not != "" && strings.Contains(p.text, tc.not) {
				t.Errorf("the page says %q:\n%s", tc.not, p.text)
			}
		})
	}
}

func TestSite_ARefusedCallbackDoesNotDenyConsent(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	back := b.through(b.press(link))
	b.get(back)
	p := b.get(back) // as by the browser's back button
	shows(t, p, http.StatusBadRequest, "If you have consented at Microsoft, that counts nevertheless")
	if strings.Contains(p.text, "Nothing was changed") {
		t.Errorf("the page says that nothing was changed:\n%s", p.text)
	}
}

func TestSite_AResultIsOfItsTime(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) {
		s.State, s.PrincipalObjectID = consent.Completed, principal
		s.EndTime = time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	})
	p := w.browser().get(link)
	shows(t, p, http.StatusOK, `on <time datetime="2026-03-01T12:30:00Z">1 March 2026, 12:30 UTC</time>: your tenant issued a token then`, "withdrawn since")
	if strings.Contains(p.text, button) {
		t.Errorf("the page has a button:\n%s", p.text)
	}
}

func TestSite_SaysThatADenyAssignmentIsInTheWay(t *testing.T) {
	const denied, soon = "A deny assignment is in the way", "It takes some minutes"
	for _, tc := range []struct {
		name string
		is   consent.Permissions
		says []string
		not  string
	}{
		{"nothing is left", consent.Permissions{Read: consent.None, Write: consent.None, Denied: true}, []string{denied, "No role gives the application anything"}, soon},
		{"something is left", consent.Permissions{Read: consent.Full, Write: consent.None, Denied: true}, []string{denied, "may read this subscription, and change nothing"}, soon},
		{"no role", consent.Permissions{Read: consent.None, Write: consent.None}, []string{soon}, denied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			session, link := w.open(func(s *consent.Session) {
				s.State, s.PrincipalObjectID, s.EndTime = consent.Completed, principal, s.CreateTime
			})
			w.roles.finds(tc.is)
			b := w.browser()
			b.do(http.MethodPost, link+"/check", nil)
			if got := w.get(session.Name); got.Permissions != tc.is || got.Version != session.Version+1 {
				t.Errorf("stored %+v, version %d", got.Permissions, got.Version)
			}
			p := b.get(link)
			shows(t, p, http.StatusOK, tc.says...)
			if strings.Contains(p.text, tc.not) {
				t.Errorf("the page says %q:\n%s", tc.not, p.text)
			}
			b.do(http.MethodPost, link+"/check", nil)
			if got := w.get(session.Name); got.Version != session.Version+1 {
				t.Errorf("version %d after nothing had changed", got.Version)
			}
			other := tc.is
			other.Denied = !other.Denied
			w.roles.finds(other)
			b.do(http.MethodPost, link+"/check", nil)
			if got := w.get(session.Name); got.Permissions != other || got.Version != session.Version+2 {
				t.Errorf("then stored %+v, version %d", got.Permissions, got.Version)
			}
		})
	}
}

func TestSite_ResultSaysWhoMayGoOnAndWhere(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", Proof: &consent.Proof{Consented: true, PrincipalObjectID: principal}})
	p := w.browser().get(link)
	shows(t, p, http.StatusOK, "such as Owner or User Access Administrator of the subscription", "az login --tenant "+tenant, "can be undone for 30 days")
	if strings.Contains(p.text, "For good") {
		t.Errorf("the page says that deleting is for good:\n%s", p.text)
	}
}
