package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/loopbacktest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/broker/app"
	"phasekey.dev/services/broker/internal/keyfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	integration = "accounts/acme/integrations/net"
	service     = "phasekey.broker.v1.ConsentService"
)

// fakeRegistry knows one integration.
type fakeRegistry struct {
	registryv1.UnimplementedIntegrationServiceServer
	ready atomic.Bool
}

func (r *fakeRegistry) GetIntegration(_ context.Context, req *registryv1.GetIntegrationRequest) (*registryv1.Integration, error) {
	if req.GetName() != integration {
		return nil, rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "no such integration")
	}
	out := &registryv1.Integration{Name: integration, Uid: "uid-1", TenantId: "3fe2a1c4-0000-4000-8000-000000000001", DisplayName: "Network"}
	if r.ready.Load() {
		out.ClientId, out.ApplicationDisplayName = "client", "phasekey Network 1a2b"
		out.Conditions = []*registryv1.Condition{{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: registryv1.Condition_STATUS_TRUE}}
	}
	return out, nil
}

// fakeVault refuses until it consents. A first answer is NOT_FOUND: it learns of integrations later.
type fakeVault struct {
	vaultv1.UnimplementedAccessServiceServer
	consented atomic.Bool
	asked     atomic.Int64
}

func (v *fakeVault) ProbeConsent(_ context.Context, req *vaultv1.ProbeConsentRequest) (*vaultv1.ProbeConsentResponse, error) {
	switch {
	case v.asked.Add(1) == 1:
		return nil, rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "no such integration")
	case v.consented.Load() && req.GetIntegration() == integration:
		return &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid"}, nil
	default:
		return &vaultv1.ProbeConsentResponse{AadstsCode: 700016}, nil
	}
}

// place is where brokers run: certificates, a database, a registry and a vault behind mTLS.
type place struct {
	ca       *devca.Authority
	config   app.Config
	registry *fakeRegistry
	vault    *fakeVault
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	ca, err := devca.Open(filepath.Join(dir, "tls"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &place{ca: ca, registry: &fakeRegistry{}, vault: &fakeVault{}, config: complete()}
	p.config.Development = true
	p.config.ProbeInterval, p.config.PollInterval, p.config.WatchInterval = 200*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	p.config.MetricsListen = "127.0.0.1:0"
	p.config.StateKeyFile = filepath.Join(dir, "state.key")
	p.config.Database = sqldb.Config{Driver: sqldb.DriverSQLite, Path: filepath.Join(dir, "broker.db"), Volatile: true}
	p.config.TLS = p.certificate(t, "broker")
	p.config.Identities = []grpcserver.Identity{{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: []string{"acme"}}}
	return p
}

func (p *place) certificate(t *testing.T, name string) mtls.Config {
	t.Helper()
	files, err := p.ca.Issue(time.Now(), name, devca.Leaf{ID: "spiffe://phasekey.dev/" + name})
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Config{CertFile: files.Cert, KeyFile: files.Key, CAFile: p.ca.CAFile()}
}

func (p *place) source(t *testing.T, name string) *mtls.Source {
	t.Helper()
	s, err := mtls.Open(t.Context(), p.certificate(t, name), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs a gRPC server with somebody's certificate until the test ends or the returned function is called. An empty
// address is a free one.
func (p *place) serve(t *testing.T, name, address string, register func(*grpc.Server)) (at string, stop func()) {
	t.Helper()
	if address == "" {
		// It may be listened at anew.
		address = net.JoinHostPort(loopbacktest.Host(), "0")
	}
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.source(t, name).ServerConfig(mtls.Required))))
	register(srv)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	stop = func() {
		srv.Stop()
		if err, ok := <-ended; ok && err != nil {
			t.Error(err)
		}
	}
	return ln.Addr().String(), stop
}

func (p *place) serveRegistry(t *testing.T, address string) (at string, stop func()) {
	t.Helper()
	return p.serve(t, "registry", address, func(s *grpc.Server) { registryv1.RegisterIntegrationServiceServer(s, p.registry) })
}

func (p *place) serveVault(t *testing.T, name string) (at string, stop func()) {
	t.Helper()
	return p.serve(t, name, "", func(s *grpc.Server) { vaultv1.RegisterAccessServiceServer(s, p.vault) })
}

// start runs a broker; the returned function stops it as SIGTERM would.
func (p *place) start(t *testing.T) (broker *app.App, stop func()) {
	t.Helper()
	broker, err := app.New(t.Context(), p.config, obs.NewLogger(t.Output(), slog.LevelDebug, obs.FormatText))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(ctx) }()
	return broker, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the broker ended with: %v", err)
		}
	}
}

