package rpc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/aipfilter"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/notary"
)

// auditTrail reads the audit trail; see store.Store.
type auditTrail interface {
	AuditEvents(ctx context.Context, q audit.Query) ([]audit.Event, error)
	AuditRecords(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error)
	AuditWriters(ctx context.Context, after string, limit int) ([]string, error)
	FullCheckpoint(ctx context.Context, before time.Time) (audit.Checkpoint, error)
	LastCheckpoint(ctx context.Context) (audit.Checkpoint, error)
	Checkpoints(ctx context.Context, after int64, limit int) ([]audit.Checkpoint, error)
}

// auditService implements vaultv1.AuditServiceServer.
type auditService struct {
	vaultv1.UnsafeAuditServiceServer
	trail auditTrail
	tails tailer
	keys  audit.Keys
	pages pages
}

// maxAuditScan is how many events a page reads.
const maxAuditScan = 5000

// all is the account in accounts/-, which stands for all.
const all = "-"

// auditFields are those that filters of events may name.
var auditFields = aipfilter.Fields[audit.Event]{
	"kind":                   aipfilter.Text(func(e audit.Event) string { return string(e.Kind) }),
	"event_time":             aipfilter.Time(func(e audit.Event) time.Time { return e.Time }),
	"actor":                  aipfilter.Text(func(e audit.Event) string { return e.Caller.Identity }),
	"call_id":                aipfilter.Text(func(e audit.Event) string { return e.Caller.RequestID }),
	"grant":                  aipfilter.Text(grantOf),
	"run":                    aipfilter.Text(func(e audit.Event) string { return e.Run }),
	"project":                aipfilter.Text(func(e audit.Event) string { return e.Project }),
	"project_uid":            aipfilter.Text(func(e audit.Event) string { return e.ProjectUID }),
	"integration":            aipfilter.Text(func(e audit.Event) string { return e.Integration }),
	"integration_uid":        aipfilter.Text(func(e audit.Event) string { return e.IntegrationUID }),
	"lease":                  aipfilter.Text(func(e audit.Event) string { return e.LeaseUID }),
	"instance_id":            aipfilter.Text(func(e audit.Event) string { return e.InstanceID }),
	"credential_version_uid": aipfilter.Text(func(e audit.Event) string { return e.VersionID }),
	"material":               aipfilter.Enum(typev1.Material_value, prefixMaterial, func(e audit.Event) lease.Material { return e.Material }),
	"reason":                 aipfilter.Text(func(e audit.Event) string { return e.Reason }),
	"audience":               aipfilter.Text(func(e audit.Event) string { return e.Audience }),
	"client_request_id":      aipfilter.Text(func(e audit.Event) string { return e.ClientRequestID }),
}

// grantOf is the resource name of the event's grant.
func grantOf(e audit.Event) string {
	if e.GrantUID == "" {
		return ""
	}
	return accounts + e.Account + "/grants/" + e.GrantUID
}

func (s auditService) ListAuditEvents(ctx context.Context, req *vaultv1.ListAuditEventsRequest) (*vaultv1.ListAuditEventsResponse, error) {
	passes, err := auditFields.Parse(req.GetFilter())
	if err != nil {
		return nil, wrongFilter(err)
	}
	scope := pagetoken.Scope{Key: s.pages.key, List: string(eventsList), Parent: req.GetParent(), Filter: req.GetFilter()}
	before, err := parseEventsToken(scope, req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	query := audit.Query{Account: strings.TrimPrefix(req.GetParent(), accounts), Before: before, Limit: maxAuditScan}
	if query.Account == all {
		query.Account = ""
	}
	size := pageSize(req.GetPageSize())
	if passes == nil {
		query.Limit = size + 1
	}
	// What a filter requires narrows what is read; it judges all the same.
	if name := aipfilter.Required(req.GetFilter())["grant"]; name != "" {
		_, query.GrantUID = splitName(name)
	}
	query.From, query.Until = timeBounds(req.GetFilter())
	found, err := s.trail.AuditEvents(ctx, query)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &vaultv1.ListAuditEventsResponse{}
	for i, e := range found {
		if passes == nil || passes(e) {
			resp.AuditEvents = append(resp.AuditEvents, messageOfEvent(e))
		}
		more := i+1 < len(found) || len(found) == query.Limit
		if more && (len(resp.GetAuditEvents()) == size || i+1 == len(found)) {
			resp.NextPageToken = eventsToken(scope, e.At())
			break
		}
	}
	return resp, nil
}

// timeBounds are what the filter requires of event_time: from the one, and before the other unless that is zero.
func timeBounds(filter string) (from, until time.Time) {
	for _, bound := range aipfilter.Bounds(filter, "event_time") {
		at, err := time.Parse(time.RFC3339, bound.Value)
		if err != nil {
			continue
		}
		at = at.Truncate(time.Microsecond)
		if bound.Lower && at.After(from) {
			from = at
		}
		// A little more than was asked for: the filter judges.
		if upper := at.Add(time.Microsecond); !bound.Lower && (until.IsZero() || upper.Before(until)) {
			until = upper
		}
	}
	return from, until
}

// eventsToken says behind which event a list goes on.
func eventsToken(scope pagetoken.Scope, at audit.Place) string {
	return scope.SealTexts(strconv.FormatInt(at.Time.UnixMicro(), 10), at.Writer, strconv.FormatInt(at.Seq, 10), strconv.FormatInt(at.Place, 10))
}

// parseEventsToken is the reverse; the zero value is the beginning.
func parseEventsToken(scope pagetoken.Scope, token string) (at audit.Place, err error) {
	if token == "" {
		return audit.Place{}, nil
	}
	place, err := scope.OpenTexts(token)
	if err != nil {
		return audit.Place{}, err
	}
	if len(place) != 4 {
		return audit.Place{}, pagetoken.ErrInvalid
	}
	var numbers [3]int64
	for i, text := range []string{place[0], place[2], place[3]} {
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return audit.Place{}, pagetoken.ErrInvalid
		}
	}
	return audit.Place{Time: time.UnixMicro(numbers[0]).UTC(), Writer: place[1], Seq: numbers[1], Place: numbers[2]}, nil
}

