package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// stays fails the test unless the window still has the document that was marked: what it shows now, it was told.
func stays(c *chromium, what string) {
	c.t.Helper()
	if !evaluate[bool](c, `window.marked === true`) {
		c.t.Errorf("%s: the page was loaded anew", what)
	}
}

func mark(c *chromium) { c.t.Helper(); evaluate[bool](c, `window.marked = true`) }

// person makes somebody who signs in at the simulated Entra ID.
func (c *customer) person(tenant, name string, admin bool) string {
	c.t.Helper()
	c.admin(http.MethodPost, "/people", map[string]any{"tenant": tenant, "userName": name, "admin": admin})
	return name
}

// refusedAtEntra signs in as somebody whom Entra ID refuses, on a page of its own.
func (c *customer) refusedAtEntra(browser *chromium, person, code string) {
	c.t.Helper()
	browser.click("form button")
	browser.arrive("/v2.0/adminconsent")
	browser.enter("input[name=username]", person)
	browser.click("form button")
	browser.await(code)
	browser.back()
	browser.back()
	browser.await(landingText)
}

// With scripts the pages tell by themselves what happens, and read well to those who cannot see them, or use no mouse.
func TestPages_WithScripts(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	mend := c.unreplicated(c.d.at.HomeTenant)
	session := c.session()
	browser := openChromium(t, c.d).scripted()

	browser.open(session.GetConsentUri())
	browser.await(waitingText)
	browser.await("So far: ")
	browser.accessible("waiting")
	mark(browser)
	mend()
	browser.await(landingText)
	stays(browser, "when the application is ready")
	for _, look := range []struct {
		scheme string
		width  int64
	}{{"dark", 420}, {"light", 320}, {"light", 900}} {
		browser.look(look.scheme, look.width)
		browser.accessible("landing, " + look.scheme)
		if wide := evaluate[int64](browser, `document.documentElement.scrollWidth`); wide > look.width {
			t.Errorf("in a window of %d the page is %d wide", look.width, wide)
		}
	}

	// Whom Entra ID refuses finds out here what to do.
	for _, refused := range []struct{ person, code, says, picture string }{
		{c.person(c.d.at.HomeTenant, "stranger@home.example", true), "AADSTS50020", "That account is of another tenant", "wrong-account"},
		{c.person(c.world.CustomerTenant, "clerk@customer.example", false), "AADSTS90094", "Your account may not consent", "not-administrator"},
	} {
		c.refusedAtEntra(browser, refused.person, refused.code)
		browser.do(chromedp.Click("summary"))
		browser.accessible("landing, with help")
		browser.click(`a[href$="/errors/` + refused.code + `"]`)
		browser.await(refused.says)
		browser.accessible(refused.picture)
		browser.screenshot(refused.picture)
		browser.open(session.GetConsentUri())
	}

	// By the keyboard alone: the button is the first thing that takes the focus.
	browser.do(chromedp.KeyEvent("\t"))
	if focused := evaluate[string](browser, `document.activeElement.textContent`); focused != landingText {
		t.Fatalf("the first tab leads to %q", focused)
	}
	browser.do(chromedp.KeyEvent("\r"))
	browser.arrive("/v2.0/adminconsent")
	browser.enter("input[name=username]", c.world.Administrator)
	browser.click("form button")
	browser.click("button[value=cancel]")
	browser.await(declinedText)
	browser.accessible("declined")

	// Too many objects, of which Entra ID sends the browser back with word.
	c.admin(http.MethodPost, "/quotas", map[string]any{"tenant": c.world.CustomerTenant, "objects": 1})
	c.signIn(browser)
	browser.click("button[value=accept]")
	browser.await("Your tenant takes no more objects")
	browser.accessible("quota")
	browser.screenshot("quota")
	c.admin(http.MethodPost, "/quotas", map[string]any{"tenant": c.world.CustomerTenant, "objects": 100_000})

	mend = c.unreplicated(c.world.CustomerTenant)
	c.signIn(browser)
	browser.click("button[value=accept]")
	browser.await(pendingText)
	browser.accessible("pending")
	mark(browser)
	mend()
	browser.await(resultText)
	stays(browser, "when consent is proven")
	browser.accessible("result")
	browser.look("dark", 420)
	browser.accessible("result, dark")
	browser.look("light", 900)
	if said := evaluate[string](browser, `document.getElementById("said").textContent`); said != "You have consented" {
		t.Errorf("a screen reader is told %q", said)
	}

	// Roles show when they are assigned, and the platform hears of them.
	c.admin(http.MethodPost, "/roleAssignments", map[string]any{
		"scope": "/subscriptions/" + c.world.Subscription, "principalId": c.now(session).GetServicePrincipalObjectId(), "role": "Reader",
	})
	browser.await("may read this subscription, and change nothing")
	stays(browser, "when a role is seen")
	browser.accessible("roles")
	browser.screenshot("roles")
	c.until("the condition", func() bool {
		got, err := c.integrations.GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: integration})
		if err != nil {
			t.Fatal(err)
		}
		for _, condition := range got.GetConditions() {
			if condition.GetType() == registryv1.Condition_TYPE_PERMISSIONS_VERIFIED {
				return condition.GetStatus() == registryv1.Condition_STATUS_TRUE && condition.GetReason() == "CanRead"
			}
		}
		return false
	})

	// The back button leads to the page as it is now, not as it was.
	browser.open("about:blank")
	browser.back()
	browser.await(resultText)
	browser.noComplaints()
}

