package grpcserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/obs"
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

func TestAuthorization(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		id          string
		anonymousOK bool
		method      string
		code        codes.Code
		reason      string
	}{
		{name: "a known identity of the role", id: operator, method: "Get"},
		{name: "an unknown identity", id: stranger, method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "no identity", method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "a known identity without the role", id: operator, method: "Only", code: codes.PermissionDenied, reason: rpcerr.ReasonCallerNotAllowed},
		{name: "a grant method by a known identity", id: operator, method: "Fetch"},
		{name: "a grant method by a limited identity, whose accounts do not matter", id: platform, method: "Fetch"},
		{name: "a grant method by a stranger on the services' listener", id: stranger, method: "Fetch", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "a grant method by nobody on the services' listener", method: "Fetch", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "a grant method by nobody on the runners' listener", anonymousOK: true, method: "Fetch"},
		{name: "a grant method by a stranger on the runners' listener", anonymousOK: true, id: stranger, method: "Fetch"},
		{name: "another method by nobody on the runners' listener", anonymousOK: true, method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "another method by a stranger on the runners' listener", anonymousOK: true, id: stranger, method: "Get", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
		{name: "a certificate without a SPIFFE ID", anonymousOK: true, id: "https://example.com", method: "Fetch", code: codes.Unauthenticated, reason: rpcerr.ReasonIdentityUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			called := false
			handler := func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
				called = true
				if id, ok := grpcserver.IdentityFromContext(ctx); ok != (tt.id == operator || tt.id == platform) || ok && id.ID != tt.id {
					t.Errorf("handler sees identity %v, %t", id, ok)
				}
				return notetest.Note(""), nil
			}
			cfg := config(notetest.Service{Get: handler, Fetch: handler, Create: handler})
			cfg.AnonymousOK = tt.anonymousOK
			if tt.method == "Only" {
				tt.method = "Create"
				cfg.Policy = func(m protoreflect.MethodDescriptor) ([]string, bool) { return []string{"platform"}, true }
			}
			_, err := call(t, grpctest.Start(t, cfg).Dial(t, tt.id), tt.method, "")
			want(t, err, tt.code, tt.reason)
			if called != (tt.code == codes.OK) {
				t.Errorf("handler called: %t", called)
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

func TestAccountLimits(t *testing.T) {
	t.Parallel()
	srv := grpctest.Start(t, config(notetest.Service{}))
	tests := []struct {
		name    string
		request string
		ok      bool // for the identity that is limited to acme and globex
	}{
		{"its own account", `name: "accounts/acme/notes/1"`, true},
		{"its own account itself", `parent: "accounts/acme"`, true},
		{"both of its accounts", `parent: "accounts/acme" name: "accounts/globex/notes/1"`, true},
		{"no account", ``, false},
		{"fields that name nothing", `page_size: 5`, false},
		{"another account", `name: "accounts/other/notes/1"`, false},
		{"an account that begins like its own", `name: "accounts/acme2/notes/1"`, false},
		{"an account in another case", `parent: "accounts/ACME"`, false},
		{"the wildcard", `parent: "accounts/-"`, false},
		{"something outside of accounts", `parent: "operations/1"`, false},
		{"its own and another", `parent: "accounts/acme" name: "accounts/other/notes/1"`, false},
		{"another in a list", `parent: "accounts/acme" related: "accounts/acme/notes/1" related: "accounts/other/notes/1"`, false},
		{"another in a nested resource", `parent: "accounts/acme" note { name: "accounts/other/notes/1" }`, false},
		{"another in a map", `parent: "accounts/acme" by_key { key: "a" value { name: "accounts/other/notes/1" } }`, false},
		{"another in a packed message", `parent: "accounts/acme" extra { [type.googleapis.com/phasekey.notetest.v1.Note] { name: "accounts/other/notes/1" } }`, false},
		{"its own in a packed message", `extra { [type.googleapis.com/phasekey.notetest.v1.Note] { name: "accounts/acme/notes/1" } }`, true},
		{"a packed message of an unknown type", `parent: "accounts/acme" extra { type_url: "type.googleapis.com/un.Known" }`, false},
		{"an account in free text, which names nothing", `note { text: "accounts/acme" }`, false},
		{"its own in a nested resource alone", `note { name: "accounts/acme/notes/1" }`, true},
	}
	limited, all := srv.Dial(t, platform), srv.Dial(t, operator)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, method := range []string{"Create", "Watch"} {
				try := func(conn *grpc.ClientConn) error {
					if method == "Create" {
						_, err := call(t, conn, method, tt.request)
						return err
					}
					return open(t.Context(), t, conn, method, tt.request).RecvMsg(notetest.Note(""))
				}
				if err := try(limited); tt.ok && err != nil {
					t.Errorf("%s: %v", method, err)
				} else if !tt.ok {
					want(t, err, codes.PermissionDenied, rpcerr.ReasonAccountNotAllowed)
				}
				if err := try(all); err != nil {
					t.Errorf("%s by an unlimited identity: %v", method, err)
				}
			}
		})
	}
}

