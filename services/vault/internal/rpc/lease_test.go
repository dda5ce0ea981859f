package rpc_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func TestLeases_AreShownAndRevoked(t *testing.T) {
	inBubble(t, func(v *vault) {
		began := timestamppb.Now()
		leases := vaultv1.NewLeaseServiceClient(v.services.Dial(v.t, platformID))
		operator := vaultv1.NewLeaseServiceClient(v.services.Dial(v.t, operatorID))
		g, ctx := v.grant(run("run-1"))
		mine, other := v.read(ctx, "instance-1"), v.read(ctx, "instance-2")
		_, second := v.grant(run("run-2"))
		v.read(second, "instance-3")
		name := func(r *reader) string {
			r.mu.Lock()
			defer r.mu.Unlock()
			return g.GetName() + "/leases/" + r.taken[0].GetLease()
		}
		want := &vaultv1.Lease{
			Name: name(mine), State: vaultv1.Lease_STATE_OPEN, InstanceId: "instance-1", Run: "run-1", Project: project,
			Integration: "accounts/acme/integrations/read", Phase: typev1.Phase_PHASE_PLANNING, Generation: 1,
			Material: typev1.Material_MATERIAL_ACCESS_TOKEN, Audience: arm, CredentialVersion: 1,
			OpenTime: began, DeliverTime: began, ExpireTime: timestamppb.New(began.AsTime().Add(time.Hour)),
		}
		got, err := operator.GetLease(v.t.Context(), &vaultv1.GetLeaseRequest{Name: name(mine)})
		if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
			v.t.Errorf("read: %v, %s", err, diff)
		}
		list := func(parent, filter, order string) (instances []string) {
			v.t.Helper()
			req := &vaultv1.ListLeasesRequest{Parent: parent, Filter: filter, OrderBy: order, PageSize: 1}
			for {
				resp, err := leases.ListLeases(v.t.Context(), req)
				if err != nil {
					v.t.Fatalf("%s: %v", filter, err)
				}
				for _, l := range resp.GetLeases() {
					instances = append(instances, l.GetInstanceId())
				}
				if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
					return instances
				}
			}
		}
		expect := func(what string, got []string, want ...string) {
			v.t.Helper()
			slices.Sort(got)
			if !slices.Equal(got, want) {
				v.t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		expect("of the grant", list(g.GetName(), "", ""), "instance-1", "instance-2")
		expect("of the account", list("accounts/acme/grants/-", "", "deliver_time desc"), "instance-1", "instance-2", "instance-3")
		expect("of a run", list("accounts/acme/grants/-", `run = "run-2" AND state = OPEN`, ""), "instance-3")
		expect("by instance", list("accounts/acme/grants/-", `instance_id = "instance-2" OR phase = TESTING`, ""), "instance-2")

		for range 2 {
			resp, err := leases.RevokeLease(v.t.Context(), &vaultv1.RevokeLeaseRequest{Name: name(mine)})
			if err != nil || resp.GetLease().GetState() != vaultv1.Lease_STATE_CLOSED || resp.GetLease().GetCloseTime() == nil {
				v.t.Errorf("revoked: %v, %v", resp, err)
			}
		}
		synctest.Wait()
		_, err = mine.state()
		refused(v.t, "the instance's stream", err, codes.PermissionDenied, "LEASE_CLOSED")
		if _, err := other.state(); err != nil {
			v.t.Errorf("the other instance's stream: %v", err)
		}
		_, err = v.runner.FetchCredential(ctx, fetch("instance-1"))
		refused(v.t, "a fetch of the instance", err, codes.PermissionDenied, "LEASE_CLOSED")
		expect("closed", list(g.GetName(), "state = CLOSED", ""), "instance-1")
		time.Sleep(2 * time.Hour)
		expect("over", list(g.GetName(), "state = ENDED", ""), "instance-2")
		expect("open after all", list(g.GetName(), "state = OPEN", ""))
	})
}

func TestLeases_Refuse(t *testing.T) {
	inBubble(t, func(v *vault) {
		leases := vaultv1.NewLeaseServiceClient(v.services.Dial(v.t, platformID))
		g, ctx := v.grant()
		v.read(ctx, "instance-1")
		missing := g.GetName() + "/leases/none"
		_, err := leases.GetLease(v.t.Context(), &vaultv1.GetLeaseRequest{Name: missing})
		refused(v.t, "no such lease", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = leases.RevokeLease(v.t.Context(), &vaultv1.RevokeLeaseRequest{Name: missing})
		refused(v.t, "no such lease to revoke", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		other := strings.Replace(missing, "acme", "other", 1)
		_, err = leases.RevokeLease(v.t.Context(), &vaultv1.RevokeLeaseRequest{Name: other})
		refused(v.t, "another account's", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = leases.ListLeases(v.t.Context(), &vaultv1.ListLeasesRequest{Parent: "accounts/other/grants/-"})
		refused(v.t, "another account's leases", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = vaultv1.NewLeaseServiceClient(v.services.Dial(v.t, brokerID)).GetLease(v.t.Context(), &vaultv1.GetLeaseRequest{Name: missing})
		refused(v.t, "by the broker", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		for _, tt := range []struct {
			request *vaultv1.ListLeasesRequest
			reason  string
		}{
			{&vaultv1.ListLeasesRequest{Parent: g.GetName(), Filter: "state = GONE"}, "INVALID_FIELDS"},
			{&vaultv1.ListLeasesRequest{Parent: g.GetName(), OrderBy: "instance_id"}, "INVALID_FIELDS"},
			{&vaultv1.ListLeasesRequest{Parent: g.GetName(), PageToken: "x"}, "INVALID_PAGE_TOKEN"},
			{&vaultv1.ListLeasesRequest{Parent: "accounts/acme"}, "INVALID_FIELDS"},
		} {
			_, err := leases.ListLeases(v.t.Context(), tt.request)
			refused(v.t, tt.request.String(), err, codes.InvalidArgument, tt.reason)
		}
	})
}
