package runner_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-azure-sdk/sdk/auth"
	"github.com/hashicorp/go-azure-sdk/sdk/environments"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/runner/runnertest"
)

// endpoint is a world with a loopback endpoint, on real sockets.
type endpoint struct {
	*world
	loopback *runner.Loopback
	env      map[string]string
}

// newEndpoint starts one whose runner holds generation 1 for a client ID.
func newEndpoint(t *testing.T, client string, access typev1.Access) *endpoint {
	t.Helper()
	return newWorld(t).serve(with(credential(1), func(c *vaultv1.Credential) { c.ClientId, c.Access = client, access }))
}

// serve has the world's runner, which gets that credential first, serve its endpoint.
func (w *world) serve(first *vaultv1.Credential) *endpoint {
	w.t.Helper()
	e := &endpoint{world: w}
	var err error
	e.loopback, err = runner.Listen(w.t.Context(), runner.LoopbackConfig{
		Runner: e.runner, Wait: 200 * time.Millisecond, Log: obs.NewLogger(e.log, slog.LevelDebug, obs.FormatText),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	served := make(chan error, 1)
	go func() { served <- e.loopback.Run(ctx) }()
	w.t.Cleanup(func() {
		e.stop()
		cancel()
		if err := <-served; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
	e.s = e.vault.Accept(w.t)
	e.s.Send(first)
	held, err := e.runner.Credential(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	e.env = map[string]string{}
	for _, entry := range e.loopback.Environment(nil, held) {
		name, value, _ := strings.Cut(entry, "=")
		e.env[name] = value
	}
	return e
}

// ask sends one request and returns the status and the answer.
func (e *endpoint) ask(change func(*http.Request)) (*http.Response, map[string]string) {
	e.t.Helper()
	return e.askBy(&http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, change)
}

func (e *endpoint) askBy(client *http.Client, change func(*http.Request)) (*http.Response, map[string]string) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, e.env["IDENTITY_ENDPOINT"], http.NoBody)
	if err != nil {
		e.t.Fatal(err)
	}
	req.URL.RawQuery = url.Values{"api-version": {"2019-08-01"}, "resource": {resourceManager}}.Encode()
	req.Header.Set("X-IDENTITY-HEADER", e.env["IDENTITY_HEADER"])
	if change != nil {
		change(req)
	}
	resp, err := client.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	body := map[string]string{}
	if err := json.Unmarshal(raw, &body); err != nil && len(raw) > 0 && resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		e.t.Errorf("not an object of strings: %s", raw)
	}
	return resp, body
}

// toVM turns a request into the virtual-machine shape, as go-azure-sdk sends it.
func (e *endpoint) toVM(r *http.Request) {
	u, err := url.Parse(e.env["ARM_MSI_ENDPOINT"])
	if err != nil {
		e.t.Fatal(err)
	}
	u.RawQuery = url.Values{"api-version": {"2018-02-01"}, "resource": {resourceManager}}.Encode()
	r.URL = u
	r.Header = http.Header{"Metadata": {"true"}}
}

func TestLoopback_Answers(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	for name, change := range map[string]func(*http.Request){
		"app service":                        nil,
		"app service with its client id":     func(r *http.Request) { r.URL.RawQuery += "&client_id=" + strings.ToUpper(clientID) },
		"virtual machine":                    e.toVM,
		"virtual machine with the secret":    func(r *http.Request) { e.toVM(r); r.Header["x-ms-identity"] = []string{e.env["IDENTITY_HEADER"]} },
		"virtual machine with the newer one": func(r *http.Request) { e.toVM(r); r.Header.Set("X-IDENTITY-HEADER", e.env["IDENTITY_HEADER"]) },
		"virtual machine with another version": func(r *http.Request) {
			e.toVM(r)
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "2018-02-01", "2019-08-01", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := time.Now()
			resp, body := e.ask(change)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("got %s: %v", resp.Status, body)
			}
			in, _ := strconv.Atoi(body["expires_in"])
			on, _ := strconv.ParseInt(body["expires_on"], 10, 64)
			if in < 3500 || in > 3600 || on < before.Unix()+3500 || on > before.Unix()+3700 {
				t.Errorf("expires in %d, on %d (now %d)", in, on, before.Unix())
			}
			for _, volatile := range []string{"expires_in", "expires_on", "not_before"} {
				if body[volatile] == "" {
					t.Errorf("no %s", volatile)
				}
				delete(body, volatile)
			}
			want := map[string]string{"access_token": tokenCanary + "1", "client_id": clientID, "resource": resourceManager, "token_type": "Bearer"}
			if d := cmp.Diff(want, body); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLoopback_Refuses(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	query := func(values url.Values) func(*http.Request) {
		return func(r *http.Request) { r.URL.RawQuery = values.Encode() }
	}
	tests := []struct {
		name   string
		status int
		change func(*http.Request)
	}{
		{"no secret", 401, func(r *http.Request) { r.Header.Del("X-IDENTITY-HEADER") }},
		{"a wrong secret", 401, func(r *http.Request) { r.Header.Set("X-IDENTITY-HEADER", "guess") }},
		{"an empty secret", 401, func(r *http.Request) { r.Header.Set("X-IDENTITY-HEADER", "") }},
		{"a second, wrong secret", 401, func(r *http.Request) { r.Header.Add("X-IDENTITY-HEADER", "guess") }},
		{"the secret in the query alone", 401, func(r *http.Request) {
			r.Header.Del("X-IDENTITY-HEADER")
			r.URL.RawQuery += "&secret=" + e.env["IDENTITY_HEADER"]
		}},
		{"no metadata header", 400, func(r *http.Request) { e.toVM(r); r.Header.Del("Metadata") }},
		{"a wrong secret on a virtual machine", 401, func(r *http.Request) { e.toVM(r); r.Header.Set("x-ms-identity", "guess") }},
		{"the name localhost", 403, func(r *http.Request) { r.Host = "localhost:" + r.URL.Port() }},
		{"a name that leads here", 403, func(r *http.Request) { r.Host = "attacker.example:" + r.URL.Port() }},
		{"no port", 403, func(r *http.Request) { r.Host = "127.0.0.1" }},
		{"a page", 403, func(r *http.Request) { r.Header.Set("Origin", "https://attacker.example") }},
		{"a proxy", 403, func(r *http.Request) { r.Header.Set("X-Forwarded-For", "10.0.0.1") }},
		{"POST", 405, func(r *http.Request) { r.Method = http.MethodPost }},
		{"OPTIONS", 405, func(r *http.Request) { r.Method = http.MethodOptions }},
		{"a body", 400, func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), 1 }},
		{"another path", 404, func(r *http.Request) { r.URL.Path = "/" }},
		{"a path below", 404, func(r *http.Request) { r.URL.Path += "/" }},
		{"no version", 400, query(url.Values{"resource": {resourceManager}})},
		{"an unknown version", 400, query(url.Values{"api-version": {"2017-09-01"}, "resource": {resourceManager}})},
		{"no resource", 400, query(url.Values{"api-version": {"2019-08-01"}})},
		{"two resources", 400, query(url.Values{"api-version": {"2019-08-01"}, "resource": {resourceManager, resourceManager}})},
		{"a resource that is none", 400, query(url.Values{"api-version": {"2019-08-01"}, "resource": {"file:///etc/passwd"}})},
		{"another client id", 400, func(r *http.Request) { r.URL.RawQuery += "&client_id=99999999-2222-3333-4444-555555555555" }},
		{"an object id", 400, func(r *http.Request) { r.URL.RawQuery += "&object_id=" + clientID }},
		{"a malformed query", 400, func(r *http.Request) { r.URL.RawQuery += "&a=%zz" }},
		{"a huge query", 400, func(r *http.Request) { r.URL.RawQuery += "&a=" + strings.Repeat("a", 4000) }},
		{"huge headers", 431, func(r *http.Request) { r.Header.Set("A", strings.Repeat("a", 64<<10)) }},
		{"an audience that is not allowed", 403, query(url.Values{"api-version": {"2019-08-01"}, "resource": {"https://vault.azure.net"}})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := e.ask(tt.change)
			if resp.StatusCode != tt.status || body["access_token"] != "" {
				t.Fatalf("got %s: %v", resp.Status, body)
			}
			if tt.status != 431 && (body["error"] == "" || body["error_description"] == "") {
				t.Errorf("no error in %v", body)
			}
			for _, v := range append(slicesOf(resp.Header), body["error_description"]) {
				if strings.Contains(v, e.env["IDENTITY_HEADER"]) {
					t.Errorf("the secret came back: %s", v)
				}
			}
		})
	}
	if strings.Contains(e.log.String(), e.env["IDENTITY_HEADER"]) {
		t.Error("the secret is in the log")
	}
}

func slicesOf(h http.Header) []string {
	var all []string
	for _, v := range h {
		all = append(all, v...)
	}
	return all
}

func TestLoopback_AnotherAudience(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	e.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return fetched(req, "kv", time.Hour), nil
	})
	resp, body := e.ask(func(r *http.Request) {
		r.URL.RawQuery = url.Values{"api-version": {"2019-08-01"}, "resource": {"https://vault.azure.net/"}}.Encode()
	})
	if resp.StatusCode != 200 || body["access_token"] != tokenCanary+"kv" || body["resource"] != "https://vault.azure.net/" {
		t.Errorf("got %s: %v", resp.Status, body)
	}
}

