package grpcserver_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/rpcerr"
)

const (
	platform = "spiffe://phasekey.dev/platform"
	operator = "spiffe://phasekey.dev/operator"
	stranger = "spiffe://phasekey.dev/stranger"
)

// policy is what the proto option would say.
func policy(m protoreflect.MethodDescriptor) ([]string, bool) {
	roles, ok := map[protoreflect.Name][]string{
		"Get":    {"platform", "operator"},
		"Create": {"platform", "operator"},
		"Fetch":  {grpcserver.RoleGrant},
		"Watch":  {"platform", "operator", grpcserver.RoleGrant},
		"Chat":   {"platform", "operator"},
	}[m.Name()]
	return roles, ok
}

// config is a server with a platform that is limited to two accounts and an operator that is not.
func config(s notetest.Service) grpctest.Config {
	return grpctest.Config{
		Register: s.Register,
		Policy:   policy,
		Identities: []grpcserver.Identity{
			{ID: platform, Role: "platform", Accounts: []string{"acme", "globex"}},
			{ID: operator, Role: "operator", Accounts: []string{grpcserver.AllAccounts}},
		},
	}
}

// call calls a unary method.
func call(t *testing.T, conn *grpc.ClientConn, method, request string, opts ...grpc.CallOption) (*dynamicpb.Message, error) {
	t.Helper()
	resp := notetest.Note("")
	err := conn.Invoke(t.Context(), notetest.Method(method), notetest.Request(request), resp, opts...)
	return resp, err
}

// open opens a stream and sends the first request.
func open(ctx context.Context, t *testing.T, conn *grpc.ClientConn, method, request string) grpc.ClientStream {
	t.Helper()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, notetest.Method(method))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	// EOF means that the stream has ended already, which receiving says more of.
	if err := stream.SendMsg(notetest.Request(request)); err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("send: %v", err)
	}
	if method != "Chat" {
		if err := stream.CloseSend(); err != nil {
			t.Fatalf("close send: %v", err)
		}
	}
	return stream
}

// want checks an error's code and reason.
func want(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || rpcerr.Reason(err) != reason {
		t.Errorf("got %v %q (%v), want %v %q", status.Code(err), rpcerr.Reason(err), err, code, reason)
	}
	if reason != "" {
		grpctest.CheckRefusal(t, err)
	}
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	base := func() grpcserver.Config {
		c := config(notetest.Service{})
		c.Name, c.Log = "test", slog.New(slog.DiscardHandler)
		return c
	}
	tests := []struct {
		name   string
		change func(*grpcserver.Config)
		want   []string
		is     error
	}{
		{
			name: "methods that nobody declared, naming each",
			change: func(c *grpcserver.Config) {
				c.Policy = func(m protoreflect.MethodDescriptor) ([]string, bool) {
					roles, ok := policy(m)
					return roles, ok && m.Name() != "Get" && m.Name() != "Watch"
				}
			},
			is:   grpcserver.ErrUndeclared,
			want: []string{notetest.Name + "/Get", notetest.Name + "/Watch"},
		},
		{
			name: "a method declared for nobody",
			change: func(c *grpcserver.Config) {
				c.Policy = func(protoreflect.MethodDescriptor) ([]string, bool) { return nil, true }
			},
			is: grpcserver.ErrUndeclared,
		},
		{
			name: "a method declared for the unspecified role",
			change: func(c *grpcserver.Config) {
				c.Policy = func(protoreflect.MethodDescriptor) ([]string, bool) { return []string{""}, true }
			},
			is: grpcserver.ErrUndeclared,
		},
		{
			name: "identities, all problems at once",
			change: func(c *grpcserver.Config) {
				c.Identities = []grpcserver.Identity{
					{ID: "https://phasekey.dev/x", Role: "platform", Accounts: []string{"acme"}},
					{ID: platform, Role: grpcserver.RoleGrant, Accounts: []string{"*", "acme"}},
					{ID: platform, Role: "two words", Accounts: []string{"a/b"}},
					{ID: operator, Role: "operator"},
				}
			},
			want: []string{
				"identities[0]: id", `identities[1]: role "grant"`, `identities[1]: "*" stands beside`,
				"identities[2]: id \"" + platform + "\" stands twice", `identities[2]: role "two words"`, `identities[2]: account "a/b"`,
				"identities[3]: no accounts",
			},
		},
		{
			name:   "buckets that hold nothing",
			change: func(c *grpcserver.Config) { c.Limits.Read.Burst, c.Limits.Anonymous.Burst = -1, -2 },
			want:   []string{"read.burst", "anonymous.burst"},
		},
		{
			name:   "no transport security",
			change: func(c *grpcserver.Config) { c.Credentials = nil },
			want:   []string{"either TLS or credentials"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := base()
			cfg.Listener, cfg.Credentials = bufconn.Listen(1), insecure.NewCredentials()
			tt.change(&cfg)
			_, err := grpcserver.New(cfg)
			if err == nil {
				t.Fatal("started")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\ndoes not say %s", err, w)
				}
			}
		})
	}
}

func TestForeignServices(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		id         string
		reflection codes.Code
	}{
		{name: "nobody", reflection: codes.Unauthenticated},
		{name: "a stranger", id: stranger, reflection: codes.Unauthenticated},
		{name: "a limited identity", id: platform, reflection: codes.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(notetest.Service{})
			cfg.Reflection = true
			conn := grpctest.Start(t, cfg).Dial(t, tt.id)
			if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
				t.Errorf("health: %v", err)
			}
			stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// Sending to a stream that was refused already may fail; Recv says why.
			_ = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
				MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: notetest.Name},
			})
			resp, err := stream.Recv()
			if status.Code(err) != tt.reflection {
				t.Errorf("reflection: %v, want %v", err, tt.reflection)
			}
			if err == nil && len(resp.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
				t.Errorf("reflection answered %v", resp)
			}
		})
	}
	t.Run("no reflection unless asked for", func(t *testing.T) {
		t.Parallel()
		conn := grpctest.Start(t, config(notetest.Service{})).Dial(t, operator)
		stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
			t.Errorf("got %v", err)
		}
	})
}
