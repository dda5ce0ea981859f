package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

// maxCursor bounds the file of a cursor.
const maxCursor = 64 << 10

func (o *options) tailAudit() *cobra.Command {
	var filter, start, file string
	c := o.verb("tail", "Follow what happens in an account, from now on or from a time, until interrupted", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		parent, err := s.parent()
		if err != nil {
			return err
		}
		req := &vaultv1.TailAuditEventsRequest{Parent: parent, Filter: filter}
		if start != "" {
			t, err := time.Parse(time.RFC3339, start)
			if err != nil {
				return errors.New("--start: say a time like 2006-01-02T15:04:05Z")
			}
			req.StartTime = timestamppb.New(t)
		}
		client, err := s.audit()
		if err != nil {
			return err
		}
		t := &auditTail{printer: s.printer, request: req, file: file, open: func(ctx context.Context, req *vaultv1.TailAuditEventsRequest) (auditStream, error) {
			return client.TailAuditEvents(ctx, req)
		}}
		return t.run(ctx)
	})
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'kind = CredentialDelivered AND run = "run-1"'`)
	c.Flags().StringVar(&start, "start", "", "events of this time (RFC 3339) and later; otherwise those from now on")
	c.Flags().StringVar(&file, "cursor-file", "", "keep in this file up to where events were printed, and go on from there when started again")
	return c
}

// auditStream is what events come by.
type auditStream interface {
	Recv() (*vaultv1.TailAuditEventsResponse, error)
}

// auditTail prints events as they come, and goes on where it was when the stream breaks.
type auditTail struct {
	*printer
	request *vaultv1.TailAuditEventsRequest
	// file keeps the cursor; empty for none.
	file string
	open func(ctx context.Context, req *vaultv1.TailAuditEventsRequest) (auditStream, error)
	rows rows
	// headed tells whether the table has its heads.
	headed bool
}

// run prints until ctx ends, which is no error. A stream that breaks before anything came by it is one; so is one that cannot go on.
func (t *auditTail) run(ctx context.Context) error {
	if t.file != "" {
		cursor, err := readCursor(t.file)
		if err != nil {
			return fmt.Errorf("--cursor-file: %w", err)
		}
		t.request.Cursor = cursor
	}
	if err := t.persist(ctx, false, t.once); ctx.Err() == nil {
		return err
	}
	return nil
}

// once prints what comes by one stream, and reports whether anything did.
func (t *auditTail) once(ctx context.Context) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.open(ctx, t.request)
	if err != nil {
		return false, err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return came, err
		}
		came = true
		if err := t.print(message.GetAuditEvents()); err != nil {
			return came, err
		}
		t.request.Cursor = message.GetCursor()
		if t.file != "" {
			if err := writeCursor(t.file, message.GetCursor()); err != nil {
				return came, fmt.Errorf("--cursor-file: %w", err)
			}
		}
	}
}

func (t *auditTail) print(events []*vaultv1.AuditEvent) error {
	if t.json {
		for _, e := range events {
			if err := t.line(e); err != nil {
				return err
			}
		}
		return nil
	}
	heads, cells := eventView.inList()
	var texts [][]string
	if !t.headed {
		texts, t.headed = append(texts, heads), true
	}
	for _, e := range events {
		texts = append(texts, strings.Split(row(cells, e), "\t"))
	}
	for _, row := range texts {
		t.rows.fit(row)
	}
	for _, row := range texts {
		if err := t.rows.print(t.out, row); err != nil {
			return err
		}
	}
	return nil
}

// readCursor is what the file keeps; empty when there is no file yet.
func readCursor(name string) (string, error) {
	f, err := os.Open(name) //nolint:gosec // the file that the flag names
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxCursor))
	if err != nil {
		return "", err
	}
	cursor := strings.TrimSpace(string(text))
	if cursor == "" {
		return "", fmt.Errorf("%s is empty: remove it to begin anew", name)
	}
	return cursor, nil
}

// writeCursor puts another file in the place of the one there is: whenever it is read it is whole.
func writeCursor(name, cursor string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".cursor-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(cursor + "\n")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
