package runner_test

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/runner/runnertest"
)

// assertionCanary begins the assertions of all generations.
const assertionCanary = "assertion_canary_"

// assertion is what the vault sends as generation n to those who asked for an assertion: one for ten minutes.
func assertion(n int64) *vaultv1.Credential {
	return with(credential(n), func(c *vaultv1.Credential) {
		now := time.Now()
		c.RefreshTime, c.ExpireTime = timestamppb.New(now.Add(5*time.Minute)), timestamppb.New(now.Add(10*time.Minute))
		c.Material = &vaultv1.Credential_FederatedToken{FederatedToken: &vaultv1.FederatedToken{Token: assertionCanary + strconv.FormatInt(n, 10)}}
	})
}

func federatedWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1), material: typev1.Material_MATERIAL_FEDERATED_TOKEN}
	w.start(grantCanary)
	return w
}

func TestRunner_Assertions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := federatedWorld(t)
		defer w.stop()
		holdsAssertion := func(n int64) step {
			return step{"holds an assertion", func(w *world) {
				c, err := w.now()
				if err != nil || c.Generation != n || c.Assertion.Expose() != assertionCanary+strconv.FormatInt(n, 10) || !c.Token.IsZero() {
					w.t.Errorf("holds %d (%v), want %d", c.Generation, err, n)
				}
			}}
		}
		sendAssertion := func(n int64) step {
			return step{"send an assertion", func(w *world) { w.s.Send(assertion(n)) }}
		}
		w.walk([]step{
			accept(),
			{"the request", func(w *world) {
				if got := w.s.Request; got.GetMaterial() != typev1.Material_MATERIAL_FEDERATED_TOKEN || got.GetAudience() != "" {
					w.t.Errorf("asked for %v", got)
				}
			}},
			sendAssertion(1), holdsAssertion(1), pass(5 * time.Minute), sendAssertion(2), holdsAssertion(2), pass(5*time.Minute + time.Second), holdsAssertion(2),
			// A token is not taken for one.
			send(3), holdsAssertion(2), within(time.Second), sendAssertion(4), holdsAssertion(4),
		})
		if strings.Contains(w.log.String(), assertionCanary) {
			t.Error("an assertion is in the log")
		}
	})
}

// federatedEndpoint serves assertions, and holds one.
func federatedEndpoint(t *testing.T) *endpoint {
	t.Helper()
	return federatedWorld(t).serve(assertion(1))
}

func TestLoopback_Assertions(t *testing.T) {
	e := federatedEndpoint(t)
	for name, want := range map[string]string{
		"ARM_USE_OIDC": "true", "ARM_USE_MSI": "false", "ARM_USE_CLI": "false", "ARM_CLIENT_ID": clientID, "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
		"NO_PROXY": "127.0.0.1", "ARM_OIDC_TOKEN": "", "IDENTITY_ENDPOINT": "", "ARM_MSI_ENDPOINT": "",
	} {
		if got := e.env[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	secret := e.env["ARM_OIDC_REQUEST_TOKEN"]
	get := func(change func(*http.Request)) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.env["ARM_OIDC_REQUEST_URL"]+"?audience="+url.QueryEscape("api://AzureADTokenExchange"), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		if change != nil {
			change(req)
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(raw))
	}
	if status, body := get(nil); status != 200 || body != `{"count":18,"value":"`+assertionCanary+`1"}` {
		t.Errorf("got %d: %s", status, body)
	}
	for _, tt := range []struct {
		name   string
		status int
		change func(*http.Request)
	}{
		{"no secret", 401, func(r *http.Request) { r.Header.Del("Authorization") }},
		{"a wrong secret", 401, func(r *http.Request) { r.Header.Set("Authorization", "Bearer guess") }},
		{"the secret without its scheme", 401, func(r *http.Request) { r.Header.Set("Authorization", secret) }},
		{"two of them", 401, func(r *http.Request) { r.Header.Add("Authorization", "Bearer "+secret) }},
		{"the managed identity's header", 401, func(r *http.Request) { r.Header = http.Header{"X-Identity-Header": {secret}, "Metadata": {"true"}} }},
		{"another name for the host", 403, func(r *http.Request) { r.Host = "localhost:" + r.URL.Port() }},
		{"POST", 405, func(r *http.Request) { r.Method = http.MethodPost }},
		{"another audience", 400, func(r *http.Request) { r.URL.RawQuery = "audience=https://vault.azure.net" }},
		{"two audiences", 400, func(r *http.Request) { r.URL.RawQuery += "&audience=api://AzureADTokenExchange" }},
		{"the managed identity's path", 404, func(r *http.Request) { r.URL.Path = "/msi/token" }},
	} {
		if status, body := get(tt.change); status != tt.status || strings.Contains(body, assertionCanary) || strings.Contains(body, secret) {
			t.Errorf("%s: got %d: %s", tt.name, status, body)
		}
	}
	e.s.Send(assertion(2))
	timeout := time.After(10 * time.Second)
	for {
		if _, body := get(nil); strings.Contains(body, assertionCanary+"2") {
			break
		}
		select {
		case <-timeout:
			t.Fatal("the new assertion is not served")
		default:
		}
	}
	if strings.Contains(e.log.String(), secret) || strings.Contains(e.log.String(), assertionCanary) {
		t.Error("a secret is in the log")
	}
	// Beside tokens there are no assertions.
	tokens := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	if resp, _ := tokens.ask(func(r *http.Request) { r.URL.Path = "/oidc/token" }); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an endpoint for tokens answers %s", resp.Status)
	}
}

func TestRunner_TokenEnvironment(t *testing.T) {
	w := newWorld(t)
	defer w.stop()
	inherited := []string{"PATH=/bin", "AZURE_ACCESS_TOKEN=other", "ARM_OIDC_TOKEN=other", "PHASEKEY_GRANT_FILE=x"}
	w.vault.Accept(t).Send(credential(1))
	held, err := w.runner.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	env := w.runner.TokenEnvironment(inherited, held)
	for _, want := range []string{"PATH=/bin", "AZURE_ACCESS_TOKEN=" + tokenCanary + "1", "ARM_USE_MSI=false", "AZURE_TOKEN_CREDENTIALS=EnvironmentCredential",
		"AZURE_ACCESS_TOKEN_EXPIRES_ON=" + strconv.FormatInt(held.ExpireTime.Unix(), 10)} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s", strings.SplitN(want, "=", 2)[0])
		}
	}
	f := federatedWorld(t)
	defer f.stop()
	f.vault.Accept(t).Send(assertion(1))
	if held, err = f.runner.Credential(t.Context()); err != nil {
		t.Fatal(err)
	}
	env = f.runner.TokenEnvironment(inherited, held)
	for _, want := range []string{"ARM_OIDC_TOKEN=" + assertionCanary + "1", "ARM_USE_OIDC=true"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s", strings.SplitN(want, "=", 2)[0])
		}
	}
	if slices.ContainsFunc(env, func(e string) bool {
		return strings.HasPrefix(e, "PHASEKEY_") || strings.HasPrefix(e, "AZURE_ACCESS_TOKEN") || strings.HasSuffix(e, "=other")
	}) {
		t.Error("something is in it that ought not to be")
	}
}