// A later message of a stream is limited too, and a handler that overlooks the refusal gains nothing by it.
func TestAccountLimits_LaterMessages(t *testing.T) {
	t.Parallel()
	received := make(chan string, 8)
	srv := grpctest.Start(t, config(notetest.Service{Chat: func(stream grpc.ServerStream) error {
		for {
			req := notetest.Request("")
			if err := stream.RecvMsg(req); err != nil {
				// Wrong on purpose: goes on and ends well.
				if err := stream.SendMsg(notetest.Note(`text: "leak"`)); err == nil {
					t.Error("sent after a refused message")
				}
				return nil
			}
			received <- notetest.Text(req, "name")
			if err := stream.SendMsg(notetest.Note("")); err != nil {
				return err
			}
		}
	}}))
	stream := open(t.Context(), t, srv.Dial(t, platform), "Chat", `name: "accounts/acme/notes/1"`)
	for _, step := range []struct {
		send string
		code codes.Code
	}{
		{send: `page_size: 1`}, // only the first message must name an account
		{send: `name: "accounts/other/notes/1"`, code: codes.PermissionDenied},
	} {
		if err := stream.RecvMsg(notetest.Note("")); err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(notetest.Request(step.send)); err != nil {
			t.Fatal(err)
		}
		if step.code != codes.OK {
			want(t, stream.RecvMsg(notetest.Note("")), step.code, rpcerr.ReasonAccountNotAllowed)
		}
	}
	close(received)
	if got := slices.Collect(chanSeq(received)); !cmp.Equal(got, []string{"accounts/acme/notes/1", ""}) {
		t.Errorf("handler received %q", got)
	}
}

// chanSeq ranges over what is in a closed channel.
func chanSeq(c <-chan string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for s := range c {
			if !yield(s) {
				return
			}
		}
	}
}

// A stream that answers before it has heard what it is about would answer unchecked.
func TestStream_SendsNothingBeforeFirstMessage(t *testing.T) {
	t.Parallel()
	srv := grpctest.Start(t, config(notetest.Service{Chat: func(stream grpc.ServerStream) error {
		return stream.SendMsg(notetest.Note(`text: "unasked"`))
	}}))
	stream := open(t.Context(), t, srv.Dial(t, platform), "Chat", `name: "accounts/acme/notes/1"`)
	want(t, stream.RecvMsg(notetest.Note("")), codes.Internal, rpcerr.ReasonInternal)
}

func TestValidation(t *testing.T) {
	t.Parallel()
	called := false
	srv := grpctest.Start(t, config(notetest.Service{
		Create: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
			called = true
			return notetest.Note(""), nil
		},
		Watch: func(*dynamicpb.Message, grpc.ServerStream) error {
			called = true
			return nil
		},
	}))
	conn := srv.Dial(t, operator)
	request := `name: "nonsense" page_size: 101 note { text: "` + strings.Repeat("x", 101) + `" }`
	_, unary := call(t, conn, "Create", request)
	stream := open(t.Context(), t, conn, "Watch", request).RecvMsg(notetest.Note(""))
	for _, err := range []error{unary, stream} {
		want(t, err, codes.InvalidArgument, rpcerr.ReasonInvalidFields)
		var fields []string
		for _, d := range status.Convert(err).Details() {
			if b, ok := d.(*errdetails.BadRequest); ok {
				for _, v := range b.GetFieldViolations() {
					fields = append(fields, v.GetField())
					if v.GetDescription() == "" || strings.Contains(v.GetDescription(), "nonsense") {
						t.Errorf("%s is described as %q", v.GetField(), v.GetDescription())
					}
					if v.GetField() == "name" && v.GetDescription() != "must be of the form (accounts/.*)?" {
						t.Errorf("the pattern is described as %q", v.GetDescription())
					}
				}
			}
		}
		slices.Sort(fields)
		if diff := cmp.Diff([]string{"name", "note.text", "page_size"}, fields); diff != "" {
			t.Error(diff)
		}
	}
	if called {
		t.Error("handler saw an invalid request")
	}
	// Who may not ask does not learn what would have been wrong.
	_, err := call(t, srv.Dial(t, platform), "Create", `parent: "accounts/other" page_size: 101`)
	want(t, err, codes.PermissionDenied, rpcerr.ReasonAccountNotAllowed)
}

