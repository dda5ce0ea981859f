package grpcserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
)

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
			var log logtest.Transcript
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
				if !strings.Contains(log.String(), "request_test.go") {
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
	}, Watch: func(_ *dynamicpb.Message, stream grpc.ServerStream) error {
		seen = grpcserver.RequestID(stream.Context())
		return nil
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
	t.Run("of a stream it is told at its end", func(t *testing.T) {
		stream := open(t.Context(), t, conn, "Watch", "")
		if err := stream.RecvMsg(notetest.Note("")); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if got := stream.Trailer().Get("x-request-id"); len(got) != 1 || got[0] != seen || seen == "" {
			t.Errorf("handler saw %q, trailer %q", seen, got)
		}
	})
	t.Run("travels on by our client", func(t *testing.T) {
		if err := conn.Invoke(obs.WithRequestID(t.Context(), "from-upstream"), notetest.Method("Get"), notetest.Request(""), notetest.Note("")); err != nil {
			t.Fatal(err)
		}
		if seen != "from-upstream" {
			t.Errorf("handler saw %q", seen)
		}
	})
}
