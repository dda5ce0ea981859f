package rigtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/loopbacktest"
	"phasekey.dev/pkg/mtls"
)

const (
	// TrustDomain begins the IDs in all certificates.
	TrustDomain = "spiffe://phasekey.dev/"
	// RedirectURI is where the simulator sends who has consented; nobody listens there.
	RedirectURI = "https://broker.example/consent/callback"
)

// Rig is what the processes of a suite have in common.
type Rig struct {
	Dir string
	// IP is an address of the loopback network that nobody else uses: ports can be fixed.
	IP string
	CA *devca.Authority

	// Origin is the simulator's.
	Origin string
	// HTTP trusts the simulator.
	HTTP *http.Client
	// Home is the platform's tenant.
	Home string

	clientID string // of the platform's own application
}

// New makes a folder, an address and a CA.
func New(t *testing.T) *Rig {
	t.Helper()
	r := &Rig{Dir: t.TempDir(), IP: loopbacktest.Host()}
	var err error
	r.CA, err = devca.Open(filepath.Join(r.Dir, "tls"), time.Now())
	Must(t, err)
	return r
}

// At is the address of a port.
func (r *Rig) At(port int) string { return net.JoinHostPort(r.IP, fmt.Sprint(port)) }

// Files are a certificate's.
type Files struct{ CertFile, KeyFile, CAFile string }

// Config is what a daemon's configuration says of them.
func (f Files) Config() map[string]any {
	return map[string]any{"cert_file": f.CertFile, "key_file": f.KeyFile, "ca_file": f.CAFile}
}

// Certificate is a role's.
func (r *Rig) Certificate(t *testing.T, role string) Files {
	t.Helper()
	made, err := r.CA.Issue(time.Now(), role, devca.Leaf{ID: TrustDomain + role, DNS: []string{"localhost"}, IPs: []net.IP{net.ParseIP(r.IP)}})
	Must(t, err)
	return Files{CertFile: made.Cert, KeyFile: made.Key, CAFile: r.CA.CAFile()}
}

// Client is what a role shows who it is by.
func (r *Rig) Client(t *testing.T, role string) *mtls.Source {
	t.Helper()
	c := r.Certificate(t, role)
	return Follow(t, mtls.Config{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile})
}

// Follow is what certificates' files hold, as they change, until the test ends.
func Follow(t *testing.T, files mtls.Config) *mtls.Source {
	t.Helper()
	files.ReloadInterval = time.Second
	source, err := mtls.Open(t.Context(), files, slog.New(slog.DiscardHandler))
	Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		Must(t, <-ended)
	})
	return source
}

// Dial connects the platform with the service that has an ID.
func (r *Rig) Dial(t *testing.T, address, id string) *grpc.ClientConn {
	t.Helper()
	return Dial(t, grpcclient.Config{Target: address, TLS: r.Client(t, "platform").ClientConfig(TrustDomain + id)})
}

// Dial makes a connection that is closed after the test.
func Dial(t *testing.T, config grpcclient.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(config)
	Must(t, err)
	t.Cleanup(func() { Must(t, conn.Close()) })
	return conn
}

// Configure writes a configuration file. JSON is YAML.
func (r *Rig) Configure(t *testing.T, name string, config map[string]any) (file string) {
	t.Helper()
	text, err := json.MarshalIndent(config, "", "  ")
	Must(t, err)
	file = filepath.Join(r.Dir, name+".yaml")
	Must(t, os.WriteFile(file, text, 0o600))
	return file
}

// Identities lets roles call for all accounts.
func Identities(roles ...string) (out []map[string]any) {
	for _, role := range roles {
		out = append(out, map[string]any{"id": TrustDomain + role, "role": role, "accounts": []string{"*"}})
	}
	return out
}

// StartSimulator starts the simulator of Entra, with further arguments, and makes the platform's tenant and application.
func (r *Rig) StartSimulator(t *testing.T, address string, arguments ...string) {
	t.Helper()
	entra := &Process{Name: "entrasim", Answers: []string{address}, Command: append([]string{
		Binary(t, "entrasim"), "-listen", address, "-tls", filepath.Join(r.Dir, "entra"),
	}, arguments...)}
	entra.Start(t)
	t.Cleanup(func() { entra.Stop(t) })
	r.Origin = "https://" + address
	roots := x509.NewCertPool()
	Await(t, StartTimeout, func(context.Context) error { // it listens before it has made its CA
		pem, err := os.ReadFile(r.entraCA())
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate", r.entraCA())
		}
		return err
	})
	r.HTTP = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, MaxIdleConnsPerHost: 32,
	}}
	t.Cleanup(r.HTTP.CloseIdleConnections)
	r.Home = r.Tenant(t, map[string]any{"displayName": "Platform", "verified": true})
	var platform struct {
		ClientID     string `json:"clientId"`
		ClientSecret string `json:"clientSecret"`
	}
	Must(t, r.Admin(t.Context(), http.MethodPost, "platforms", map[string]any{"tenant": r.Home}, &platform))
	r.clientID = platform.ClientID
	Must(t, os.WriteFile(r.secretFile(), []byte(platform.ClientSecret), 0o600))
}

func (r *Rig) entraCA() string    { return filepath.Join(r.Dir, "entra", "ca.pem") }
func (r *Rig) secretFile() string { return filepath.Join(r.Dir, "platform.secret") }

// Clouds is what a vault's configuration says of the simulator.
func (r *Rig) Clouds() map[string]any {
	return map[string]any{"public": map[string]any{
		"login_url": r.Origin, "graph_url": r.Origin, "resource_manager_url": r.Origin, "graph_audience": "https://graph.microsoft.com",
		"resource_manager_audience": "https://management.azure.com", "home_tenant_id": r.Home, "client_id": r.clientID,
		"credential": map[string]any{"client_secret_file": r.secretFile()}, "ca_file": r.entraCA(),
	}}
}

// Tenant makes a tenant.
func (r *Rig) Tenant(t *testing.T, what map[string]any) (id string) {
	t.Helper()
	var made struct {
		ID string `json:"id"`
	}
	Must(t, r.Admin(t.Context(), http.MethodPost, "tenants", what, &made))
	return made.ID
}

// Admin calls the simulator's admin API.
func (r *Rig) Admin(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, r.Origin+"/admin/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	status, answer, err := r.Do(request)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s %s: %d: %s", method, path, status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// Do sends the simulator a request.
func (r *Rig) Do(request *http.Request) (status int, body []byte, err error) {
	response, err := r.HTTP.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}