func TestLoopback_NotNow(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	e.vault.OnFetch(func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return nil, status.Error(codes.Unavailable, "down")
	})
	resp, body := e.ask(func(r *http.Request) {
		r.URL.RawQuery = url.Values{"api-version": {"2019-08-01"}, "resource": {"https://vault.azure.net"}}.Encode()
	})
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || body["error"] != "temporarily_unavailable" {
		t.Errorf("got %s, retry after %q: %v", resp.Status, resp.Header.Get("Retry-After"), body)
	}
}

func TestLoopback_RefusesAfterTheEnd(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	e.s.End(vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED))
	<-e.runner.Done()
	resp, body := e.ask(nil)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body["error_description"], "GRANT_REVOKED") {
		t.Errorf("got %s: %v", resp.Status, body)
	}
}

// The real SDK, as a child would use it: nothing but the environment.
func TestLoopback_Azidentity(t *testing.T) {
	const client = "22222222-2222-3333-4444-555555555555"
	e := newEndpoint(t, client, typev1.Access_ACCESS_READ)
	e.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return with(fetched(req, "kv", time.Hour), func(c *vaultv1.Credential) { c.ClientId = client }), nil
	})
	for name, value := range e.env {
		t.Setenv(name, value)
	}
	system, err := azidentity.NewManagedIdentityCredential(nil)
	if err != nil {
		t.Fatal(err)
	}
	user, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ClientID(client)})
	if err != nil {
		t.Fatal(err)
	}
	standard, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		t.Fatal(err)
	}
	credentials := map[string]azcore.TokenCredential{"system": system, "user": user, "default": standard}
	for name, c := range credentials {
		for scope, want := range map[string]string{
			"https://management.core.windows.net//.default": "1",
			"https://management.azure.com/.default":         "1",
			"https://vault.azure.net/.default":              "kv",
		} {
			token, err := c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{scope}})
			if err != nil || token.Token != tokenCanary+want {
				t.Errorf("%s for %s: %v", name, scope, err)
				continue
			}
			if left := time.Until(token.ExpiresOn); left < 59*time.Minute || left > time.Hour {
				t.Errorf("%s for %s: %s left", name, scope, left)
			}
		}
	}
	wrong, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ClientID("another")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resourceManager + "/.default"}}); err == nil {
		t.Error("another identity got a token")
	}
}

