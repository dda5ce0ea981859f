package grpctest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a test that is watched from outside.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// A handler that does not return when told to fails the test that started the server, unless that test stops it itself.
func TestStart_FailsOnStuckHandlers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		stuck, stopsItself bool
		fails              int
	}{
		{name: "an obedient handler"},
		{name: "a stuck handler", stuck: true, fails: 1},
		{name: "a stuck handler, as expected", stuck: true, stopsItself: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				release, called := make(chan struct{}), make(chan error)
				service := notetest.Service{Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
					select {
					case <-release:
					case <-obeys(ctx, !tt.stuck):
					}
					return notetest.Note(""), nil
				}}
				r := &recorder{TB: t}
				srv := grpctest.Start(r, grpctest.Config{
					Register:   service.Register,
					Policy:     func(protoreflect.MethodDescriptor) ([]string, bool) { return []string{"a"}, true },
					Identities: []grpcserver.Identity{{ID: "spiffe://x/a", Role: "a", Accounts: []string{"*"}}},
				})
				conn := srv.Dial(t, "spiffe://x/a")
				go func() {
					called <- conn.Invoke(t.Context(), notetest.Method("Get"), notetest.Request(""), notetest.Note(""))
				}()
				<-time.After(time.Second)
				if tt.stopsItself {
					if err := srv.Stop(); !errors.Is(err, grpcserver.ErrDrain) {
						t.Errorf("got %v", err)
					}
				}
				for _, f := range r.cleanups {
					f()
				}
				if len(r.errors) != tt.fails {
					t.Errorf("the test failed with %q", r.errors)
				}
				close(release)
				if err := <-called; err == nil {
					t.Error("the call outlived its server")
				}
			})
		})
	}
}

// obeys is the context's end, or never.
func obeys(ctx context.Context, obedient bool) <-chan struct{} {
	if obedient {
		return ctx.Done()
	}
	return nil
}
