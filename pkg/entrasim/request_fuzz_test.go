package entrasim_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// fuzzState is a state with one of everything: made once, for it takes long, and
// copied for each request.
type fuzzState struct {
	log []byte
	// names lead to what is in it: requests that the corpus keeps name it by
	// words in capitals, for identifiers are new each time.
	names      *strings.Replacer
	graph, arm string // tokens of an application that may do everything
}

const stateFile = "entrasim.log"

func newFuzzState(t *testing.T) (*fuzzState, error) {
	dir := t.TempDir()
	sim, err := entrasim.New(fuzzConfig(t, dir))
	if err != nil {
		return nil, err
	}
	w := &world{T: t, sim: sim, client: &http.Client{Transport: sim.Transport()}}
	for _, id := range []string{homeID, customerID} {
		_, err := sim.CreateTenant(entrasim.NewTenant{ID: id})
		w.must(err)
	}
	_, err = sim.CreatePerson(entrasim.Person{Tenant: homeID, UserName: "admin@home.example.com", Admin: true})
	w.must(err)
	_, err = sim.CreateSubscription(entrasim.Subscription{ID: subID, Tenant: homeID})
	w.must(err)
	w.platform, err = sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, Roles: []string{"Application.ReadWrite.All", policyRole}})
	w.must(err)
	assignment := w.assign(w.platform.PrincipalID, "Owner", scope)
	state := &fuzzState{graph: w.graphToken(), arm: w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, armScope)}
	a := w.newSecret(w.newApp("one"))
	federated := w.federate(a, federation("plan", issuerURL, subject, exchange))
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
	w.arm(http.MethodPut, scope+"/resourceGroups/one", state.arm, `{"location":"westeurope"}`)
	binned := w.newApp("binned")
	w.graph(http.MethodDelete, "/applications/"+binned.id, "")
	policy := w.graph(http.MethodPost, "/policies/appManagementPolicies", `{"displayName":"x","description":"y","isEnabled":true}`).text("id")
	state.names = strings.NewReplacer(
		"POLICY", policy,
		"APPID", a.clientID, "OBJECT", a.id, "KEYID", a.keyID, "SECRET", a.secret, "FEDERATED", federated, "PRINCIPAL", principal,
		"BINNED", binned.id, "PLATFORM", w.platform.PrincipalID, "ASSIGNMENT", assignment.ID[strings.LastIndexByte(assignment.ID, '/')+1:], "TOKEN", state.arm,
	)
	w.must(sim.Close())
	state.log, err = os.ReadFile(filepath.Join(dir, stateFile))
	return state, err
}

func fuzzConfig(t *testing.T, dir string) entrasim.Config {
	day := 24 * time.Hour
	return entrasim.Config{
		StateDir: dir, Issuers: newIssuer(t, issuerURL), TokenLife: entrasim.Range{Min: 100 * day, Max: 100 * day},
		Budgets: entrasim.Budgets{Unlimited: true},
	}
}

