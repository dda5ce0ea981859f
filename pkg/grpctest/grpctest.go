// Package grpctest runs a real grpcserver.Server in memory, for tests of RPCs.
//
// It guarantees that a call passes the same chain as in production: the same code authenticates, authorizes, validates and
// masks; only the transport differs. Connections are pipes (bufconn), so that server and client also live in a testing/synctest
// bubble, and instead of TLS there is a handshake in which the client says its SPIFFE ID. At the end of the test the server must
// stop within its drain time with every handler returned, else the test fails. It does not test TLS, and goroutines that a service
// starts by itself are for goleak in the package's TestMain.
//
// The tricky idea: the handshake yields credentials.TLSInfo with a certificate that says just the ID, so the server's
// authentication cannot tell, and needs no path for tests.
package grpctest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/obs"
)

// pipeBytes is the size of a connection's buffer each way.
const pipeBytes = 256 << 10

// Config is grpcserver's. Listener and Credentials are set here; Name may be empty; Log nil means t.Log's output.
type Config = grpcserver.Config

// Server is a running server.
type Server struct {
	*grpcserver.Server
	listener *bufconn.Listener
	stop     context.CancelFunc
	stopped  chan struct{}
	err      error       // of Run; read after stopped is closed
	judged   atomic.Bool // the test looks at err itself
}

// Start runs a server until the test ends or Stop is called. Every service is SERVING.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	s := &Server{listener: bufconn.Listen(pipeBytes), stopped: make(chan struct{})}
	cfg.Listener = s.listener
	cfg.TLS, cfg.Credentials = nil, sayID{}
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	if cfg.Log == nil {
		cfg.Log = obs.NewLogger(t.Output(), slog.LevelDebug, obs.FormatText)
	}
	srv, err := grpcserver.New(cfg)
	if err != nil {
		t.Fatalf("make server: %v", err)
	}
	s.Server = srv
	srv.SetServing("", true)
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		defer close(s.stopped)
		s.err = srv.Run(ctx)
	}()
	t.Cleanup(func() {
		s.stop()
		<-s.stopped
		if s.err != nil && !s.judged.Load() {
			t.Errorf("stop server: %v", s.err)
		}
	})
	return s
}

// Stop stops the server as SIGTERM would and returns Run's error, which is then the caller's to judge. It may be called
// more than once.
func (s *Server) Stop() error {
	s.judged.Store(true)
	s.stop()
	<-s.stopped
	return s.err
}

// Dial returns a connection of a caller with this SPIFFE ID; "" shows no certificate. It is closed when the test ends.
func (s *Server) Dial(t testing.TB, id string) *grpc.ClientConn {
	t.Helper()
	return s.DialWith(t, id, grpcclient.Config{})
}

// DialWith is Dial with more of the client's configuration: Target, TLS, Credentials and Dialer are set here.
func (s *Server) DialWith(t testing.TB, id string, cfg grpcclient.Config) *grpc.ClientConn {
	t.Helper()
	cfg.Target = "passthrough:///memory"
	cfg.TLS, cfg.Credentials = nil, sayID{id: id}
	cfg.Dialer = func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }
	conn, err := grpcclient.Dial(cfg)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// sayID is a transport security in which the client says its SPIFFE ID and the server believes it.
type sayID struct{ id string }

// ClientHandshake implements credentials.TransportCredentials: the ID's length, and the ID.
func (c sayID) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(c.id)))
	if _, err := conn.Write(append(b, c.id...)); err != nil {
		return nil, nil, fmt.Errorf("say id: %w", err)
	}
	return conn, tlsInfo(nil), nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (sayID) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, nil, fmt.Errorf("hear id: %w", err)
	}
	id := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, id); err != nil {
		return nil, nil, fmt.Errorf("hear id: %w", err)
	}
	if len(id) == 0 {
		return conn, tlsInfo(nil), nil
	}
	u, err := url.Parse(string(id))
	if err != nil {
		return nil, nil, fmt.Errorf("hear id: %w", err)
	}
	// Raw differs by ID, so that what binds to a certificate's hash can be tested too.
	return conn, tlsInfo([]*x509.Certificate{{Raw: id, URIs: []*url.URL{u}}}), nil
}

// tlsInfo is what a TLS handshake would have yielded.
func tlsInfo(certs []*x509.Certificate) credentials.TLSInfo {
	return credentials.TLSInfo{
		State:          tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, PeerCertificates: certs},
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
}

// Info implements credentials.TransportCredentials.
func (sayID) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c sayID) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (sayID) OverrideServerName(string) error { return nil }
