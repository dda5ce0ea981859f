package rpc_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

// followed is a tail and what came by it so far.
type followed struct {
	t      *testing.T
	stream grpc.ServerStreamingClient[vaultv1.TailAuditEventsResponse]
	cursor string
}

func follow(t *testing.T, client vaultv1.AuditServiceClient, req *vaultv1.TailAuditEventsRequest) *followed {
	t.Helper()
	stream, err := client.TailAuditEvents(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return &followed{t: t, stream: stream}
}

// rest is what comes until a message says that there is nothing more.
func (f *followed) rest() (kinds []string) {
	f.t.Helper()
	for {
		resp, err := f.stream.Recv()
		if err != nil {
			f.t.Fatal(err)
		}
		f.cursor = resp.GetCursor()
		if len(resp.GetAuditEvents()) == 0 {
			return kinds
		}
		for _, e := range resp.GetAuditEvents() {
			kinds = append(kinds, strings.TrimSpace(e.GetKind()+" "+strings.TrimPrefix(e.GetInstanceId(), "instance-")+" "+e.GetRun()))
		}
	}
}

func TestAudit_Tail(t *testing.T) {
	inBubble(t, func(v *vault) {
		t := v.t
		client := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, platformID))
		operator := vaultv1.NewAuditServiceClient(v.services.Dial(v.t, operatorID))
		_, ctx := v.grant(run("run-1"))
		time.Sleep(10 * time.Minute)
		middle := time.Now()
		tails := map[string]*followed{
			"mine":       follow(t, client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme"}),
			"all":        follow(t, operator, &vaultv1.TailAuditEventsRequest{Parent: "accounts/-"}),
			"another's":  follow(t, operator, &vaultv1.TailAuditEventsRequest{Parent: "accounts/other"}),
			"deliveries": follow(t, client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", Filter: "kind = CredentialDelivered"}),
			"from now":   follow(t, client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", StartTime: timestamppb.New(middle)}),
			"of before":  follow(t, client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", StartTime: timestamppb.New(middle.Add(-time.Hour))}),
		}
		for name, f := range tails {
			var want []string
			if name == "of before" {
				want = []string{"GrantCreated  run-1"}
			}
			if got := f.rest(); !slices.Equal(got, want) {
				t.Errorf("%s began with %q", name, got)
			}
		}
		if _, err := v.runner.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-a"}); err != nil {
			t.Fatal(err)
		}
		both := []string{"LeaseOpened a run-1", "CredentialDelivered a run-1"}
		for name, want := range map[string][]string{"mine": both, "all": both, "another's": nil, "deliveries": both[1:], "from now": both, "of before": both} {
			if got := tails[name].rest(); !slices.Equal(got, want) {
				t.Errorf("%s went on with %q", name, got)
			}
		}

		// By its cursor each goes on, as it would have.
		before := tails["mine"].cursor
		changed := "A" + before[1:]
		if changed == before {
			changed = "B" + before[1:]
		}
		if _, err := v.runner.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-b"}); err != nil {
			t.Fatal(err)
		}
		later := follow(t, client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", Cursor: before, Filter: `instance_id = "instance-b"`, StartTime: timestamppb.New(middle)})
		if got := later.rest(); len(got) != 2 || got[0] != "LeaseOpened b run-1" {
			t.Errorf("went on with %q", got)
		}

		for _, tt := range []struct {
			name   string
			by     vaultv1.AuditServiceClient
			req    *vaultv1.TailAuditEventsRequest
			code   codes.Code
			reason string
		}{
			{"all accounts", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/-"}, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED"},
			{"another account", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/other"}, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED"},
			{"the broker", vaultv1.NewAuditServiceClient(v.services.Dial(t, brokerID)), &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme"}, codes.PermissionDenied, "CALLER_NOT_ALLOWED"},
			{"no parent", operator, &vaultv1.TailAuditEventsRequest{}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"no filter", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", Filter: "kind"}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"a time to come", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", StartTime: timestamppb.New(middle.Add(24 * time.Hour))}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"another parent's cursor", operator, &vaultv1.TailAuditEventsRequest{Parent: "accounts/-", Cursor: before}, codes.OutOfRange, "CURSOR_OUT_OF_RANGE"},
			{"no cursor", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", Cursor: "x"}, codes.OutOfRange, "CURSOR_OUT_OF_RANGE"},
			{"a cursor that was changed", client, &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme", Cursor: changed}, codes.OutOfRange, "CURSOR_OUT_OF_RANGE"},
		} {
			stream, err := tt.by.TailAuditEvents(t.Context(), tt.req)
			if err == nil {
				_, err = stream.Recv()
			}
			refused(t, tt.name, err, tt.code, tt.reason)
		}

		// Of one identity there are so many; and when the server stops, each is sent elsewhere.
		var one error
		for range 8 {
			stream, err := client.TailAuditEvents(t.Context(), &vaultv1.TailAuditEventsRequest{Parent: "accounts/acme"})
			if err != nil {
				t.Fatal(err)
			}
			if _, one = stream.Recv(); one != nil {
				break
			}
		}
		refused(t, "one more", one, codes.ResourceExhausted, "RATE_LIMITED")
		synctest.Wait()
		stopped := make(chan error, 1)
		go func() { stopped <- v.services.Stop() }()
		for {
			if _, err := later.stream.Recv(); err != nil {
				refused(t, "drained", err, codes.Unavailable, "DRAINING")
				break
			}
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}
