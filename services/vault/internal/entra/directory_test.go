package entra_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/entra"
)

const (
	resourceManager = "https://management.azure.com"
	administrator   = "admin@customer.example.com"
)

// world is a simulator without lag, with the platform's home tenant and one customer's.
type world struct {
	sim      *entrasim.Simulator
	dir      *entra.Directory
	platform entrasim.Platform
	customer string
}

func newWorld(t *testing.T) world {
	t.Helper()
	return newWorldOf(t, entrasim.Config{Seed: 1})
}

func newWorldOf(t *testing.T, config entrasim.Config) world {
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
	home, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Platform", Verified: true})
	if err != nil {
		t.Fatal(err)
	}
	platform, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID, DisplayName: "Platform"})
	if err != nil {
		t.Fatal(err)
	}
	customer, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Customer"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sim.CreatePerson(entrasim.Person{Tenant: customer.ID, UserName: administrator, Admin: true}); err != nil {
		t.Fatal(err)
	}
	w := world{sim: sim, platform: platform, customer: customer.ID}
	w.dir = w.directory(t, sim.Transport())
	return w
}

func (w world) directory(t *testing.T, transport http.RoundTripper) *entra.Directory {
	t.Helper()
	at := w.sim.Endpoints()
	dir, err := entra.New(entra.Config{
		Login:           parse(t, at.Login),
		Graph:           parse(t, at.Graph),
		ResourceManager: parse(t, at.ResourceManager),
		HomeTenantID:    w.platform.Tenant,
		ClientID:        w.platform.ClientID,
		Credential:      entra.Credential{SecretFile: file(t, w.platform.ClientSecret)},
		Transport:       transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (w world) count(operation string) int {
	return len(w.sim.Journal(entrasim.Query{Kinds: []string{entrasim.KindRequest}, Operation: operation}))
}

var spec = directory.Spec{UniqueName: "phasekey-test-o'brien", DisplayName: "Phasekey network-read 1a2b3c4d", RedirectURI: "https://broker.example.com/consent/callback"}

func (w world) application(t *testing.T) directory.Application {
	t.Helper()
	app, err := w.dir.EnsureApplication(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return app
}

func (w world) consent(t *testing.T, app directory.Application) {
	t.Helper()
	if _, err := w.sim.Consent(t.Context(), entrasim.Consent{
		Tenant: w.customer, ClientID: app.ClientID, RedirectURI: spec.RedirectURI, UserName: administrator,
	}); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureApplication_IsIdempotent(t *testing.T) {
	w := newWorld(t)
	first := w.application(t)
	writes := w.count("graph.application.upsert") + w.count("graph.application.update")
	second := w.application(t)
	if first.ObjectID != second.ObjectID || first.ClientID != second.ClientID || first.ObjectID == first.ClientID {
		t.Errorf("made %+v, then %+v", first, second)
	}
	if again := w.count("graph.application.upsert") + w.count("graph.application.update"); again != writes || writes != 1 {
		t.Errorf("%d writes to make it, %d after asking again", writes, again)
	}

	moved := spec
	moved.RedirectURI = "https://consent.example.com/consent/callback"
	if _, err := w.dir.EnsureApplication(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	if w.count("graph.application.upsert")+w.count("graph.application.update") != writes+1 {
		t.Error("a changed redirect URI was not written, by one request")
	}
	if _, err := w.dir.FindApplication(t.Context(), "phasekey-test-nobody"); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("an application that is not there: %v", err)
	}
}

func TestRepairApplication_MakesNothing(t *testing.T) {
	w := newWorld(t)
	made := w.application(t)
	moved := spec
	moved.RedirectURI = "https://consent.example.com/consent/callback"
	if got, err := w.dir.RepairApplication(t.Context(), moved); err != nil || got.ObjectID != made.ObjectID || w.count("graph.application.update") != 1 {
		t.Errorf("it repaired %+v, by %d requests, %v", got, w.count("graph.application.update"), err)
	}
	if err := w.dir.DeleteApplication(t.Context(), made.ObjectID); err != nil {
		t.Fatal(err)
	}
	if got, err := w.dir.RepairApplication(t.Context(), spec); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("of one that was deleted it says %+v, %v", got, err)
	}
	if got := w.count("graph.application.upsert"); got != 1 {
		t.Errorf("%d were made", got)
	}
}

func TestAddPassword_LostReplyMakesExactlyOne(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	if _, err := w.sim.AddFault(entrasim.Fault{
		Operation: "graph.application.addPassword",
		Effect:    entrasim.Effect{Status: http.StatusGatewayTimeout, AfterCommit: true},
	}); err != nil {
		t.Fatal(err)
	}
	_, _, err := w.dir.AddPassword(t.Context(), app.ObjectID, "intent-1", time.Now().Add(72*time.Hour))
	if directory.ClassOf(err) != directory.OutcomeUnknown {
		t.Fatalf("a 504 after the commit: %v", err)
	}
	if n := w.count("graph.application.addPassword"); n != 1 {
		t.Errorf("%d requests were sent", n)
	}
	found, err := w.dir.FindApplication(t.Context(), spec.UniqueName)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Passwords) != 1 || found.Passwords[0].DisplayName != "intent-1" {
		t.Errorf("the application has %+v", found.Passwords)
	}
}

func TestToken_EveryProofIsARequest(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	_, text, err := w.dir.AddPassword(t.Context(), app.ObjectID, "intent-1", time.Now().Add(72*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	w.consent(t, app)
	const proofs = 8
	before := w.count("login.token")
	var oid string
	for range proofs {
		token, err := w.dir.Token(t.Context(), directory.TokenRequest{
			TenantID: w.customer, ClientID: app.ClientID, Secret: text, Audience: resourceManager, RequestID: uuid.NewString(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if oid != "" && token.PrincipalObjectID != oid || token.PrincipalObjectID == "" || token.Text.IsZero() {
			t.Errorf("token %+v after principal %q", token, oid)
		}
		oid = token.PrincipalObjectID
	}
	if sent := w.count("login.token") - before; sent != proofs {
		t.Errorf("%d proofs were %d requests", proofs, sent)
	}
}

// What Entra does not answer is asked once: repeating it is for who counts.
func TestRequests_AreNotRepeated(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	for operation, call := range map[string]func() error{
		"login.token": func() error {
			_, err := w.dir.Token(t.Context(), directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Secret: secret.New("s"), Audience: resourceManager})
			return err
		},
		"graph.application.addPassword": func() error {
			_, _, err := w.dir.AddPassword(t.Context(), app.ObjectID, "intent-1", time.Now().Add(72*time.Hour))
			return err
		},
		"graph.application.get": func() error {
			_, err := w.dir.FindApplication(t.Context(), spec.UniqueName)
			return err
		},
	} {
		fault, err := w.sim.AddFault(entrasim.Fault{Operation: operation, Effect: entrasim.Effect{Status: http.StatusServiceUnavailable}})
		if err != nil {
			t.Fatal(err)
		}
		before := w.count(operation)
		if err := call(); err == nil {
			t.Errorf("%s: no error", operation)
		}
		if sent := w.count(operation) - before; sent != 1 {
			t.Errorf("%s was sent %d times", operation, sent)
		}
		if err := w.sim.RemoveFault(fault.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestToken_Refusals(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	made, text, err := w.dir.AddPassword(t.Context(), app.ObjectID, "intent-1", time.Now().Add(72*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		request directory.TokenRequest
		class   directory.Class
		code    string
	}{
		{"no consent yet", directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Secret: text}, directory.ApplicationUnknown, "AADSTS700016"},
		{"replicated, no principal at home", directory.TokenRequest{TenantID: w.platform.Tenant, ClientID: app.ClientID, Secret: text}, directory.PrincipalMissing, "AADSTS7000229"},
		{"no such tenant", directory.TokenRequest{TenantID: uuid.NewString(), ClientID: app.ClientID, Secret: text}, directory.TenantUnknown, "AADSTS90002"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.request.Audience = resourceManager
			_, err := w.dir.Token(t.Context(), test.request)
			var refused *directory.Error
			if !errors.As(err, &refused) || refused.Class != test.class || refused.Code != test.code {
				t.Errorf("got %v, class %v", err, directory.ClassOf(err))
			}
		})
	}
	w.consent(t, app)
	if err := w.dir.RemovePassword(t.Context(), app.ObjectID, made.KeyID); err != nil {
		t.Fatal(err)
	}
	if err := w.dir.RemovePassword(t.Context(), app.ObjectID, made.KeyID); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	_, err = w.dir.Token(t.Context(), directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Secret: text, Audience: resourceManager})
	if directory.ClassOf(err) != directory.SecretRefused {
		t.Errorf("a removed secret: %v", err)
	}
	if strings.Contains(fmt.Sprintf("%+v", err), text.Expose()) {
		t.Error("the error shows the secret")
	}
}

func TestDeleteAndPurge_SayWhatIsNotThere(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	for _, step := range []struct {
		name string
		do   func(ctx context.Context, objectID string) error
	}{{"delete", w.dir.DeleteApplication}, {"purge", w.dir.PurgeApplication}} {
		if err := step.do(t.Context(), app.ObjectID); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := step.do(t.Context(), app.ObjectID); directory.ClassOf(err) != directory.NotFound {
			t.Errorf("%s once more: %v, want class NotFound", step.name, err)
		}
	}
	if _, err := w.dir.FindApplication(t.Context(), spec.UniqueName); directory.ClassOf(err) != directory.NotFound {
		t.Errorf("after purging: %v", err)
	}
}

// answers is a transport that lets tokens through and answers everything else itself.
type answers struct {
	tokens http.RoundTripper
	answer func(*http.Request) (*http.Response, error)
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Host, "login.") {
		return a.tokens.RoundTrip(r)
	}
	return a.answer(r)
}

func TestGraph_Refusals(t *testing.T) {
	w := newWorld(t)
	envelope := func(code string) string {
		return `{"error":{"code":"` + code + `","message":"` + code + ` happened"}}`
	}
	for _, test := range []struct {
		name   string
		status int
		header http.Header
		body   string
		err    error
		read   directory.Class
		write  directory.Class
		after  time.Duration
	}{
		{name: "connection lost", err: io.ErrUnexpectedEOF, read: directory.Transient, write: directory.OutcomeUnknown},
		{name: "unavailable", status: 503, header: http.Header{"Retry-After": {"7"}}, body: envelope("ServiceUnavailable"), read: directory.Transient, write: directory.OutcomeUnknown, after: 7 * time.Second},
		{name: "gateway without a body", status: 502, read: directory.Transient, write: directory.OutcomeUnknown},
		{name: "throttled", status: 429, header: http.Header{"Retry-After": {"86400"}}, body: envelope("TooManyRequests"), read: directory.Throttled, write: directory.Throttled, after: 10 * time.Minute},
		{name: "concurrent write", status: 409, body: envelope("Directory_ConcurrencyViolation"), read: directory.Conflict, write: directory.Conflict},
		{name: "lifetime policy", status: 400, body: envelope("CredentialInvalidLifetimeAsPerAppPolicy"), read: directory.LifetimeRefused, write: directory.LifetimeRefused},
		{name: "not ours", status: 403, body: envelope("Authorization_RequestDenied"), read: directory.Denied, write: directory.Denied},
		{name: "error without a message", status: 400, body: `{"error":{}}`, read: directory.Malformed, write: directory.Malformed},
		{name: "error of another shape", status: 500, body: `[1]`, read: directory.Transient, write: directory.OutcomeUnknown},
		{name: "redirect to elsewhere", status: 302, header: http.Header{"Location": {"https://evil.example.com/"}}, read: directory.Transient, write: directory.OutcomeUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			requests := 0
			dir := w.directory(t, answers{tokens: w.sim.Transport(), answer: func(r *http.Request) (*http.Response, error) {
				if strings.Contains(r.URL.Path, "(appId='"+w.platform.ClientID) {
					return w.sim.Transport().RoundTrip(r) // which application is the platform's own
				}
				requests++
				if test.err != nil {
					return nil, test.err
				}
				header := test.header.Clone()
				if header == nil {
					header = http.Header{}
				}
				if test.body != "" {
					header.Set("Content-Type", "application/json")
				}
				return &http.Response{StatusCode: test.status, Header: header, ContentLength: int64(len(test.body)), Body: io.NopCloser(strings.NewReader(test.body)), Request: r}, nil
			}})
			_, err := dir.FindApplication(t.Context(), spec.UniqueName)
			check(t, "read", err, test.read, test.after)
			_, _, err = dir.AddPassword(t.Context(), uuid.NewString(), "intent-1", time.Now().Add(time.Hour))
			check(t, "write", err, test.write, test.after)
			if requests != 2 {
				t.Errorf("two calls were %d requests", requests)
			}
		})
	}
}

func check(t *testing.T, what string, err error, class directory.Class, after time.Duration) {
	t.Helper()
	var refused *directory.Error
	if !errors.As(err, &refused) {
		t.Fatalf("%s: %v", what, err)
	}
	if refused.Class != class || refused.RetryAfter != after {
		t.Errorf("%s: class %v after %v, want %v after %v: %v", what, refused.Class, refused.RetryAfter, class, after, err)
	}
}

func TestOwnCredentialRefused_SaysNothingOfTheIntegration(t *testing.T) {
	w := newWorld(t)
	w.platform.ClientSecret = "wrong-canary-4f1d"
	dir := w.directory(t, w.sim.Transport())
	_, err := dir.EnsureApplication(t.Context(), spec)
	if directory.ClassOf(err) != directory.Denied {
		t.Errorf("got %v", err)
	}
	if strings.Contains(err.Error(), "canary") {
		t.Error("the error shows the secret")
	}
}

func TestToken_EndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.dir.Token(ctx, directory.TokenRequest{TenantID: w.customer, ClientID: uuid.NewString(), Secret: secret.New("x"), Audience: resourceManager}); directory.ClassOf(err) != directory.Transient {
		t.Errorf("got %v", err)
	}
}

// mangled is a transport that answers POSTs to hosts of a kind itself, in the request's own words or in others.
type mangled struct {
	next   http.RoundTripper
	host   string
	status int
	body   string // empty: the request's own
}

func (m mangled) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Host, m.host) {
		return m.next.RoundTrip(r)
	}
	body := m.body
	if body == "" {
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(sent)
	}
	return &http.Response{
		StatusCode: m.status, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: int64(len(body)),
		Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

// TestErrors_QuoteNoAnswer has answers cut off, and what stands between us and the service echo the request: the SDKs' errors
// quote what they could not read, and errors go into logs.
func TestErrors_QuoteNoAnswer(t *testing.T) {
	w := newWorld(t)
	const canary = "canary-8d21"
	token := func(dir *entra.Directory) error {
		_, err := dir.Token(t.Context(), directory.TokenRequest{
			TenantID: w.customer, ClientID: uuid.NewString(), Secret: secret.New(canary), Audience: resourceManager,
		})
		return err
	}
	password := func(dir *entra.Directory) error {
		_, _, err := dir.AddPassword(t.Context(), uuid.NewString(), "intent-1", time.Now().Add(time.Hour))
		return err
	}
	for _, test := range []struct {
		name  string
		how   mangled
		call  func(*entra.Directory) error
		class directory.Class
	}{
		{"token, cut off", mangled{host: "login.", status: 200, body: `{"token_type":"Bearer","expires_in":3599,"access_token":"` + canary}, token, directory.Transient},
		{"token, of another shape", mangled{host: "login.", status: 200, body: `{"expires_in":{},"access_token":"` + canary + `"}`}, token, directory.Transient},
		{"request for a token, echoed with an error", mangled{host: "login.", status: 502}, token, directory.Transient},
		{"request for a token, echoed with a refusal", mangled{host: "login.", status: 400}, token, directory.Unclassified},
		{"password, cut off", mangled{host: "graph.", status: 200, body: `{"keyId":"` + uuid.NewString() + `","secretText":"` + canary}, password, directory.OutcomeUnknown},
		{"password, of another shape", mangled{host: "graph.", status: 200, body: `{"keyId":[],"secretText":"` + canary + `"}`}, password, directory.OutcomeUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.how.next = w.sim.Transport()
			err := test.call(w.directory(t, test.how))
			if directory.ClassOf(err) != test.class {
				t.Errorf("class %v: %v", directory.ClassOf(err), err)
			}
			for ; err != nil; err = errors.Unwrap(err) {
				if strings.Contains(fmt.Sprintf("%+v", err), canary) {
					t.Errorf("the error shows the secret: %v", err)
				}
			}
		})
	}
}

// file makes a file of the test's own.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
