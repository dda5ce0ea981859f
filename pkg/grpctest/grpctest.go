// Package grpctest runs a real grpcserver.Server in memory.
package grpctest

import (
	"testing"

	"google.golang.org/grpc"

	"phasekey.dev/pkg/grpcserver"
)

// Config is grpcserver's, of which Listener, TLS and Credentials are the test's; Name, Log and Metrics may be empty.
type Config = grpcserver.Config

// Server is a running server.
type Server struct{ *grpcserver.Server }

// Start runs a server until the test ends; every service is SERVING. At the end it must stop in time with all handlers returned, else
// the test fails. It works inside a testing/synctest bubble.
func Start(t testing.TB, cfg Config) *Server { t.Helper(); return nil }

// Dial returns a connection of a caller with this SPIFFE ID; "" shows no certificate. It is closed when the test ends.
func (s *Server) Dial(t testing.TB, id string) *grpc.ClientConn { t.Helper(); return nil }
