package grpctest

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// AwaitHealth watches a service's health until it is as wanted. The test fails where that takes longer than the limit.
func AwaitHealth(t testing.TB, conn *grpc.ClientConn, service string, want grpc_health_v1.HealthCheckResponse_ServingStatus, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stream, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	for {
		got, err := stream.Recv()
		if err != nil {
			t.Fatalf("%s was not %s within %s: %v", service, want, limit, err)
		}
		if got.GetStatus() == want {
			return
		}
	}
}
