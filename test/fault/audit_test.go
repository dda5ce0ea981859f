package fault

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/test/internal/rigtest"
)

// followFor is for how long the audit is followed at one vault before another is asked.
const followFor = 7 * time.Second

// followAudit follows the audit at one vault after another, each where the one before was left or broke. What it returns ends that, and judges that every event came,
// and came once.
func (w *world) followAudit(t *testing.T) (finish func(t *testing.T)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req := &vaultv1.TailAuditEventsRequest{Parent: account, StartTime: timestamppb.Now()}
	var mu sync.Mutex
	told := map[string]int{}
	var streams atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			next := int(streams.Add(1)) % len(w.vaults)
			err := w.vaults[next].tail(ctx, req, func(events []*vaultv1.AuditEvent) {
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					told[e.GetName()]++
				}
			})
			switch status.Code(err) {
			case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
			default:
				w.judge.fail("the audit cannot be followed: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func(t *testing.T) {
		defer func() {
			cancel()
			<-done
		}()
		listed, err := w.events(t.Context(), req.GetStartTime().AsTime())
		rigtest.Must(t, err)
		rigtest.Await(t, 2*followFor*vaults, func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range listed {
				if told[name] == 0 {
					return notYet("%s of %d events was not told by %d streams", name, len(listed), streams.Load())
				}
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		for name, times := range told {
			if times > 1 {
				t.Errorf("%s was told %d times", name, times)
			}
		}
		t.Logf("%d audit events were told, each once, by %d streams", len(told), streams.Load())
	}
}

// tail follows the audit for a while, and brings the request's cursor forward.
func (v *vault) tail(ctx context.Context, req *vaultv1.TailAuditEventsRequest, tell func([]*vaultv1.AuditEvent)) error {
	ctx, cancel := context.WithTimeout(ctx, followFor)
	defer cancel()
	stream, err := v.audit.TailAuditEvents(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		tell(resp.GetAuditEvents())
		req.Cursor = resp.GetCursor()
	}
}

// events are the names of all audit events since a time, as a vault lists them.
func (w *world) events(ctx context.Context, since time.Time) (names []string, err error) {
	req := &vaultv1.ListAuditEventsRequest{Parent: account, PageSize: 1000, Filter: `event_time >= "` + since.UTC().Format(time.RFC3339Nano) + `"`}
	for {
		resp, err := w.vaults[0].audit.ListAuditEvents(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, e := range resp.GetAuditEvents() {
			names = append(names, e.GetName())
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return names, nil
		}
	}
}