func TestErrors_Masked(t *testing.T) {
	t.Parallel()
	const text = "pq: password for db-17 is wrong"
	tests := []struct {
		name   string
		handle func(context.Context) error
		code   codes.Code
		reason string
		text   string // what the caller reads
	}{
		{"an error that nobody mapped", func(context.Context) error { return errors.New(text) }, codes.Internal, rpcerr.ReasonInternal, "internal error"},
		{"a status that means our fault", func(context.Context) error { return status.Error(codes.Internal, text) }, codes.Internal, rpcerr.ReasonInternal, "internal error"},
		{"an unknown status", func(context.Context) error { return status.Error(codes.Unknown, text) }, codes.Internal, rpcerr.ReasonInternal, "internal error"},
		{"a panic", func(context.Context) error { panic(text) }, codes.Internal, rpcerr.ReasonInternal, "internal error"}, //nolint:forbidigo // what is tested
		{"a panic of who works for the handler", func(context.Context) error {
			return fmt.Errorf("deliver: %w", caught.Panic(func() error { panic(text) })) //nolint:forbidigo // what is tested
		}, codes.Internal, rpcerr.ReasonInternal, "internal error"},
		{"a mapped error with text around it", func(context.Context) error {
			return fmt.Errorf("%s: %w", text, rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "no such note"))
		}, codes.NotFound, "RESOURCE_NOT_FOUND", "no such note"},
		{"a context's end", func(ctx context.Context) error {
			return fmt.Errorf("%s: %w", text, context.DeadlineExceeded)
		}, codes.DeadlineExceeded, "", "deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log syncBuffer
			reg := prometheus.NewRegistry()
			cfg := config(notetest.Service{
				Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
					return notetest.Note(""), tt.handle(ctx)
				},
				Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error { return tt.handle(stream.Context()) },
			})
			cfg.Log, cfg.Metrics, cfg.Name = obs.NewLogger(&log, slog.LevelInfo, obs.FormatJSON), reg, "masked"
			srv := grpctest.Start(t, cfg)
			conn := srv.Dial(t, operator)
			var trailer metadata.MD
			_, unary := call(t, conn, "Get", "", grpc.Trailer(&trailer))
			stream := open(t.Context(), t, conn, "Watch", "").RecvMsg(notetest.Note(""))
			for _, err := range []error{unary, stream} {
				want(t, err, tt.code, tt.reason)
				if got := status.Convert(err).Message(); got != tt.text {
					t.Errorf("caller reads %q, want %q", got, tt.text)
				}
			}
			if tt.code == codes.Internal {
				if got := rpcerr.RequestID(unary); got == "" || got != trailer.Get("x-request-id")[0] {
					t.Errorf("request ID in the error %q, in the trailer %q", got, trailer.Get("x-request-id"))
				}
			}
			if err := srv.Stop(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(log.String(), text) {
				t.Errorf("log does not tell:\n%s", log.String())
			}
			panics := 0
			if strings.HasPrefix(tt.name, "a panic") {
				panics = 2
				if !strings.Contains(log.String(), "server_test.go") {
					t.Errorf("log has no stack:\n%s", log.String())
				}
			}
			count := fmt.Sprintf(`
				# HELP phasekey_grpc_panics_total Panics in handlers; each is a bug, logged with its stack.
				# TYPE phasekey_grpc_panics_total counter
				phasekey_grpc_panics_total{listener="masked"} %[3]d
				# HELP phasekey_grpc_calls_total Calls and streams that ended, by the code the caller saw. A rate of code Internal above zero is a bug.
				# TYPE phasekey_grpc_calls_total counter
				phasekey_grpc_calls_total{code="%[1]s",listener="masked",method="Get",service="%[2]s"} 1
				phasekey_grpc_calls_total{code="%[1]s",listener="masked",method="Watch",service="%[2]s"} 1
				`, tt.code, notetest.Name, panics)
			if err := testutil.GatherAndCompare(reg, strings.NewReader(count), "phasekey_grpc_calls_total", "phasekey_grpc_panics_total"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	var seen string
	srv := grpctest.Start(t, config(notetest.Service{Get: func(ctx context.Context, _ *dynamicpb.Message) (*dynamicpb.Message, error) {
		seen = grpcserver.RequestID(ctx)
		return notetest.Note(""), nil
	}}))
	conn := srv.Dial(t, operator)
	for _, tt := range []struct {
		name, send string
		kept       bool
	}{
		{"made", "", false},
		{"a sane one is kept", "run-4711.plan", true},
		{"a short one is not", "x", false},
		{"one that would break a log line is not", "abcdefgh level=ERROR", false},
		{"a long one is not", strings.Repeat("a", 65), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.send != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", tt.send)
			}
			var header metadata.MD
			if err := conn.Invoke(ctx, notetest.Method("Get"), notetest.Request(""), notetest.Note(""), grpc.Header(&header)); err != nil {
				t.Fatal(err)
			}
			if got := header.Get("x-request-id"); len(got) != 1 || got[0] != seen || len(seen) < 8 || (seen == tt.send) != tt.kept {
				t.Errorf("sent %q, handler saw %q, header %q", tt.send, seen, got)
			}
		})
	}
	t.Run("travels on by our client", func(t *testing.T) {
		if err := conn.Invoke(obs.WithRequestID(t.Context(), "from-upstream"), notetest.Method("Get"), notetest.Request(""), notetest.Note("")); err != nil {
			t.Fatal(err)
		}
		if seen != "from-upstream" {
			t.Errorf("handler saw %q", seen)
		}
	})
}

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

