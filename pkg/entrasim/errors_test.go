package entrasim_test

import (
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// errorWorld is what the rows below ask: an application with a secret and a
// federated credential, consented to, and others with whom something is wrong.
type errorWorld struct {
	*world

	issuer *fakeIssuer
	app    app
}

func newErrorWorld(t *testing.T, config entrasim.Config) *errorWorld {
	t.Helper()
	w, issuer, a, _ := federatedWorld(t, config)
	return &errorWorld{world: w, issuer: issuer, app: w.newSecret(a)}
}

func (w *errorWorld) good() url.Values {
	return credentials(w.app.clientID, w.app.secret, armScope)
}

func (w *errorWorld) ask(form url.Values) answer {
	w.Helper()
	return w.login(customerID, form, "client-request-id", subID)
}

func (w *errorWorld) with(name, value string) answer {
	w.Helper()
	form := w.good()
	form.Set(name, value)
	return w.ask(form)
}

// assert asks by a token of the issuer, altered.
func (w *errorWorld) assert(edit func(jwt.MapClaims)) answer {
	w.Helper()
	c := w.issuer.claimsFor()
	edit(c)
	return w.ask(asserted(w.app.clientID, sign(w.T, jwt.SigningMethodRS256, map[string]any{"kid": w.issuer.kid}, c, w.issuer.key), armScope))
}

// faulty asks while a fault names the code, and nothing but the code.
func (w *errorWorld) faulty(code string, ask func() answer) answer {
	w.Helper()
	f := w.fault(entrasim.Fault{Effect: entrasim.Effect{Code: code}})
	defer func() { w.must(w.sim.RemoveFault(f.ID)) }()
	return ask()
}

// decide is an administrator's, or somebody else's, decision on the consent page.
func (w *errorWorld) decide(clientID, user, decision string, header ...string) answer {
	w.Helper()
	form := url.Values{"username": {user}, "decision": {decision}}
	return w.send(http.MethodPost, consentURL(w.world, customerID, clientID, callback), "", form.Encode(), append(header, "client-request-id", subID)...)
}

func (w *errorWorld) accept(clientID string) answer {
	w.Helper()
	return w.decide(clientID, "admin@customer.example.com", "accept")
}

// asking is an application that asks for permissions of the resources.
func (w *errorWorld) asking(resources ...string) app {
	w.Helper()
	var access []string
	for _, id := range resources {
		access = append(access, fmt.Sprintf(`{"resourceAppId":%q,"resourceAccess":[{"id":%q,"type":"Role"}]}`, id, subID))
	}
	made := w.graph(http.MethodPost, "/applications", `{"displayName":"x","signInAudience":"AzureADMultipleOrgs","web":{"redirectUris":["`+callback+
		`"]},"requiredResourceAccess":[`+strings.Join(access, ",")+`]}`)
	if made.status != http.StatusCreated {
		w.Fatalf("create: %d %s", made.status, made.body)
	}
	return app{id: made.text("id"), clientID: made.text("appId")}
}

// TestErrors_EveryOne has a row for each error of the token endpoint and of the
// consent page that the simulator knows of: how it comes about, and all that is
// told of it. A column says which come by a
// fault only; README.md has the reasons.
func TestErrors_EveryOne(t *testing.T) {
	const (
		graph = "00000003-0000-0000-c000-000000000000"
		arm   = "797f4846-ba00-4fd7-ba43-dac1f8f63013"
	)
	w := newErrorWorld(t, entrasim.Config{})
	lagging := newErrorWorld(t, entrasim.Config{Lags: entrasim.Lags{Federated: entrasim.Range{Min: time.Hour, Max: time.Hour}}})
	racing := newErrorWorld(t, entrasim.Config{ConsentRace: true, Lags: entrasim.Lags{Principal: entrasim.Range{Min: time.Hour, Max: time.Hour}}})
	looping := newErrorWorld(t, entrasim.Config{LoginLoop: entrasim.Budget{Amount: 3, Per: time.Hour}})
	workflow := newErrorWorld(t, entrasim.Config{})
	_, err := workflow.sim.CreateTenant(entrasim.NewTenant{ID: subID, ConsentWorkflow: true})
	w.must(err)
	_, err = workflow.sim.CreatePerson(entrasim.Person{Tenant: subID, UserName: "user@workflow.example.com"})
	w.must(err)

	bare := w.newSecret(w.newApp("bare"))
	disabled, _ := w.consented("disabled")
	w.must(w.sim.EnablePrincipal(customerID, disabled.clientID, false))
	blocked, _ := w.consented("blocked")
	block := func(code string, ask func() answer) answer {
		w.must(w.sim.BlockSignIn(entrasim.SignInBlock{Tenant: customerID, ClientID: blocked.clientID, Code: code}))
		return ask()
	}
	old := w.graph(http.MethodPost, "/applications/"+w.app.id+"/addPassword",
		`{"passwordCredential":{"startDateTime":"2020-01-01T00:00:00Z","endDateTime":"2021-01-01T00:00:00Z"}}`)
	single := w.graph(http.MethodPost, "/applications", `{"displayName":"single","signInAudience":"AzureADMyOrg","web":{"redirectUris":["`+callback+`"]}}`)
	removed := w.newApp("removed")
	w.graph(http.MethodDelete, "/applications/"+removed.id, "")
	other, err := otherKey()
	w.must(err)
	token := func() answer { return w.ask(w.good()) }
	consent := func() answer { return w.accept(w.app.clientID) }
	const endpoint, page, redirect = "token endpoint", "page", "redirect"

	rows := []struct {
		code   string
		where  string // the token endpoint, the consent page, or where that sends the browser
		status int
		oauth  string
		text   string // part of it
		fault  bool   // it comes by a fault only
		ask    func() answer
	}{
		{"700016", endpoint, 400, "unauthorized_client", "was not found in the directory 'Customer'", false, func() answer { return w.with("client_id", homeID) }},
		{"7000229", endpoint, 401, "invalid_client", "is missing service principal in the tenant", false, func() answer {
			return w.login(homeID, credentials(bare.clientID, bare.secret, armScope), "client-request-id", subID)
		}},
		{"7000215", endpoint, 401, "invalid_client", "Invalid client secret provided.", false, func() answer { return w.with("client_secret", "x") }},
		{"7000222", endpoint, 401, "invalid_client", "are expired", false, func() answer { return w.with("client_secret", old.text("secretText")) }},
		{"7000216", endpoint, 401, "invalid_client", "is required for the 'client_credentials' grant type", false, func() answer { return w.with("client_secret", "") }},
		{"7000218", endpoint, 401, "invalid_client", "'client_assertion' or 'client_secret'", false, func() answer {
			form := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.app.clientID}, "resource": {"https://graph.microsoft.com"}}
			return w.send(http.MethodPost, w.sim.Endpoints().Login+"/"+customerID+"/oauth2/token", "", form.Encode(), "client-request-id", subID)
		}},
		{"900144", endpoint, 400, "invalid_request", "must contain the following parameter: 'scope'", false, func() answer { return w.with("scope", "") }},
		{"70021", endpoint, 401, "invalid_client", "No matching federated identity record found", false, func() answer {
			var got answer
			for range 30 { // half of those that are missed are missed without details
				if got = lagging.assert(func(jwt.MapClaims) {}); got.at("error_codes").([]any)[0] == 70021.0 {
					break
				}
			}
			return got
		}},
		{"700213", endpoint, 401, "invalid_client", "assertion subject 'other'", false, func() answer { return w.assert(func(c jwt.MapClaims) { c["sub"] = "other" }) }},
		{"700024", endpoint, 401, "invalid_client", "expiry time of assertion", false, func() answer {
			return w.assert(func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() })
		}},
		{"700027", endpoint, 401, "invalid_client", "The key was not found.", false, func() answer {
			thumbprint := base64.RawURLEncoding.EncodeToString([]byte("12345678901234567890"))
			c := jwt.MapClaims{"iss": w.app.clientID, "sub": w.app.clientID, "aud": "x", "exp": time.Now().Add(time.Minute).Unix()}
			return w.ask(asserted(w.app.clientID, sign(t, jwt.SigningMethodRS256, map[string]any{"x5t": thumbprint}, c, other), armScope))
		}},
		{"50013", endpoint, 401, "invalid_client", "Assertion failed signature validation.", false, func() answer {
			return w.ask(asserted(w.app.clientID, sign(t, jwt.SigningMethodRS256, map[string]any{"kid": w.issuer.kid}, w.issuer.claimsFor(), other), armScope))
		}},
		{"900384", endpoint, 400, "invalid_request", "JWT token failed signature validation.", true, token},
		{"7000112", endpoint, 400, "unauthorized_client", "(network-read) is disabled", false, func() answer {
			return w.ask(credentials(disabled.clientID, disabled.secret, armScope))
		}},
		{"70001", endpoint, 400, "unauthorized_client", "Application '" + w.app.clientID + "' is disabled.", true, token},
		{"90002", endpoint, 400, "invalid_request", "Tenant '" + subID + "' not found.", false, func() answer { return w.login(subID, w.good(), "client-request-id", subID) }},
		{"65001", endpoint, 400, "invalid_grant", "has not consented to use the application with ID '" + w.app.clientID + "' named 'network-read'", true, token},
		{"500011", endpoint, 400, "invalid_resource", "The resource principal named https://x.example.com", false, func() answer { return w.with("scope", "https://x.example.com/.default") }},
		{"500021", endpoint, 400, "access_denied", "Access to 'Customer' tenant is denied.", false, func() answer {
			return w.login(customerID, w.good(), "client-request-id", subID, "Restrict-Access-To-Tenants", "home.example.com, "+subID)
		}},
		{"500022", endpoint, 400, "access_denied", "Access to 'Customer' tenant is denied.", true, token},
		{"53003", endpoint, 400, "invalid_grant", "Access has been blocked by Conditional Access policies.", false, func() answer {
			return block("53003", func() answer { return w.ask(credentials(blocked.clientID, blocked.secret, armScope)) })
		}},
		{"530032", endpoint, 400, "invalid_grant", "configured a security policy", false, func() answer {
			return block("530032", func() answer { return w.ask(credentials(blocked.clientID, blocked.secret, armScope)) })
		}},
		{"50196", endpoint, 429, "invalid_grant", "client request loop", false, func() answer {
			for range 3 {
				looping.ask(looping.good())
			}
			return looping.ask(looping.good())
		}},
		{"90055", endpoint, 429, "temporarily_unavailable", "excessive request rate", true, token},
		{"90006", endpoint, 503, "temporarily_unavailable", "The service is temporarily unavailable.", true, token},
		{"90012", endpoint, 504, "temporarily_unavailable", "The request has timed out.", true, token},
		{"90024", endpoint, 503, "temporarily_unavailable", "A transient error has occurred.", true, token},
		{"90033", endpoint, 503, "temporarily_unavailable", "A transient error has occurred.", true, token},
		{"90090", endpoint, 503, "temporarily_unavailable", "The service is temporarily unavailable.", true, token},
		{"1000031", endpoint, 400, "unauthorized_client", "Application network-read cannot be accessed at this time.", true, token},
		{"70011", endpoint, 400, "invalid_scope", "is not valid", false, func() answer { return w.with("scope", "x") }},
		{"700022", endpoint, 400, "invalid_scope", "more than one resource", false, func() answer { return w.with("scope", armScope+" "+graphScope) }},

		{"65004", redirect, 302, "consent_required", "User declined to consent", false, func() answer { return w.decide(w.app.clientID, "admin@customer.example.com", "cancel") }},
		{"650051", redirect, 302, "invalid_client", "the service principal name is already present for the tenant", false, func() answer { return racing.accept(racing.app.clientID) }},
		{"650052", redirect, 302, "invalid_client", "your organization 'Customer' has not subscribed to", false, func() answer { return w.accept(w.asking(graph, bare.clientID).clientID) }},
		{"650054", redirect, 302, "invalid_client", "a resource that has been removed", false, func() answer { return w.accept(w.asking(graph, removed.clientID).clientID) }},
		{"650056", redirect, 302, "invalid_client", "Misconfigured application.", false, func() answer { return w.accept(w.asking().clientID) }},
		{"90093", redirect, 302, "access_denied", "The directory object quota limit for the Tenant has been exceeded.", false, func() answer {
			w.must(w.sim.SetQuota(customerID, 0))
			got := w.accept(w.newApp("too many").clientID)
			w.must(w.sim.SetQuota(customerID, 50_000))
			return got
		}},
		{"90008", page, 400, "", "it must require access to Microsoft Graph", false, func() answer { return w.accept(w.asking(arm).clientID) }},
		{"50011", page, 400, "", "does not match the redirect URIs", false, func() answer {
			return w.send(http.MethodGet, consentURL(w.world, customerID, w.app.clientID, callback+"/x"), "", "", "client-request-id", subID)
		}},
		{"50194", page, 400, "", "is not configured as a multi-tenant application", false, func() answer { return w.accept(single.text("appId")) }},
		{"90072", page, 400, "", "does not exist in tenant 'Customer'", true, consent},
		{"50020", page, 400, "", "does not exist in tenant 'Customer'", false, func() answer { return w.decide(w.app.clientID, "admin@home.example.com", "accept") }},
		{"90094", page, 403, "", "Need admin approval", false, func() answer { return w.decide(w.app.clientID, "user@customer.example.com", "accept") }},
		{"90095", page, 403, "", "Send a request to your admins", false, func() answer {
			form := url.Values{"username": {"user@workflow.example.com"}, "decision": {"accept"}}
			return workflow.send(http.MethodPost, consentURL(workflow.world, subID, workflow.app.clientID, callback), "", form.Encode(), "client-request-id", subID)
		}},
		{"700016", page, 400, "", "was not found in the directory 'Customer'", false, func() answer { return w.accept(homeID) }},
		{"500021", page, 400, "", "Access to 'Customer' tenant is denied.", false, func() answer {
			return w.decide(w.app.clientID, "admin@customer.example.com", "accept", "Restrict-Access-To-Tenants", "home.example.com")
		}},
		{"500022", page, 400, "", "Access to 'Customer' tenant is denied.", true, consent},
		{"53003", page, 400, "", "blocked by Conditional Access", false, func() answer {
			return block("53003", func() answer { return w.accept(blocked.clientID) })
		}},
	}
	readme, err := os.ReadFile("README.md")
	w.must(err)
	moment := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$`)
	for _, row := range rows {
		t.Run(row.where+" "+row.code, func(t *testing.T) {
			var got answer
			if row.fault {
				got = w.faulty(row.code, row.ask)
			} else {
				got = row.ask()
			}
			if got.status != row.status {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			text := ""
			switch row.where {
			case endpoint:
				if codes, _ := got.at("error_codes").([]any); got.text("error") != row.oauth || !slices.Equal(codes, []any{number(row.code)}) {
					t.Errorf("error %q, codes %v", got.text("error"), codes)
				}
				text = got.text("error_description")
				if got.text("correlation_id") != subID || !moment.MatchString(got.text("timestamp")) ||
					got.text("error_uri") != "https://login.microsoftonline.com/error?code="+row.code {
					t.Errorf("got %s", got.body)
				}
				if want := " Trace ID: " + got.text("trace_id") + " Correlation ID: " + subID + " Timestamp: " + got.text("timestamp"); got.text("trace_id") == "" || !strings.HasSuffix(text, want) {
					t.Errorf("description %q does not end by %q", text, want)
				}
			case redirect:
				to, err := url.Parse(got.header.Get("Location"))
				w.must(err)
				text = to.Query().Get("error_description")
				if to.Query().Get("error") != row.oauth || to.Query().Get("state") != "a b&c" || !strings.HasPrefix(to.String(), callback+"?") ||
					!strings.Contains(text, " Trace ID: ") || !strings.Contains(text, " Correlation ID: "+subID+" Timestamp: ") {
					t.Errorf("got %s", to)
				}
			case page:
				text = html.UnescapeString(got.body)
				if i := strings.Index(text, "AADSTS"); i > 0 {
					text = text[i:]
				}
				if !strings.Contains(text, "Correlation Id: "+subID+" Timestamp: ") || got.header.Get("Location") != "" {
					t.Errorf("got %s", got.body)
				}
			}
			if !strings.HasPrefix(text, "AADSTS"+row.code+": ") || !strings.Contains(text, row.text) {
				t.Errorf("text %q", text)
			}
			if retry := got.header.Get("Retry-After"); (row.code == "50196") != (retry == "60") {
				t.Errorf("Retry-After %q", retry)
			}
			if !regexp.MustCompile(`(\b|AADSTS)` + row.code + `\b`).Match(readme) {
				t.Error("README.md does not name it")
			}
		})
	}
}

func number(code string) float64 {
	n := 0.0
	for _, digit := range code {
		n = 10*n + float64(digit-'0')
	}
	return n
}

func TestErrors_ABlockedSignIn(t *testing.T) {
	w := newWorld(t, entrasim.Config{StateDir: t.TempDir()})
	a, _ := w.consented("one")
	b, _ := w.consented("two")
	check := func(when, one, two string) {
		t.Helper()
		if got := w.code(customerID, credentials(a.clientID, a.secret, armScope)); got != one {
			t.Errorf("%s: %q, want %q", when, got, one)
		}
		if got := w.code(customerID, credentials(b.clientID, b.secret, armScope)); got != two {
			t.Errorf("%s: the other %q, want %q", when, got, two)
		}
		s, err := w.sim.SecretState(customerID, a.clientID, a.keyID)
		w.must(err)
		if s.Everywhere != (one == "") || s.Nowhere != (one != "") {
			t.Errorf("%s: %+v", when, s)
		}
	}
	admin := func(clientID, code string, status int) {
		t.Helper()
		got := w.send(http.MethodPost, w.sim.Endpoints().Admin+"/signInBlocks", "", `{"tenant":"customer.example.com","clientId":"`+clientID+`","code":"`+code+`"}`)
		if got.status != status {
			t.Errorf("block %q by %q: %d %s", clientID, code, got.status, got.body)
		}
	}
	check("at first", "", "")
	admin(a.clientID, "53003", 200)
	check("one", "AADSTS53003", "")
	if got := w.code(customerID, credentials(a.clientID, "wrong", armScope)); got != "AADSTS7000215" {
		t.Errorf("a wrong secret is said to be %q", got)
	}
	admin("", "530032", 200)
	check("all", "AADSTS53003", "AADSTS530032")
	admin(a.clientID, "", 200)
	check("one is free of its own", "AADSTS530032", "AADSTS530032")
	admin("", "", 200)
	check("none", "", "")
	admin(a.clientID, "50000", 400)
	admin(subID, "53003", 404)
	if err := w.sim.BlockSignIn(entrasim.SignInBlock{Tenant: subID}); err == nil {
		t.Error("a tenant that does not exist has a block")
	}
	if got := w.sim.Journal(entrasim.Query{Kinds: []string{"signIn.blocked", "signIn.unblocked"}}); len(got) != 4 || got[0].Application != a.clientID {
		t.Errorf("journal %+v", got)
	}
}
