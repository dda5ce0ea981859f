package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

// stream is one open call of StreamCredentials.
type stream struct {
	instance string
	request  *vaultv1.StreamCredentialsRequest
	at       time.Time
	done     <-chan struct{} // the runner has let go of it, or it has ended
	orders   chan order
}

// order is the next thing that a stream does: deliver a credential, ask to be left, or end.
type order struct {
	credential *vaultv1.Credential
	leave      *durationpb.Duration
	end        bool
	err        error
}

func (s *stream) do(o order) {
	select {
	case s.orders <- o:
	case <-s.done:
	}
}

// lives reports whether the runner still holds it.
func (s *stream) lives() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// vault plays the vault: real TLS and gRPC at one address of loopback, behind which it can be replaced, cut off, or have a proxy put before it. It
// decides nothing.
type vault struct {
	vaultv1.UnimplementedCredentialServiceServer
	grant string
	tls   *tls.Config
	front net.Listener
	calls chan *stream

	mu      sync.Mutex
	backend backend // takes new connections; nil resets them
	servers []backend
	conns   map[net.Conn]bool
	shown   int // calls by which the grant was shown
	strange []string
	fetches []*vaultv1.FetchCredentialRequest
	closes  []string // instances
	acks    []int64  // generations
	fetch   func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error)
	serving sync.WaitGroup
}

// backend is what stands behind the address.
type backend interface {
	Serve(l net.Listener) error
	stop()
	listener() *feed
}

// feed is a listener that is handed its connections.
type feed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newFeed(addr net.Addr) *feed {
	return &feed{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return f.addr }

type grpcBackend struct {
	*grpc.Server
	in *feed
}

func (b grpcBackend) stop()           { b.Stop() }
func (b grpcBackend) listener() *feed { return b.in }

// proxyBackend answers everything with 403 and a page, as a proxy does that does not know us.
type proxyBackend struct {
	*http.Server
	in *feed
}

func (b proxyBackend) Serve(l net.Listener) error { return b.ServeTLS(l, "", "") }
func (b proxyBackend) stop()                      { _ = b.Close() }
func (b proxyBackend) listener() *feed            { return b.in }

// newVault listens. The caller stops it.
func newVault(ctx context.Context, grant string, cert tls.Certificate) (*vault, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("play the vault: %w", err)
	}
	v := &vault{
		grant: grant,
		tls:   &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}},
		front: ln,
		calls: make(chan *stream),
		conns: map[net.Conn]bool{},
	}
	v.serve()
	v.serving.Go(v.accept)
	return v, nil
}

func (v *vault) address() string { return v.front.Addr().String() }

// accept hands each connection to the backend of that moment.
func (v *vault) accept() {
	for {
		conn, err := v.front.Accept()
		if err != nil {
			return
		}
		v.mu.Lock()
		to := v.backend
		if to != nil {
			v.conns[conn] = true
		}
		v.mu.Unlock()
		if to == nil {
			_ = conn.Close()
			continue
		}
		select {
		case to.listener().conns <- conn:
		case <-to.listener().done:
			_ = conn.Close()
		}
	}
}

// put makes b what stands behind the address.
func (v *vault) put(b backend) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.backend = b
	v.servers = append(v.servers, b)
	v.serving.Go(func() { _ = b.Serve(b.listener()) })
}

// serve puts a fresh server behind the address, and leaves former ones alone.
func (v *vault) serve() {
	srv := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(v.tls)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	vaultv1.RegisterCredentialServiceServer(srv, v)
	v.put(grpcBackend{srv, newFeed(v.front.Addr())})
}

// goAway asks everybody who is connected to leave (GOAWAY), while their streams live on; who comes from now on finds a fresh server.
func (v *vault) goAway() {
	v.mu.Lock()
	old := v.backend
	v.mu.Unlock()
	v.serve()
	if g, ok := old.(grpcBackend); ok {
		v.serving.Go(g.GracefulStop)
	}
}

// gone cuts all connections, and resets new ones.
func (v *vault) gone() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.backend = nil
	v.cut()
}

