package entrasim_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

const (
	issuerURL = "https://issuer.example.com/tenant"
	subject   = "run:network:plan"
	exchange  = "api://AzureADTokenExchange"
)

// federation is a federated credential's body; an empty property is left out.
func federation(name, issuer, subject, audience string) string {
	var parts []string
	for _, p := range [][2]string{{"name", name}, {"issuer", issuer}, {"subject", subject}} {
		if p[1] != "" {
			parts = append(parts, fmt.Sprintf("%q:%q", p[0], p[1]))
		}
	}
	if audience != "" {
		parts = append(parts, fmt.Sprintf(`"audiences":[%q]`, audience))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func (w *world) federate(a app, body string) string {
	w.Helper()
	made := w.graph(http.MethodPost, "/applications/"+a.id+"/federatedIdentityCredentials", body)
	if made.status != http.StatusCreated {
		w.Fatalf("federated credential: %d %s", made.status, made.body)
	}
	return made.text("id")
}

func TestGraph_FederatedCredentials(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	list := "/applications/" + a.id + "/federatedIdentityCredentials"
	made := w.graph(http.MethodPost, list, `{"name":"plan","issuer":"`+issuerURL+`","subject":"`+subject+`","audiences":["`+exchange+`"]}`)
	id := made.text("id")
	if made.status != 201 || id == "" || made.text("issuer") != issuerURL || made.text("subject") != subject || made.at("description") != nil || made.text("name") != "plan" {
		t.Fatalf("create: %d %s", made.status, made.body)
	}
	if want := "https://graph.microsoft.com/v1.0/$metadata#applications('" + a.id + "')/federatedIdentityCredentials/$entity"; made.text("@odata.context") != want {
		t.Errorf("context %q, want %q", made.text("@odata.context"), want)
	}
	if audiences, _ := made.at("audiences").([]any); len(audiences) != 1 || audiences[0] != exchange {
		t.Errorf("audiences %v", made.at("audiences"))
	}
	whole := w.graph(http.MethodGet, "/applications/"+a.id+"?$select=id&$expand=federatedIdentityCredentials", "")
	if found, _ := whole.at("federatedIdentityCredentials").([]any); whole.status != 200 || len(found) != 1 || found[0].(map[string]any)["name"] != "plan" || whole.at("appId") != nil {
		t.Errorf("the application with them is %d %s", whole.status, whole.body)
	}
	for _, path := range []string{
		list + "/" + id, list + "/plan", list + "(name='plan')", list + "('" + id + "')",
		"/applications(appId='" + a.clientID + "')/federatedIdentityCredentials/" + id,
		"/applications(uniqueName='one')/federatedIdentityCredentials/plan",
	} {
		if got := w.graph(http.MethodGet, path, ""); got.status != 200 || got.text("id") != id {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for _, path := range []string{list + "/Plan", list + "/" + a.id, list + "(name='" + id + "')", "/applications/" + subID + "/federatedIdentityCredentials"} {
		if got := w.graph(http.MethodGet, path, ""); got.status != 404 || got.text("error/code") != "Request_ResourceNotFound" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	w.federate(a, federation("apply", issuerURL, "run:network:apply", exchange))
	for query, want := range map[string]int{
		"": 2, "?$filter=" + url.QueryEscape("name eq 'plan'"): 1, "?$filter=" + url.QueryEscape("subject eq 'none'"): 0, "?$top=1": 1,
	} {
		got := w.graph(http.MethodGet, list+query, "")
		if items, ok := got.at("value").([]any); !ok || len(items) != want {
			t.Errorf("list %q: %d %s, want %d", query, got.status, got.body, want)
		}
	}
	if got := w.graph(http.MethodPatch, list+"/plan", `{"name":"plan","subject":"other","description":"why"}`); got.status != 204 || got.body != "" {
		t.Errorf("update: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodGet, list+"/"+id, ""); got.text("subject") != "other" || got.text("issuer") != issuerURL || got.text("description") != "why" {
		t.Errorf("updated: %s", got.body)
	}
	if got := w.graph(http.MethodDelete, list+"/"+id, ""); got.status != 204 || got.body != "" {
		t.Errorf("delete: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodDelete, list+"/"+id, ""); got.status != 404 {
		t.Errorf("delete again: %d %s", got.status, got.body)
	}
	var kinds []string
	for _, e := range w.sim.Journal(entrasim.Query{KeyID: id}) {
		if e.Kind != entrasim.KindRequest {
			kinds = append(kinds, e.Kind)
			if e.Application != a.clientID || e.Tenant != homeID || e.Object != id || e.Actor != w.platform.ClientID {
				t.Errorf("entry %+v", e)
			}
		}
	}
	if !equal(kinds, "federatedCredential.added", "federatedCredential.updated", "federatedCredential.removed") {
		t.Errorf("journal %q", kinds)
	}
}

func TestGraph_FederatedCredentialUpsert(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	path := "/applications(uniqueName='one')/federatedIdentityCredentials(name='plan')"
	body := federation("", issuerURL, subject, exchange)
	if got := w.graph(http.MethodPatch, path, body); got.status != 404 {
		t.Errorf("without the preference: %d %s", got.status, got.body)
	}
	made := w.graph(http.MethodPatch, path, body, "Prefer", "create-if-missing")
	if made.status != 201 || made.text("name") != "plan" {
		t.Fatalf("create: %d %s", made.status, made.body)
	}
	if got := w.graph(http.MethodPatch, path, `{"subject":"other"}`, "Prefer", "create-if-missing"); got.status != 204 {
		t.Errorf("repeat: %d %s", got.status, got.body)
	}
	got := w.graph(http.MethodGet, "/applications/"+a.id+"/federatedIdentityCredentials/"+made.text("id"), "")
	if got.text("subject") != "other" || got.text("issuer") != issuerURL {
		t.Errorf("after the repeat: %s", got.body)
	}
}

func TestGraph_FederatedCredentialRules(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	list := "/applications/" + a.id + "/federatedIdentityCredentials"
	w.federate(a, federation("first", issuerURL, subject, exchange))
	long := strings.Repeat("é", 600)
	for _, c := range []struct {
		name, body string
		status     int
		code       string
	}{
		{"another of the name", federation("first", issuerURL, "x", exchange), 409, "Request_MultipleObjectsWithSameKeyValue"},
		{"another of issuer and subject", federation("second", issuerURL, subject, exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"no name", federation("", issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a short name", federation("ab", issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a long name", federation(strings.Repeat("a", 121), issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a name that begins with a hyphen", federation("-abc", issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a name with a dot", federation("a.b.c", issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a name with a letter that is not ASCII", federation("naïve", issuerURL, "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"no issuer", federation("second", "", "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"no subject", federation("second", issuerURL, "", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a null subject", `{"name":"second","issuer":"x","subject":null,"audiences":["x"]}`, 400, "InvalidFederatedIdentityCredentialValue"},
		{"no audience", federation("second", issuerURL, "x", ""), 400, "InvalidFederatedIdentityCredentialValue"},
		{"two audiences", `{"name":"second","issuer":"x","subject":"x","audiences":["x","y"]}`, 400, "InvalidFederatedIdentityCredentialValue"},
		{"an empty audience", `{"name":"second","issuer":"x","subject":"x","audiences":[""]}`, 400, "InvalidFederatedIdentityCredentialValue"},
		{"a long issuer", federation("second", long+"é", "x", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a long subject", federation("second", issuerURL, long+"é", exchange), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a long audience", federation("second", issuerURL, "x", long+"é"), 400, "InvalidFederatedIdentityCredentialValue"},
		{"a long description", `{"name":"second","issuer":"x","subject":"x","audiences":["x"],"description":"` + long + `é"}`, 400, "InvalidFederatedIdentityCredentialValue"},
		{"an ID", `{"id":"` + subID + `","name":"second","issuer":"x","subject":"x","audiences":["x"]}`, 400, "Request_BadRequest"},
		{"an unknown property", `{"nonsense":1}`, 400, "Request_BadRequest"},
		{"a wrong type", `{"name":1}`, 400, "Request_BadRequest"},
		{"no JSON", `{`, 400, "Request_BadRequest"},
		{"all at its limit", federation("A"+strings.Repeat("a_-9", 29)+"zzz", long, long, long), 201, ""},
		{"values that fit no token", federation("nonsense", " not a URL ", "*", "nobody"), 201, ""},
	} {
		if got := w.graph(http.MethodPost, list, c.body); got.status != c.status || got.text("error/code") != c.code {
			t.Errorf("%s: %d %s", c.name, got.status, got.body)
		}
	}
	for name, body := range map[string]string{
		"another name": `{"name":"second"}`, "taken issuer and subject": `{"issuer":"` + issuerURL + `","subject":"` + subject + `"}`, "an empty subject": `{"subject":""}`, "no audience": `{"audiences":[]}`,
	} {
		if got := w.graph(http.MethodPatch, list+"/nonsense", body); got.status != 400 || got.text("error/code") != "InvalidFederatedIdentityCredentialValue" {
			t.Errorf("update to %s: %d %s", name, got.status, got.body)
		}
	}
	b := w.newApp("two")
	for i := range 20 {
		w.federate(b, federation(fmt.Sprintf("fic-%d", i), issuerURL, fmt.Sprint(i), exchange))
	}
	over := federation("fic-20", issuerURL, "20", exchange)
	if got := w.graph(http.MethodPost, "/applications/"+b.id+"/federatedIdentityCredentials", over); got.status != 400 || !strings.Contains(got.text("error/message"), "20") {
		t.Errorf("the twenty-first: %d %s", got.status, got.body)
	}
	if got := w.graph(http.MethodDelete, "/applications/"+b.id+"/federatedIdentityCredentials/fic-3", ""); got.status != 204 {
		t.Errorf("delete: %d %s", got.status, got.body)
	}
	w.federate(b, over)
}

func TestGraph_FederatedCredentialsNeedOwnership(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	id := w.federate(a, federation("first", issuerURL, subject, exchange))
	other, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, DisplayName: "other"})
	w.must(err)
	bearer := w.token(homeID, other.ClientID, other.ClientSecret, graphScope)
	list := "https://graph.microsoft.com/v1.0/applications/" + a.id + "/federatedIdentityCredentials"
	for _, c := range []struct {
		method, where, body string
		status              int
	}{
		{http.MethodPost, list, federation("second", issuerURL, "x", exchange), 403},
		{http.MethodPatch, list + "/" + id, `{"subject":"x"}`, 403},
		{http.MethodDelete, list + "/" + id, "", 403},
		{http.MethodGet, list + "/" + id, "", 200},
	} {
		if got := w.send(c.method, c.where, bearer, c.body); got.status != c.status {
			t.Errorf("%s: %d %s, want %d", c.method, got.status, got.body, c.status)
		}
	}
}

func TestGraph_FederatedCredentialsLagAndFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Seed: 4, Lags: entrasim.Lags{Graph: entrasim.Range{Min: time.Second, Max: 10 * time.Second}}})
		a := w.newApp("one")
		time.Sleep(10 * time.Second)
		id := w.federate(a, federation("first", issuerURL, subject, exchange))
		read := func() string {
			return w.graph(http.MethodGet, "/applications/"+a.id+"/federatedIdentityCredentials/"+id, "").text("error/code")
		}
		if first, changes := watch(11*time.Second, read); !equal(first, "Request_ResourceNotFound", "") || changes == 0 {
			t.Errorf("answers %q, %d changes back", first, changes)
		}
		if got := w.graph(http.MethodDelete, "/applications/"+a.id+"/federatedIdentityCredentials/"+id, ""); got.status != 204 {
			t.Fatalf("delete: %d %s", got.status, got.body)
		}
		if first, _ := watch(11*time.Second, read); !equal(first, "", "Request_ResourceNotFound") {
			t.Errorf("deleted: %q", first)
		}
	})
}

func TestState_FederatedCredentialsSurviveARestart(t *testing.T) {
	config := entrasim.Config{StateDir: t.TempDir()}
	w := newWorld(t, config)
	a := w.newApp("one")
	kept := w.federate(a, federation("kept", issuerURL, subject, exchange))
	gone := w.federate(a, federation("gone", issuerURL, "x", exchange))
	list := "/applications/" + a.id + "/federatedIdentityCredentials"
	w.graph(http.MethodPatch, list+"/"+kept, `{"description":"why"}`)
	w.graph(http.MethodDelete, list+"/"+gone, "")
	before := w.graph(http.MethodGet, list, "").body
	w.reopen(config)
	defer func() { w.must(w.sim.Close()) }()
	if after := w.graph(http.MethodGet, list, "").body; after != before || !strings.Contains(after, kept) || strings.Contains(after, gone) {
		t.Errorf("list is\n%s\nwas\n%s", after, before)
	}
}
