package entrasim_test

import (
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestLogin_TokenHasTheDocumentedClaims(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	got := w.login(customerID, credentials(a.clientID, a.secret, armScope))
	if got.status != http.StatusOK || got.text("token_type") != "Bearer" {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	c := claims(t, got.text("access_token"))
	want := map[string]any{
		"aud": "https://management.azure.com", "iss": "https://sts.windows.net/" + customerID + "/", "idp": "https://sts.windows.net/" + customerID + "/",
		"appid": a.clientID, "appidacr": "1", "oid": p.ID, "sub": p.ID, "tid": customerID, "ver": "1.0",
	}
	for k, v := range want {
		if c[k] != v {
			t.Errorf("%s is %v, want %v", k, c[k], v)
		}
	}
	if _, has := c["roles"]; has {
		t.Error("a principal without application permissions has a roles claim")
	}
	life := c["exp"].(float64) - c["iat"].(float64)
	if life < 3600 || life > 5400 || got.at("expires_in") != life-1 || got.at("ext_expires_in") != life-1 {
		t.Errorf("life %v, expires_in %v", life, got.at("expires_in"))
	}
	if roles := claims(t, w.graphToken())["roles"].([]any); len(roles) != 1 || roles[0] != "Application.ReadWrite.OwnedBy" {
		t.Errorf("roles %v", roles)
	}
	double := claims(t, w.token(customerID, a.clientID, a.secret, "https://management.core.windows.net//.default"))
	if double["aud"] != "https://management.core.windows.net/" {
		t.Errorf("aud %v is not as asked", double["aud"])
	}
}

func TestLogin_ByBasicAuthenticationAndDomain(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	r, err := http.NewRequest(http.MethodPost, "https://login.microsoftonline.com/customer.example.com/oauth2/v2.0/token",
		strings.NewReader(url.Values{"grant_type": {"client_credentials"}, "scope": {armScope}}.Encode()))
	w.must(err)
	// What need not be encoded may be.
	r.SetBasicAuth(strings.ReplaceAll(a.clientID, "-", "%2D"), strings.ReplaceAll(a.secret, "~", "%7E"))
	resp, err := w.client.Do(r)
	w.must(err)
	w.must(resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
}

func TestLogin_Errors(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	bare := w.newSecret(w.newApp("bare"))
	disabled, _ := w.consented("disabled")
	w.must(w.sim.EnablePrincipal(customerID, disabled.clientID, false))
	removed, _ := w.consented("removed")
	w.must(w.sim.RemovePrincipal(customerID, removed.clientID))
	good := credentials(a.clientID, a.secret, armScope)
	with := func(pairs ...string) url.Values {
		form := maps.Clone(good)
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i+1] == "" {
				delete(form, pairs[i])
				continue
			}
			form[pairs[i]] = []string{pairs[i+1]}
		}
		return form
	}
	for _, c := range []struct {
		name, tenant string
		form         url.Values
		status       int
		oauth        string
		code         float64
	}{
		{"no grant type", customerID, with("grant_type", ""), 400, "invalid_request", 900144},
		{"no client", customerID, with("client_id", ""), 400, "invalid_request", 900144},
		{"no scope", customerID, with("scope", ""), 400, "invalid_request", 900144},
		{"no secret", customerID, with("client_secret", ""), 401, "invalid_client", 7000216},
		{"another grant", customerID, with("grant_type", "password"), 400, "unsupported_grant_type", 70003},
		{"unknown tenant", "44444444-4444-4444-8444-444444444444", good, 400, "invalid_request", 90002},
		{"unknown application", customerID, with("client_id", homeID), 400, "unauthorized_client", 700016},
		{"no consent", customerID, with("client_id", bare.clientID, "client_secret", bare.secret), 400, "unauthorized_client", 700016},
		{"consent taken back", customerID, with("client_id", removed.clientID, "client_secret", removed.secret), 400, "unauthorized_client", 700016},
		{"no principal at home", homeID, with("client_id", bare.clientID, "client_secret", bare.secret), 401, "invalid_client", 7000229},
		{"no principal at home, wrong secret", homeID, with("client_id", bare.clientID), 401, "invalid_client", 7000229},
		{"principal disabled", customerID, with("client_id", disabled.clientID, "client_secret", disabled.secret), 400, "unauthorized_client", 7000112},
		{"wrong secret", customerID, with("client_secret", "x"), 401, "invalid_client", 7000215},
		{"the secret's key ID", customerID, with("client_secret", a.keyID), 401, "invalid_client", 7000215},
		{"scope without .default", customerID, with("scope", "https://management.azure.com/user_impersonation"), 400, "invalid_scope", 70011},
		{"two resources", customerID, with("scope", armScope+" "+graphScope), 400, "invalid_scope", 700022},
		{"unknown resource", customerID, with("scope", "https://elsewhere.example.com/.default"), 400, "invalid_resource", 500011},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.login(c.tenant, c.form, "client-request-id", subID)
			codes, _ := got.at("error_codes").([]any)
			if got.status != c.status || got.text("error") != c.oauth || len(codes) != 1 || codes[0] != c.code {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			for _, name := range []string{"timestamp", "trace_id", "error_uri"} {
				if got.text(name) == "" {
					t.Errorf("no %s", name)
				}
			}
			text := got.text("error_description")
			if !strings.HasPrefix(text, "AADSTS") || !strings.Contains(text, " Trace ID: "+got.text("trace_id")+" Correlation ID: "+subID+" Timestamp: ") {
				t.Errorf("description %q", text)
			}
			if got.text("correlation_id") != subID {
				t.Errorf("correlation %q", got.text("correlation_id"))
			}
		})
	}
}

