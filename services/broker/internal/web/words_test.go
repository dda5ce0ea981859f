package web_test

import (
	"net/http"
	"strings"
	"testing"

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
