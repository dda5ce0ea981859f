package grpcserver_test

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/rpcerr"
)

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
