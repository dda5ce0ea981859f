package entra_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/entra"
)

// with makes a directory with another credential of the platform's own.
func (w world) with(t *testing.T, credential entra.Credential, transport http.RoundTripper) (*entra.Directory, error) {
	t.Helper()
	at := w.sim.Endpoints()
	return entra.New(entra.Config{
		Login: parse(t, at.Login), Graph: parse(t, at.Graph), ResourceManager: parse(t, at.ResourceManager),
		HomeTenantID: w.platform.Tenant, ClientID: w.platform.ClientID, Credential: credential, Transport: transport,
	})
}

// works has the directory make an application.
func works(t *testing.T, dir *entra.Directory, name string) error {
	t.Helper()
	_, err := dir.EnsureApplication(t.Context(), directory.Spec{UniqueName: name, DisplayName: name, RedirectURI: "https://consent.example.com/callback"})
	return err
}

func TestCredential_SecretFileIsReadAgainWhenItChanges(t *testing.T) {
	w := newWorld(t)
	path := file(t, "wrong-secret-text")
	dir, err := w.with(t, entra.Credential{SecretFile: path}, w.sim.Transport())
	if err != nil {
		t.Fatal(err)
	}
	if err := works(t, dir, "one"); directory.ClassOf(err) != directory.Denied {
		t.Errorf("with a wrong secret: %v", err)
	}
	write(t, path, w.platform.ClientSecret+"\n")
	if err := works(t, dir, "one"); err != nil {
		t.Errorf("once it is right: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := works(t, dir, "two"); err != nil {
		t.Errorf("while it is being replaced: %v", err)
	}
	write(t, path, "")
	if err := works(t, dir, "three"); err != nil {
		t.Errorf("while it is empty: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// managed is a machine's endpoint for managed identities, in the shape of App Service. It gives tokens that the simulator takes.
type managed struct {
	mu    sync.Mutex
	asked []string
	token string
}

func (m *managed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r.URL.Query().Get("resource")+" "+r.URL.Query().Get("client_id")+" "+r.Header.Get("X-IDENTITY-HEADER"))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{
		"access_token": m.token, "expires_on": "4102444800", "resource": r.URL.Query().Get("resource"), "token_type": "Bearer",
	})
}

// graphToken is a token of the platform's for Graph, had by its secret.
func (w world) graphToken(t *testing.T) string {
	t.Helper()
	at := w.sim.Endpoints()
	response, err := (&http.Client{Transport: w.sim.Transport()}).PostForm(at.Login+"/"+w.platform.Tenant+"/oauth2/v2.0/token", map[string][]string{
		"grant_type": {"client_credentials"}, "client_id": {w.platform.ClientID}, "client_secret": {w.platform.ClientSecret}, "scope": {at.Graph + "/.default"}})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Token string `json:"access_token"`
	}
	if err := errors.Join(json.NewDecoder(response.Body).Decode(&got), response.Body.Close()); err != nil || got.Token == "" {
		t.Fatalf("status %d, %v", response.StatusCode, err)
	}
	return got.Token
}

// trust makes certificates, PEM, the platform application's only ones.
func (w world) trust(t *testing.T, certificates ...string) {
	t.Helper()
	var keys []map[string]string
	for _, text := range certificates {
		block, _ := pem.Decode([]byte(text))
		keys = append(keys, map[string]string{"type": "AsymmetricX509Cert", "usage": "Verify", "key": base64.StdEncoding.EncodeToString(block.Bytes)})
	}
	body, err := json.Marshal(map[string]any{"keyCredentials": keys})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, w.sim.Endpoints().Graph+"/v1.0/applications/"+w.platform.ObjectID, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+w.graphToken(t))
	r.Header.Set("Content-Type", "application/json")
	response, err := (&http.Client{Transport: w.sim.Transport()}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil || response.StatusCode != http.StatusNoContent {
		t.Fatalf("status %d, %s, %v", response.StatusCode, text, err)
	}
}

func TestCredential_CertificateIsReadAgainWhenItChanges(t *testing.T) {
	w := newWorld(t)
	first, second := certificate(t, time.Now().Add(time.Hour)), certificate(t, time.Now().Add(2*time.Hour))
	path := file(t, first)
	w.trust(t, second)
	dir, err := w.with(t, entra.Credential{CertificateFile: path, SecretFile: file(t, w.platform.ClientSecret)}, w.sim.Transport())
	if err != nil {
		t.Fatal(err)
	}
	// A refusal is an error: the secret, which would do, does not hide it.
	if err := works(t, dir, "one"); directory.ClassOf(err) != directory.Denied {
		t.Errorf("with a certificate that is not trusted: %v", err)
	}
	write(t, path, second)
	if err := works(t, dir, "one"); err != nil {
		t.Errorf("with one that is: %v", err)
	}
	if all := dir.Expiries(t.Context()); len(all) != 2 || all[0].Err != nil || all[1].Err != nil || all[1].End.IsZero() {
		t.Errorf("both ends are to be had: %+v", all)
	}
}

func TestCredential_ManagedIdentity(t *testing.T) {
	w := newWorld(t)
	at := w.sim.Endpoints()
	// The simulator has no managed identities: the endpoint gives out a token of the platform's own principal.
	endpoint := &managed{token: w.graphToken(t)}
	server := httptest.NewServer(endpoint)
	t.Cleanup(server.Close)
	t.Setenv("IDENTITY_ENDPOINT", server.URL)
	t.Setenv("IDENTITY_HEADER", "header")

	for _, tt := range []struct {
		identity entra.ManagedIdentity
		want     string
	}{
		{entra.UserAssigned, at.Graph + " " + w.platform.ClientID + " header"},
		{entra.SystemAssigned, at.Graph + "  header"},
	} {
		endpoint.asked = nil
		// What comes after it is not asked, however wrong.
		dir, err := w.with(t, entra.Credential{ManagedIdentity: tt.identity, SecretFile: file(t, "wrong-secret-text")}, w.sim.Transport())
		if err != nil {
			t.Fatal(err)
		}
		if err := works(t, dir, string("by-"+tt.identity)); err != nil {
			t.Error(err)
		}
		if len(endpoint.asked) == 0 || endpoint.asked[0] != tt.want {
			t.Errorf("%s asked %q, want %q", tt.identity, endpoint.asked, tt.want)
		}
	}
	// The endpoint is the machine's own, whatever the environment says.
	t.Setenv("IDENTITY_ENDPOINT", "http://attacker.example.com/msi/token")
	another := w // whose token was not had before: the SDK keeps tokens for the whole process
	another.platform.ClientID = "33333333-3333-4333-8333-333333333333"
	dir, err := another.with(t, entra.Credential{ManagedIdentity: entra.UserAssigned}, w.sim.Transport())
	if err != nil {
		t.Fatal(err)
	}
	if err := works(t, dir, "elsewhere"); err == nil || !strings.Contains(err.Error(), "refused to send") {
		t.Errorf("asked elsewhere: %v", err)
	}
	// Not configured, it is not looked for.
	t.Setenv("IDENTITY_ENDPOINT", server.URL)
	endpoint.asked = nil
	if dir, err = w.with(t, entra.Credential{SecretFile: file(t, w.platform.ClientSecret)}, w.sim.Transport()); err != nil {
		t.Fatal(err)
	}
	if err := works(t, dir, "by-secret"); err != nil || len(endpoint.asked) > 0 {
		t.Errorf("asked %q, %v", endpoint.asked, err)
	}
}

// certificate makes one with its key, PEM.
func certificate(t *testing.T, end time.Time) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "platform"}, NotBefore: time.Unix(0, 0), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

