package rpc_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/chain"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/notary"
	"phasekey.dev/services/vault/internal/store"
)

func TestAudit_List(t *testing.T) {
	inBubble(t, func(v *vault) {
		t := v.t
		client := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, platformID))
		operator := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, operatorID))
		first, ctx := v.grant(run("run-1"))
		_, second := v.grant(run("run-2"))
		time.Sleep(10 * time.Minute)
		for _, c := range []string{"a", "b"} {
			if _, err := v.runner.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-" + c}); err != nil {
				t.Fatal(err)
			}
		}
		middle := time.Now().UTC().Format(time.RFC3339)
		time.Sleep(time.Minute)
		if _, err := v.runner.FetchCredential(second, &vaultv1.FetchCredentialRequest{InstanceId: "instance-c"}); err != nil {
			t.Fatal(err)
		}
		list := func(from vaultv1.AuditServiceClient, parent, filter string, size int32) (got []string) {
			t.Helper()
			req := &vaultv1.ListAuditEventsRequest{Parent: parent, Filter: filter, PageSize: size}
			for {
				resp, err := from.ListAuditEvents(t.Context(), req)
				if err != nil {
					t.Fatalf("%s: %v", filter, err)
				}
				if len(resp.GetAuditEvents()) > int(size) {
					t.Errorf("a page of %d", len(resp.GetAuditEvents()))
				}
				for _, e := range resp.GetAuditEvents() {
					got = append(got, strings.TrimSpace(e.GetKind()+" "+strings.TrimPrefix(e.GetInstanceId(), "instance-")+" "+e.GetRun()))
				}
				if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
					return got
				}
			}
		}
		everything := []string{
			"CredentialDelivered c run-2", "LeaseOpened c run-2", "CredentialDelivered b run-1", "LeaseOpened b run-1", "CredentialDelivered a run-1", "LeaseOpened a run-1",
			"GrantCreated  run-2", "GrantCreated  run-1",
		}
		for size := range int32(4) {
			if got := list(client, "accounts/acme", "", size+1); !slices.Equal(got, everything) {
				t.Errorf("by %d: %q", size+1, got)
			}
		}
		for filter, want := range map[string][]string{
			`kind = CredentialDelivered AND run = "run-1"`:                       {everything[2], everything[4]},
			`grant = "` + first.GetName() + `" AND kind = "GrantCreated"`:        {everything[7]},
			`grant = "accounts/acme/grants/other"`:                               nil,
			`event_time > "` + middle + `"`:                                      everything[:2],
			`event_time = "` + middle + `"`:                                      everything[2:6],
			`event_time <= "` + middle + `" AND kind:Lease`:                      {everything[3], everything[5]},
			`NOT event_time <= "` + middle + `" OR run = "run-2"`:                {everything[0], everything[1], everything[6]},
			`material = ACCESS_TOKEN AND lease:* AND instance_id = "instance-b"`: {everything[2]},
			`integration = "accounts/acme/integrations/read" AND kind:Created`:   everything[6:],
			`project = "` + project + `" AND actor = "` + platformID + `"`:       everything[6:],
		} {
			if got := list(client, "accounts/acme", filter, 1); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", filter, got, want)
			}
		}
		if got := list(operator, "accounts/-", "", 100); !slices.Equal(got, everything) {
			t.Errorf("all accounts: %q", got)
		}
		if got := list(operator, "accounts/other", "", 100); len(got) != 0 {
			t.Errorf("another account: %q", got)
		}
		_, err := client.ListAuditEvents(t.Context(), &vaultv1.ListAuditEventsRequest{Parent: "accounts/-"})
		refused(t, "audit", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = client.ListAuditEvents(t.Context(), &vaultv1.ListAuditEventsRequest{Parent: "accounts/acme", Filter: "kind"})
		refused(t, "audit", err, codes.InvalidArgument, "INVALID_FIELDS")
		page, err := client.ListAuditEvents(t.Context(), &vaultv1.ListAuditEventsRequest{Parent: "accounts/acme", PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, req := range []*vaultv1.ListAuditEventsRequest{
			{Parent: "accounts/acme", PageToken: page.GetNextPageToken(), Filter: "kind:Grant"},
			{Parent: "accounts/acme", PageToken: "x" + page.GetNextPageToken()},
			{Parent: "accounts/acme", PageToken: formerToken("audit events", "accounts/acme\x00", `[1700000000000000,"writer",1,0]`)},
		} {
			_, err = client.ListAuditEvents(t.Context(), req)
			refused(t, "audit", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
	})
}

// formerToken is a page token as the releases made them that sealed none.
func formerToken(list, scope, after string) string {
	sum := sha256.Sum256([]byte(list + "\x00" + scope + "\x00" + after))
	return base64.RawURLEncoding.EncodeToString(append(sum[:8], after...))
}

// What is exported is verified by the key that the checkpoints' list tells, and nothing else.
func TestAudit_ExportIsVerified(t *testing.T) {
	inBubble(t, func(v *vault) {
		t := v.t
		client := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, operatorID))
		signs := notary.New(notary.Config{Store: v.store, Keys: audittest.Keys(1), Taken: store.ErrChanged, Log: slog.New(slog.DiscardHandler)})
		for range 3 {
			v.grant()
			if err := signs.Checkpoint(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		v.grant()
		first, err := client.ListAuditCheckpoints(t.Context(), &vaultv1.ListAuditCheckpointsRequest{PageSize: 2})
		if err != nil || len(first.GetAuditCheckpoints()) != 2 || first.GetNextPageToken() == "" {
			t.Fatal(err, first)
		}
		second, err := client.ListAuditCheckpoints(t.Context(), &vaultv1.ListAuditCheckpointsRequest{PageSize: 2, PageToken: first.GetNextPageToken()})
		if err != nil || len(second.GetAuditCheckpoints()) != 1 || second.GetAuditCheckpoints()[0].GetNumber() != 3 || second.GetNextPageToken() != "" {
			t.Error(err, second)
		}
		export := func(req *vaultv1.ExportAuditEventsRequest, spoil func(*vaultv1.AuditRecord)) chain.Report {
			t.Helper()
			verifier := chain.NewVerifier(first.GetPublicKey(), time.Minute)
			stream, err := client.ExportAuditEvents(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for {
				item, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return verifier.Report()
				}
				if err != nil {
					t.Fatal(err)
				}
				if c := item.GetCheckpoint(); c != nil {
					verifier.Checkpoint(chain.Signed{Payload: c.GetPayload(), Signature: c.GetSignature()})
					continue
				}
				r := item.GetRecord()
				spoil(r)
				hash, err := chain.HashOf(r.GetHash())
				if err != nil {
					t.Fatal(err)
				}
				verifier.Record(chain.Record{Writer: r.GetWriter(), Seq: r.GetSequence(), Time: r.GetRecordTime().AsTime(), Content: r.GetContent(), Hash: hash})
			}
		}
		as := func(*vaultv1.AuditRecord) {}
		if r := export(&vaultv1.ExportAuditEventsRequest{}, as); !r.Whole() || r.Records != 4 || r.Checkpoints != 3 || r.Unsigned != 1 {
			t.Errorf("%+v", r)
		}
		ended := &vaultv1.ExportAuditEventsRequest{EndTime: timestamppb.New(time.Now().Add(-4 * time.Minute))}
		if r := export(ended, as); !r.Whole() || r.Records != 2 || r.Checkpoints != 2 {
			t.Errorf("until the second: %+v", r)
		}
		if r := export(&vaultv1.ExportAuditEventsRequest{}, func(r *vaultv1.AuditRecord) {
			r.Content = []byte(strings.ReplaceAll(string(r.GetContent()), "run-1", "run-2"))
		}); r.Whole() || r.Problems[0].Kind != chain.Changed {
			t.Errorf("changed: %+v", r)
		}
		for _, req := range []*vaultv1.ExportAuditEventsRequest{{StartTime: timestamppb.New(time.Now().Add(25 * time.Hour))}} {
			stream, err := client.ExportAuditEvents(t.Context(), req)
			if err == nil {
				_, err = stream.Recv()
			}
			refused(t, "audit", err, codes.InvalidArgument, "INVALID_FIELDS")
		}
		platform := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, platformID))
		stream, err := platform.ExportAuditEvents(t.Context(), &vaultv1.ExportAuditEventsRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		refused(t, "audit", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	})
}
