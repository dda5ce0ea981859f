package grpcserver_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/rpcerr"
)

func TestHealth_BackAndForth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := grpctest.Start(t, config(notetest.Service{}))
		client := grpc_health_v1.NewHealthClient(srv.Dial(t, operator))
		watch, err := client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: notetest.Name})
		if err != nil {
			t.Fatal(err)
		}
		expect := func(serving bool) {
			t.Helper()
			want := grpc_health_v1.HealthCheckResponse_NOT_SERVING
			if serving {
				want = grpc_health_v1.HealthCheckResponse_SERVING
			}
			got, err := watch.Recv()
			if err != nil || got.GetStatus() != want {
				t.Fatalf("watched %v, %v, want %v", got.GetStatus(), err, want)
			}
			synctest.Wait() // one service is told after the other
			for _, service := range []string{"", notetest.Name} {
				got, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
				if err != nil || got.GetStatus() != want {
					t.Fatalf("%q: %v, %v, want %v", service, got.GetStatus(), err, want)
				}
			}
		}
		expect(true)
		var mu sync.Mutex
		var down error
		set := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			down = err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- srv.FollowHealth(ctx, time.Second, func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				return down
			})
		}()
		for range 20 { // as often as it likes: no counter runs out
			set(errors.New("database is down"))
			expect(false)
			set(nil)
			expect(true)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRun_Drains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unaryRuns, hook := make(chan struct{}), make(chan struct{})
		cfg := config(notetest.Service{
			Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
				close(unaryRuns)
				<-time.After(3 * time.Second)
				return notetest.Note(`text: "finished"`), ctx.Err()
			},
			Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error {
				if err := stream.SendMsg(notetest.Note("")); err != nil {
					return err
				}
				<-stream.Context().Done()
				return stream.Context().Err()
			},
		})
		cfg.OnDrain = func(context.Context, func()) { close(hook) }
		srv := grpctest.Start(t, cfg)
		conn := srv.Dial(t, operator)
		stream := open(t.Context(), t, conn, "Watch", "")
		if err := stream.RecvMsg(notetest.Note("")); err != nil {
			t.Fatal(err)
		}
		health, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := health.Recv(); err != nil {
			t.Fatal(err)
		}
		unary := make(chan error)
		go func() {
			resp, err := call(t, conn, "Get", "")
			if err == nil && notetest.Text(resp, "text") != "finished" {
				err = errors.New("not finished")
			}
			unary <- err
		}()
		<-unaryRuns

		began := time.Now()
		stopped := make(chan error)
		go func() { stopped <- srv.Stop() }()
		if got, err := health.Recv(); err != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health while draining: %v, %v", got.GetStatus(), err)
		}
		<-hook
		err = stream.RecvMsg(notetest.Note(""))
		want(t, err, codes.Unavailable, rpcerr.ReasonDraining)
		if err := <-unary; err != nil {
			t.Errorf("a call under way: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("run: %v", err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// While a hook lets streams leave by themselves, whoever was sent away finds no way in, and what is under way goes on.
func TestRun_SendsAwayBeforeStreamsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const hookTime = 4 * time.Second
		messages := make(chan string)
		cfg := config(notetest.Service{
			Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error {
				for {
					select {
					case text := <-messages:
						if err := stream.SendMsg(notetest.Note(fmt.Sprintf("text: %q", text))); err != nil {
							return err
						}
					case <-stream.Context().Done():
						return stream.Context().Err()
					}
				}
			},
		})
		cfg.OnDrain = func(ctx context.Context, sendAway func()) {
			sendAway()
			sendAway()
			select {
			case <-time.After(hookTime):
			case <-ctx.Done():
				t.Error("the hook had no time")
			}
		}
		srv := grpctest.Start(t, cfg)
		conn := srv.Dial(t, operator)
		stream := open(t.Context(), t, conn, "Watch", "")
		messages <- "before"
		read := func(text string) {
			t.Helper()
			got := notetest.Note("")
			if err := stream.RecvMsg(got); err != nil || notetest.Text(got, "text") != text {
				t.Errorf("read %q, %v, want %q", notetest.Text(got, "text"), err, text)
			}
		}
		read("before")

		began := time.Now()
		stopped := make(chan error)
		go func() { stopped <- srv.Stop() }()
		synctest.Wait()
		if got := conn.GetState(); got == connectivity.Ready {
			t.Errorf("the connection is %s: nobody was sent away", got)
		}
		for who, conn := range map[string]*grpc.ClientConn{"who was sent away": conn, "who comes": srv.Dial(t, operator)} {
			if _, err := call(t, conn, "Get", ""); status.Code(err) != codes.Unavailable {
				t.Errorf("%s is answered: %v", who, err)
			}
		}
		messages <- "meanwhile"
		read("meanwhile")
		err := stream.RecvMsg(notetest.Note(""))
		want(t, err, codes.Unavailable, rpcerr.ReasonDraining)
		if took := time.Since(began); took != hookTime {
			t.Errorf("the stream ended after %s, want %s", took, hookTime)
		}
		if err := <-stopped; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// A unary handler that takes too long is cut off; one that does not listen even then is named, and does not hold the process.
func TestRun_DrainIsBounded(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		deaf   bool
		want   error
		within time.Duration
	}{
		{name: "a handler that obeys its context", within: 2 * time.Second},
		{name: "a handler that does not", deaf: true, want: grpcserver.ErrDrain, within: 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				runs, release := make(chan struct{}), make(chan struct{})
				cfg := config(notetest.Service{Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
					close(runs)
					if tt.deaf {
						<-release
					} else {
						<-ctx.Done()
					}
					return notetest.Note(""), ctx.Err()
				}})
				cfg.Drain = 2 * time.Second
				srv := grpctest.Start(t, cfg)
				conn := srv.Dial(t, operator)
				called := make(chan error)
				go func() {
					_, err := call(t, conn, "Get", "")
					called <- err
				}()
				<-runs
				began := time.Now()
				if err := srv.Stop(); !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if took := time.Since(began); took > tt.within {
					t.Errorf("took %s", took)
				}
				close(release)
				if err := <-called; err == nil {
					t.Error("the call that was cut off succeeded")
				}
			})
		})
	}
}