// forms records what the token service is asked, and lets nothing but discovery through.
type forms struct {
	discovery http.RoundTripper
	mu        sync.Mutex
	seen      []string
}

func (f *forms) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		return f.discovery.RoundTrip(r)
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, string(text))
	return nil, errors.New("away")
}

// What is sent first is looked at, since nothing is answered.
func TestCredential_TriesWhatIsConfiguredInOrder(t *testing.T) {
	w := newWorld(t)
	pem := certificate(t, time.Now().Add(time.Hour))
	for _, tt := range []struct {
		name       string
		credential entra.Credential
		has, lacks string
	}{
		{"a workload's token first", entra.Credential{TokenFile: file(t, "workload.token.text"), CertificateFile: file(t, pem), SecretFile: file(t, "the-secret")},
			"client_assertion=workload.token.text", "client_secret"},
		{"a certificate before a secret", entra.Credential{CertificateFile: file(t, pem), SecretFile: file(t, "the-secret")}, "client_assertion=ey", "client_secret"},
		{"a secret", entra.Credential{SecretFile: file(t, " the-secret\n")}, "client_secret=the-secret&", "client_assertion"},
	} {
		sent := &forms{discovery: w.sim.Transport()}
		dir, err := w.with(t, tt.credential, sent)
		if err != nil {
			t.Fatal(err)
		}
		if err := works(t, dir, "x"); err == nil {
			t.Errorf("%s: it worked", tt.name)
		}
		if len(sent.seen) != 1 || !strings.Contains(sent.seen[0]+"&", tt.has) || strings.Contains(sent.seen[0], tt.lacks) {
			t.Errorf("%s: sent %d requests, %q", tt.name, len(sent.seen), sent.seen)
		}
	}
}