func TestLogin_SecretTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one")
		start, end := time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		added := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword",
			`{"passwordCredential":{"startDateTime":"`+start.Format(time.RFC3339)+`","endDateTime":"`+end.Format(time.RFC3339)+`"}}`)
		form := credentials(a.clientID, added.text("secretText"), armScope)
		for _, step := range []struct {
			wait time.Duration
			want string
		}{{0, "AADSTS7000215"}, {time.Hour, ""}, {time.Hour, "AADSTS7000222"}} {
			time.Sleep(step.wait)
			got := w.login(customerID, form)
			code, _, _ := strings.Cut(got.text("error_description"), ":")
			if code != step.want {
				t.Errorf("after %v: got %q, want %q", step.wait, code, step.want)
			}
		}
	})
}

func TestLogin_SecretBeforePrincipalWhenAskedTo(t *testing.T) {
	w := newWorld(t, entrasim.Config{SecretBeforePrincipal: true})
	a := w.newSecret(w.newApp("one"))
	for secret, want := range map[string]string{"wrong": "AADSTS7000215", a.secret: "AADSTS7000229"} {
		got := w.login(homeID, credentials(a.clientID, secret, armScope))
		if !strings.HasPrefix(got.text("error_description"), want+":") {
			t.Errorf("want %s, got %s", want, got.body)
		}
	}
}

func TestLogin_Documents(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	base := w.sim.Endpoints().Login
	doc := w.send(http.MethodGet, base+"/customer.example.com/v2.0/.well-known/openid-configuration", "", "")
	if doc.text("issuer") != base+"/"+customerID+"/v2.0" || doc.text("token_endpoint") != base+"/"+customerID+"/oauth2/v2.0/token" {
		t.Errorf("configuration %s", doc.body)
	}
	keys := w.send(http.MethodGet, doc.text("jwks_uri"), "", "")
	if list, _ := keys.at("keys").([]any); len(list) != 1 {
		t.Errorf("keys %s", keys.body)
	}
	if got := w.send(http.MethodGet, base+"/"+subID+"/v2.0/.well-known/openid-configuration", "", ""); got.status != 400 || got.text("error") != "invalid_tenant" {
		t.Errorf("unknown tenant: %d %s", got.status, got.body)
	}
	got := w.send(http.MethodGet, base+"/common/discovery/instance?api-version=1.1&authorization_endpoint="+url.QueryEscape(base+"/"+customerID+"/oauth2/v2.0/authorize"), "", "")
	if got.text("tenant_discovery_endpoint") != base+"/"+customerID+"/v2.0/.well-known/openid-configuration" {
		t.Errorf("instance %s", got.body)
	}
	if got := w.send(http.MethodGet, base+"/common/discovery/instance?api-version=1.1&authorization_endpoint="+url.QueryEscape("https://login.example.com/common/oauth2/v2.0/authorize"), "", ""); got.status != 400 || got.text("error") != "invalid_instance" {
		t.Errorf("instance of another's: %d %s", got.status, got.body)
	}
}

func TestLogin_V1TokenIsForAResource(t *testing.T) {
	w := newWorld(t, entrasim.Config{TokenLife: entrasim.Range{Min: time.Hour, Max: time.Hour}})
	a, _ := w.consented("one")
	ask := func(path string, pairs ...string) answer {
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {a.clientID}, "client_secret": {a.secret}}
		for i := 0; i < len(pairs); i += 2 {
			form.Set(pairs[i], pairs[i+1])
		}
		return w.send(http.MethodPost, w.sim.Endpoints().Login+"/"+customerID+path, "", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	}
	got := ask("/oauth2/token", "resource", "https://management.core.windows.net/")
	c := claims(t, got.text("access_token"))
	want := map[string]any{
		"token_type": "Bearer", "expires_in": "3599", "ext_expires_in": "3599", "resource": "https://management.core.windows.net/",
		"expires_on": strconv.FormatInt(int64(c["exp"].(float64)), 10), "not_before": strconv.FormatInt(int64(c["nbf"].(float64)), 10), "access_token": got.text("access_token"),
	}
	if got.status != 200 || !maps.Equal(got.json, want) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if c["aud"] != "https://management.core.windows.net/" || c["appidacr"] != "1" {
		t.Errorf("claims %v", c)
	}
	if byID := ask("/oauth2/token", "resource", "797f4846-ba00-4fd7-ba43-dac1f8f63013"); byID.status != 200 {
		t.Errorf("a resource by its application ID: %s", byID.body)
	}
	for _, c := range []struct {
		name string
		got  answer
		code string
	}{
		{"v1 without resource", ask("/oauth2/token", "scope", armScope), "AADSTS900144"},
		{"v1 with an unknown resource", ask("/oauth2/token", "resource", "https://elsewhere.example.com"), "AADSTS500011"},
		{"v1 with a wrong secret", ask("/oauth2/token", "resource", "https://graph.microsoft.com", "client_secret", "x"), "AADSTS7000215"},
		{"v2 with a resource", ask("/oauth2/v2.0/token", "resource", "https://graph.microsoft.com", "scope", graphScope), "AADSTS901002"},
	} {
		if !strings.HasPrefix(c.got.text("error_description"), c.code+":") {
			t.Errorf("%s: %d %s, want %s", c.name, c.got.status, c.got.body, c.code)
		}
	}
}
