package web_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
)

func TestSite_LeadsFromTheLinkToTheResult(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(func(s *consent.Session) {
		s.State, s.ClientID, s.ApplicationName, s.ReturnURI = consent.WaitingForApplication, "", "", "https://app.example.com/done?a=1&b=2"
	})
	b := w.browser()

	p := b.get(link)
	shows(t, p, http.StatusOK, "Not quite ready yet", `http-equiv="refresh" content="5"`, tenant, "Network", "acme", "Example IaC", `<html lang="en">`)
	if strings.Contains(p.text, button) {
		t.Error("waiting, the page has a button")
	}
	if to := b.press(link); to != link {
		t.Errorf("waiting, the button leads to %s", to)
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b"})
	p = b.get(link)
	shows(t, p, http.StatusOK, button, "Connect Example IaC to your Azure tenant", "phasekey Network 1a2b", "User.Read", "Nothing, until you assign it an Azure role.",
		`<a href="https://app.example.com/done?a=1&amp;b=2">`)
	if strings.Contains(p.text, "refresh") {
		t.Error("the page with the button is loaded again by itself")
	}
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
		t.Errorf("following the link has begun %d attempts", n)
	}

	w.entraSays(approved)
	pressed := b.do(http.MethodPost, link, nil)
	entra, err := url.Parse(pressed.to())
	if err != nil {
		t.Fatal(err)
	}
	state := entra.Query().Get("state")
	want := url.Values{"client_id": {"client"}, "scope": {"https://graph.microsoft.com/.default"},
		"redirect_uri": {w.config.Links.PublicURL + "/consent/callback"}, "state": {state}}
	if diff := cmp.Diff(want, entra.Query()); diff != "" || len(state) != consent.TokenSize || entra.Path != "/"+tenant+"/v2.0/adminconsent" {
		t.Errorf("Entra ID at %s is asked (-want +got):\n%s", entra.Path, diff)
	}
	if len(pressed.cookies) != 1 {
		t.Fatalf("cookies %v", pressed.cookies)
	}
	cookie := pressed.cookies[0]
	if !regexp.MustCompile(`^__Host-phasekey-[a-z2-7]{16}$`).MatchString(cookie.Name) || len(cookie.Value) != consent.TokenSize ||
		!cookie.Secure || !cookie.HttpOnly || cookie.Path != "/" || cookie.Domain != "" || cookie.SameSite != http.SameSiteLaxMode || cookie.MaxAge != 1800 {
		t.Errorf("cookie %s", cookie)
	}
	p = b.get(b.through(pressed.to()))
	if p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if len(p.cookies) != 1 || p.cookies[0].Name != cookie.Name || p.cookies[0].MaxAge >= 0 {
		t.Errorf("the cookie is not taken back: %v", p.cookies)
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" || s.State != consent.AwaitingConsent {
		t.Errorf("callback %q, state %d", s.LastCallback, s.State)
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b", Proof: &consent.Proof{Refusal: "AADSTS7000229"}})
	p = b.get(link)
	shows(t, p, http.StatusOK, "Waiting for your tenant", "AADSTS7000229", `http-equiv="refresh" content="5"`)
	if strings.Contains(p.text, button) {
		t.Error("pending, the page has a button")
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b", Proof: &consent.Proof{Consented: true, PrincipalObjectID: principal}})
	p = b.get(link)
	shows(t, p, http.StatusOK, "You have consented",
		"az role assignment create --assignee-object-id "+principal+" --assignee-principal-type ServicePrincipal --role Reader --scope /subscriptions/"+subscription+"<",
		"az role assignment create --assignee-object-id "+principal+" --assignee-principal-type ServicePrincipal --role Contributor --scope /subscriptions/"+subscription+"<",
		"az ad sp update --id "+principal+" --set accountEnabled=false<", "az ad sp delete --id "+principal+"<", `<a href="https://app.example.com/done?a=1&amp;b=2">`)

	said := w.log.String()
	linkPart := strings.TrimPrefix(link, w.config.Links.PublicURL+"/consent/")
	for what, text := range map[string]string{"link": linkPart, "state": state, "cookie": cookie.Value, "query": "admin_consent"} {
		if strings.Contains(said, text) {
			t.Errorf("the log has the %s:\n%s", what, said)
		}
	}
	for _, text := range []string{`"page":"GET /consent/{link}"`, `"page":"GET /consent/callback"`, `"status":303`, `"request_id"`, `"outcome":"approved"`} {
		if !strings.Contains(said, text) {
			t.Errorf("the log lacks %s:\n%s", text, said)
		}
	}
	if n := w.counted("phasekey_broker_pages_total", "session", "200"); n != 4 {
		t.Errorf("%v pages were counted", n)
	}
	if n := w.counted("phasekey_broker_callbacks_total", "approved"); n != 1 {
		t.Errorf("%v callbacks were counted", n)
	}
}

func TestSite_ResultWithoutASubscription(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) {
		s.SubscriptionID, s.State, s.PrincipalObjectID = "", consent.Completed, principal
		s.EndTime = s.CreateTime
	})
	shows(t, w.browser().get(link), http.StatusOK, "--role Reader --scope /subscriptions/YOUR-SUBSCRIPTION-ID<", "Put your subscription’s ID in the place of")
}

func TestSite_TwoTabsDoNotDisturbEachOther(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	b := w.browser()
	first, second := b.press(link), b.press(link)
	w.entraSays(refused("consent_required", "AADSTS65004"))
	if p := b.get(b.through(first)); p.status != http.StatusSeeOther {
		t.Errorf("the first tab: %d", p.status)
	}
	w.entraSays(approved)
	if p := b.get(b.through(second)); p.status != http.StatusSeeOther {
		t.Errorf("the second tab: %d", p.status)
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" {
		t.Errorf("callback %q", s.LastCallback)
	}
}

func TestSite_ASessionThatHasEnded(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	b := w.browser()
	entra := b.press(link)
	w.settle(consent.Observation{Finding: consent.Gone})
	w.entraSays(approved)
	if p := b.get(b.through(entra)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if s := w.get(session.Name); s.LastCallback != "" || s.State != consent.Expired {
		t.Errorf("callback %q, state %d", s.LastCallback, s.State)
	}
	shows(t, b.get(link), http.StatusOK, "The integration was deleted", "nothing left to consent to")
	if to := b.press(link); to != link {
		t.Errorf("the button leads to %s", to)
	}
	if n := w.counted("phasekey_broker_callbacks_total", "late"); n != 1 {
		t.Errorf("%v were counted", n)
	}

	_, over := w.open(func(s *consent.Session) { s.ExpireTime = s.CreateTime.Add(time.Microsecond) })
	shows(t, b.get(over), http.StatusOK, "This link has expired", "Consent was not proven in time")
	if to := b.press(over); to != over {
		t.Errorf("after the deadline, the button leads to %s", to)
	}
}

func TestSite_AnotherReplicaTakesTheBrowserBack(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	back := b.through(b.press(link))
	cfg := w.config
	cfg.Metrics = nil
	other := w.serve(cfg)
	if p := b.get(other + strings.TrimPrefix(back, w.config.Links.PublicURL)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" {
		t.Errorf("callback %q", s.LastCallback)
	}
}
