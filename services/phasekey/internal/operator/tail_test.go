package operator

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

// fakeStream gives messages, each the events of the runs it names and a cursor, and ends with an error.
type fakeStream struct {
	messages [][]string // the cursor last
	end      error
}

func (s *fakeStream) Recv() (*vaultv1.TailAuditEventsResponse, error) {
	if len(s.messages) == 0 {
		return nil, s.end
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	resp := &vaultv1.TailAuditEventsResponse{Cursor: m[len(m)-1]}
	for _, run := range m[:len(m)-1] {
		resp.AuditEvents = append(resp.AuditEvents, &vaultv1.AuditEvent{Kind: "GrantCreated", Run: run})
	}
	return resp, nil
}

var (
	errUnavailable = rpcerr.New(codes.Unavailable, "DRAINING", "server is draining")
	errOutOfRange  = rpcerr.New(codes.OutOfRange, "CURSOR_OUT_OF_RANGE", "it cannot be followed from there")
)

// tailing is a tail of streams that are opened one after another, and the cursors with which they are.
func tailing(streams ...any) (*auditTail, *bytes.Buffer, *[]string) {
	var out bytes.Buffer
	var cursors []string
	return &auditTail{
		printer: &printer{out: &out, notes: io.Discard, json: true}, request: &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme"},
		open: func(_ context.Context, req *vaultv1.TailAuditEventsRequest) (auditStream, error) {
			cursors = append(cursors, req.GetCursor())
			next := streams[0]
			streams = streams[1:]
			if err, ok := next.(error); ok {
				return nil, err
			}
			return next.(*fakeStream), nil
		},
	}, &out, &cursors
}

func TestAuditTail_GoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cursor")
		tail, out, cursors := tailing(
			&fakeStream{[][]string{{"a", "b", "1"}, {"2"}}, errUnavailable},
			errUnavailable, rpcerr.New(codes.ResourceExhausted, "RATE_LIMITED", "too many"),
			&fakeStream{[][]string{{"c", "3"}}, io.EOF},
			&fakeStream{nil, errOutOfRange},
		)
		tail.file = file
		begin := time.Now()
		if err := tail.run(t.Context()); rpcerr.Reason(err) != "CURSOR_OUT_OF_RANGE" {
			t.Errorf("ended with %v", err)
		}
		if want := []string{"", "2", "2", "2", "3"}; !slices.Equal(*cursors, want) {
			t.Errorf("began at %q", *cursors)
		}
		var runs []string
		for line := range strings.Lines(out.String()) {
			_, run, _ := strings.Cut(line, `"run":`)
			runs = append(runs, strings.Trim(run, " \"}\n"))
		}
		if !slices.Equal(runs, []string{"a", "b", "c"}) {
			t.Errorf("printed %q: %s", runs, out)
		}
		if took := time.Since(begin); took != 8*time.Second {
			t.Errorf("waited %s", took)
		}
		again, _, cursors := tailing(&fakeStream{nil, errOutOfRange})
		again.file = file
		if err := again.run(t.Context()); rpcerr.Reason(err) != "CURSOR_OUT_OF_RANGE" || !slices.Equal(*cursors, []string{"3"}) {
			t.Errorf("started again at %q: %v", *cursors, err)
		}
		left, err := os.ReadDir(filepath.Dir(file))
		if err != nil || len(left) != 1 {
			t.Errorf("left %v, %v", left, err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again.run(t.Context()); err == nil || !strings.Contains(err.Error(), "--cursor-file") || !strings.Contains(err.Error(), "begin anew") {
			t.Errorf("an empty file: %v", err)
		}
	})
}

func TestAuditTail_WhatCannotBeginIsAnError(t *testing.T) {
	for _, first := range []any{errUnavailable, &fakeStream{nil, errUnavailable}} {
		tail, _, _ := tailing(first)
		if err := tail.run(t.Context()); rpcerr.Reason(err) != "DRAINING" {
			t.Errorf("%v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tail, _, _ := tailing(&fakeStream{nil, ctx.Err()})
	if err := tail.run(ctx); err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestAuditTail_Table(t *testing.T) {
	tail, out, _ := tailing(&fakeStream{[][]string{{"run-1", "a longer run", "1"}}, errOutOfRange})
	tail.json = false
	if err := tail.run(t.Context()); err == nil {
		t.Error("no error")
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "TIME") || !strings.Contains(lines[1], "run-1") || !strings.Contains(lines[2], "a longer run") ||
		strings.Index(lines[0], "RUN") != strings.Index(lines[1], "run-1") || strings.Index(lines[0], "PROJECT") != strings.Index(lines[2], "a longer run")+len("a longer run  ") {
		t.Errorf("%s", out)
	}
}
