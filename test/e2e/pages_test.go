package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// What the pages say, by which tests know them.
const (
	waitingText  = "The application is being prepared"
	landingText  = "Continue to Microsoft"
	declinedText = "You did not consent."
	pendingText  = "Microsoft says that you have consented"
	resultText   = "Consent was proven"
)

// customer is a stack with one integration, as its customer's administrator and the platform see it.
type customer struct {
	t            *testing.T
	d            *dev
	world        world
	clientID     string
	integrations registryv1.IntegrationServiceClient
	consent      brokerv1.ConsentServiceClient
	http         *http.Client
}

func newCustomer(t *testing.T) *customer {
	t.Helper()
	d := start(t, t.TempDir())
	c := &customer{t: t, d: d,
		integrations: registryv1.NewIntegrationServiceClient(dial(t, d, d.at.Registry, "platform")),
		consent:      brokerv1.NewConsentServiceClient(dial(t, d, d.at.Broker, "platform")),
		http:         httpsClient(t, d), world: worldOf(t, d),
	}
	if _, err := c.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
		Parent: account, IntegrationId: "network", Integration: &registryv1.Integration{
			DisplayName: "Network, production", TenantId: c.world.CustomerTenant, DefaultSubscriptionId: c.world.Subscription,
		},
	}); err != nil {
		t.Fatal(err)
	}
	c.until("the application to have a client ID", func() bool {
		got, err := c.integrations.GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: integration})
		if err != nil {
			t.Fatal(err)
		}
		c.clientID = got.GetClientId()
		return c.clientID != ""
	})
	return c
}

func (c *customer) until(what string, so func() bool) {
	c.t.Helper()
	deadline := time.NewTimer(45 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-deadline.C:
			c.t.Fatalf("waited for %s", what)
		case <-tick.C:
		}
	}
}

// session opens a consent session.
func (c *customer) session() *brokerv1.ConsentSession {
	c.t.Helper()
	session, err := c.consent.CreateConsentSession(c.t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: account, ConsentSession: &brokerv1.ConsentSession{Integration: integration},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return session
}

// now is the session as it is.
func (c *customer) now(session *brokerv1.ConsentSession) *brokerv1.ConsentSession {
	c.t.Helper()
	got, err := c.consent.GetConsentSession(c.t.Context(), &brokerv1.GetConsentSessionRequest{Name: session.GetName()})
	if err != nil {
		c.t.Fatal(err)
	}
	return got
}

// unreplicated has a tenant's token service not know the application, until the returned function is called.
func (c *customer) unreplicated(tenant string) (mend func()) {
	c.t.Helper()
	const id = "unreplicated"
	c.admin(http.MethodPost, "/faults", map[string]any{
		"id": id, "operation": "login.token", "tenant": tenant, "application": c.clientID,
		"effect": map[string]any{"status": 400, "code": "700016"},
	})
	return func() { c.t.Helper(); c.admin(http.MethodDelete, "/faults/"+id, nil) }
}

func (c *customer) admin(method, path string, body any) {
	c.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(c.t.Context(), method, c.d.at.SimulatorAdmin+path, bytes.NewReader(text))
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil || response.StatusCode != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s", method, path, response.StatusCode, answer)
	}
}

// signIn presses the page's button and goes through Microsoft's sign-in, to the page that asks for consent.
func (c *customer) signIn(browser *chromium) {
	c.t.Helper()
	for range 20 {
		browser.click("form button")
		browser.arrive("/v2.0/adminconsent")
		if !strings.Contains(browser.text(), "700016") {
			browser.enter("input[name=username]", c.world.Administrator)
			browser.click("form button")
			return
		}
		// A replica of Entra's that does not know the application yet.
		browser.back()
	}
	c.t.Fatalf("Entra's page says %q", browser.text())
}

