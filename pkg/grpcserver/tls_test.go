package grpcserver_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/rpcerr"
)

const serverID = "spiffe://phasekey.dev/registry"

// The same service on two listeners over real TLS: the services' one and the runners' one.
func TestTLS_TwoListeners(t *testing.T) {
	t.Parallel()
	ca, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := devca.Open(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	open := func(from *devca.Authority, name, id string) *mtls.Source {
		t.Helper()
		cfg := mtls.Config{CAFile: ca.CAFile()}
		if name != "" {
			f, err := from.Issue(time.Now(), name, devca.Leaf{ID: id, DNS: []string{"localhost"}})
			if err != nil {
				t.Fatal(err)
			}
			cfg.CertFile, cfg.KeyFile = f.Cert, f.Key
		}
		s, err := mtls.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	server := open(ca, "registry", serverID)
	service := notetest.Service{Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
		id, _ := grpcserver.IdentityFromContext(ctx)
		return notetest.Note(`text: "` + id.ID + `"`), nil
	}}
	start := func(anonymousOK bool, auth mtls.ClientAuth) string {
		t.Helper()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := config(service)
		cfg.Name, cfg.Listener, cfg.TLS, cfg.AnonymousOK = "tls", listener, server.ServerConfig(auth), anonymousOK
		cfg.Log = slog.New(slog.DiscardHandler)
		srv, err := grpcserver.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- srv.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return srv.Addr().String()
	}
	services, runners := start(false, mtls.Required), start(true, mtls.Optional)

	known, nobody := open(ca, "platform", platform), open(nil, "", "")
	for _, tt := range []struct {
		name   string
		target string
		client *tls.Config
		method string
		code   codes.Code
		reason string // "" with UNAVAILABLE: the handshake failed
		text   string
	}{
		{name: "a known identity", target: services, client: known.ClientConfig(serverID), method: "Get", text: platform},
		{name: "a stranger of our CA", target: services, client: open(ca, "stranger", stranger).ClientConfig(serverID), method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "no certificate", target: services, client: nobody.ClientConfig(serverID), method: "Get", code: codes.Unavailable},
		{name: "another CA's certificate", target: services, client: open(other, "platform", platform).ClientConfig(serverID), method: "Get", code: codes.Unavailable},
		{name: "a server that is not the expected one", target: services, client: known.ClientConfig("spiffe://phasekey.dev/vault"), method: "Get", code: codes.Unavailable},
		{name: "no certificate at the runners' listener", target: runners, client: nobody.ClientConfig(serverID), method: "Fetch"},
		{name: "no certificate at the runners' listener, for services", target: runners, client: nobody.ClientConfig(serverID), method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "another CA's certificate at the runners' listener", target: runners, client: open(other, "platform", platform).ClientConfig(serverID), method: "Fetch", code: codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := grpcclient.Dial(grpcclient.Config{Target: tt.target, TLS: tt.client})
			if err != nil {
				t.Fatal(err)
			}
			resp, err := call(t, conn, tt.method, `parent: "accounts/acme"`)
			want(t, err, tt.code, tt.reason)
			if got := notetest.Text(resp, "text"); got != tt.text {
				t.Errorf("handler saw %q", got)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The TLS configuration and what the listener is for must agree, or nothing starts.
func TestNew_RefusesWeakTLS(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		tls         *tls.Config
		anonymousOK bool
		want        string
	}{
		{name: "old versions", tls: &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert}, want: "TLS below 1.3"},
		{name: "optional certificates for services", tls: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven}, want: "does not require client certificates"},
		{name: "unverified certificates for runners", tls: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert}, anonymousOK: true, want: "does not verify client certificates"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(notetest.Service{})
			cfg.Name, cfg.Log, cfg.TLS, cfg.AnonymousOK = "weak", slog.New(slog.DiscardHandler), tt.tls, tt.anonymousOK
			cfg.Listener = &net.TCPListener{}
			if _, err := grpcserver.New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Whoever configures a transport without TLS gets a server that serves nobody.
func TestPlaintext_Refused(t *testing.T) {
	t.Parallel()
	listener := bufconn.Listen(1 << 16)
	cfg := config(notetest.Service{})
	cfg.Name, cfg.Listener, cfg.Credentials = "plain", listener, insecure.NewCredentials()
	cfg.Log, cfg.AnonymousOK = slog.New(slog.DiscardHandler), true
	srv, err := grpcserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- srv.Run(ctx) }()
	conn, err := grpcclient.Dial(grpcclient.Config{
		Target: "passthrough:///memory", Credentials: insecure.NewCredentials(),
		Dialer: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"Get", "Fetch"} {
		_, err = call(t, conn, method, "")
		want(t, err, codes.Unauthenticated, rpcerr.ReasonIdentityUnknown)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
