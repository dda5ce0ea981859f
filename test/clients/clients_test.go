// Package clients has the SDKs that programs for Azure are made of speak to the simulator over the network, from a token to
// calls of Graph and Resource Manager, as they are: what they cannot be told by an option, they are told by the environment.
package clients

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/entrasim"
)

const (
	tenant       = "11111111-1111-4111-8111-111111111111"
	subscription = "33333333-3333-4333-8333-333333333333"
	nobody       = "44444444-4444-4444-8444-444444444444"
	subject      = "repo:acme/network:ref:refs/heads/main"
	exchange     = "api://AzureADTokenExchange"

	login           = "https://login.microsoftonline.com"
	graph           = "https://graph.microsoft.com"
	resourceManager = "https://management.azure.com"
)

// azure is what all tests have their clients call.
var azure *cloud

// TestMain starts it once, for programs read the environment once: their proxy leads the public cloud's names here and
// nothing anywhere else, and the roots they trust are the simulator's.
func TestMain(m *testing.M) {
	if kind := os.Getenv(asChild); kind != "" {
		os.Exit(beChild(kind))
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "clients-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, stop, err := start(dir)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	azure = c
	for name, value := range map[string]string{"HTTPS_PROXY": c.proxy, "SSL_CERT_FILE": c.caFile} {
		if err := os.Setenv(name, value); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// cloud is a simulator that serves TLS on loopback, with one application, which has a secret, a certificate and a federated
// credential, and is a Reader of one subscription.
type cloud struct {
	sim    *entrasim.Simulator
	own    string // its one origin
	proxy  string // the URL of one that leads the public cloud's names to it
	caFile string
	roots  *x509.CertPool

	app         entrasim.Platform
	key         *rsa.PrivateKey // signs what anybody signs here: making one takes a while
	certificate *x509.Certificate
	pemFile     string // both
	issuer      *issuer
}

func start(dir string) (c *cloud, stop func() error, err error) {
	now := time.Now()
	ca, err := devca.Open(dir, now)
	if err != nil {
		return nil, nil, err
	}
	files, err := ca.Issue(now, "server", devca.Leaf{
		ID: "spiffe://phasekey.dev/entrasim", IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNS: []string{host(login), host(graph), host(resourceManager)},
	})
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, nil, err
	}
	server := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	c = &cloud{caFile: ca.CAFile(), roots: x509.NewCertPool(), pemFile: filepath.Join(dir, "application.pem")}
	trusted, err := os.ReadFile(c.caFile)
	if err != nil {
		return nil, nil, err
	}
	c.roots.AppendCertsFromPEM(trusted)
	if c.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, nil, err
	}
	if err := c.certify(now); err != nil {
		return nil, nil, err
	}
	c.issuer = startIssuer(c.key, server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	c.own = "https://" + listener.Addr().String()
	issuers := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots}}
	if c.sim, err = entrasim.New(entrasim.Config{BaseURL: c.own, Issuers: issuers}); err != nil {
		return nil, nil, err
	}
	proxy := httptest.NewServer(tunnel(listener.Addr().String()))
	c.proxy = proxy.URL
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.sim.Run(ctx, listener, server) }()
	stop = func() error {
		cancel()
		issuers.CloseIdleConnections()
		c.issuer.server.Close()
		proxy.Close()
		return errors.Join(<-done, c.sim.Close())
	}
	if err := c.furnish(); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}

// certify makes the application's certificate, in memory and in a file.
func (c *cloud) certify(now time.Time) error {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "application"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &c.key.PublicKey, c.key)
	if err != nil {
		return err
	}
	if c.certificate, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return os.WriteFile(c.pemFile, text, 0o600)
}

