package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	serverID = "spiffe://phasekey.dev/vault"
	clientID = "spiffe://phasekey.dev/platform"
)

// authority makes a CA in a folder of its own.
func authority(t *testing.T) *devca.Authority {
	t.Helper()
	a, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// files issues a certificate and returns the configuration that uses it.
func files(t *testing.T, a *devca.Authority, name, id string) mtls.Config {
	t.Helper()
	f, err := a.Issue(time.Now(), name, devca.Leaf{ID: id, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Config{CertFile: f.Cert, KeyFile: f.Key, CAFile: a.CAFile()}
}

// source opens a configuration.
func source(t *testing.T, cfg mtls.Config) *mtls.Source {
	t.Helper()
	s, err := mtls.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// handshake connects over a pipe and returns what the server saw, and both errors. Both sides speak a byte, as a TLS 1.3
// client only learns of its refusal from the server's next word.
func handshake(t *testing.T, server, client *tls.Config) (seen tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	sc, cc := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := tls.Server(sc, server)
		if serverErr = s.HandshakeContext(t.Context()); serverErr == nil {
			seen = s.ConnectionState()
			_, serverErr = s.Write([]byte{1})
		}
		_ = sc.Close()
	}()
	c := tls.Client(cc, client)
	if clientErr = c.HandshakeContext(t.Context()); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	_ = cc.Close()
	<-done
	return seen, serverErr, clientErr
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	server := source(t, files(t, ours, "vault", serverID))
	client := files(t, ours, "platform", clientID)
	spoofed := files(t, theirs, "vault", serverID)
	spoofed.CAFile = ours.CAFile()
	foreignClient := files(t, theirs, "platform", clientID)
	foreignClient.CAFile = ours.CAFile()
	anonymous := mtls.Config{CAFile: ours.CAFile()}
	otherDomain := files(t, ours, "other", "spiffe://elsewhere.dev/platform")
	old := source(t, client).ClientConfig(serverID)
	old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12

	tests := []struct {
		name   string
		server *tls.Config
		client *tls.Config
		peer   string // that the server sees
		fails  bool
	}{
		{name: "both as they should be", server: server.ServerConfig(mtls.Required), client: source(t, client).ClientConfig(serverID), peer: clientID},
		{name: "one of several server IDs", server: server.ServerConfig(mtls.Required), client: source(t, client).ClientConfig("spiffe://phasekey.dev/broker", serverID), peer: clientID},
		{name: "optional and shown", server: server.ServerConfig(mtls.Optional), client: source(t, client).ClientConfig(serverID), peer: clientID},
		{name: "optional and not shown", server: server.ServerConfig(mtls.Optional), client: source(t, anonymous).ClientConfig(serverID)},
		{name: "required and not shown", server: server.ServerConfig(mtls.Required), client: source(t, anonymous).ClientConfig(serverID), fails: true},
		{name: "a client of another CA", server: server.ServerConfig(mtls.Required), client: source(t, foreignClient).ClientConfig(serverID), fails: true},
		{name: "optional, a client of another CA", server: server.ServerConfig(mtls.Optional), client: source(t, foreignClient).ClientConfig(serverID), fails: true},
		{name: "a client of another trust domain", server: server.ServerConfig(mtls.Required), client: source(t, otherDomain).ClientConfig(serverID), fails: true},
		{name: "a server of another CA", server: source(t, spoofed).ServerConfig(mtls.Optional), client: source(t, client).ClientConfig(serverID), fails: true},
		{name: "a server with another ID", server: server.ServerConfig(mtls.Required), client: source(t, client).ClientConfig("spiffe://phasekey.dev/registry"), fails: true},
		{name: "a client that expects no server", server: server.ServerConfig(mtls.Required), client: source(t, client).ClientConfig(), fails: true},
		{name: "a server without certificate", server: source(t, anonymous).ServerConfig(mtls.Optional), client: source(t, client).ClientConfig(serverID), fails: true},
		{name: "TLS 1.2", server: server.ServerConfig(mtls.Required), client: old, fails: true},
		{name: "a client without SPIFFE ID", server: server.ServerConfig(mtls.Required), client: plainClient(t, client, ours), fails: true},
		{name: "a browser", server: server.HTTPSConfig(), client: &tls.Config{RootCAs: pool(t, ours), ServerName: "localhost"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seen, serverErr, clientErr := handshake(t, tt.server, tt.client)
			if tt.fails {
				if clientErr == nil || tt.peer != "" {
					t.Errorf("connected: server %v, client %v", serverErr, clientErr)
				}
				return
			}
			if serverErr != nil || clientErr != nil {
				t.Fatalf("server: %v; client: %v", serverErr, clientErr)
			}
			id, err := mtls.IDFromState(seen)
			if id != tt.peer || (tt.peer == "") != errors.Is(err, mtls.ErrNoIdentity) {
				t.Errorf("server sees %q, %v", id, err)
			}
			if seen.Version != tls.VersionTLS13 {
				t.Errorf("version %x", seen.Version)
			}
		})
	}
}

// pool is the CA as a browser has it.
func pool(t *testing.T, a *devca.Authority) *x509.CertPool {
	t.Helper()
	b, err := os.ReadFile(a.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(b)
	return p
}

// plainClient shows the CA's own certificate, which verifies and has no SPIFFE ID.
func plainClient(t *testing.T, cfg mtls.Config, a *devca.Authority) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(a.CAFile(), strings.TrimSuffix(a.CAFile(), ".pem")+"-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	c := source(t, cfg).ClientConfig(serverID)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return c
}

func TestSessionTickets_Off(t *testing.T) {
	t.Parallel()
	a := authority(t)
	server := source(t, files(t, a, "vault", serverID)).ServerConfig(mtls.Required)
	client := source(t, files(t, a, "platform", clientID)).ClientConfig(serverID)
	// A client that would resume if it could.
	client.SessionTicketsDisabled, client.ClientSessionCache, client.ServerName = false, tls.NewLRUClientSessionCache(8), "vault"
	for range 3 {
		seen, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if seen.DidResume {
			t.Error("resumed")
		}
	}
}

func TestRun_Reloads(t *testing.T) {
	t.Parallel()
	first, second := authority(t), authority(t)
	dir := t.TempDir()
	cfg := mtls.Config{
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), CAFile: filepath.Join(dir, "ca.pem"),
		ReloadInterval: 5 * time.Millisecond,
	}
	put := func(from mtls.Config, only ...string) {
		t.Helper()
		for src, dst := range map[string]string{from.CertFile: cfg.CertFile, from.KeyFile: cfg.KeyFile, from.CAFile: cfg.CAFile} {
			if len(only) > 0 && only[0] != dst {
				continue
			}
			b, err := os.ReadFile(src)
			if err == nil {
				err = os.WriteFile(dst, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	firstServer, secondServer := files(t, first, "vault", serverID), files(t, second, "vault", serverID)
	put(firstServer)

	var log logtest.Transcript
	s, err := mtls.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	server := s.ServerConfig(mtls.Required)
	firstClient := source(t, files(t, first, "platform", clientID)).ClientConfig(serverID)
	secondClient := source(t, files(t, second, "platform", clientID)).ClientConfig(serverID)
	works := func(client *tls.Config) bool {
		_, serverErr, clientErr := handshake(t, server, client)
		return serverErr == nil && clientErr == nil
	}
	if !works(firstClient) || works(secondClient) {
		t.Fatal("the first certificate is not in use")
	}

	// Half a change: the new certificate beside the old key. The old pair stays.
	put(secondServer, cfg.CertFile)
	await(t, &log, "cannot be used")
	if !works(firstClient) {
		t.Error("a bad file was used")
	}
	put(secondServer)
	await(t, &log, "reloaded")
	if works(firstClient) || !works(secondClient) {
		t.Error("the second certificate is not in use")
	}
	if err := os.Remove(cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	await(t, &log, "no such file")
	if !works(secondClient) {
		t.Error("a missing file ended service")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "PRIVATE KEY") {
		t.Error("a key is in the log")
	}
}

func TestOpen_Refuses(t *testing.T) {
	t.Parallel()
	a := authority(t)
	good, other := files(t, a, "vault", serverID), files(t, a, "broker", "spiffe://phasekey.dev/broker")
	for _, tt := range []struct {
		name   string
		change func(*mtls.Config)
		want   string
	}{
		{"nothing", func(c *mtls.Config) { *c = mtls.Config{} }, "ca_file or workload_api is required"},
		{"a certificate without key", func(c *mtls.Config) { c.KeyFile = "" }, "cert_file and key_file go together"},
		{"both ways", func(c *mtls.Config) { c.WorkloadAPI = "unix:///x" }, "workload_api excludes"},
		{"a bad address", func(c *mtls.Config) { *c = mtls.Config{WorkloadAPI: "http://x"} }, "workload_api:"},
		{"a negative interval", func(c *mtls.Config) { c.ReloadInterval = -1 }, "reload_interval"},
		{"another's key", func(c *mtls.Config) { c.KeyFile = other.KeyFile }, "private key does not match"},
		{"no CA in the file", func(c *mtls.Config) { c.CAFile = c.KeyFile }, "no certificate in it"},
		{"a missing file", func(c *mtls.Config) { c.CertFile += "x" }, "no such file"},
		{"a certificate without SPIFFE ID", func(c *mtls.Config) {
			c.CertFile, c.KeyFile = a.CAFile(), strings.TrimSuffix(a.CAFile(), ".pem")+"-key.pem"
		}, mtls.ErrNoIdentity.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			tt.change(&cfg)
			_, err := mtls.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// fakeWorkloadAPI is a SPIRE agent that knows one workload at a time.
type fakeWorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	mu      sync.Mutex
	svid    *workload.X509SVID
	changed chan struct{}
}

func (f *fakeWorkloadAPI) set(svid *workload.X509SVID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.svid = svid
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeWorkloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "no security header")
	}
	for {
		f.mu.Lock()
		svid, changed := f.svid, f.changed
		f.mu.Unlock()
		if err := stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// svid is what the agent would say of these files.
func svid(t *testing.T, cfg mtls.Config, id string) *workload.X509SVID {
	t.Helper()
	der := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := pem.Decode(b)
		return p.Bytes
	}
	return &workload.X509SVID{SpiffeId: id, X509Svid: der(cfg.CertFile), X509SvidKey: der(cfg.KeyFile), Bundle: der(cfg.CAFile)}
}

func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	first, second := authority(t), authority(t)
	agent := &fakeWorkloadAPI{changed: make(chan struct{})}
	agent.set(svid(t, files(t, first, "vault", serverID), serverID))
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, agent)
	served := make(chan error)
	go func() { served <- srv.Serve(listener) }()

	var log logtest.Transcript
	s, err := mtls.Open(t.Context(), mtls.Config{WorkloadAPI: "unix://" + socket}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := s.ID(); id != serverID || err != nil {
		t.Errorf("our ID is %s, %v", id, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	server := s.ServerConfig(mtls.Required)
	firstClient := source(t, files(t, first, "platform", clientID)).ClientConfig(serverID)
	secondClient := source(t, files(t, second, "platform", clientID)).ClientConfig(serverID)
	if _, serverErr, clientErr := handshake(t, server, firstClient); serverErr != nil || clientErr != nil {
		t.Error(serverErr, clientErr)
	}
	agent.set(svid(t, files(t, second, "vault", serverID), serverID))
	await(t, &log, "renewed")
	if _, serverErr, clientErr := handshake(t, server, secondClient); serverErr != nil || clientErr != nil {
		t.Error(serverErr, clientErr)
	}
	if _, _, clientErr := handshake(t, server, firstClient); clientErr == nil {
		t.Error("the bundle that was replaced is still believed")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	srv.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// await waits until the log says so.
func await(t *testing.T, log *logtest.Transcript, text string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !strings.Contains(log.String(), text) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the log never says %q:\n%s", text, log)
		}
	}
}