func (p *place) dial(t *testing.T, broker *app.App, name string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(grpcclient.Config{
		Target: broker.Addr().String(), TLS: p.source(t, name).ClientConfig("spiffe://phasekey.dev/broker")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func awaitHealth(t *testing.T, conn *grpc.ClientConn, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	grpctest.AwaitHealth(t, conn, service, want, 30*time.Second)
}

func TestApp_FromSessionToProofAcrossARestart(t *testing.T) {
	p := newPlace(t)
	var stopRegistry, stopVault func()
	p.config.Registry.Target, stopRegistry = p.serveRegistry(t, "")
	defer stopRegistry()
	p.config.Vault.Target, stopVault = p.serveVault(t, "vault")
	defer stopVault()

	broker, stop := p.start(t)
	conn := p.dial(t, broker, "platform")
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_SERVING)
	c := brokerv1.NewConsentServiceClient(conn)
	created, err := c.CreateConsentSession(t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: "accounts/acme", ConsentSession: &brokerv1.ConsentSession{Integration: integration}})
	if err != nil {
		t.Fatal(err)
	}
	if created.GetState() != brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION {
		t.Errorf("created in state %s", created.GetState())
	}
	_, err = c.CreateConsentSession(t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: "accounts/acme", ConsentSession: &brokerv1.ConsentSession{Integration: integration + "2"}})
	if status.Code(err) != codes.NotFound || rpcerr.Reason(err) != "RESOURCE_NOT_FOUND" {
		t.Errorf("unknown integration: %v", err)
	}
	p.registry.ready.Store(true)
	awaiting := watchUntil(t, c, created.GetName(), func(s *brokerv1.ConsentSession) bool { return s.GetLastRefusal() == "AADSTS700016" })
	if !strings.HasPrefix(awaiting.GetConsentUri(), "https://consent.example.com/consent/") || awaiting.GetConsentUri() != created.GetConsentUri() {
		t.Errorf("link %q, then %q", created.GetConsentUri(), awaiting.GetConsentUri())
	}
	for page, text := range map[string]string{"/livez": "ok", "/metrics": `phasekey_broker_probes_total{outcome="refused"}`} {
		if body := get(t, "http://"+broker.MetricsAddr().String()+page); !strings.Contains(body, text) {
			t.Errorf("%s lacks %s:\n%.2000s", page, text, body)
		}
	}
	stop()

	broker, stop = p.start(t)
	defer stop()
	c = brokerv1.NewConsentServiceClient(p.dial(t, broker, "platform"))
	again, err := c.GetConsentSession(t.Context(), &brokerv1.GetConsentSessionRequest{Name: created.GetName()})
	if err != nil || again.GetConsentUri() != awaiting.GetConsentUri() {
		t.Errorf("after a restart: error %v, link %q", err, again.GetConsentUri())
	}
	p.vault.consented.Store(true)
	done := watchUntil(t, c, created.GetName(), func(s *brokerv1.ConsentSession) bool { return s.GetState() == brokerv1.ConsentSession_STATE_COMPLETED })
	if done.GetServicePrincipalObjectId() != "oid" || done.GetCompleteTime() == nil || done.GetLastRefusal() != "" {
		t.Errorf("completed: %v", done)
	}
	if text, err := os.ReadFile(p.config.Database.Path); err != nil || strings.Contains(string(text), linkOf(awaiting)) {
		t.Errorf("the database holds the link; error %v", err)
	}
}

// linkOf is the last part of a session's link.
func linkOf(s *brokerv1.ConsentSession) string { return path.Base(s.GetConsentUri()) }

