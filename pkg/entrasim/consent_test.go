package entrasim_test

import (
	"errors"
	"html"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// browser follows the consent page's forms as a person would, without scripts.
type browser struct {
	*world

	where string
	page  answer
}

func (w *world) browse(where string) *browser {
	w.Helper()
	return &browser{world: w, where: where, page: w.send(http.MethodGet, where, "", "")}
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([a-z_]+)" value="([^"]*)">`)

// submit sends the page's form with the extra fields.
func (b *browser) submit(name, value string) answer {
	b.Helper()
	form := url.Values{name: {value}}
	for _, m := range hidden.FindAllStringSubmatch(b.page.body, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	b.page = b.send(http.MethodPost, b.where, "", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	return b.page
}

func consentURL(w *world, tenant, clientID, redirect string) string {
	q := url.Values{"client_id": {clientID}, "redirect_uri": {redirect}, "scope": {graphScope}, "state": {"a b&c"}}
	return w.sim.Endpoints().Login + "/" + tenant + "/v2.0/adminconsent?" + q.Encode()
}

func TestConsent_Approve(t *testing.T) {
	for _, tenant := range []string{customerID, "customer.example.com", "organizations"} {
		t.Run(tenant, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{})
			a := w.newSecret(w.newApp("one"))
			b := w.browse(consentURL(w, tenant, a.clientID, callback))
			if b.page.status != 200 || !strings.Contains(b.page.body, `name="username"`) {
				t.Fatalf("sign-in page: %d %s", b.page.status, b.page.body)
			}
			if page := b.submit("username", "admin@customer.example.com"); !strings.Contains(page.body, "Permissions requested") || !strings.Contains(page.body, "network-read") {
				t.Fatalf("consent page: %d %s", page.status, page.body)
			}
			got := b.submit("decision", "accept")
			want := callback + "?admin_consent=True&tenant=" + customerID + "&scope=" + url.QueryEscape(graphScope) + "&state=a+b%26c"
			if got.status != http.StatusFound || got.header.Get("Location") != want {
				t.Fatalf("got %d %q, want %q", got.status, got.header.Get("Location"), want)
			}
			p, err := w.sim.Principal(customerID, a.clientID)
			w.must(err)
			if p.DisplayName != "network-read" || !p.AccountEnabled {
				t.Errorf("principal %+v", p)
			}
			if oid := claims(t, w.token(customerID, a.clientID, a.secret, armScope))["oid"]; oid != p.ID {
				t.Errorf("oid %v, want %s", oid, p.ID)
			}
		})
	}
}

// A redirect URI with a query of its own keeps it.
func TestConsent_RedirectURIWithAQuery(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	const where = callback + "?from=entra"
	if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"web":{"redirectUris":["`+where+`"]}}`); got.status != 204 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	location, err := w.sim.Consent(t.Context(), entrasim.Consent{Tenant: customerID, ClientID: a.clientID, RedirectURI: where, State: "s", UserName: "admin@customer.example.com"})
	if want := where + "&admin_consent=True&tenant=" + customerID; err != nil || !strings.HasPrefix(location, want) {
		t.Errorf("sent to %q (%v), want %s…", location, err, want)
	}
}

func TestConsent_TwiceIsOnePrincipal(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	if again := w.consent(a); !strings.Contains(again, "admin_consent=True&tenant=") {
		t.Errorf("second consent: %s", again)
	}
	if now, err := w.sim.Principal(customerID, a.clientID); err != nil || now.ID != p.ID {
		t.Errorf("principal is %v (%v), was %v", now, err, p)
	}
}

// Consenting anew grants what the application asks for by then, and no replica
// shows that before it shows the first consent.
func TestConsent_ToMorePermissions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Principal: entrasim.Range{Max: seconds(60)}}})
		a, p := w.consented("one")
		more := `{"requiredResourceAccess":[{"resourceAppId":"00000003-0000-0000-c000-000000000000","resourceAccess":[{"id":"9a5d68dd-52b0-4cc2-bd40-abcf6ac3ccca","type":"Role"}]}]}`
		if got := w.graph(http.MethodPatch, "/applications/"+a.id, more); got.status != 204 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		w.consent(a)
		made := w.sim.Journal(entrasim.Query{Kinds: []string{"principal.created", "principal.updated"}, Application: a.clientID})
		if len(made) != 2 {
			t.Fatalf("changes %+v", made)
		}
		for i, first := range made[0].Visible.Login {
			if then := made[1].Visible.Login[i]; then < first {
				t.Errorf("replica %d shows the second consent %d ns before the first", i, first-then)
			}
		}
		time.Sleep(seconds(60))
		again, err := w.sim.Principal(customerID, a.clientID)
		roles := claims(t, w.token(customerID, a.clientID, a.secret, graphScope))["roles"]
		if err != nil || again.ID != p.ID || !reflect.DeepEqual(roles, []any{"Application.Read.All"}) {
			t.Errorf("principal %s (%v) with %v, was %s", again.ID, err, roles, p.ID)
		}
	})
}