func TestPages_OfSeveralPeople(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	session := c.session()
	mine := openChromium(t, c.d).scripted()
	second := mine.tab().scripted()
	mine.open(session.GetConsentUri())
	mine.await(landingText)

	// Two tabs of one browser, each on its own way.
	second.open(session.GetConsentUri())
	second.await(landingText)
	c.signIn(second)
	c.signIn(mine)
	second.click("button[value=cancel]")
	second.await(declinedText)
	mark(second)

	// Somebody else, with the same link, consents first.
	other := openChromium(t, c.d)
	other.open(session.GetConsentUri())
	other.await("Try again at Microsoft")
	c.signIn(other)
	other.click("button[value=accept]")
	other.await(resultText)
	second.await(resultText)
	stays(second, "when somebody else has consented")
	mine.click("button[value=accept]")
	mine.await(resultText)
	if got := c.now(session); got.GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
		t.Errorf("the session: %v", got)
	}
	for _, browser := range []*chromium{mine, second, other} {
		browser.noComplaints()
	}
}

func TestPages_OfLinksThatAreOver(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	brief, err := c.consent.CreateConsentSession(t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: account, ConsentSession: &brokerv1.ConsentSession{Integration: integration, ExpireTime: timestamppb.New(time.Now().Add(15 * time.Second))},
	})
	if err != nil {
		t.Fatal(err)
	}
	session := c.session()
	expiring := openChromium(t, c.d).scripted()
	withdrawn := expiring.tab().scripted()
	expiring.open(brief.GetConsentUri())
	withdrawn.open(session.GetConsentUri())
	withdrawn.await(landingText)
	for _, browser := range []*chromium{expiring, withdrawn} {
		mark(browser)
	}
	if _, err := c.consent.CancelConsentSession(t.Context(), &brokerv1.CancelConsentSessionRequest{Name: session.GetName()}); err != nil {
		t.Fatal(err)
	}
	withdrawn.await("This link was withdrawn")
	withdrawn.screenshot("withdrawn")
	expiring.await("This link has expired")
	expiring.screenshot("expired")
	for _, browser := range []*chromium{expiring, withdrawn} {
		stays(browser, "when it is over")
		browser.accessible("over")
		browser.noComplaints()
	}
}

// Consent that was lost is given again as it was given first: by a link.
func TestPages_ConsentAgain(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	browser := openChromium(t, c.d)
	consent := func() *brokerv1.ConsentSession {
		t.Helper()
		session := c.session()
		browser.open(session.GetConsentUri())
		browser.await(landingText)
		c.signIn(browser)
		browser.click("button[value=accept]")
		browser.await(resultText)
		return c.now(session)
	}
	first := consent()
	verify := func() *brokerv1.VerifyConsentResponse {
		t.Helper()
		got, err := c.consent.VerifyConsent(t.Context(), &brokerv1.VerifyConsentRequest{Integration: integration})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := verify(); !got.GetConsented() || got.GetServicePrincipalObjectId() != first.GetServicePrincipalObjectId() {
		t.Errorf("after consent: %v", got)
	}
	c.admin(http.MethodPost, "/principals", map[string]any{"tenant": c.world.CustomerTenant, "clientId": c.clientID, "removed": true})
	// Some of its replicas know later than others.
	var refused int
	var last time.Time
	c.until("the tenant to refuse", func() bool {
		switch got := verify(); {
		case got.GetConsented():
			refused = 0
		case got.GetVerifyTime().AsTime().After(last):
			refused, last = refused+1, got.GetVerifyTime().AsTime()
		}
		return refused >= 12
	})
	again := consent()
	if again.GetServicePrincipalObjectId() == first.GetServicePrincipalObjectId() || again.GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
		t.Errorf("again: %v, and first %v", again, first)
	}
	c.until("the tenant to take it again", func() bool { return verify().GetServicePrincipalObjectId() == again.GetServicePrincipalObjectId() })
	browser.noComplaints()
}

