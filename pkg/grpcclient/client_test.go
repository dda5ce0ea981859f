package grpcclient_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const operator = "spiffe://phasekey.dev/operator"

// start starts a server that knows the operator.
func start(t *testing.T, s notetest.Service) *grpctest.Server {
	t.Helper()
	return grpctest.Start(t, grpctest.Config{
		Register:   s.Register,
		Policy:     func(protoreflect.MethodDescriptor) ([]string, bool) { return []string{"operator"}, true },
		Identities: []grpcserver.Identity{{ID: operator, Role: "operator", Accounts: []string{grpcserver.AllAccounts}}},
	})
}

func TestRetry_ReadsOnly(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		method   string
		services []protoreflect.ServiceDescriptor
		code     codes.Code
		attempts int32
	}{
		{"a read of a named service", "Get", []protoreflect.ServiceDescriptor{notetest.Descriptor()}, codes.Unavailable, 3},
		{"a read that fails otherwise", "Get", []protoreflect.ServiceDescriptor{notetest.Descriptor()}, codes.ResourceExhausted, 1},
		{"a read of another service", "Get", nil, codes.Unavailable, 1},
		{"a write", "Create", []protoreflect.ServiceDescriptor{notetest.Descriptor()}, codes.Unavailable, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var attempts atomic.Int32
				fail := func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
					attempts.Add(1)
					return nil, status.Error(tt.code, "down")
				}
				conn := start(t, notetest.Service{Get: fail, Create: fail}).DialWith(t, operator, grpcclient.Config{Services: tt.services})
				err := conn.Invoke(t.Context(), notetest.Method(tt.method), notetest.Request(""), notetest.Note(""))
				if status.Code(err) != tt.code || attempts.Load() != tt.attempts {
					t.Errorf("%d attempts, %v", attempts.Load(), err)
				}
			})
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen time.Duration
		srv := start(t, notetest.Service{
			Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
				deadline, _ := ctx.Deadline()
				seen = time.Until(deadline)
				return notetest.Note(""), nil
			},
			Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error {
				if _, ok := stream.Context().Deadline(); ok {
					t.Error("a stream has a deadline")
				}
				return nil
			},
		})
		for _, tt := range []struct {
			cfg, ctx, want time.Duration
		}{
			{want: 30 * time.Second},
			{cfg: 7 * time.Second, want: 7 * time.Second},
			{cfg: 7 * time.Second, ctx: time.Minute, want: time.Minute},
		} {
			conn := srv.DialWith(t, operator, grpcclient.Config{Timeout: tt.cfg})
			ctx := t.Context()
			if tt.ctx > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.ctx)
				defer cancel()
			}
			if err := conn.Invoke(ctx, notetest.Method("Get"), notetest.Request(""), notetest.Note("")); err != nil {
				t.Fatal(err)
			}
			if seen != tt.want {
				t.Errorf("handler has %s, want %s", seen, tt.want)
			}
			stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, notetest.Method("Watch"))
			if err == nil {
				err = stream.SendMsg(notetest.Request(""))
			}
			if err == nil {
				err = stream.CloseSend()
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.RecvMsg(notetest.Note(""))
		}
	})
}

// Windows are not measured, and are smaller than what may be sent.
func TestDial_TakesMessagesThatAreLargerThanTheWindows(t *testing.T) {
	t.Parallel()
	const sent, answered = 256 << 10, 3 << 20
	answer := notetest.Note(`text: "` + strings.Repeat("a", answered) + `"`)
	conn := start(t, notetest.Service{Create: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) { return answer, nil }}).Dial(t, operator)
	request := notetest.Request(`note { name: "` + strings.Repeat("a", sent) + `" }`)
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			got := notetest.Note("")
			if err := conn.Invoke(t.Context(), notetest.Method("Create"), request, got); err != nil || !proto.Equal(got, answer) {
				t.Errorf("%d bytes, %v", proto.Size(got), err)
			}
		})
	}
	calls.Wait()
}

func TestDial_RefusesPlaintext(t *testing.T) {
	t.Parallel()
	if _, err := grpcclient.Dial(grpcclient.Config{Target: "localhost:1"}); err == nil {
		t.Error("dialled without TLS")
	}
}
