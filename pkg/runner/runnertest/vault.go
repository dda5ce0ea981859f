// Package runnertest is a vault for tests of runners: it says exactly what the test tells it to, over real gRPC and real
// TLS 1.3, in memory (inside a testing/synctest bubble too) or on a TCP port.
//
// The one tricky idea: the vault decides nothing. Each call of StreamCredentials waits in Accept until the test takes it,
// so a test reads as the list of what happened, in order.
package runnertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

// ID is the SPIFFE ID in the vault's certificate.
const ID = "spiffe://phasekey.test/vault"

// acceptTimeout is how long Accept waits.
const acceptTimeout = time.Minute

// Stream is one open call of StreamCredentials.
type Stream struct {
	Request *vaultv1.StreamCredentialsRequest
	// Done is closed when the runner has let go of it, or it has ended.
	Done   <-chan struct{}
	orders chan order
}

// order is the next thing that a stream does.
type order struct {
	message *vaultv1.StreamCredentialsResponse
	end     bool
	err     error
}

// Send delivers c, which may be nil. It gives up when the runner has let go of the stream.
func (s *Stream) Send(c *vaultv1.Credential) {
	s.Say(&vaultv1.StreamCredentialsResponse{Credential: c})
}

// Leave asks the runner to open another stream within a time. It gives up as Send does.
func (s *Stream) Leave(within time.Duration) {
	s.Say(&vaultv1.StreamCredentialsResponse{LeaveWindow: durationpb.New(within)})
}

// Say sends a message as it is. It gives up as Send does.
func (s *Stream) Say(m *vaultv1.StreamCredentialsResponse) { s.do(order{message: m}) }

// End ends the stream with err; nil is OK.
func (s *Stream) End(err error) { s.do(order{end: true, err: err}) }

func (s *Stream) do(o order) {
	select {
	case s.orders <- o:
	case <-s.Done:
	}
}

// Vault is the fake. Make it with New.
type Vault struct {
	vaultv1.UnimplementedCredentialServiceServer
	grant   string
	streams chan *Stream

	mu      sync.Mutex
	fetch   func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error)
	auto    *vaultv1.Credential
	fetches []*vaultv1.FetchCredentialRequest
	closes  []*vaultv1.CloseLeaseRequest
	acks    []*vaultv1.AcknowledgeCredentialRequest
}

// New makes a vault that knows one grant.
func New(grant string) *Vault {
	return &Vault{grant: grant, streams: make(chan *Stream)}
}

// Accept waits for the next stream, at most a minute.
func (v *Vault) Accept(t testing.TB) *Stream {
	t.Helper()
	select {
	case s := <-v.streams:
		return s
	case <-time.After(acceptTimeout):
		t.Fatalf("no stream was opened for %s", acceptTimeout)
		return nil
	}
}

// Streams gives the streams that wait to be accepted, for a test that expects none.
func (v *Vault) Streams() <-chan *Stream { return v.streams }

// Always makes every stream deliver c at once and stay open, instead of waiting in Accept.
func (v *Vault) Always(c *vaultv1.Credential) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.auto = c
}

// OnFetch says what FetchCredential answers.
func (v *Vault) OnFetch(do func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fetch = do
}

// Fetches returns the calls of FetchCredential so far.
func (v *Vault) Fetches() []*vaultv1.FetchCredentialRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]*vaultv1.FetchCredentialRequest(nil), v.fetches...)
}

// Closes returns the calls of CloseLease so far.
func (v *Vault) Closes() []*vaultv1.CloseLeaseRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]*vaultv1.CloseLeaseRequest(nil), v.closes...)
}

// Acknowledges returns the calls of AcknowledgeCredential so far.
func (v *Vault) Acknowledges() []*vaultv1.AcknowledgeCredentialRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]*vaultv1.AcknowledgeCredentialRequest(nil), v.acks...)
}

