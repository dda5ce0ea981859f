package entrasim_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// FuzzHandler sends any request, with a token that the planes accept, and wants
// an answer in the plane's own shape and never a server's failure.
func FuzzHandler(f *testing.F) {
	f.Add("POST", "/"+customerID+"/oauth2/v2.0/token", "grant_type=client_credentials&client_id=x&client_secret=y&scope=z", "")
	f.Add("GET", "/organizations/v2.0/adminconsent?client_id=x&scope=y&redirect_uri=z", "", "")
	f.Add("GET", "/common/adminconsent?client_id=x&redirect_uri=z", "", "")
	f.Add("POST", "/"+homeID+"/oauth2/token", "grant_type=client_credentials&client_id=APP&client_secret=x&resource=https://graph.microsoft.com", "")
	f.Add("PATCH", "/v1.0/applications(uniqueName='a''b')", `{"displayName":"x","web":{"redirectUris":["y"]}}`, "create-if-missing")
	f.Add("GET", "/v1.0/applications?$filter=startswith(displayName,'x')&$top=1&$select=id&$count=true", "", "")
	f.Add("POST", "/v1.0/applications/"+subID+"/addPassword", `{"passwordCredential":{}}`, "")
	f.Add("POST", "/"+homeID+"/oauth2/v2.0/token", "grant_type=client_credentials&client_id=APP&scope="+url.QueryEscape(armScope)+
		"&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_assertion=e30.e30.", "")
	f.Add("PATCH", "/v1.0/applications(uniqueName='one')", `{"keyCredentials":[{"type":"AsymmetricX509Cert","usage":"Verify","key":"AAAA","keyId":null}]}`, "")
	f.Add("POST", "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials", federation("plan", issuerURL, subject, exchange), "")
	f.Add("PATCH", "/v1.0/applications(uniqueName='one')/federatedIdentityCredentials(name='a-b')", federation("", issuerURL, subject, exchange), "create-if-missing")
	f.Add("PUT", "/subscriptions/"+subID+"/resourcegroups/x?api-version=1", `{"location":"y","tags":{"a":"b"}}`, "")
	f.Add("GET", "/subscriptions/"+subID+"/providers/Microsoft.Authorization/roleAssignments?api-version=1&$filter=atScope()", "", "")
	f.Add("POST", "/admin/faults", `{"effect":{"delay":"1ms"}}`, "")
	f.Add("POST", "/admin/faults", `{"effect":{"code":"AADSTS650052","cutBody":true}}`, "")
	f.Add("POST", "/admin/signInBlocks", `{"tenant":"`+homeID+`","clientId":"APP","code":"53003"}`, "")
	f.Add("POST", "/"+homeID+"/adminconsent?client_id=APP&redirect_uri="+callback, "username=x&decision=accept", "")
	f.Fuzz(func(t *testing.T, method, target, body, prefer string) {
		where, err := url.ParseRequestURI(target)
		if err != nil || method == "" || strings.ContainsAny(method, " \t\r\n/:()<>@,;\\\"[]?={}\x00") {
			return // not a request that reaches a handler
		}
		sim, err := entrasim.New(entrasim.Config{Issuers: newIssuer(t, issuerURL)})
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
		body = strings.ReplaceAll(body, "APP", w.newApp("one").clientID)
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

// FuzzAssertion sends client assertions with any header and claims, well signed,
// to an application that trusts an issuer with any key set. Nobody gets a token
// but by the claims that the application trusts.
func FuzzAssertion(f *testing.F) {
	key, err := sharedKey()
	if err != nil {
		f.Fatal(err)
	}
	own := jwk("k1", &key.PublicKey, "")
	trusted := `{"iss":"` + issuerURL + `","sub":"` + subject + `","aud":"` + exchange + `","exp":32503680000}`
	f.Add(`{"alg":"RS256","kid":"k1"}`, trusted, `{"keys":[`+own+`]}`)
	f.Add(`{"alg":"RS256","kid":null,"x5t":1}`, `{"iss":"`+subID+`","sub":"`+subID+`","aud":["x"],"exp":1e300,"nbf":-1e300}`, `{"keys":null}`)
	f.Add(`{"alg":"PS256","x5t#S256":"====","crit":[]}`, `{"iss":"`+subID+`","sub":"`+subID+`","aud":"https://login.microsoftonline.com","exp":"1"}`, `[]`)
	f.Add(`null`, `null`, `null`)
	f.Fuzz(func(t *testing.T, header, body, keys string) {
		issuer := newIssuer(t, issuerURL)
		issuer.keys = func() string { return keys }
		w := newWorld(t, entrasim.Config{Issuers: issuer})
		a := w.newApp("one")
		w.consent(a)
		w.federate(a, federation("plan", issuerURL, subject, exchange))
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(body, subID, a.clientID)))
		signature, err := jwt.SigningMethodRS256.Sign(signed, key)
		w.must(err)
		got := w.login(customerID, asserted(a.clientID, signed+"."+base64.RawURLEncoding.EncodeToString(signature), armScope))
		if got.status != 200 && (got.status != 400 && got.status != 401 || !strings.HasPrefix(got.text("error_description"), "AADSTS")) {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		var c struct{ Iss, Sub string }
		if got.status == 200 && (json.Unmarshal([]byte(body), &c) != nil || c.Iss != issuerURL || c.Sub != subject) {
			t.Fatalf("a token for %s", body)
		}
	})
}