// state waits until an integration is in a state.
func (c *customer) state(want registryv1.Integration_State) {
	c.t.Helper()
	c.until("the state "+want.String(), func() bool {
		got, err := c.integrations.GetIntegration(c.t.Context(), &registryv1.GetIntegrationRequest{Name: integration})
		if err != nil {
			c.t.Fatal(err)
		}
		return got.GetState() == want
	})
}

// Consent that was lost is given again by the link that it was given by, which says what has happened.
func TestPages_ConsentAgainByTheSameLink(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	session := c.session()
	link := session.GetConsentUri()
	watching, plain := openChromium(t, c.d).scripted(), openChromium(t, c.d)
	plain.open(link)
	plain.await(landingText)
	c.signIn(plain)
	plain.click("button[value=accept]")
	plain.await(resultText)
	c.state(registryv1.Integration_STATE_ACTIVE)
	first := c.now(session)
	watching.open(link)
	watching.await(resultText)
	mark(watching)

	c.admin(http.MethodPost, "/principals", map[string]any{"tenant": c.world.CustomerTenant, "clientId": c.clientID, "removed": true})
	c.state(registryv1.Integration_STATE_DEGRADED)
	watching.await("Consent was withdrawn")
	stays(watching, "when consent is withdrawn")
	watching.accessible("lost")
	watching.screenshot("lost")
	watching.look("dark", 420)
	watching.accessible("lost, dark")
	watching.screenshot("lost-dark-narrow")
	watching.look("light", 900)
	if got := c.now(session); got.GetState() != brokerv1.ConsentSession_STATE_COMPLETED || got.GetServicePrincipalObjectId() != first.GetServicePrincipalObjectId() {
		t.Errorf("the session does not say any more what was: %v", got)
	}

	// Without scripts, by whoever else has the link.
	plain.open(link)
	plain.await("Consent was withdrawn")
	c.signIn(plain)
	plain.click("button[value=cancel]")
	plain.await(declinedText)
	c.signIn(plain)
	plain.click("button[value=accept]")
	plain.await(resultText)
	watching.await(resultText)
	stays(watching, "when somebody else has consented again")
	again := c.now(session)
	if again.GetState() != brokerv1.ConsentSession_STATE_COMPLETED || again.GetServicePrincipalObjectId() == first.GetServicePrincipalObjectId() ||
		!again.GetCompleteTime().AsTime().After(first.GetCompleteTime().AsTime()) {
		t.Errorf("consented again: %v, and first %v", again, first)
	}
	watching.await("--assignee-object-id " + again.GetServicePrincipalObjectId())
	c.state(registryv1.Integration_STATE_ACTIVE)

	// What mends itself leaves nothing to do.
	enable := func(enabled bool) {
		c.admin(http.MethodPost, "/principals", map[string]any{"tenant": c.world.CustomerTenant, "clientId": c.clientID, "accountEnabled": enabled})
	}
	enable(false)
	c.state(registryv1.Integration_STATE_DEGRADED)
	watching.await("The application was disabled")
	watching.accessible("disabled")
	watching.screenshot("disabled")
	plain.open(link)
	plain.await("--set accountEnabled=true")
	enable(true)
	watching.await(resultText)
	stays(watching, "when it was enabled")
	plain.open(link)
	plain.await(resultText)
	c.state(registryv1.Integration_STATE_ACTIVE)
	if got := c.now(session); got.GetServicePrincipalObjectId() != again.GetServicePrincipalObjectId() {
		t.Errorf("enabled: %v", got)
	}
	for _, browser := range []*chromium{watching, plain} {
		browser.noComplaints()
	}
}