// StreamCredentials implements vaultv1.CredentialServiceServer.
func (v *Vault) StreamCredentials(req *vaultv1.StreamCredentialsRequest, out grpc.ServerStreamingServer[vaultv1.StreamCredentialsResponse]) error {
	ctx := out.Context()
	if err := v.check(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	auto := v.auto
	v.mu.Unlock()
	if auto != nil {
		if err := out.Send(&vaultv1.StreamCredentialsResponse{Credential: auto}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	s := &Stream{Request: req, Done: ctx.Done(), orders: make(chan order)}
	select {
	case v.streams <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		select {
		case o := <-s.orders:
			if o.end {
				return o.err
			}
			if err := out.Send(o.message); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// FetchCredential implements vaultv1.CredentialServiceServer.
func (v *Vault) FetchCredential(ctx context.Context, req *vaultv1.FetchCredentialRequest) (*vaultv1.FetchCredentialResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.fetches = append(v.fetches, req)
	do := v.fetch
	v.mu.Unlock()
	if do == nil {
		return nil, Error(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_AUDIENCE_NOT_ALLOWED)
	}
	c, err := do(req)
	if err != nil {
		return nil, err
	}
	return &vaultv1.FetchCredentialResponse{Credential: c}, nil
}

// AcknowledgeCredential implements vaultv1.CredentialServiceServer.
func (v *Vault) AcknowledgeCredential(ctx context.Context, req *vaultv1.AcknowledgeCredentialRequest) (*vaultv1.AcknowledgeCredentialResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.acks = append(v.acks, req)
	return &vaultv1.AcknowledgeCredentialResponse{}, nil
}

// CloseLease implements vaultv1.CredentialServiceServer.
func (v *Vault) CloseLease(ctx context.Context, req *vaultv1.CloseLeaseRequest) (*vaultv1.CloseLeaseResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closes = append(v.closes, req)
	return &vaultv1.CloseLeaseResponse{}, nil
}

// check refuses everybody who does not show the grant.
func (v *Vault) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+v.grant {
		return Error(codes.Unauthenticated, errorv1.ErrorReason_ERROR_REASON_GRANT_UNKNOWN)
	}
	return nil
}

// Error is an error as the vault gives it.
func Error(code codes.Code, r errorv1.ErrorReason) error {
	reason := r.String()[len("ERROR_REASON_"):]
	return rpcerr.New(code, reason, "the vault says "+reason)
}

// Memory serves the vault in memory until the test ends, and returns a connection to it.
func (v *Vault) Memory(t testing.TB) *grpc.ClientConn {
	t.Helper()
	ln := bufconn.Listen(64 << 10)
	cert, pool := Certificate(t)
	v.Serve(t, ln, cert)
	return Dial(t, pool, ln.DialContext)
}

// Dial makes a connection by dial to servers with a certificate of pool's.
func Dial(t testing.TB, pool *x509.CertPool, dial func(context.Context) (net.Conn, error)) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///vault",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs:    pool,
			ServerName: "vault.test",
			MinVersion: tls.VersionTLS13,
		})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TCP serves the vault on a free port of 127.0.0.1 until the test ends, and returns the address and a file with the CA
// that its certificate is verified against.
func (v *Vault) TCP(t testing.TB) (addr, caFile string) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := Certificate(t)
	v.Serve(t, ln, cert)
	return ln.Addr().String(), CAFile(t, cert)
}

// CAFile writes a certificate that is its own root to a file.
func CAFile(t testing.TB, cert tls.Certificate) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Serve serves the vault on ln until the test ends or the returned server is stopped.
func (v *Vault) Serve(t testing.TB, ln net.Listener, cert tls.Certificate) *grpc.Server {
	t.Helper()
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
	})))
	vaultv1.RegisterCredentialServiceServer(srv, v)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve the fake vault: %v", err)
		}
	})
	return srv
}

// Certificate makes a certificate for the vault, which is its own root, and the pool that verifies it.
func Certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(ID)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "vault"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * 365 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"vault.test"},
		URIs:                  []*url.URL{id},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}