// FuzzRequest sends any request to any plane, with a token that the plane takes
// unless the request has one, and wants an answer in the plane's own shape:
// never a server's failure, never somebody else's words.
func FuzzRequest(f *testing.F) {
	var once sync.Once
	var state *fuzzState
	for _, seed := range requestSeeds() {
		f.Add(seed.method, seed.host, seed.target, seed.headers, seed.body)
	}
	f.Fuzz(func(t *testing.T, method, host, target, headers, body string) {
		once.Do(func() {
			made, err := newFuzzState(t)
			if err != nil {
				t.Fatal(err)
			}
			state = made
		})
		if state == nil {
			t.Fatal("there is no state to ask of")
		}
		target, body = state.names.Replace(target), state.names.Replace(body)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, stateFile), state.log, 0o600); err != nil {
			t.Fatal(err)
		}
		// Once more after a restart: what the request did must be readable.
		for range 2 {
			r := fuzzRequest(method, host, target, headers, body)
			if r == nil {
				return
			}
			if len(r.Header["Authorization"]) == 0 {
				r.Header.Set("Authorization", "Bearer "+state.graph)
				if strings.HasPrefix(strings.ToLower(host), "management.") || strings.HasPrefix(strings.ToLower(r.URL.Path), "/subscriptions") {
					r.Header.Set("Authorization", "Bearer "+state.arm)
				}
			}
			sim, err := entrasim.New(fuzzConfig(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			out := httptest.NewRecorder()
			sim.Handler().ServeHTTP(out, r)
			entries := sim.Journal(entrasim.Query{Kinds: []string{entrasim.KindRequest}})
			if len(entries) == 0 {
				t.Fatal("the request is not in the journal")
			}
			judgeAnswer(t, entries[len(entries)-1], out)
			if err := sim.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// fuzzRequest is a request as net/http would hand it to a handler, nil when it
// would not.
func fuzzRequest(method, host, target, headers, body string) *http.Request {
	head := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n"
	if headers != "" {
		head += strings.ReplaceAll(headers, "\n", "\r\n") + "\r\n"
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + "\r\n")))
	if err != nil {
		return nil
	}
	r.Body, r.RemoteAddr = io.NopCloser(strings.NewReader(body)), "127.0.0.1:1"
	return r
}

// judgeAnswer wants the shape that the plane's clients read.
func judgeAnswer(t *testing.T, e entrasim.Entry, out *httptest.ResponseRecorder) {
	t.Helper()
	text, kind := out.Body.Bytes(), out.Header().Get("Content-Type")
	if out.Code < 200 || out.Code >= 500 {
		t.Fatalf("%s answered %d %s", e.Operation, out.Code, text)
	}
	if len(text) == 0 {
		if out.Code >= 400 && e.Method != http.MethodHead {
			t.Errorf("%s answered %d and nothing", e.Operation, out.Code)
		}
		return
	}
	if strings.HasPrefix(kind, "text/html") {
		if e.Operation != "login.adminconsent" || !strings.Contains(string(text), "</html>") {
			t.Errorf("%s answered %d with a page: %s", e.Operation, out.Code, text)
		}
		return
	}
	if !strings.HasPrefix(kind, "application/json") || !json.Valid(text) || e.Operation == "login.adminconsent" {
		t.Errorf("%s answered %d %s: %s", e.Operation, out.Code, kind, text)
		return
	}
	if out.Code < 400 {
		return
	}
	var planes struct {
		Error struct {
			Code, Message string
			InnerError    struct {
				Date            string
				RequestID       string `json:"request-id"`
				ClientRequestID string `json:"client-request-id"`
			}
		}
	}
	var login struct {
		Error       string
		Description string `json:"error_description"`
		Codes       []int  `json:"error_codes"`
		TraceID     string `json:"trace_id"`
	}
	switch e.Plane {
	case entrasim.PlaneLogin:
		if err := json.Unmarshal(text, &login); err != nil || login.Error == "" || !strings.HasPrefix(login.Description, "AADSTS") || len(login.Codes) != 1 || login.TraceID == "" {
			t.Errorf("%s answered %d %s", e.Operation, out.Code, text)
		}
	case entrasim.PlaneGraph:
		err := json.Unmarshal(text, &planes)
		inner := planes.Error.InnerError
		if err != nil || planes.Error.Code == "" || planes.Error.Message == "" || inner.Date == "" || inner.RequestID == "" || inner.ClientRequestID == "" {
			t.Errorf("%s answered %d %s", e.Operation, out.Code, text)
		}
	case entrasim.PlaneARM, entrasim.PlaneAdmin:
		if err := json.Unmarshal(text, &planes); err != nil || planes.Error.Code == "" || planes.Error.Message == "" {
			t.Errorf("%s answered %d %s", e.Operation, out.Code, text)
		}
	default:
		t.Errorf("the request was of the plane %q", e.Plane)
	}
}

type requestSeed struct{ method, host, target, headers, body string }

// requestSeeds ask every endpoint there is.
func requestSeeds() []requestSeed {
	const graph, arm = "graph.microsoft.com", "management.azure.com"
	form, upsert := "Content-Type: application/x-www-form-urlencoded", "Prefer: create-if-missing"
	arms := "?api-version=2022-04-01"
	token := "grant_type=client_credentials&client_id=APPID&client_secret=SECRET&"
	consent := "?client_id=APPID&redirect_uri=" + url.QueryEscape(callback) + "&state=x"
	seeds := []requestSeed{
		{"POST", "login.microsoftonline.com", "/" + homeID + "/oauth2/v2.0/token", form, token + "scope=" + url.QueryEscape(armScope)},
		{"POST", "127.0.0.1", "/" + homeID + "/oauth2/token", form, token + "resource=https://graph.microsoft.com"},
		{"POST", "127.0.0.1", "/" + homeID + "/oauth2/v2.0/token", form, "grant_type=client_credentials&client_id=APPID&scope=" + url.QueryEscape(armScope) +
			"&client_assertion_type=" + url.QueryEscape("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") + "&client_assertion=TOKEN"},
		{"POST", "127.0.0.1", "/" + homeID + "/oauth2/v2.0/token", form + "\nAuthorization: Basic eDp5", "grant_type=client_credentials&scope=x"},
		{"GET", "127.0.0.1", "/" + homeID + "/v2.0/.well-known/openid-configuration", "", ""},
		{"GET", "127.0.0.1", "/common/discovery/v2.0/keys", "", ""},
		{"GET", "127.0.0.1", "/common/discovery/instance?api-version=1.1&authorization_endpoint=https://127.0.0.1/common/oauth2/v2.0/authorize", "", ""},
		{"GET", "127.0.0.1", "/organizations/v2.0/adminconsent" + consent + "&scope=x", "", ""},
		{"GET", "127.0.0.1", "/common/adminconsent" + consent, "", ""},
		{"POST", "127.0.0.1", "/" + homeID + "/v2.0/adminconsent" + consent + "&scope=x", form, "username=admin@home.example.com&decision=accept"},
		{"POST", "127.0.0.1", "/" + homeID + "/adminconsent" + consent, form, "username=admin@home.example.com&decision=cancel"},
		{"POST", graph, "/v1.0/applications", "", appBody},
		{"PATCH", graph, "/v1.0/applications(uniqueName='a''b')", upsert, appBody},
		{"GET", graph, "/v1.0/applications?$filter=startswith(displayName,'x')&$top=1&$select=id&$count=true", "ConsistencyLevel: eventual", ""},
		{"PATCH", graph, "/v1.0/applications(uniqueName='one')", "", `{"keyCredentials":[{"type":"AsymmetricX509Cert","usage":"Verify","key":"AAAA","keyId":null}],"web":{"redirectUris":["y"]}}`},
		{"POST", graph, "/v1.0/applications/OBJECT/addPassword", "", `{"passwordCredential":{"displayName":"x","endDateTime":"2099-01-01T00:00:00Z"}}`},
		{"POST", graph, "/v1.0/applications(appId='APPID')/removePassword", "", `{"keyId":"KEYID"}`},
		{"POST", graph, "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials", "", federation("apply", issuerURL, "other", exchange)},
		{"PATCH", graph, "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials(name='a-b')", upsert, federation("", issuerURL, "other", exchange)},
		{"PATCH", graph, "/v1.0/applications/OBJECT/federatedIdentityCredentials/FEDERATED", "", `{"description":"x"}`},
		{"POST", graph, "/v1.0/servicePrincipals", "", `{"appId":"APPID","tags":["x"]}`},
		{"PATCH", graph, "/v1.0/servicePrincipals/PRINCIPAL", "", `{"accountEnabled":false}`},
		{"POST", graph, "/v1.0/directory/deletedItems/BINNED/restore", "", ""},
		{"POST", graph, "/v1.0/servicePrincipals/PRINCIPAL/addPassword", "", `{}`},
		{"POST", graph, "/v1.0/servicePrincipals(appId='APPID')/removePassword", "", `{"keyId":"KEYID"}`},
		{"PATCH", graph, "/v1.0/servicePrincipals/PRINCIPAL", "", `{"keyCredentials":[],"tokenEncryptionKeyId":null}`},
		{"PATCH", graph, "/v1.0/policies/defaultAppManagementPolicy", "", `{"isEnabled":true,"applicationRestrictions":{"passwordCredentials":[{"restrictionType":"passwordLifetime","maxLifetime":"P4DT12H30M5S","state":"enabled","restrictForAppsCreatedAfterDateTime":"2019-10-19T10:37:00Z"}]}}`},
		{"POST", graph, "/v1.0/policies/appManagementPolicies", "", `{"displayName":"x","description":"y","restrictions":{"keyCredentials":[{"restrictionType":"asymmetricKeyLifetime","maxLifetime":"P90D"}]}}`},
		{"PATCH", graph, "/v1.0/policies/appManagementPolicies('POLICY')", "", `{"restrictions":null}`},
		{"POST", graph, "/v1.0/applications/OBJECT/appManagementPolicies/$ref", "", `{"@odata.id":"https://graph.microsoft.com/v1.0/policies/appManagementPolicies/POLICY"}`},
		{"DELETE", graph, "/v1.0/servicePrincipals/PRINCIPAL/appManagementPolicies/POLICY/$ref", "", ""},
		{"POST", graph, "/v1.0/applications", "", `{"displayName":"x","owners@odata.bind":["https://graph.microsoft.com/v1.0/directoryObjects/PRINCIPAL"]}`},
		{"POST", graph, "/v1.0/applications/OBJECT/owners/$ref", "", `{"@odata.id":"https://graph.microsoft.com/v1.0/directoryObjects/PRINCIPAL"}`},
		{"DELETE", graph, "/v1.0/applications/OBJECT/owners/PLATFORM/$ref", "", ""},
		{"POST", graph, "/v1.0/servicePrincipals(appId='APPID')/owners/$ref", "", `{"@odata.id":"https://graph.microsoft.com/v1.0/servicePrincipals/PRINCIPAL"}`},
		{"DELETE", graph, "/v1.0/servicePrincipals/PRINCIPAL/owners/PLATFORM/$ref", "", ""},
		{"POST", graph, "/v1.0/$batch", "", `{"requests":[{"id":"1","method":"GET","url":"/organization"},{"id":"2","method":"POST","url":"applications/OBJECT/addPassword?x","dependsOn":["1"],"headers":{"Content-Type":"application/json"},"body":{}},{"id":"3","method":"DELETE","url":"/$batch/%41"}]}`},
		{"GET", arm, "/subscriptions" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/resourcegroups" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleDefinitions/" + reader + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleAssignments/ASSIGNMENT" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/permissions" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleDefinitions" + arms + "&$filter=roleName+eq+'Reader'", "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleAssignments" + arms + "&$filter=atScope()", "", ""},
		{"PUT", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleAssignments/" + customerID + arms, "",
			`{"properties":{"roleDefinitionId":"` + reader + `","principalId":"PRINCIPAL","principalType":"ServicePrincipal"}}`},
		{"DELETE", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/roleAssignments/ASSIGNMENT" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Authorization/denyAssignments" + arms + "&$filter=atScope()+and+assignedTo('" + homeID + "')", "", ""},
		{"GET", arm, "/providers/Microsoft.Management/managementGroups/" + customerID + "/providers/Microsoft.Authorization/roleAssignments" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers" + arms, "", ""},
		{"GET", arm, "/subscriptions/" + subID + "/providers/Microsoft.Compute" + arms, "", ""},
		{"POST", arm, "/subscriptions/" + subID + "/providers/microsoft.compute/register" + arms, "", ""},
		{"PUT", arm, "/subscriptions/" + subID + "/resourcegroups/two" + arms, "", `{"location":"westeurope","tags":{"a":"b"}}`},
		{"PATCH", arm, "/subscriptions/" + subID + "/resourcegroups/one" + arms, "", `{"tags":null,"managedBy":"x"}`},
	}
	for _, method := range []string{"GET", "HEAD", "DELETE"} {
		seeds = append(seeds, requestSeed{method, arm, "/subscriptions/" + subID + "/resourcegroups/one" + arms, "", ""})
	}
	for _, path := range []string{
		"applications", "applications/OBJECT", "applications(appId='APPID')", "applications/OBJECT/federatedIdentityCredentials",
		"applications/OBJECT/federatedIdentityCredentials/FEDERATED", "directory/deletedItems/microsoft.graph.application", "directory/deletedItems/BINNED",
		"servicePrincipals", "servicePrincipals/PRINCIPAL", "servicePrincipals(appId='APPID')", "organization", "organization/" + homeID,
		"policies/defaultAppManagementPolicy", "policies/appManagementPolicies", "policies/appManagementPolicies/POLICY", "policies/appManagementPolicies/POLICY/appliesTo",
		"applications/OBJECT/appManagementPolicies", "servicePrincipals/PRINCIPAL/appManagementPolicies",
		"applications/OBJECT/owners", "servicePrincipals/PRINCIPAL/owners",
	} {
		seeds = append(seeds, requestSeed{"GET", graph, "/v1.0/" + path, "", ""}, requestSeed{"DELETE", graph, "/v1.0/" + path, "", ""})
	}
	for _, path := range []string{
		"", "/tenants", "/tenants/" + homeID + "/people", "/tenants/" + homeID + "/subscriptions", "/principals?tenant=" + homeID + "&clientId=APPID", "/faults",
		"/journal?kind=password.added&limit=3&since=2020-01-01T00:00:00Z", "/secrets?tenant=" + homeID + "&clientId=APPID&keyId=KEYID",
		"/tenants/" + homeID + "/quota", "/credentials?clientId=APPID&at=2030-01-01T00:00:00Z", "/writes?clientId=APPID&since=2020-01-01T00:00:00Z",
	} {
		seeds = append(seeds, requestSeed{"GET", "127.0.0.1", "/admin" + path, "", ""})
	}
	for path, body := range map[string]string{
		"tenants": `{"displayName":"x","domain":"x.example.com","verified":true}`, "people": `{"tenant":"` + homeID + `","admin":true}`,
		"subscriptions": `{"tenant":"` + homeID + `"}`, "platforms": `{"tenant":"` + homeID + `"}`,
		"consents":         `{"tenant":"` + homeID + `","clientId":"APPID","redirectUri":"` + callback + `","userName":"admin@home.example.com","v1":true}`,
		"principals":       `{"tenant":"` + homeID + `","clientId":"APPID","accountEnabled":false}`,
		"roleAssignments":  `{"scope":"` + scope + `","principalId":"PRINCIPAL","role":"Reader"}`,
		"managementGroups": `{"tenant":"` + homeID + `","id":"corp"}`,
		"denyAssignments":  `{"tenant":"` + homeID + `","scope":"` + scope + `","actions":["*"],"principals":["PRINCIPAL"]}`,
		"faults":           `{"operation":"graph.*","effect":{"code":"AADSTS650052","cutBody":true,"delay":"1ms"}}`,
		"signInBlocks":     `{"tenant":"` + homeID + `","clientId":"APPID","code":"53003"}`,
		"quotas":           `{"tenant":"` + homeID + `","objects":3}`, "passwordPolicies": `{"tenant":"` + homeID + `","maxLifetime":"720h"}`,
		"secretKeys": `{"clientId":"APPID","secret":"SECRET"}`, "tokens": `{"token":"TOKEN"}`,
	} {
		seeds = append(seeds, requestSeed{"POST", "127.0.0.1", "/admin/" + path, "", body})
	}
	return append(seeds, requestSeed{"DELETE", "127.0.0.1", "/admin/faults/x", "", ""}, requestSeed{"DELETE", "127.0.0.1", "/admin/roleAssignments?id=x", "", ""})
}
