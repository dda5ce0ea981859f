package entrasim_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
)

const (
	homeID     = "11111111-1111-4111-8111-111111111111"
	customerID = "22222222-2222-4222-8222-222222222222"
	subID      = "33333333-3333-4333-8333-333333333333"
	armScope   = "https://management.azure.com/.default"
	graphScope = "https://graph.microsoft.com/.default"
	callback   = "https://app.example.com/callback"
	reader     = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
)

// sharedKey is what assertions in all tests are signed by: making one takes a while.
var sharedKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// world is a simulator with a home tenant, its platform application, and a
// customer's tenant with an administrator, a user and a subscription.
type world struct {
	*testing.T

	sim      *entrasim.Simulator
	client   *http.Client
	platform entrasim.Platform
}

func open(t *testing.T, config entrasim.Config) *entrasim.Simulator {
	t.Helper()
	sim, err := entrasim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	return sim
}

func newWorld(t *testing.T, config entrasim.Config) *world {
	t.Helper()
	w := &world{T: t, sim: open(t, config)}
	w.client = &http.Client{Transport: w.sim.Transport(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	_, err := w.sim.CreateTenant(entrasim.NewTenant{ID: homeID, DisplayName: "Home", Domain: "home.example.com", Verified: true})
	w.must(err)
	_, err = w.sim.CreateTenant(entrasim.NewTenant{ID: customerID, DisplayName: "Customer", Domain: "customer.example.com"})
	w.must(err)
	for _, p := range []entrasim.Person{
		{Tenant: customerID, UserName: "admin@customer.example.com", DisplayName: "Ada", Admin: true},
		{Tenant: customerID, UserName: "user@customer.example.com", DisplayName: "Uwe"},
		{Tenant: homeID, UserName: "admin@home.example.com", Admin: true},
	} {
		_, err = w.sim.CreatePerson(p)
		w.must(err)
	}
	_, err = w.sim.CreateSubscription(entrasim.Subscription{ID: subID, Tenant: customerID, DisplayName: "Production"})
	w.must(err)
	w.platform, err = w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
	json   map[string]any
}

// at returns the value at a path of the body, such as error/code.
func (a answer) at(path string) any {
	var v any = a.json
	for name := range strings.SplitSeq(path, "/") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func (a answer) text(path string) string {
	s, _ := a.at(path).(string)
	return s
}

func (w *world) send(method, where, bearer, body string, header ...string) answer {
	w.Helper()
	a, err := w.try(method, where, bearer, body, header...)
	w.must(err)
	return a
}

func (w *world) try(method, where, bearer, body string, header ...string) (answer, error) {
	w.Helper()
	r, err := http.NewRequestWithContext(w.Context(), method, where, strings.NewReader(body))
	w.must(err)
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := w.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(text)}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && strings.HasPrefix(a.body, "{") {
		w.must(json.Unmarshal(text, &a.json))
	}
	return a, nil
}

func (w *world) login(tenant string, form url.Values, header ...string) answer {
	w.Helper()
	return w.send(http.MethodPost, w.sim.Endpoints().Login+"/"+tenant+"/oauth2/v2.0/token", "", form.Encode(),
		append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

func credentials(clientID, secret, scope string) url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {clientID}, "client_secret": {secret}, "scope": {scope}}
}

// token gets a token that is expected to be had.
func (w *world) token(tenant, clientID, secret, scope string) string {
	w.Helper()
	a := w.login(tenant, credentials(clientID, secret, scope))
	if a.status != http.StatusOK {
		w.Fatalf("token: %d %s", a.status, a.body)
	}
	return a.text("access_token")
}

func (w *world) graphToken() string {
	w.Helper()
	return w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, graphScope)
}

func (w *world) graph(method, path, body string, header ...string) answer {
	w.Helper()
	return w.send(method, w.sim.Endpoints().Graph+"/v1.0"+path, w.graphToken(), body, header...)
}

func (w *world) arm(method, path, bearer, body string) answer {
	w.Helper()
	return w.send(method, w.sim.Endpoints().ResourceManager+path+"?api-version=2022-04-01", bearer, body)
}

// app is an application made by the platform.
type app struct{ id, clientID, keyID, secret string }

const appBody = `{"@odata.type":"#microsoft.graph.application","displayName":"network-read","signInAudience":"AzureADMultipleOrgs",
 "web":{"redirectUris":["` + callback + `"]},
 "requiredResourceAccess":[{"resourceAppId":"00000003-0000-0000-c000-000000000000","resourceAccess":[{"id":"e1fe6dd8-ba31-4d61-89e7-88639da4683d","type":"Scope"}]}],
 "servicePrincipalLockConfiguration":{"isEnabled":true,"allProperties":true}}`

func (w *world) newApp(name string) app {
	w.Helper()
	made := w.graph(http.MethodPatch, "/applications(uniqueName='"+name+"')", appBody, "Prefer", "create-if-missing")
	if made.status != http.StatusCreated {
		w.Fatalf("upsert: %d %s", made.status, made.body)
	}
	return app{id: made.text("id"), clientID: made.text("appId")}
}

func (w *world) newSecret(a app) app {
	w.Helper()
	added := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", `{"passwordCredential":{"displayName":"one"}}`)
	if added.status != http.StatusOK {
		w.Fatalf("addPassword: %d %s", added.status, added.body)
	}
	a.keyID, a.secret = added.text("keyId"), added.text("secretText")
	return a
}

func (w *world) consent(a app) string {
	w.Helper()
	location, err := w.sim.Consent(w.Context(), entrasim.Consent{
		Tenant: customerID, ClientID: a.clientID, RedirectURI: callback, State: "s1", UserName: "admin@customer.example.com",
	})
	w.must(err)
	return location
}

// consented is an application with a secret and a principal at the customer's.
func (w *world) consented(name string) (app, entrasim.ServicePrincipal) {
	w.Helper()
	a := w.newSecret(w.newApp(name))
	w.consent(a)
	p, err := w.sim.Principal(customerID, a.clientID)
	w.must(err)
	return a, p
}

func (w *world) fault(f entrasim.Fault) entrasim.Fault {
	w.Helper()
	f, err := w.sim.AddFault(f)
	w.must(err)
	return f
}

// claims reads a token without verifying it.
func claims(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is not a token", token)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// seconds is short for tests that wait in a bubble.
func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
