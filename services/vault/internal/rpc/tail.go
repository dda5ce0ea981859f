package rpc

import (
	"context"
	"strings"

	"google.golang.org/grpc"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/tail"
)

// tailer tells of the audit's events as they are recorded; see tail.Hub.
type tailer interface {
	Tail(ctx context.Context, r tail.Request, send func([]audit.Event, tail.Position) error) error
}

const eventCursors list = "audit event cursors"

// TailAuditEvents ends, when the server drains, by its context, of which the chain makes UNAVAILABLE, DRAINING.
func (s auditService) TailAuditEvents(req *vaultv1.TailAuditEventsRequest, stream grpc.ServerStreamingServer[vaultv1.TailAuditEventsResponse]) error {
	passes, err := auditFields.Parse(req.GetFilter())
	if err != nil {
		return wrongFilter(err)
	}
	since, err := auditTime("start_time", req.GetStartTime().AsTime(), req.GetStartTime() != nil)
	if err != nil {
		return err
	}
	account := strings.TrimPrefix(req.GetParent(), accounts)
	cursors := pagetoken.Scope{Key: s.pages.key, List: string(eventCursors), Parent: req.GetParent()}
	wanted := tail.Request{
		Caller: callerOf(stream.Context()).Identity, Since: since,
		Passes: func(e audit.Event) bool {
			return (account == all || e.Account == account) && !e.Time.Before(since) && (passes == nil || passes(e))
		},
	}
	if req.GetCursor() != "" {
		raw, err := cursors.Open(req.GetCursor())
		if err != nil {
			return statusOf(tail.ErrPosition)
		}
		at, err := tail.ParsePosition(raw)
		if err != nil {
			return statusOf(err)
		}
		wanted.From = &at
	}
	return statusOf(s.tails.Tail(stream.Context(), wanted, func(events []audit.Event, at tail.Position) error {
		resp := &vaultv1.TailAuditEventsResponse{Cursor: cursors.Seal(at.Bytes())}
		for _, e := range events {
			resp.AuditEvents = append(resp.AuditEvents, messageOfEvent(e))
		}
		return stream.Send(resp)
	}))
}