func TestConsent_RaceWhenAskedTo(t *testing.T) {
	w := newWorld(t, entrasim.Config{ConsentRace: true, Lags: entrasim.Lags{Principal: entrasim.Range{Min: seconds(60), Max: seconds(60)}}})
	a := w.newApp("one")
	w.consent(a)
	if again := w.consent(a); !strings.Contains(again, "error=invalid_client&error_description=AADSTS650051") {
		t.Errorf("second consent: %s", again)
	}
}

func TestConsent_Decline(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	b := w.browse(consentURL(w, customerID, a.clientID, callback))
	b.submit("username", "admin@customer.example.com")
	got := b.submit("decision", "cancel")
	u, err := url.Parse(got.header.Get("Location"))
	w.must(err)
	q := u.Query()
	if got.status != http.StatusFound || q.Get("error") != "consent_required" || !strings.HasPrefix(q.Get("error_description"), "AADSTS65004:") ||
		q.Get("admin_consent") != "True" || q.Get("state") != "a b&c" || len(q) != 4 {
		t.Errorf("got %d %s", got.status, u)
	}
	if _, err := w.sim.Principal(customerID, a.clientID); !errors.Is(err, entrasim.ErrNotFound) {
		t.Errorf("a declined consent made a principal: %v", err)
	}
}

func TestConsent_StaysOnThePage(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	platform := w.graph(http.MethodPatch, "/applications/"+a.id, `{"tags":["x"]}`)
	if platform.status != http.StatusNoContent {
		t.Fatalf("patch: %d", platform.status)
	}
	single := w.graph(http.MethodPost, "/applications", `{"displayName":"single","signInAudience":"AzureADMyOrg","web":{"redirectUris":["`+callback+`"]}}`)
	admin := "admin@customer.example.com"
	for _, c := range []struct {
		name, tenant, client, redirect, user, code string
	}{
		{"another redirect URI", customerID, a.clientID, callback + "/", admin, "AADSTS50011"},
		{"no redirect URI", customerID, a.clientID, "", admin, "AADSTS900144"},
		{"unknown application", customerID, subID, callback, admin, "AADSTS700016"},
		{"unknown tenant", subID, a.clientID, callback, admin, "AADSTS90002"},
		{"common is no tenant", "common", a.clientID, callback, admin, "AADSTS90002"},
		{"not an administrator", customerID, a.clientID, callback, "user@customer.example.com", "AADSTS90094"},
		{"somebody of another tenant", customerID, a.clientID, callback, "admin@home.example.com", "AADSTS50020"},
		{"nobody", customerID, a.clientID, callback, "nobody@customer.example.com", "AADSTS50034"},
		{"single-tenant application", customerID, single.text("appId"), callback, admin, "AADSTS50194"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.sim.Consent(t.Context(), entrasim.Consent{Tenant: c.tenant, ClientID: c.client, RedirectURI: c.redirect, UserName: c.user})
			var stayed *entrasim.ConsentError
			if !errors.As(err, &stayed) || stayed.Code != c.code {
				t.Fatalf("got %v, want %s on the page", err, c.code)
			}
			page := w.send(http.MethodPost, consentURL(w, c.tenant, c.client, c.redirect), "", url.Values{"username": {c.user}, "decision": {"accept"}}.Encode())
			if page.header.Get("Location") != "" || !strings.Contains(page.body, c.code) || page.header.Get("Content-Type") != "text/html; charset=utf-8" {
				t.Errorf("page %d %s", page.status, page.body)
			}
		})
	}
}