// furnish makes the tenant and what is in it.
func (c *cloud) furnish() error {
	if _, err := c.sim.CreateTenant(entrasim.NewTenant{ID: tenant, DisplayName: "Contoso"}); err != nil {
		return err
	}
	if _, err := c.sim.CreateSubscription(entrasim.Subscription{ID: subscription, Tenant: tenant, DisplayName: "Production"}); err != nil {
		return err
	}
	var err error
	if c.app, err = c.sim.CreatePlatform(entrasim.NewPlatform{Tenant: tenant, DisplayName: "application"}); err != nil {
		return err
	}
	if _, err = c.sim.AssignRole(entrasim.NewAssignment{Scope: "/subscriptions/" + subscription, PrincipalID: c.app.PrincipalID, Role: "Reader"}); err != nil {
		return err
	}
	client := &http.Client{Transport: c.sim.Transport()}
	token, err := tokenBySecret(client, c.app)
	if err != nil {
		return err
	}
	where := graph + "/v1.0/applications/" + c.app.ObjectID
	key := `{"keyCredentials":[{"type":"AsymmetricX509Cert","usage":"Verify","displayName":"one","key":"` + base64.StdEncoding.EncodeToString(c.certificate.Raw) + `"}]}`
	if err := send(client, http.MethodPatch, where, token, key, nil); err != nil {
		return err
	}
	federated := fmt.Sprintf(`{"name":"main","issuer":%q,"subject":%q,"audiences":[%q]}`, c.issuer.server.URL, subject, exchange)
	return send(client, http.MethodPost, where+"/federatedIdentityCredentials", token, federated, nil)
}

func tokenBySecret(client *http.Client, app entrasim.Platform) (string, error) {
	resp, err := client.PostForm(login+"/"+app.Tenant+"/oauth2/v2.0/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {app.ClientID}, "client_secret": {app.ClientSecret}, "scope": {graph + "/.default"},
	})
	if err != nil {
		return "", err
	}
	var granted struct {
		Token string `json:"access_token"`
	}
	return granted.Token, read(resp, &granted)
}

// send makes a request and reads the answer into out, unless that is nil.
func send(client *http.Client, method, where, token, body string, out any) error {
	r, err := http.NewRequestWithContext(context.Background(), method, where, strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	return read(resp, out)
}

func read(resp *http.Response, out any) error {
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", resp.Request.Method, resp.Request.URL, resp.Status, text)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

func host(origin string) string { return strings.TrimPrefix(origin, "https://") }

// tunnel is a proxy that leads the public cloud's names to an address.
func tunnel(address string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimSuffix(r.Host, ":443")
		if r.Method != http.MethodConnect || (name != host(login) && name != host(graph) && name != host(resourceManager)) {
			http.Error(w, "no way to "+r.Host, http.StatusForbidden)
			return
		}
		there, err := net.Dial("tcp", address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = there.Close() }()
		here, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer func() { _ = here.Close() }()
		if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return
		}
		// Whichever side ends first ends both: closing one ends the other's copying.
		go func() {
			_, _ = io.Copy(there, buffered)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
	}
}

// issuer is an OpenID provider whose tokens the application trusts, and that gives them the way GitHub does.
type issuer struct {
	key    *rsa.PrivateKey
	server *httptest.Server
}

const runnersToken = "the runner's own"

func startIssuer(key *rsa.PrivateKey, config *tls.Config) *issuer {
	i := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, i.server.URL, i.server.URL+"/keys")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"keys":[{"kty":"RSA","use":"sig","kid":"one","n":%q,"e":"AQAB"}]}`, base64.RawURLEncoding.EncodeToString(key.N.Bytes()))
	})
	mux.HandleFunc("GET /request", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+runnersToken || r.URL.Query().Get("audience") != exchange {
			http.Error(w, "not for you", http.StatusForbidden)
			return
		}
		token, err := i.token()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintf(w, `{"count":%d,"value":%q}`, len(token), token)
	})
	i.server = httptest.NewUnstartedServer(mux)
	i.server.TLS = config.Clone()
	i.server.StartTLS()
	return i
}

func (i *issuer) token() (string, error) {
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": i.server.URL, "sub": subject, "aud": exchange, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	})
	token.Header["kid"] = "one"
	return token.SignedString(i.key)
}

// asked is how often an operation was asked for so far, as the simulator tells.
func (c *cloud) asked(operation string) int {
	return len(c.sim.Journal(entrasim.Query{Kinds: []string{entrasim.KindRequest}, Operation: operation}))
}

// names tells whether an error says a code.
func names(err error, code string) bool { return err != nil && strings.Contains(err.Error(), code) }
