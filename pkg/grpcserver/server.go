package grpcserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/reflect/protoreflect"

	"phasekey.dev/pkg/obs"
)

// RoleGrant is the role of whoever holds a bearer grant: a method that lists it needs no identity, for its handler
// authenticates the grant itself. No Identity may have it.
const RoleGrant = "grant"

// AllAccounts stands for all accounts in an identity's list.
const AllAccounts = "*"

// The errors of New and Run; the text around them says more.
var (
	// ErrUndeclared is returned by New for methods whose callers the policy does not name.
	ErrUndeclared = errors.New("methods without declared callers")
	// ErrDrain is returned by Run when handlers did not return in time.
	ErrDrain = errors.New("handlers did not return")
)

// Sizes and times that are the same for all our servers.
const (
	maxRecvBytes   = 1 << 20
	maxSendBytes   = 8 << 20
	maxHeaderBytes = 16 << 10
	maxStreams     = 10_000 // per connection
	// A stranger's connection may have fewer, and does not stay without any: there may be many such connections.
	maxStrangerStreams = 1000
	strangerIdle       = time.Minute
	readBufferBytes    = 4 << 10
	// windowBytes is what a client may send ahead, of each stream and of all of a connection. Requests are small; to measure what the network could take costs a ping for nearly each of them.
	windowBytes      = 64 << 10
	handshakeTime    = 20 * time.Second
	keepaliveTime    = time.Minute
	keepaliveTimeout = 20 * time.Second
	minClientPing    = 10 * time.Second
	// connectionAge makes clients resolve and authenticate again; streams on an older connection go on.
	connectionAge = 30 * time.Minute
	// cutoff is how long handlers may take to return once they have been cut off.
	cutoff = time.Second

	defaultTimeout    = 30 * time.Second
	defaultStreamIdle = 2 * time.Hour
	defaultDrain      = 10 * time.Second
)

// Policy says which roles may call a method; ok is false for a method that declares nothing. An empty list is as good as
// none: the server refuses to start.
type Policy func(protoreflect.MethodDescriptor) (roles []string, ok bool)

// Config is what a Server is made from. Fields whose comment says nothing of their zero value are required.
type Config struct {
	// Name names the listener in metrics and logs ("registry", "vault-runners").
	Name string
	// Listener is served by Run, which closes it.
	Listener net.Listener
	// TLS is the transport's security, from mtls.Source.ServerConfig. Unless AnonymousOK it must require and verify
	// clients' certificates.
	TLS *tls.Config
	// Credentials, for tests only, replaces TLS. It must yield credentials.TLSInfo.
	Credentials credentials.TransportCredentials
	// Log is the logger.
	Log *slog.Logger
	// Metrics is where the server's metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Register registers the services' implementations. It may be given to several servers.
	Register func(grpc.ServiceRegistrar)
	// Policy says who may call each method.
	Policy Policy
	// Identities are the callers there are; none is right only with AnonymousOK.
	Identities []Identity
	// AnonymousOK lets callers without a known identity call methods of RoleGrant (the runners' listener). False
	// refuses them.
	AnonymousOK bool
	// Reflection serves gRPC reflection to known identities; false does not.
	Reflection bool
	// Limits are the rates of calls; zero values mean the defaults.
	Limits Limits
	// Timeout is given to unary calls that come without a deadline, and is how long any call may take to send its first
	// message; zero means 30 s.
	Timeout time.Duration
	// StreamIdle ends a stream on which neither side has sent anything for so long (UNAVAILABLE, STREAM_IDLE); zero
	// means two hours, negative never. There is no absolute deadline.
	StreamIdle time.Duration
	// OnDrain is called once when the server begins to stop, before streams are ended; it may have them leave by themselves, and spread their end.
	// sendAway has clients make their next calls on other connections (GOAWAY), of which this server takes no more; calls and streams under way go on.
	// Where it is not called, that comes after OnDrain. Its context ends after half the time for draining. Nil does nothing.
	OnDrain func(ctx context.Context, sendAway func())
	// Drain bounds the whole of stopping gracefully; zero means 10 s.
	Drain time.Duration
}

// validate reports all that is missing or unsafe.
func (c Config) validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.Name != "", "no name")
	need(c.Listener != nil, "no listener")
	need(c.Log != nil, "no logger")
	need(c.Register != nil, "no services")
	need(c.Policy != nil, "no policy")
	need((c.TLS == nil) != (c.Credentials == nil), "either TLS or credentials")
	need(c.AnonymousOK || len(c.Identities) > 0, "no identities")
	if c.TLS != nil {
		need(c.TLS.MinVersion >= tls.VersionTLS13, "TLS below 1.3")
		need(c.AnonymousOK || c.TLS.ClientAuth == tls.RequireAndVerifyClientCert, "TLS does not require client certificates")
		need(!c.AnonymousOK || c.TLS.ClientAuth >= tls.VerifyClientCertIfGiven, "TLS does not verify client certificates")
	}
	errs = append(errs, ValidateIdentities(c.Identities), c.Limits.Validate())
	return errors.Join(errs...)
}

// Server is one listener with its services. Make it with New, then Run it once.
type Server struct {
	cfg        Config
	grpc       *grpc.Server
	methods    map[string]*method // by full name, "/pkg.Service/Method"
	services   []string
	identities map[string]Identity // by SPIFFE ID
	validator  protovalidate.Validator
	metrics    *metrics
	limits     *limits
	health     *healthState
	steps      []step
	// streams is the ancestor of every stream's life; its cause says why they had to end.
	streams streams
	ran     atomic.Bool
}