// The library under the azurerm provider, set up as the provider does.
func TestLoopback_GoAzureSDK(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	public := environments.AzurePublic()
	e.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
		return fetched(req, "graph", time.Hour), nil
	})
	for _, headers := range []map[string][]string{nil, {"X-IDENTITY-HEADER": {e.env["IDENTITY_HEADER"]}}} {
		credentials := auth.Credentials{
			Environment:                              *public,
			TenantID:                                 e.env["ARM_TENANT_ID"],
			ClientID:                                 e.env["ARM_CLIENT_ID"],
			EnableAuthenticatingUsingClientSecret:    true,
			EnableAuthenticatingUsingManagedIdentity: e.env["ARM_USE_MSI"] == "true",
			CustomManagedIdentityEndpoint:            e.env["ARM_MSI_ENDPOINT"],
			CustomManagedIdentityHeaders:             headers,
		}
		for want, api := range map[string]environments.Api{"1": public.ResourceManager, "graph": public.MicrosoftGraph} {
			authorizer, err := auth.NewAuthorizerFromCredentials(t.Context(), credentials, api)
			if err != nil {
				t.Fatal(err)
			}
			token, err := authorizer.Token(t.Context(), &http.Request{})
			if err != nil || token.AccessToken != tokenCanary+want || token.Expiry.IsZero() {
				t.Errorf("%s: %+v", api.Name(), err)
			}
		}
	}
}