func messageOfEvent(e audit.Event) *vaultv1.AuditEvent {
	account := e.Account
	if account == "" {
		account = all
	}
	return &vaultv1.AuditEvent{
		Name: fmt.Sprintf("%s%s/auditEvents/%s-%d-%d", accounts, account, e.Writer, e.Seq, e.Place),
		Kind: string(e.Kind), EventTime: timestamp(e.Time), Writer: e.Writer, Sequence: e.Seq, Actor: e.Caller.Identity, CallId: e.Caller.RequestID,
		Grant: grantOf(e), Run: e.Run, Project: e.Project, ProjectUid: e.ProjectUID, Integration: e.Integration, IntegrationUid: e.IntegrationUID,
		Lease: e.LeaseUID, InstanceId: e.InstanceID, Generation: e.Generation, CredentialVersionUid: e.VersionID,
		Material: typev1.Material(typev1.Material_value[prefixMaterial+string(e.Material)]), Reason: e.Reason, Audience: e.Audience,
		ClientRequestId: e.ClientRequestID, ExpireTime: timestamp(e.ExpireTime),
	}
}

func (s auditService) ExportAuditEvents(req *vaultv1.ExportAuditEventsRequest, stream grpc.ServerStreamingServer[vaultv1.ExportAuditEventsResponse]) error {
	start, err := auditTime("start_time", req.GetStartTime().AsTime(), req.GetStartTime() != nil)
	if err != nil {
		return err
	}
	end, err := auditTime("end_time", req.GetEndTime().AsTime(), req.GetEndTime() != nil)
	if err != nil {
		return err
	}
	err = notary.Export(stream.Context(), s.trail, start, end, func(item notary.Item) error {
		message := &vaultv1.ExportAuditEventsResponse{}
		if item.Checkpoint != nil {
			message.Item = &vaultv1.ExportAuditEventsResponse_Checkpoint{Checkpoint: messageOfCheckpoint(*item.Checkpoint)}
			return stream.Send(message)
		}
		r, err := item.Chained()
		if err != nil {
			return err
		}
		record := &vaultv1.AuditRecord{
			Writer: r.Writer, Sequence: r.Seq, RecordTime: timestamp(r.Time), Content: r.Content, Mac: item.Record.MAC, MacKeyId: int64(item.Record.KeyID),
		}
		if len(record.GetMac()) > 0 {
			record.Hash = r.Hash[:]
		}
		message.Item = &vaultv1.ExportAuditEventsResponse_Record{Record: record}
		return stream.Send(message)
	})
	if err != nil {
		return statusOf(err)
	}
	return nil
}

// auditTime is a bound of an export: not to come, for there is nothing then, and a mistake would look like an empty trail.
func auditTime(field string, at time.Time, given bool) (time.Time, error) {
	switch {
	case !given:
		return time.Time{}, nil
	case at.After(clock().Add(time.Hour)):
		return time.Time{}, rpcerr.Invalid(field, "must not be in the future")
	default:
		return at, nil
	}
}

func messageOfCheckpoint(c audit.Checkpoint) *vaultv1.AuditCheckpoint {
	return &vaultv1.AuditCheckpoint{Number: c.Number, SignTime: timestamp(c.Time), Payload: c.Payload, Signature: c.Signature}
}

func (s auditService) ListAuditCheckpoints(ctx context.Context, req *vaultv1.ListAuditCheckpointsRequest) (*vaultv1.ListAuditCheckpointsResponse, error) {
	number, err := s.pages.number(checkpointsList, "", req.GetPageToken())
	if err != nil {
		return nil, statusOf(err)
	}
	last, err := s.trail.LastCheckpoint(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	keyID := last.NextID
	if last.Number == 0 {
		keyID = s.keys.Current()
	}
	signer, err := audit.Signer(ctx, s.keys, keyID)
	if err != nil {
		return nil, statusOf(err)
	}
	size := pageSize(req.GetPageSize())
	found, err := s.trail.Checkpoints(ctx, number, size+1)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &vaultv1.ListAuditCheckpointsResponse{PublicKey: audit.Public(signer)}
	if len(found) > size {
		found = found[:size]
		resp.NextPageToken = s.pages.behindNumber(checkpointsList, "", found[size-1].Number)
	}
	for _, c := range found {
		resp.AuditCheckpoints = append(resp.AuditCheckpoints, messageOfCheckpoint(c))
	}
	return resp, nil
}
