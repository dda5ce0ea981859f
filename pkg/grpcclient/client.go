// Package grpcclient makes connections to our gRPC servers.
package grpcclient

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Config is what a connection is made from.
type Config struct {
	// Target is a gRPC target: "host:port", or "dns:///name:port" to spread calls over the name's addresses.
	Target string
	// TLS is the transport's security, from mtls.Source.ClientConfig, which names the server's SPIFFE ID.
	TLS *tls.Config
	// Credentials, for tests only, replaces TLS.
	Credentials credentials.TransportCredentials
	// Dialer, for tests only, replaces TCP.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
	// Services are those whose unary methods without side effects (idempotency_level NO_SIDE_EFFECTS) are tried again
	// when the server is UNAVAILABLE. Nothing else is ever repeated.
	Services []protoreflect.ServiceDescriptor
	// Timeout is given to unary calls whose context has no deadline; zero means 30 s.
	Timeout time.Duration
}

// Dial makes a connection, which is really opened by the first call. The caller closes it.
func Dial(cfg Config) (*grpc.ClientConn, error) { return nil, errors.ErrUnsupported }
