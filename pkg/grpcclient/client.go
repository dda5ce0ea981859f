// Package grpcclient makes connections to our gRPC servers.
//
// It guarantees that every connection is secured; that a dead one is noticed by keepalive; that reconnecting backs off with
// jitter, up to ten seconds, or two with OneServer; that unary calls have a deadline; that the ID of the request being served travels on to the
// next service; and that only reads are ever repeated by themselves. It does not resume streams: what a broken stream means only its
// user knows.
//
// The tricky idea: which methods may be repeated is not a list kept by hand but read from the protos' idempotency_level. A
// method that does not say NO_SIDE_EFFECTS is never sent twice.
package grpcclient

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"phasekey.dev/pkg/obs"
)

// Sizes and times that are the same for all our clients.
const (
	defaultTimeout  = 30 * time.Second
	maxRecvBytes    = 8 << 20
	readBufferBytes = 4 << 10
	// streamWindow and connWindow are what a server may send ahead of each stream, which whoever reads slowly finds stale, and of all of a connection, a page's worth. To measure what the network
	// could take costs a ping for nearly each answer.
	streamWindow     = 64 << 10
	connWindow       = 1 << 20
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	connectTimeout   = 5 * time.Second
	maxReconnect     = 10 * time.Second
	// A client that holds one stream decides by itself when to open it anew, so its connection must not be far behind.
	maxReconnectOne = 2 * time.Second

	requestIDHeader = "x-request-id"
)

// Config is what a connection is made from.
type Config struct {
	// Target is a gRPC target: "host:port", or "dns:///name:port" to spread calls over the name's addresses.
	Target string
	// OneServer keeps to one of the target's addresses, chosen at random, for as long as it answers: for clients that are many
	// and each hold one stream. False connects to all of them and spreads the calls.
	OneServer bool
	// TLS is the transport's security, from mtls.Source.ClientConfig, which names the server's SPIFFE ID.
	TLS *tls.Config
	// Credentials, for tests only, replaces TLS.
	Credentials credentials.TransportCredentials
	// Dialer, for tests only, replaces TCP; nil does not.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
	// Services are those whose unary methods without side effects (idempotency_level NO_SIDE_EFFECTS) are tried again,
	// up to three times in all, when the server is UNAVAILABLE. Nothing else is ever repeated.
	Services []protoreflect.ServiceDescriptor
	// Timeout is given to unary calls whose context has no deadline; zero means 30 s.
	Timeout time.Duration
}

// Dial makes a connection, which is really opened by the first call. The caller closes it.
func Dial(cfg Config) (*grpc.ClientConn, error) {
	if (cfg.TLS == nil) == (cfg.Credentials == nil) {
		return nil, fmt.Errorf("dial %s: %w", cfg.Target, errors.New("either TLS or credentials"))
	}
	creds := cfg.Credentials
	if creds == nil {
		creds = credentials.NewTLS(cfg.TLS)
	}
	service, err := serviceConfig(cfg.Services, cfg.OneServer)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", cfg.Target, err)
	}
	reconnect := maxReconnect
	if cfg.OneServer {
		reconnect = maxReconnectOne
	}
	timeout := cfg.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultServiceConfig(service),
		// Whoever runs the resolver does not decide what we repeat.
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(unary(timeout)),
		grpc.WithChainStreamInterceptor(stream),
		grpc.WithReadBufferSize(readBufferBytes),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRecvBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnect},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if cfg.Dialer != nil {
		opts = append(opts, grpc.WithContextDialer(cfg.Dialer))
	}
	conn, err := grpc.NewClient(cfg.Target, opts...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", cfg.Target, err)
	}
	return conn, nil
}

// unary gives a call its deadline and passes the request's ID on.
func unary(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return invoke(withRequestID(ctx), method, req, reply, cc, opts...)
	}
}

// stream passes the request's ID on.
func stream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return open(withRequestID(ctx), desc, cc, method, opts...)
}

// withRequestID puts the ID of the request being served, if any, into the outgoing header.
func withRequestID(ctx context.Context) context.Context {
	id := obs.RequestID(ctx)
	if id == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, requestIDHeader, id)
}

// methodName names a method in gRPC's service config.
type methodName struct {
	Service string `json:"service"`
	Method  string `json:"method"`
}

// retryPolicy is gRPC's.
type retryPolicy struct {
	MaxAttempts          int      `json:"maxAttempts"`
	InitialBackoff       string   `json:"initialBackoff"`
	MaxBackoff           string   `json:"maxBackoff"`
	BackoffMultiplier    float64  `json:"backoffMultiplier"`
	RetryableStatusCodes []string `json:"retryableStatusCodes"`
}

// serviceConfig is gRPC's service config: calls spread over all addresses, unless one is enough, and reads repeated.
func serviceConfig(services []protoreflect.ServiceDescriptor, oneServer bool) (string, error) {
	type methodConfig struct {
		Name        []methodName `json:"name"`
		RetryPolicy retryPolicy  `json:"retryPolicy"`
	}
	config := struct {
		LoadBalancing []map[string]any `json:"loadBalancingConfig"`
		Methods       []methodConfig   `json:"methodConfig,omitempty"`
	}{LoadBalancing: []map[string]any{{"round_robin": map[string]any{}}}}
	if oneServer {
		config.LoadBalancing = []map[string]any{{"pick_first": map[string]any{"shuffleAddressList": true}}}
	}
	if reads := readMethods(services); len(reads) > 0 {
		config.Methods = []methodConfig{{Name: reads, RetryPolicy: retryPolicy{
			MaxAttempts: 3, InitialBackoff: "0.1s", MaxBackoff: "1s", BackoffMultiplier: 2,
			RetryableStatusCodes: []string{"UNAVAILABLE"},
		}}}
	}
	b, err := json.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("service config: %w", err)
	}
	return string(b), nil
}

// readMethods names the unary methods without side effects.
func readMethods(services []protoreflect.ServiceDescriptor) []methodName {
	var names []methodName
	for _, s := range services {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			o, ok := m.Options().(*descriptorpb.MethodOptions)
			if !ok || o.GetIdempotencyLevel() != descriptorpb.MethodOptions_NO_SIDE_EFFECTS ||
				m.IsStreamingClient() || m.IsStreamingServer() {
				continue
			}
			names = append(names, methodName{Service: string(s.FullName()), Method: string(m.Name())})
		}
	}
	return names
}