// cut breaks all connections. The caller holds mu.
func (v *vault) cut() {
	for conn := range v.conns {
		_ = conn.Close()
	}
	clear(v.conns)
}

// forbid puts a proxy in between that refuses.
func (v *vault) forbid() {
	v.put(proxyBackend{&http.Server{
		TLSConfig:         v.tls.Clone(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<html><h1>403 Forbidden</h1></html>")
		}),
	}, newFeed(v.front.Addr())})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cut()
}

// stop ends everything.
func (v *vault) stop() {
	_ = v.front.Close()
	v.mu.Lock()
	servers := v.servers
	v.cut()
	v.mu.Unlock()
	for _, s := range servers {
		_ = s.listener().Close()
		s.stop()
	}
	v.serving.Wait()
}

// check refuses whoever does not show the grant.
func (v *vault) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	got := md.Get("authorization")
	v.mu.Lock()
	defer v.mu.Unlock()
	if !slices.Equal(got, []string{"Bearer " + v.grant}) {
		v.strange = append(v.strange, "a call did not show the grant as `authorization: Bearer <grant>`, once")
		return refusal(codes.Unauthenticated, rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_GRANT_UNKNOWN))
	}
	v.shown++
	return nil
}

// StreamCredentials implements vaultv1.CredentialServiceServer.
func (v *vault) StreamCredentials(req *vaultv1.StreamCredentialsRequest, out grpc.ServerStreamingServer[vaultv1.StreamCredentialsResponse]) error {
	ctx := out.Context()
	if err := v.check(ctx); err != nil {
		return err
	}
	s := &stream{instance: req.GetInstanceId(), request: req, at: time.Now(), done: ctx.Done(), orders: make(chan order)}
	select {
	case v.calls <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		select {
		case o := <-s.orders:
			if o.end {
				return o.err
			}
			if err := out.Send(&vaultv1.StreamCredentialsResponse{Credential: o.credential, LeaveWindow: o.leave}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// FetchCredential implements vaultv1.CredentialServiceServer.
func (v *vault) FetchCredential(ctx context.Context, req *vaultv1.FetchCredentialRequest) (*vaultv1.FetchCredentialResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.fetches = append(v.fetches, req)
	do := v.fetch
	v.mu.Unlock()
	if do == nil {
		return nil, refusal(codes.PermissionDenied, rpcerr.Word(errorv1.ErrorReason_ERROR_REASON_AUDIENCE_NOT_ALLOWED))
	}
	c, err := do(req)
	if err != nil {
		return nil, err
	}
	return &vaultv1.FetchCredentialResponse{Credential: c}, nil
}

// CloseLease implements vaultv1.CredentialServiceServer.
func (v *vault) CloseLease(ctx context.Context, req *vaultv1.CloseLeaseRequest) (*vaultv1.CloseLeaseResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closes = append(v.closes, req.GetInstanceId())
	return &vaultv1.CloseLeaseResponse{}, nil
}

// AcknowledgeCredential implements vaultv1.CredentialServiceServer.
func (v *vault) AcknowledgeCredential(ctx context.Context, req *vaultv1.AcknowledgeCredentialRequest) (*vaultv1.AcknowledgeCredentialResponse, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.acks = append(v.acks, req.GetGeneration())
	return &vaultv1.AcknowledgeCredentialResponse{}, nil
}

// acknowledged are the generations that were acknowledged so far.
func (v *vault) acknowledged() []int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.acks)
}

// onFetch says what FetchCredential answers.
func (v *vault) onFetch(do func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fetch = do
}

// fetched are the calls of FetchCredential so far.
func (v *vault) fetched() []*vaultv1.FetchCredentialRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.fetches)
}

// closed are the instances whose leases were closed so far.
func (v *vault) closed() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.closes)
}

// seen is how many calls have shown the grant, and what was strange about any call.
func (v *vault) seen() (shown int, strange []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.shown, slices.Clone(v.strange)
}

// refusal is an error as the vault gives it.
func refusal(code codes.Code, reason string) error { return rpcerr.New(code, reason, "as scripted") }

var errGone = errors.New("the command has ended")