func TestCredential_RefusesToStartWithout(t *testing.T) {
	w := newWorld(t)
	missing := filepath.Join(t.TempDir(), "nothing")
	for name, credential := range map[string]entra.Credential{
		"nothing":                      {},
		"a secret that is not there":   {SecretFile: missing},
		"an empty secret":              {SecretFile: file(t, " \n")},
		"a token that is not there":    {TokenFile: missing, SecretFile: file(t, "the-secret")},
		"no certificate":               {CertificateFile: file(t, "canary-of-a-key"), SecretFile: file(t, "the-secret")},
		"a certificate without a key":  {CertificateFile: file(t, strings.Split(certificate(t, time.Now()), "-----BEGIN PRIVATE")[0])},
		"a file that is far too large": {SecretFile: file(t, strings.Repeat("x", 2<<20))},
	} {
		if _, err := w.with(t, credential, w.sim.Transport()); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectory_RefusesThePlatformsOwnApplication(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	own := w.platform.ObjectID
	_, _, added := w.dir.AddPassword(ctx, own, "phasekey/test/x", time.Now().Add(time.Hour))
	_, tokened := w.dir.Token(ctx, directory.TokenRequest{TenantID: w.platform.Tenant, ClientID: strings.ToUpper(w.platform.ClientID), Audience: resourceManager})
	_, trusted := w.dir.EnsureTrust(ctx, own, directory.Trusts("test", "https://issuer.example.com", "uid"))
	_, untrusted := w.dir.RemoveTrust(ctx, own, []string{"any"})
	for name, err := range map[string]error{
		"a trust made":          trusted,
		"a trust removed":       untrusted,
		"a password added":      added,
		"a password removed":    w.dir.RemovePassword(ctx, strings.ToUpper(own), w.platform.KeyID),
		"deleted":               w.dir.DeleteApplication(ctx, own),
		"purged":                w.dir.PurgeApplication(ctx, own),
		"a token asked with it": tokened,
	} {
		if directory.ClassOf(err) != directory.Malformed || !strings.Contains(err.Error(), "the platform's own application") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if state, err := w.sim.SecretState(w.platform.Tenant, w.platform.ClientID, w.platform.KeyID); err != nil {
		t.Errorf("its secret: %v, %v", state, err)
	}
	// Others are not held up, and finding out costs one request.
	if err := works(t, w.dir, "other"); err != nil {
		t.Fatal(err)
	}
	found, err := w.dir.FindApplication(ctx, "other")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.dir.AddPassword(ctx, found.ObjectID, "phasekey/test/y", time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
}

func TestExpiries_OfSecretAndCertificate(t *testing.T) {
	w := newWorld(t)
	end := time.Now().Add(100 * time.Hour).Truncate(time.Second).UTC()
	dir, err := w.with(t, entra.Credential{CertificateFile: file(t, certificate(t, end)), SecretFile: file(t, w.platform.ClientSecret)}, w.sim.Transport())
	if err != nil {
		t.Fatal(err)
	}
	all := dir.Expiries(t.Context())
	if len(all) != 2 || all[0].Kind != entra.Certificate || !all[0].End.Equal(end) || all[0].Err != nil {
		t.Errorf("got %+v", all)
	}
	// The certificate is not trusted, so that Graph cannot be asked about the secret.
	if len(all) == 2 && (all[1].Kind != entra.ClientSecret || all[1].Err == nil || !all[1].End.IsZero()) {
		t.Errorf("got %+v", all[1])
	}
	if dir, err = w.with(t, entra.Credential{SecretFile: file(t, w.platform.ClientSecret)}, w.sim.Transport()); err != nil {
		t.Fatal(err)
	}
	if all = dir.Expiries(t.Context()); len(all) != 1 || all[0].Err != nil || time.Until(all[0].End) < 24*time.Hour {
		t.Errorf("got %+v", all)
	}
}

func TestWatch_WarnsOnceADayFromThirtyDaysOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		login, graph := parse(t, "https://login.example.com"), parse(t, "https://graph.example.com")
		path := file(t, certificate(t, time.Now().Add(40*24*time.Hour+time.Minute)))
		dir, err := entra.New(entra.Config{
			Login: login, Graph: graph, ResourceManager: graph, HomeTenantID: "11111111-1111-4111-8111-111111111111",
			ClientID: "22222222-2222-4222-8222-222222222222", Credential: entra.Credential{CertificateFile: path}, Transport: &forms{},
		})
		if err != nil {
			t.Fatal(err)
		}
		var text said
		metrics := prometheus.NewRegistry()
		watch, err := entra.NewWatch(entra.Clouds{"public": dir}, slog.New(slog.NewTextHandler(&text, nil)), metrics)
		if err != nil {
			t.Fatal(err)
		}
		left := func() float64 {
			t.Helper()
			families, err := metrics.Gather()
			if err != nil || len(families) != 1 {
				t.Fatalf("%v, %v", families, err)
			}
			return families[0].GetMetric()[0].GetGauge().GetValue() / (24 * 3600)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- watch.Run(ctx) }()
		pass := func(days int, warnings, errs int, leftDays float64) {
			t.Helper()
			text.take()
			time.Sleep(time.Duration(days) * 24 * time.Hour)
			synctest.Wait()
			said := text.take()
			if got := strings.Count(said, "level=WARN"); got != warnings {
				t.Errorf("%d warnings in %d days, want %d:\n%s", got, days, warnings, said)
			}
			if got := strings.Count(said, "level=ERROR"); got != errs {
				t.Errorf("%d errors in %d days, want %d:\n%s", got, days, errs, said)
			}
			if got := left(); got < leftDays-0.1 || got > leftDays+0.1 {
				t.Errorf("%f days are left, want %f", got, leftDays)
			}
		}
		pass(9, 0, 0, 31)
		pass(11, 10, 0, 20) // from thirty days on
		pass(15, 13, 2, 5)
		write(t, path, certificate(t, time.Now().Add(365*24*time.Hour)))
		pass(3, 0, 0, 362)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// said is a log that is read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(line)
}

// take returns what was said since the last time.
func (s *said) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.text.Reset()
	return s.text.String()
}
