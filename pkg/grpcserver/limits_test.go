package grpcserver_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/rpcerr"
)

func TestRateLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(notetest.Service{})
		cfg.AnonymousOK = true
		cfg.Limits = grpcserver.Limits{
			Read:      grpcserver.Limit{PerSecond: 0.1, Burst: 2},
			Write:     grpcserver.Limit{PerSecond: -1},
			Stream:    grpcserver.Limit{PerSecond: 1, Burst: 1},
			Anonymous: grpcserver.Limit{PerSecond: 1, Burst: 3},
		}
		srv := grpctest.Start(t, cfg)
		limited, other, nobody, stranger := srv.Dial(t, platform), srv.Dial(t, operator), srv.Dial(t, ""), srv.Dial(t, stranger)
		const mine = `parent: "accounts/acme"`
		limit := func(conn *grpc.ClientConn, method string, n int, after time.Duration) {
			t.Helper()
			for range n {
				if _, err := call(t, conn, method, mine); err != nil {
					t.Fatalf("within the limit: %v", err)
				}
			}
			_, err := call(t, conn, method, mine)
			want(t, err, codes.ResourceExhausted, rpcerr.ReasonRateLimited)
			if got := rpcerr.RetryDelay(err); got != after {
				t.Errorf("told to come back in %s, want %s", got, after)
			}
		}
		limit(limited, "Get", 2, 10*time.Second)
		limit(other, "Get", 2, 10*time.Second) // not another's bucket
		<-time.After(10 * time.Second)
		limit(limited, "Get", 1, 10*time.Second)
		for range 50 {
			if _, err := call(t, limited, "Create", mine); err != nil {
				t.Fatal(err)
			}
		}
		if err := open(t.Context(), t, limited, "Watch", mine).RecvMsg(notetest.Note("")); err != nil {
			t.Fatal(err)
		}
		want(t, open(t.Context(), t, limited, "Watch", mine).RecvMsg(notetest.Note("")), codes.ResourceExhausted, rpcerr.ReasonRateLimited)
		// All callers without a known identity at one address share a bucket.
		if _, err := call(t, stranger, "Fetch", ""); err != nil {
			t.Fatal(err)
		}
		limit(nobody, "Fetch", 2, time.Second)
	})
}

func TestTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(notetest.Service{
			Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error {
				for range 3 {
					<-time.After(50 * time.Minute)
					if err := stream.SendMsg(notetest.Note("")); err != nil {
						return err
					}
				}
				<-stream.Context().Done()
				return stream.Context().Err()
			},
		})
		cfg.Timeout, cfg.StreamIdle = 5*time.Second, time.Hour
		srv := grpctest.Start(t, cfg)

		t.Log("a unary call without a deadline gets one")
		began := time.Now()
		conn := srv.Dial(t, operator)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := conn.Invoke(ctx, notetest.Method("Get"), notetest.Request(""), notetest.Note(""))
		want(t, err, codes.DeadlineExceeded, "")
		if took := time.Since(began); took != time.Hour {
			t.Errorf("the caller's own deadline of an hour: took %s", took)
		}
		began = time.Now()
		stream := open(t.Context(), t, conn, "Get", "") // a stream call sets no deadline
		want(t, stream.RecvMsg(notetest.Note("")), codes.DeadlineExceeded, "")
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the default: took %s", took)
		}

		t.Log("a stream lives as long as something is said on it")
		began = time.Now()
		stream = open(t.Context(), t, conn, "Watch", "")
		for range 3 {
			if err := stream.RecvMsg(notetest.Note("")); err != nil {
				t.Fatal(err)
			}
		}
		want(t, stream.RecvMsg(notetest.Note("")), codes.Unavailable, rpcerr.ReasonStreamIdle)
		if took := time.Since(began); took != 3*50*time.Minute+time.Hour {
			t.Errorf("took %s", took)
		}
	})
}

// TestAnonymousCalls_AtOnce opens streams that last, health's too, which no rate bounds.
func TestAnonymousCalls_AtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(notetest.Service{})
		cfg.AnonymousOK, cfg.Limits.AnonymousCalls = true, 2
		srv := grpctest.Start(t, cfg)
		watch := func(id string) (context.CancelFunc, error) {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			stream, err := grpc_health_v1.NewHealthClient(srv.Dial(t, id)).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			return cancel, err
		}
		var end context.CancelFunc
		for range 2 {
			var err error
			if end, err = watch(""); err != nil {
				t.Fatal(err)
			}
		}
		_, err := watch("")
		want(t, err, codes.ResourceExhausted, rpcerr.ReasonRateLimited)
		if _, err := watch(operator); err != nil {
			t.Errorf("a known identity: %v", err)
		}
		end()
		synctest.Wait()
		if _, err := watch(""); err != nil {
			t.Errorf("after one has ended: %v", err)
		}
	})
}

// TestSilentCallers opens calls and never sends their message, which takes no token of any bucket: on the runners' listener
// anybody can, as often as they like.
func TestSilentCallers(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, method string }{{"unary", "Fetch"}, {"stream", "Watch"}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cfg := config(notetest.Service{})
				cfg.AnonymousOK, cfg.Timeout, cfg.StreamIdle = true, 5*time.Second, -1
				srv := grpctest.Start(t, cfg)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				began := time.Now()
				stream, err := srv.Dial(t, "").NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
					notetest.Method(tt.method))
				if err != nil {
					t.Fatal(err)
				}
				want(t, stream.RecvMsg(notetest.Note("")), codes.Canceled, "")
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// TestIdleConnections checks that strangers' connections without a call do not stay.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(notetest.Service{})
		cfg.AnonymousOK = true
		conn := grpctest.Start(t, cfg).Dial(t, "")
		conn.Connect()
		for conn.GetState() != connectivity.Ready {
			if !conn.WaitForStateChange(t.Context(), conn.GetState()) {
				t.Fatal("never connected")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if !conn.WaitForStateChange(ctx, connectivity.Ready) {
			t.Error("still connected after five minutes")
		}
	})
}