// New checks that every method which Register registers declares its callers, and builds the server. It accepts no
// connection and starts nothing; the listener stays the caller's until Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("grpc server %s: %w", cfg.Name, err)
	}
	cfg.Timeout = orDefault(cfg.Timeout, defaultTimeout)
	cfg.StreamIdle = orDefault(cfg.StreamIdle, defaultStreamIdle)
	cfg.Drain = orDefault(cfg.Drain, defaultDrain)
	cfg.Log = cfg.Log.With(slog.String(obs.KeyListener, cfg.Name))

	s := &Server{cfg: cfg, identities: map[string]Identity{}, limits: newLimits(cfg.Limits), streams: streams{open: map[*patience]struct{}{}}}
	for _, id := range cfg.Identities {
		s.identities[id.ID] = id
	}
	s.steps = []step{
		s.requestID, s.measure, s.accessLog, s.authenticate, s.authorize, s.rateLimit, s.limitTime, s.validate,
	}
	s.grpc = grpc.NewServer(s.options()...)
	cfg.Register(s.grpc)
	for name := range s.grpc.GetServiceInfo() {
		s.services = append(s.services, name)
	}
	s.health = newHealth(s.services)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health.server)
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}

	var err error
	if s.methods, err = declare(s.grpc.GetServiceInfo(), cfg.Policy); err != nil {
		return nil, fmt.Errorf("grpc server %s: %w", cfg.Name, err)
	}
	if s.validator, err = protovalidate.New(); err != nil {
		return nil, fmt.Errorf("grpc server %s: validator: %w", cfg.Name, err)
	}
	if s.metrics, err = newMetrics(cfg.Metrics, cfg.Name); err != nil {
		return nil, fmt.Errorf("grpc server %s: metrics: %w", cfg.Name, err)
	}
	if cfg.AnonymousOK {
		s.cfg.Listener = newDoorkeeper(cfg.Listener, cfg.Limits, s.metrics.refuse, cfg.Log)
	}
	return s, nil
}

// orDefault returns d, or def if d is zero.
func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// options are the transport's settings. Memory counts: ten thousand streams have a connection each.
func (s *Server) options() []grpc.ServerOption {
	creds := s.cfg.Credentials
	if creds == nil {
		creds = credentials.NewTLS(s.cfg.TLS)
	}
	alive := keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionAge: connectionAge}
	streams := uint32(maxStreams)
	if s.cfg.AnonymousOK {
		alive.MaxConnectionIdle, streams = strangerIdle, maxStrangerStreams
		creds = greeting{creds}
	}
	return []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.InTapHandle(s.awaitFirst),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.MaxRecvMsgSize(maxRecvBytes),
		grpc.MaxSendMsgSize(maxSendBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(streams),
		grpc.ReadBufferSize(readBufferBytes),
		grpc.StaticStreamWindowSize(windowBytes),
		grpc.StaticConnWindowSize(windowBytes),
		grpc.KeepaliveParams(alive),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		// Stopping means that handlers have returned, since stores are closed next.
		grpc.WaitForHandlers(true),
	}
}

// Addr is the address of the listener.
func (s *Server) Addr() net.Addr { return s.cfg.Listener.Addr() }

// Run serves until ctx ends, then stops: health NOT_SERVING, OnDrain, streams ended with UNAVAILABLE (DRAINING), unary
// calls finished, all within Drain, after which what is left is cut off. It returns an error if serving failed, and ErrDrain if
// a handler did not return even then.
func (s *Server) Run(ctx context.Context) error {
	if s.ran.Swap(true) {
		return fmt.Errorf("grpc server %s: run twice", s.cfg.Name)
	}
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.cfg.Listener) }()
	s.cfg.Log.InfoContext(ctx, "serving", slog.String(obs.KeyAddress, s.Addr().String()))

	select {
	case err := <-served:
		s.streams.end(errDraining)
		s.grpc.Stop()
		return fmt.Errorf("grpc server %s: serve: %w", s.cfg.Name, err)
	case <-ctx.Done():
	}
	if err := s.drain(context.WithoutCancel(ctx)); err != nil {
		// Serve waits for the handlers too.
		return err
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("grpc server %s: serve: %w", s.cfg.Name, err)
	}
	return nil
}

// drain stops the server in order, within the bound.
func (s *Server) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Drain)
	defer cancel()
	s.health.shutdown()
	s.cfg.Log.InfoContext(ctx, "draining")
	stopped := make(chan struct{})
	sendAway := sync.OnceFunc(func() {
		go func() {
			s.grpc.GracefulStop()
			close(stopped)
		}()
	})
	if s.cfg.OnDrain != nil {
		hook, done := context.WithTimeout(ctx, s.cfg.Drain/2)
		s.cfg.OnDrain(hook, sendAway)
		done()
	}
	s.streams.end(errDraining)
	sendAway()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
	}
	s.cfg.Log.WarnContext(ctx, "draining took too long, cutting off")
	// Stop waits for handlers as GracefulStop does; neither may hold us if one ignores its context.
	go s.grpc.Stop()
	timer := time.NewTimer(cutoff)
	defer timer.Stop()
	select {
	case <-stopped:
		return nil
	case <-timer.C:
		return fmt.Errorf("grpc server %s: %w within %s", s.cfg.Name, ErrDrain, s.cfg.Drain+cutoff)
	}
}