func TestLoopback_Environment(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	base := strings.TrimSuffix(e.env["IDENTITY_ENDPOINT"], "/msi/token")
	secret := e.env["IDENTITY_HEADER"]
	if len(secret) < 32 || !strings.HasPrefix(base, "http://127.0.0.1:") {
		t.Fatalf("endpoint %s, a secret of %d", base, len(secret))
	}
	own := map[string]string{
		"ARM_TENANT_ID": "tenant", "ARM_CLIENT_ID": clientID, "ARM_SUBSCRIPTION_ID": "subscription",
		"ARM_USE_MSI": "true", "ARM_USE_CLI": "false",
		"ARM_MSI_ENDPOINT":                    base + "/metadata/identity/oauth2/token",
		"ARM_RESOURCE_PROVIDER_REGISTRATIONS": "none",
		"AZURE_TENANT_ID":                     "tenant", "AZURE_CLIENT_ID": clientID, "AZURE_SUBSCRIPTION_ID": "subscription",
		"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
		"IDENTITY_ENDPOINT":       base + "/msi/token", "IDENTITY_HEADER": secret,
		"MSI_ENDPOINT": base + "/msi/token", "MSI_SECRET": secret,
		"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
	}
	if d := cmp.Diff(own, e.env); d != "" {
		t.Fatal(d)
	}
	tests := append(environmentCases(),
		environmentCase{"proxies", []string{"NO_PROXY=a.example, 10.0.0.1"}, nil,
			map[string]string{"NO_PROXY": "a.example, 10.0.0.1,127.0.0.1", "no_proxy": "a.example, 10.0.0.1,127.0.0.1"}},
		environmentCase{"proxies with both spellings", []string{"NO_PROXY=a", "no_proxy=b,127.0.0.1"}, nil,
			map[string]string{"NO_PROXY": "a,127.0.0.1", "no_proxy": "b,127.0.0.1"}},
		environmentCase{"proxies with the grant in them", []string{"NO_PROXY=" + grantCanary, "no_proxy=b"}, nil,
			map[string]string{"NO_PROXY": "b,127.0.0.1", "no_proxy": "b,127.0.0.1"}},
		environmentCase{"no proxies at all", []string{"no_proxy=*"}, nil, map[string]string{"NO_PROXY": "*", "no_proxy": "*"}},
	)
	checkEnvironment(t, e.world, own, tests, e.loopback.Environment)
}

// environmentCase is what is inherited and what of it, and of a credential, a child is told.
type environmentCase struct {
	name      string
	inherited []string
	change    func(*runner.Credential)
	want      map[string]string // beside or instead of what a child is told anyway; "" is absent
}

// environmentCases hold for children with an endpoint and for those with a secret.
func environmentCases() []environmentCase {
	return []environmentCase{
		{"what has nothing to do with it stays", []string{"PATH=/bin", "EMPTY=", "TF_VAR_a=b=c"}, nil,
			map[string]string{"PATH": "/bin", "TF_VAR_a": "b=c"}},
		{"ours goes", []string{"PHASEKEY_GRANT_FILE=/run/grant", "PHASEKEY_VAULT=v:1", "SOMETHING=x " + grantCanary + " y"}, nil, nil},
		{"other identities go", []string{
			"ARM_CLIENT_SECRET=s", "ARM_CLIENT_ID=other", "ARM_USE_OIDC=true", "ARM_OIDC_TOKEN=t", "ARM_TENANT_ID=other", "ARM_USE_MSI=x",
			"AZURE_CLIENT_SECRET=s", "AZURE_FEDERATED_TOKEN_FILE=f", "AZURE_AUTHORITY_HOST=h", "IDENTITY_SERVER_THUMBPRINT=t",
			"IDENTITY_HEADER=h", "MSI_SECRET=s", "IMDS_ENDPOINT=i", "ARM_SOMETHING_NEW=x",
		}, nil, nil},
		{"behaviour stays", []string{"ARM_PARTNER_ID=p", "ARM_ACCESS_KEY=k"}, nil, map[string]string{"ARM_PARTNER_ID": "p", "ARM_ACCESS_KEY": "k"}},
		{"a reader never registers providers", []string{"ARM_RESOURCE_PROVIDER_REGISTRATIONS=extended"}, nil, nil},
		{"a writer does as it was told", []string{"ARM_RESOURCE_PROVIDER_REGISTRATIONS=extended"},
			func(c *runner.Credential) { c.Access = typev1.Access_ACCESS_WRITE },
			map[string]string{"ARM_RESOURCE_PROVIDER_REGISTRATIONS": "extended"}},
		{"the vault's words", nil,
			func(c *runner.Credential) {
				c.Environment = map[string]string{"ARM_ENVIRONMENT": "china", "LD_PRELOAD": "/evil.so", "PATH": "/evil"}
			},
			map[string]string{"ARM_ENVIRONMENT": "china"}},
		{"no subscription", nil, func(c *runner.Credential) { c.SubscriptionID = "" },
			map[string]string{"ARM_SUBSCRIPTION_ID": "", "AZURE_SUBSCRIPTION_ID": ""}},
	}
}