// Whoever configures a transport without TLS gets a server that serves nobody.
func TestPlaintext_Refused(t *testing.T) {
	t.Parallel()
	listener := bufconn.Listen(1 << 16)
	cfg := config(notetest.Service{})
	cfg.Name, cfg.Listener, cfg.Credentials = "plain", listener, insecure.NewCredentials()
	cfg.Log, cfg.AnonymousOK = slog.New(slog.DiscardHandler), true
	srv, err := grpcserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- srv.Run(ctx) }()
	conn, err := grpcclient.Dial(grpcclient.Config{
		Target: "passthrough:///memory", Credentials: insecure.NewCredentials(),
		Dialer: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"Get", "Fetch"} {
		_, err = call(t, conn, method, "")
		want(t, err, codes.Unauthenticated, rpcerr.ReasonIdentityUnknown)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// Whatever is logged about a call, at whatever level, its secrets are not.
func TestAccessLog_Canaries(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-9f2c"
	for _, format := range []obs.Format{obs.FormatJSON, obs.FormatText} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			var log syncBuffer
			cfg := config(notetest.Service{Get: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
				return nil, errors.New("a bug")
			}})
			cfg.Log = obs.NewLogger(&log, slog.LevelDebug, format)
			srv := grpctest.Start(t, cfg)
			conn := srv.Dial(t, operator)
			request := fmt.Sprintf(`
				name: "accounts/acme/notes/visible" note { token: %[1]q keys: %[1]q text: "plain" }
				by_key { key: "k" value { token: %[1]q } }
				extra { [type.googleapis.com/phasekey.notetest.v1.Note] { token: %[1]q } }`, canary)
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+canary)
			for _, method := range []string{"Create", "Get"} {
				_ = conn.Invoke(ctx, notetest.Method(method), notetest.Request(request), notetest.Note(""))
			}
			_ = open(ctx, t, conn, "Watch", request).RecvMsg(notetest.Note(""))
			if err := srv.Stop(); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(log.String(), canary) || strings.Contains(log.String(), "Q0FOQVJZ") {
				t.Errorf("a secret is in the log:\n%s", log.String())
			}
			if n := strings.Count(log.String(), "notes/visible"); n != 3 {
				t.Errorf("%d of 3 requests are in the log, so the test proves nothing:\n%s", n, log.String())
			}
		})
	}
}

func TestAccessLog_LevelByCode(t *testing.T) {
	t.Parallel()
	for code, level := range map[codes.Code]string{
		codes.OK: "INFO", codes.Canceled: "INFO", codes.NotFound: "WARN", codes.PermissionDenied: "WARN",
		codes.Unavailable: "WARN", codes.Internal: "ERROR",
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			var log syncBuffer
			cfg := config(notetest.Service{Get: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
				return notetest.Note(""), status.Error(code, "x")
			}})
			cfg.Log = obs.NewLogger(&log, slog.LevelInfo, obs.FormatJSON)
			srv := grpctest.Start(t, cfg)
			_, _ = call(t, srv.Dial(t, operator), "Get", "")
			if err := srv.Stop(); err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(log.String(), "\n") {
				if strings.Contains(line, `"msg":"call handled"`) {
					for _, w := range []string{`"level":"` + level + `"`, `"code":"` + code.String() + `"`, `"peer":"` + operator + `"`, `"request_id":"`, `"role":"operator"`} {
						if !strings.Contains(line, w) {
							t.Errorf("%s\nlacks %s", line, w)
						}
					}
					return
				}
			}
			t.Errorf("no access log:\n%s", log.String())
		})
	}
}

// syncBuffer is a buffer for a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
