package rpcerr_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"phasekey.dev/pkg/rpcerr"
)

var (
	errNotFound = errors.New("note not found")
	errStale    = fmt.Errorf("stale: %w", errConflict)
	errConflict = errors.New("conflict")
)

func TestTable_Status(t *testing.T) {
	t.Parallel()
	table := rpcerr.Table{
		{Target: errNotFound, Code: codes.NotFound, Reason: "RESOURCE_NOT_FOUND", Details: func(err error) []proto.Message {
			return []proto.Message{rpcerr.Metadata("name", "accounts/a/notes/1")}
		}},
		{Target: errStale, Code: codes.Aborted, Reason: "ETAG_MISMATCH", Message: "somebody changed it"},
		{Target: errConflict, Code: codes.Aborted, Reason: "CONFLICT"},
	}
	const driver = "pq: relation notes of database prod-3"
	wrap := func(err error) error { return fmt.Errorf("%s: %w", driver, fmt.Errorf("again: %w", err)) }
	for _, tt := range []struct {
		name    string
		err     error
		code    codes.Code
		reason  string
		message string
	}{
		{"wrapped twice", wrap(errNotFound), codes.NotFound, "RESOURCE_NOT_FOUND", "note not found"},
		{"the specific row first", wrap(errStale), codes.Aborted, "ETAG_MISMATCH", "somebody changed it"},
		{"the general row", wrap(errConflict), codes.Aborted, "CONFLICT", "conflict"},
		{"joined", errors.Join(errors.New("x"), errNotFound), codes.NotFound, "RESOURCE_NOT_FOUND", "note not found"},
		{"a wrapped status, without what is around it", wrap(rpcerr.Invalid("name", "is required")), codes.InvalidArgument, rpcerr.ReasonInvalidFields, "invalid name: is required"},
		{"cancelled", wrap(context.Canceled), codes.Canceled, "", "cancelled"},
		{"too late", wrap(context.DeadlineExceeded), codes.DeadlineExceeded, "", "deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := table.Status(tt.err)
			if st := status.Convert(got); st.Code() != tt.code || st.Message() != tt.message || rpcerr.Reason(got) != tt.reason {
				t.Errorf("got %v %q, reason %q", st.Code(), st.Message(), rpcerr.Reason(got))
			}
		})
	}
	if table.Status(nil) != nil {
		t.Error("nil became an error")
	}
	if unknown := errors.New(driver); table.Status(unknown) != unknown { //nolint:errorlint // the very same
		t.Error("an unknown error did not stay as it was")
	}
}

func TestNew_Details(t *testing.T) {
	t.Parallel()
	err := rpcerr.New(codes.FailedPrecondition, "NOTHING_ATTACHED", "nothing gives WRITE",
		rpcerr.Metadata("access", "WRITE"), rpcerr.Metadata("project", "accounts/a/projects/b"),
		rpcerr.Field("project", "a"), rpcerr.Field("phase", "b"),
		rpcerr.Precondition("ATTACHMENT", "accounts/a/projects/b", "attach an integration for WRITE"),
		rpcerr.Retry(1500*time.Millisecond),
	)
	// Over the wire and back.
	err = status.FromProto(status.Convert(err).Proto()).Err()
	want := []any{
		&errdetails.ErrorInfo{Reason: "NOTHING_ATTACHED", Domain: "phasekey", Metadata: map[string]string{"access": "WRITE", "project": "accounts/a/projects/b"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "project", Description: "a"}, {Field: "phase", Description: "b"}}},
		rpcerr.Precondition("ATTACHMENT", "accounts/a/projects/b", "attach an integration for WRITE"),
		rpcerr.Retry(1500 * time.Millisecond),
	}
	if diff := cmp.Diff(want, status.Convert(err).Details(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if got := rpcerr.RetryDelay(err); got != 1500*time.Millisecond {
		t.Errorf("retry delay %s", got)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want string
		err  error
	}{
		{"", nil},
		{"plain", errors.New("plain")},
		{"invalid name: is required (InvalidArgument, INVALID_FIELDS)", rpcerr.Invalid("name", "is required")},
		{
			"invalid a: bad; b: bad; c: bad; d: bad; e: bad; and 2 more; f: bad; g: worse (InvalidArgument, INVALID_FIELDS)",
			rpcerr.InvalidFields(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: "a", Description: "bad"}, {Field: "b", Description: "bad"}, {Field: "c", Description: "bad"}, {Field: "d", Description: "bad"},
				{Field: "e", Description: "bad"}, {Field: "f", Description: "bad"}, {Field: "g", Description: "worse"},
			}}),
		},
		{
			"a is attached; detach it first (FailedPrecondition, ATTACHED)",
			rpcerr.New(codes.FailedPrecondition, "ATTACHED", "a is attached; detach it first", rpcerr.Precondition("ATTACHED", "a", "detach it first")),
		},
		{
			"too many calls; try again in 2s (ResourceExhausted, RATE_LIMITED)",
			rpcerr.New(codes.ResourceExhausted, rpcerr.ReasonRateLimited, "too many calls", rpcerr.Retry(2*time.Second)),
		},
		{
			"full; accounts/acme: 5 of 5 stacks (ResourceExhausted, QUOTA_EXCEEDED)",
			rpcerr.New(codes.ResourceExhausted, "QUOTA_EXCEEDED", "full", rpcerr.Quota("accounts/acme", "5 of 5 stacks"), rpcerr.Quota("accounts/acme", "full")),
		},
		{
			"internal error (Internal, INTERNAL, request abc)",
			fmt.Errorf("call: %w", rpcerr.New(codes.Internal, rpcerr.ReasonInternal, "internal error", rpcerr.Metadata(rpcerr.MetadataRequestID, "abc"))),
		},
		{"connection refused (Unavailable)", status.Error(codes.Unavailable, "connection refused")},
	} {
		if got := rpcerr.Explain(tt.err); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	foreign, err := status.New(codes.NotFound, "x").WithDetails(&errdetails.ErrorInfo{Reason: "THEIRS", Domain: "googleapis.com"})
	if err != nil {
		t.Fatal(err)
	}
	if got := rpcerr.Reason(foreign.Err()); got != "" {
		t.Errorf("took another domain's reason %s for ours", got)
	}
}