func TestPages_ThroughConsent(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	mend := c.unreplicated(c.d.at.HomeTenant)
	session := c.session()
	browser := openChromium(t, c.d)

	if status := browser.open(session.GetConsentUri()); status != http.StatusOK {
		t.Fatalf("the page's status is %d", status)
	}
	browser.await(waitingText)
	browser.screenshot("waiting")
	mend()

	// The page finds by itself that it can go on.
	browser.await(landingText)
	for _, said := range []string{"Phasekey development", "Network, production", c.world.CustomerTenant, "User.Read"} {
		if !strings.Contains(browser.text(), said) {
			t.Errorf("the page does not say %q: %s", said, browser.text())
		}
	}
	browser.screenshot("landing")
	browser.look("dark", 420)
	browser.screenshot("landing-dark-narrow")
	browser.look("light", 900)

	mend = c.unreplicated(c.world.CustomerTenant)
	c.signIn(browser)
	browser.screenshot("entra")
	browser.click("button[value=cancel]")
	browser.await(declinedText)
	browser.screenshot("declined")
	if got := c.now(session); got.GetLastCallback() != "AADSTS65004" || got.GetState() != brokerv1.ConsentSession_STATE_AWAITING_CONSENT {
		t.Errorf("after declining: %v", got)
	}

	c.signIn(browser)
	browser.click("button[value=accept]")
	browser.await(pendingText)
	browser.screenshot("pending")
	if got := c.now(session); got.GetLastCallback() != "APPROVED" || got.GetState() != brokerv1.ConsentSession_STATE_AWAITING_CONSENT {
		t.Errorf("after approving, before it is proven: %v", got)
	}
	mend()
	browser.await(resultText)
	got := c.now(session)
	for _, line := range []string{
		"az role assignment create --assignee-object-id " + got.GetServicePrincipalObjectId(), "--role Reader", "--role Contributor",
		"/subscriptions/" + c.world.Subscription, "az ad sp delete --id " + got.GetServicePrincipalObjectId(),
	} {
		if !strings.Contains(browser.text(), line) {
			t.Errorf("the result does not have %q: %s", line, browser.text())
		}
	}
	browser.screenshot("result")
	browser.look("dark", 420)
	browser.screenshot("result-dark-narrow")
	browser.noComplaints()

	// What the browser came back with opens nothing a second time.
	browser.look("light", 900)
	for _, callback := range browser.visited("/consent/callback") {
		if status := browser.open(callback); status != http.StatusBadRequest {
			t.Errorf("a callback that was used has status %d: %s", status, browser.text())
		}
	}
	browser.screenshot("replayed")
	if after := c.now(session); after.String() != got.String() {
		t.Errorf("replayed callbacks changed %v to %v", got, after)
	}
}

func TestPages_APassedOnLinkChangesNothing(t *testing.T) {
	t.Parallel()
	c := newCustomer(t)
	session := c.session()
	mine, other := openChromium(t, c.d), openChromium(t, c.d)
	mine.open(session.GetConsentUri())
	mine.await(landingText)
	c.signIn(mine)
	at, err := url.Parse(mine.visited("/v2.0/adminconsent")[0])
	if err != nil {
		t.Fatal(err)
	}
	before := c.now(session)
	state := at.Query().Get("state")
	callback := func(tenant, state string) string {
		return "https://" + c.d.at.BrokerHTTPS + "/consent/callback?" + url.Values{
			"admin_consent": {"True"}, "tenant": {tenant}, "scope": {"https://graph.microsoft.com/.default"}, "state": {state},
		}.Encode()
	}
	for _, test := range []struct {
		name    string
		browser *chromium
		address string
		status  int64
	}{
		{"another browser", other, callback(c.world.CustomerTenant, state), http.StatusOK},
		{"another browser, another tenant", other, callback(c.d.at.HomeTenant, state), http.StatusBadRequest},
		{"this browser, another tenant", mine, callback(c.d.at.HomeTenant, state), http.StatusBadRequest},
		{"a forged state", mine, callback(c.world.CustomerTenant, strings.Repeat("A", len(state))), http.StatusBadRequest},
		{"no state", mine, callback(c.world.CustomerTenant, ""), http.StatusBadRequest},
		{"no such page", mine, "https://" + c.d.at.BrokerHTTPS + "/consent/" + strings.Repeat("A", 43), http.StatusNotFound},
	} {
		if status := test.browser.open(test.address); status != test.status {
			t.Errorf("%s: status %d, not %d: %s", test.name, status, test.status, test.browser.text())
		}
		if after := c.now(session); after.String() != before.String() {
			t.Errorf("%s: changed %v to %v", test.name, before, after)
		}
	}
	other.open(callback(c.world.CustomerTenant, state))
	other.screenshot("passed-on")
	if !strings.Contains(c.d.out.String(), "level=WARN") {
		t.Error("nothing of it is in the log")
	}

	// The browser that pressed the button is not disturbed by any of it.
	mine.open(session.GetConsentUri())
	mine.await(landingText)
	c.signIn(mine)
	mine.click("button[value=accept]")
	mine.await(resultText)
	for _, browser := range []*chromium{mine, other} {
		browser.noComplaints()
	}
	if strings.Contains(c.d.out.String(), state) || strings.Contains(c.d.out.String(), session.GetConsentUri()) {
		t.Error("the log shows a state or a link")
	}
}
