package grpcclient_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/internal/notetest"
)

func TestOneServer_ConnectsToOneOfSeveral(t *testing.T) {
	for _, tt := range []struct {
		name string
		one  bool
		want int
	}{
		{"all of them", false, 2},
		{"one of them", true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialed := make(chan string, 10)
			twice := manual.NewBuilderWithScheme("twice")
			resolver.Register(twice)
			var addresses []resolver.Address
			for range 2 {
				addresses = append(addresses, resolver.Address{Addr: serve(t)})
			}
			twice.InitialState(resolver.State{Addresses: addresses})
			conn, err := grpcclient.Dial(grpcclient.Config{
				Target: "twice:///servers", OneServer: tt.one, Credentials: insecure.NewCredentials(),
				Dialer: func(ctx context.Context, addr string) (net.Conn, error) {
					dialed <- addr
					return new(net.Dialer).DialContext(ctx, "tcp", addr)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := conn.Invoke(t.Context(), notetest.Method("Get"), notetest.Request(""), notetest.Note("")); status.Code(err) != codes.Unimplemented {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for len(seen) < tt.want {
				select {
				case addr := <-dialed:
					seen[addr] = true
				case <-time.After(5 * time.Second):
					t.Fatalf("connected to %v only", seen)
				}
			}
			if len(dialed) > 0 {
				t.Errorf("connected to %s too", <-dialed)
			}
		})
	}
}

// serve runs a bare server on loopback, without services, and returns its address.
func serve(t *testing.T) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}
