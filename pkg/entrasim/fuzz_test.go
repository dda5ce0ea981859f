package entrasim_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

// FuzzHandler sends any request, with a token that the planes accept, and wants
// an answer in the plane's own shape and never a server's failure.
func FuzzHandler(f *testing.F) {
	key, err := sharedKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("POST", "/"+customerID+"/oauth2/v2.0/token", "grant_type=client_credentials&client_id=x&client_secret=y&scope=z", "")
	f.Add("GET", "/organizations/v2.0/adminconsent?client_id=x&scope=y&redirect_uri=z", "", "")
	f.Add("PATCH", "/v1.0/applications(uniqueName='a''b')", `{"displayName":"x","web":{"redirectUris":["y"]}}`, "create-if-missing")
	f.Add("GET", "/v1.0/applications?$filter=startswith(displayName,'x')&$top=1&$select=id&$count=true", "", "")
	f.Add("POST", "/v1.0/applications/"+subID+"/addPassword", `{"passwordCredential":{}}`, "")
	f.Add("POST", "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials", federation("plan", issuerURL, subject, exchange), "")
	f.Add("PATCH", "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials(name='a-b')", federation("", issuerURL, subject, exchange), "create-if-missing")
	f.Add("PUT", "/subscriptions/"+subID+"/resourcegroups/x?api-version=1", `{"location":"y","tags":{"a":"b"}}`, "")
	f.Add("GET", "/subscriptions/"+subID+"/providers/Microsoft.Authorization/roleAssignments?api-version=1&$filter=atScope()", "", "")
	f.Add("POST", "/admin/faults", `{"effect":{"delay":"1ms"}}`, "")
	f.Fuzz(func(t *testing.T, method, target, body, prefer string) {
		where, err := url.ParseRequestURI(target)
		if err != nil || method == "" || strings.ContainsAny(method, " \t\r\n/:()<>@,;\\\"[]?={}\x00") {
			return // not a request that reaches a handler
		}
		sim, err := entrasim.New(entrasim.Config{SigningKey: key})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{T: t, sim: sim, client: &http.Client{Transport: sim.Transport()}}
		for _, id := range []string{homeID, customerID} {
			_, err := sim.CreateTenant(entrasim.NewTenant{ID: id})
			w.must(err)
		}
		_, err = sim.CreateSubscription(entrasim.Subscription{ID: subID, Tenant: homeID})
		w.must(err)
		w.platform, err = sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
		w.must(err)
		w.assign(w.platform.PrincipalID, "Owner", scope)
		w.newApp("one")
		bearer := w.graphToken()
		if strings.HasPrefix(where.Path, "/subscriptions") {
			bearer = w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, armScope)
		}
		r := httptest.NewRequest(http.MethodGet, "/", strings.NewReader(body))
		r.Method, r.URL, r.Host = method, where, "127.0.0.1"
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("Authorization", "Bearer "+bearer)
		r.Header.Set("Prefer", prefer)
		out := httptest.NewRecorder()
		sim.Handler().ServeHTTP(out, r)
		if out.Code >= 500 || out.Code < 200 {
			t.Fatalf("%d %s", out.Code, out.Body)
		}
		kind := out.Header().Get("Content-Type")
		switch {
		case strings.HasPrefix(kind, "application/json"):
			if !json.Valid(out.Body.Bytes()) {
				t.Errorf("not JSON: %s", out.Body)
			}
		case kind == "" && out.Body.Len() == 0, strings.HasPrefix(kind, "text/html"):
		default:
			t.Errorf("%d with %q: %s", out.Code, kind, out.Body)
		}
	})
}