func TestConsent_ALinkDecidesNothing(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	b := w.browse(consentURL(w, customerID, a.clientID, callback) + "&username=admin@customer.example.com&decision=accept")
	if b.page.status != http.StatusOK || !strings.Contains(b.page.body, "Sign in") {
		t.Errorf("got %d %s", b.page.status, b.page.body)
	}
	if _, err := w.sim.Principal(customerID, a.clientID); !errors.Is(err, entrasim.ErrNotFound) {
		t.Errorf("following a link made a principal: %v", err)
	}
}

func TestConsent_PageEscapes(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	made := w.graph(http.MethodPost, "/applications", `{"displayName":"<script>alert(1)</script>","signInAudience":"AzureADMultipleOrgs","web":{"redirectUris":["`+callback+`"]}}`)
	b := w.browse(consentURL(w, customerID, made.text("appId"), callback))
	if strings.Contains(b.page.body, "<script") {
		t.Error("the application's name reaches the page as markup")
	}
}

func TestConsent_V1(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	for _, tenant := range []string{customerID, "customer.example.com", "common", "organizations"} {
		a := w.newApp(tenant)
		q := url.Values{"client_id": {a.clientID}, "redirect_uri": {callback}, "state": {"a b&c"}}
		where := w.sim.Endpoints().Login + "/" + tenant + "/adminconsent?" + q.Encode()
		decline := w.browse(where)
		decline.submit("username", "admin@customer.example.com")
		if got := decline.submit("decision", "cancel"); got.header.Get("Location") != callback+"?error=permission_denied&error_description=The+admin+canceled+the+request" {
			t.Errorf("%s: declined: %d %q", tenant, got.status, got.header.Get("Location"))
		}
		b := w.browse(where)
		b.submit("username", "admin@customer.example.com")
		want := callback + "?tenant=" + customerID + "&state=a+b%26c&admin_consent=True"
		if got := b.submit("decision", "accept"); got.status != http.StatusFound || got.header.Get("Location") != want {
			t.Errorf("%s: accepted: %d %q, want %q", tenant, got.status, got.header.Get("Location"), want)
		}
		if _, err := w.sim.Principal(customerID, a.clientID); err != nil {
			t.Errorf("%s: %v", tenant, err)
		}
	}
	a := w.newApp("go")
	location, err := w.sim.Consent(t.Context(), entrasim.Consent{Tenant: customerID, ClientID: a.clientID, RedirectURI: callback, UserName: "admin@customer.example.com", V1: true})
	if err != nil || location != callback+"?tenant="+customerID+"&admin_consent=True" {
		t.Errorf("by the Go method: %q, %v", location, err)
	}
	_, err = w.sim.Consent(t.Context(), entrasim.Consent{Tenant: customerID, ClientID: a.clientID, RedirectURI: callback + "/x", UserName: "admin@customer.example.com", V1: true})
	var stayed *entrasim.ConsentError
	if !errors.As(err, &stayed) || stayed.Code != "AADSTS50011" {
		t.Errorf("another redirect URI: %v", err)
	}
}
