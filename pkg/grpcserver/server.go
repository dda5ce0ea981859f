package grpcserver

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// RoleGrant is the role of whoever holds a bearer grant: a method that lists it needs no identity, for its handler
// authenticates the grant itself. No Identity may have it.
const RoleGrant = "grant"

// AllAccounts, as an identity's account, stands for all of them.
const AllAccounts = "*"

// Policy says which roles may call a method; ok is false for a method that declares nothing. An empty list is as good as
// none: the server refuses to start.
type Policy func(protoreflect.MethodDescriptor) (roles []string, ok bool)

// Identity is a caller that the configuration knows.
type Identity struct {
	// ID is the SPIFFE ID.
	ID string `yaml:"id"`
	// Role is what the proto option of methods names.
	Role string `yaml:"role"`
	// Accounts are the accounts whose resources it may name; AllAccounts for every one and for requests that name none.
	Accounts []string `yaml:"accounts"`
}

// Config is what a Server is made from. Fields without a comment on their zero value are required.
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
	Log         *slog.Logger
	// Metrics is where the server's metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Register registers the services' implementations. It may be given to several servers.
	Register func(grpc.ServiceRegistrar)
	Policy   Policy
	// Identities are the callers there are.
	Identities []Identity
	// AnonymousOK lets callers without a known identity call methods of RoleGrant (the runners' listener). False refuses them.
	AnonymousOK bool
	// Reflection serves gRPC reflection to known identities.
	Reflection bool
	// Limits are the rates of calls; zero values mean the defaults.
	Limits Limits
	// Timeout is given to unary calls that come without a deadline; zero means 30 s.
	Timeout time.Duration
	// StreamIdle ends a stream on which neither side has sent anything for so long (UNAVAILABLE, STREAM_IDLE); zero
	// means two hours, negative never. There is no absolute deadline.
	StreamIdle time.Duration
	// OnDrain, which may be nil, is called once when the server begins to stop, before streams are told; it may spread
	// their end. Its context ends with the time for draining.
	OnDrain func(context.Context)
	// Drain bounds the whole of stopping gracefully; zero means 10 s.
	Drain time.Duration
}

// Limit is a token bucket.
type Limit struct {
	// PerSecond is the refill; zero means the default, negative no limit.
	PerSecond float64 `yaml:"per_second"`
	// Burst is the size; zero means two seconds' worth.
	Burst int `yaml:"burst"`
}

// Limits are the rates of calls by class of method, each per identity; Anonymous instead is per source address, of all classes.
type Limits struct {
	// Read is for methods whose idempotency_level is NO_SIDE_EFFECTS; default 5000/s.
	Read Limit `yaml:"read"`
	// Write is for all other unary methods; default 2000/s.
	Write Limit `yaml:"write"`
	// Stream is for the opening of streams; default 2000/s.
	Stream Limit `yaml:"stream"`
	// Anonymous is for callers without a known identity; default 2000/s with a burst of 20000: many runners may
	// stand behind one address.
	Anonymous Limit `yaml:"anonymous"`
}

// Server is one listener with its services. Make it with New, then Run it once.
type Server struct{}

// New checks that every method that Register registers declares its callers, and builds the server. It does not listen
// and starts nothing.
func New(cfg Config) (*Server, error) { return nil, errors.ErrUnsupported }

// Addr is the address of the listener.
func (s *Server) Addr() net.Addr { return nil }

// SetServing says whether a service (its full proto name; "" means all of this server) is ready. It goes both ways. Every service is NOT_SERVING until told
// otherwise, and once draining begins all stay NOT_SERVING. The overall health, "", is SERVING when all are.
func (s *Server) SetServing(service string, ok bool) {}

// FollowHealth calls check at once and then every interval until ctx ends, and sets the health of the services (none named
// means all) by whether it returned nil. It returns nil; run it as a task.
func (s *Server) FollowHealth(ctx context.Context, every time.Duration, check func(context.Context) error, services ...string) error {
	return nil
}

// Run serves until ctx ends, then stops: health NOT_SERVING, OnDrain, streams ended with UNAVAILABLE (DRAINING), unary calls
// finished, all within Drain, after which what is left is cut off. It returns an error if serving failed, and ErrDrain if a
// handler did not return even then.
func (s *Server) Run(ctx context.Context) error { return nil }

// IdentityFromContext returns the caller that the configuration knows, false for an anonymous one (grant methods only).
func IdentityFromContext(ctx context.Context) (Identity, bool) { return Identity{}, false }

// RequestID returns the ID of the request being served.
func RequestID(ctx context.Context) string { return "" }

// ErrUndeclared is returned by New for methods whose callers the policy does not name.
var ErrUndeclared = errors.New("methods without declared callers")

// ErrDrain is returned by Run when handlers did not return in time.
var ErrDrain = errors.New("handlers did not return")