// checkEnvironment makes the environment of each case and compares it with own, changed by the case.
func checkEnvironment(t *testing.T, w *world, own map[string]string, tests []environmentCase, environment func([]string, runner.Credential) []string) {
	t.Helper()
	held, err := w.runner.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := held
			if tt.change != nil {
				tt.change(&c)
			}
			want := maps.Clone(own)
			maps.Copy(want, tt.want)
			got := map[string]string{}
			for _, entry := range environment(tt.inherited, c) {
				name, value, _ := strings.Cut(entry, "=")
				if _, twice := got[name]; twice {
					t.Errorf("%s is there twice", name)
				}
				got[name] = value
			}
			maps.DeleteFunc(want, func(_, v string) bool { return v == "" })
			maps.DeleteFunc(got, func(_, v string) bool { return v == "" })
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if s := fmt.Sprint(got); strings.Contains(s, grantCanary) || strings.Contains(s, tokenCanary) {
				t.Error("the grant or a token is in the environment")
			}
		})
	}
}

// newSecretHolder is a world whose runner holds the client secret of version 1 for a client ID.
func newSecretHolder(t *testing.T, client string) *world {
	t.Helper()
	w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1), material: typev1.Material_MATERIAL_CLIENT_SECRET}
	w.start(grantCanary)
	t.Cleanup(w.stop)
	w.vault.Accept(t).Send(with(secretCredential(1, 1), func(c *vaultv1.Credential) { c.ClientId = client }))
	return w
}

func TestRunner_ClientSecretEnvironment(t *testing.T) {
	w := newSecretHolder(t, clientID)
	own := map[string]string{
		"ARM_TENANT_ID": "tenant", "ARM_CLIENT_ID": clientID, "ARM_SUBSCRIPTION_ID": "subscription", "ARM_CLIENT_SECRET": secretCanary + "1",
		"ARM_USE_MSI": "false", "ARM_USE_CLI": "false",
		"ARM_RESOURCE_PROVIDER_REGISTRATIONS": "none",
		"AZURE_TENANT_ID":                     "tenant", "AZURE_CLIENT_ID": clientID, "AZURE_SUBSCRIPTION_ID": "subscription",
		"AZURE_CLIENT_SECRET": secretCanary + "1", "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential",
	}
	tests := append(environmentCases(),
		environmentCase{"nothing inherited", nil, nil, nil},
		environmentCase{"proxies stay", []string{"NO_PROXY=a"}, nil, map[string]string{"NO_PROXY": "a"}},
		environmentCase{"a vault cannot choose another way in", nil,
			func(c *runner.Credential) {
				c.Environment = map[string]string{"ARM_USE_MSI": "true", "ARM_CLIENT_SECRET": "other"}
			}, nil},
	)
	checkEnvironment(t, w, own, tests, w.runner.ClientSecretEnvironment)
}

// transport answers HTTP requests without a network.
type transport func(*http.Request) (*http.Response, error)

func (do transport) Do(r *http.Request) (*http.Response, error) { return do(r) }

// The real SDK, as a child would use it: nothing but the environment, and Entra ID as its transport.
func TestRunner_ClientSecretEnvironmentForAzidentity(t *testing.T) {
	const tenant = "33333333-2222-3333-4444-555555555555"
	w := newSecretHolder(t, clientID)
	held, err := w.runner.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held.TenantID = tenant
	for _, entry := range w.runner.ClientSecretEnvironment(nil, held) {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	var asked url.Values
	entra := transport(func(r *http.Request) (*http.Response, error) {
		answer := `{"token_type":"Bearer","expires_in":3600,"access_token":"answer"}`
		if strings.Contains(r.URL.Path, "openid-configuration") {
			base := "https://login.microsoftonline.com/" + tenant
			answer = fmt.Sprintf(`{"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q}`, base+"/v2.0", base+"/oauth2/v2.0/authorize", base+"/oauth2/v2.0/token")
		}
		if r.Method == http.MethodPost {
			if err := r.ParseForm(); err != nil {
				return nil, err
			}
			asked = r.PostForm
		}
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
	})
	standard, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
		ClientOptions: azcore.ClientOptions{Transport: entra}, DisableInstanceDiscovery: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := standard.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resourceManager + "/.default"}})
	if err != nil || token.Token != "answer" {
		t.Fatalf("token: %v", err)
	}
	if asked.Get("client_id") != clientID || asked.Get("client_secret") != secretCanary+"1" {
		t.Errorf("it asked in the name of %s", asked.Get("client_id"))
	}
}