// watchUntil watches a session until it is as wanted.
func watchUntil(t *testing.T, c brokerv1.ConsentServiceClient, name string, wanted func(*brokerv1.ConsentSession) bool) *brokerv1.ConsentSession {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := c.WatchConsentSession(ctx, &brokerv1.WatchConsentSessionRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	var last *brokerv1.ConsentSession
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("watching ended with %v, last seen: %v", err, last)
		}
		last = m.GetConsentSession()
		if wanted(last) {
			return last
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// visit asks for a page of a broker, by its public address, and returns the answer's status, headers and text.
func (p *place) visit(t *testing.T, broker *app.App, tlsConfig *tls.Config, method, where string) (status int, header http.Header, text string) {
	t.Helper()
	var dialer net.Dialer
	transport := &http.Transport{
		TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, broker.HTTPSAddr().String())
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, where, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func TestApp_PagesAreServedWhileTheRegistryIsAway(t *testing.T) {
	p := newPlace(t)
	p.registry.ready.Store(true)
	p.config.ReturnOrigins = []string{"https://app.example.com"}
	var stopRegistry, stopVault func()
	p.config.Registry.Target, stopRegistry = p.serveRegistry(t, "")
	p.config.Vault.Target, stopVault = p.serveVault(t, "vault")
	broker, stop := p.start(t)
	conn := p.dial(t, broker, "platform")
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_SERVING)
	created, err := brokerv1.NewConsentServiceClient(conn).CreateConsentSession(t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: "accounts/acme", ConsentSession: &brokerv1.ConsentSession{Integration: integration, ReturnUri: "https://app.example.com/back"}})
	if err != nil {
		t.Fatal(err)
	}
	stopRegistry()
	stopVault()
	ours := p.source(t, "browser").ClientConfig("spiffe://phasekey.dev/broker")
	ours.NextProtos = nil
	status, _, text := p.visit(t, broker, ours, http.MethodGet, created.GetConsentUri())
	for _, want := range []string{"Example IaC", "Network", "phasekey Network 1a2b", "https://app.example.com/back"} {
		if status != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("the page: %d, lacks %q:\n%s", status, want, text)
		}
	}
	status, _, text = p.visit(t, broker, ours, http.MethodPost, created.GetConsentUri())
	want := "https://login.microsoftonline.com/3fe2a1c4-0000-4000-8000-000000000001/v2.0/adminconsent?client_id=client" +
		"&redirect_uri=https%3A%2F%2Fconsent.example.com%2Fconsent%2Fcallback&scope=https%3A%2F%2Fgraph.microsoft.com%2F.default&state="
	if status != http.StatusOK || !strings.Contains(html.UnescapeString(text), want) {
		t.Errorf("the button: %d %s", status, text)
	}
	if body := get(t, "http://"+broker.MetricsAddr().String()+"/metrics"); !strings.Contains(body, `phasekey_broker_pages_total{page="begin",status="200"} 1`) {
		t.Errorf("the metrics lack the button:\n%.2000s", body)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > p.config.Drain+2*time.Second {
		t.Errorf("it took %s to stop", took)
	}
}

func TestApp_PagesHaveACertificateOfTheirOwn(t *testing.T) {
	p := newPlace(t)
	files, err := p.ca.Issue(time.Now(), "web", devca.Leaf{ID: "spiffe://phasekey.dev/web", DNS: []string{"consent.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	p.config.HTTPSCertFile, p.config.HTTPSKeyFile = files.Cert, files.Key
	broker, stop := p.start(t)
	defer stop()
	pem, err := os.ReadFile(p.ca.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	// As a browser verifies it: by its name.
	status, _, _ := p.visit(t, broker, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, http.MethodGet, "https://consent.example.com/")
	if status != http.StatusNotFound {
		t.Errorf("status %d", status)
	}
	cfg := p.config
	cfg.HTTPSKeyFile = p.config.TLS.KeyFile
	cfg.Database.Path = filepath.Join(t.TempDir(), "other.db")
	cfg.StateKeyFile = filepath.Join(t.TempDir(), "other.key")
	if _, err := app.New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "web certificate") {
		t.Errorf("a key of another certificate: error %v", err)
	}
}

func TestApp_HealthFollowsTheRegistryBothWays(t *testing.T) {
	p := newPlace(t)
	var stopRegistry, stopVault func()
	p.config.Registry.Target, stopRegistry = p.serveRegistry(t, "")
	p.config.Vault.Target, stopVault = p.serveVault(t, "vault")
	defer stopVault()
	broker, stop := p.start(t)
	defer stop()
	conn := p.dial(t, broker, "platform")
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_SERVING)
	stopRegistry()
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	_, stopRegistry = p.serveRegistry(t, p.config.Registry.Target)
	defer stopRegistry()
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_SERVING)
}

func TestApp_DistrustsAServerWithAnotherIdentity(t *testing.T) {
	p := newPlace(t)
	p.registry.ready.Store(true)
	var stopRegistry, stopVault func()
	p.config.Registry.Target, stopRegistry = p.serveRegistry(t, "")
	defer stopRegistry()
	p.config.Vault.Target, stopVault = p.serveVault(t, "runner")
	defer stopVault()
	broker, stop := p.start(t)
	defer stop()
	conn := p.dial(t, broker, "platform")
	created, err := brokerv1.NewConsentServiceClient(conn).CreateConsentSession(t.Context(), &brokerv1.CreateConsentSessionRequest{
		Parent: "accounts/acme", ConsentSession: &brokerv1.ConsentSession{Integration: integration}})
	if err != nil || created.GetState() != brokerv1.ConsentSession_STATE_AWAITING_CONSENT {
		t.Errorf("the registry is whom it should be: error %v, session %v", err, created)
	}
	awaitHealth(t, conn, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if n := p.vault.asked.Load(); n != 0 {
		t.Errorf("a vault with another identity was asked %d times", n)
	}
}

func TestApp_RefusesCallersWithoutACertificateOrARole(t *testing.T) {
	p := newPlace(t)
	broker, stop := p.start(t)
	defer stop()
	_, err := brokerv1.NewConsentServiceClient(p.dial(t, broker, "runner")).GetConsentSession(t.Context(),
		&brokerv1.GetConsentSessionRequest{Name: "accounts/acme/consentSessions/s"})
	if status.Code(err) != codes.Unauthenticated || rpcerr.Reason(err) != "IDENTITY_UNKNOWN" {
		t.Errorf("a caller without a role: %v", err)
	}
	bare, err := mtls.Open(t.Context(), mtls.Config{CAFile: p.ca.CAFile()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpcclient.Dial(grpcclient.Config{Target: broker.Addr().String(), TLS: bare.ClientConfig("spiffe://phasekey.dev/broker")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = brokerv1.NewConsentServiceClient(conn).GetConsentSession(t.Context(), &brokerv1.GetConsentSessionRequest{Name: "accounts/acme/consentSessions/s"})
	if status.Code(err) != codes.Unavailable || rpcerr.Reason(err) != "" {
		t.Errorf("without a certificate the handshake should fail: %v", err)
	}
}

func TestNew_LeavesNothingOpenWhenItFails(t *testing.T) {
	p := newPlace(t)
	broker, err := app.New(t.Context(), p.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	taken := broker.Addr().String()
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(p.config.StateKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.config.StateKeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := app.New(t.Context(), p.config, slog.New(slog.DiscardHandler)); !errors.Is(err, keyfile.ErrMissing) {
		t.Errorf("without the key of its database: error %v", err)
	}
	if err := os.WriteFile(p.config.StateKeyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	cfg := p.config
	cfg.Listen = taken
	if _, err := app.New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "listen: ") {
		t.Errorf("an address that is taken: error %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	exposed := cfg
	exposed.ProfileListen = "0.0.0.0:0"
	if _, err := app.New(t.Context(), exposed, slog.New(slog.DiscardHandler)); !errors.Is(err, obs.ErrExposed) {
		t.Errorf("profiles beyond this machine: error %v", err)
	}
	// The file is locked while a database is open, and the address is bound: both were let go.
	broker, err = app.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Close(); err != nil {
		t.Error(err)
	}
}
