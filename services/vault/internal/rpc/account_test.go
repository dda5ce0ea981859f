package rpc_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func TestAccounts_FreezeEndsStreamsAndUnfreezeLetsThemBack(t *testing.T) {
	inBubble(t, func(v *vault) {
		accounts := vaultv1.NewAccountServiceClient(v.services.Dial(v.t, platformID))
		operator := vaultv1.NewAccountServiceClient(v.services.Dial(v.t, operatorID))
		g, ctx := v.grant()
		r := v.read(ctx, "instance-1")
		time.Sleep(time.Minute)
		usage := func(when string, want *vaultv1.Account) {
			v.t.Helper()
			got, err := accounts.GetAccount(v.t.Context(), &vaultv1.GetAccountRequest{Name: "accounts/acme"})
			if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("%s: %v, %s", when, err, diff)
			}
		}
		usage("at first", &vaultv1.Account{Name: "accounts/acme", State: vaultv1.Account_STATE_ACTIVE, Usage: &vaultv1.Account_Usage{
			LiveGrantCount: 1, OpenLeaseCount: 1, ReplicaStreamCount: 1, IntegrationCount: 1, DayDeliveryCount: 1, MonthDeliveryCount: 1,
		}})

		at := time.Now()
		for i := range 2 {
			resp, err := operator.FreezeAccount(v.t.Context(), &vaultv1.FreezeAccountRequest{Name: "accounts/acme", Reason: strings.Repeat("chargeback", i+1)})
			want := &vaultv1.Account{Name: "accounts/acme", State: vaultv1.Account_STATE_FROZEN, FreezeReason: "chargeback", FreezeTime: timestamppb.New(at)}
			if diff := cmp.Diff(want, resp.GetAccount(), protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("frozen: %v, %s", err, diff)
			}
		}
		synctest.Wait()
		_, err := r.state()
		refused(v.t, "the stream", err, codes.PermissionDenied, "ACCOUNT_FROZEN")
		if strings.Contains(err.Error(), "chargeback") {
			v.t.Errorf("a runner is told why: %v", err)
		}
		_, err = v.runner.FetchCredential(ctx, fetch("instance-1"))
		refused(v.t, "a fetch", err, codes.PermissionDenied, "ACCOUNT_FROZEN")
		v.resolver.asked = nil
		for _, validateOnly := range []bool{false, true} {
			_, err = v.platform.CreateGrant(v.t.Context(), request(func(r *vaultv1.CreateGrantRequest) { r.ValidateOnly = validateOnly }))
			refused(v.t, "a new grant", err, codes.PermissionDenied, "ACCOUNT_FROZEN")
		}
		_, err = v.platform.CreateGrant(v.t.Context(), request(func(r *vaultv1.CreateGrantRequest) { r.RequestId = "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11" }))
		refused(v.t, "a new grant with a request ID", err, codes.PermissionDenied, "ACCOUNT_FROZEN")
		if len(v.resolver.asked) != 0 {
			v.t.Errorf("the registry was asked %d times", len(v.resolver.asked))
		}
		_, err = v.platform.ExtendGrant(v.t.Context(), &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(time.Now().Add(2 * time.Hour))})
		refused(v.t, "an extension", err, codes.PermissionDenied, "ACCOUNT_FROZEN")
		usage("frozen", &vaultv1.Account{
			Name: "accounts/acme", State: vaultv1.Account_STATE_FROZEN, FreezeReason: "chargeback", FreezeTime: timestamppb.New(at),
			Usage: &vaultv1.Account_Usage{LiveGrantCount: 1, OpenLeaseCount: 1, IntegrationCount: 1, DayDeliveryCount: 1, MonthDeliveryCount: 1},
		})

		for range 2 {
			resp, err := accounts.UnfreezeAccount(v.t.Context(), &vaultv1.UnfreezeAccountRequest{Name: "accounts/acme"})
			if err != nil || resp.GetAccount().GetState() != vaultv1.Account_STATE_ACTIVE {
				v.t.Errorf("unfrozen: %v, %v", resp, err)
			}
		}
		again := v.read(ctx, "instance-1")
		if reasons, err := again.state(); err != nil || len(reasons) != 1 {
			v.t.Errorf("unfrozen, the same grant gives %v, %v", reasons, err)
		}
		v.audit("GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1", "AccountFrozen operator",
			"AccountUnfrozen platform", "CredentialDelivered  instance-1")
	})
}

func TestAccounts_Refuse(t *testing.T) {
	inBubble(t, func(v *vault) {
		accounts := vaultv1.NewAccountServiceClient(v.services.Dial(v.t, platformID))
		_, err := accounts.GetAccount(v.t.Context(), &vaultv1.GetAccountRequest{Name: "accounts/other"})
		refused(v.t, "read another", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = accounts.FreezeAccount(v.t.Context(), &vaultv1.FreezeAccountRequest{Name: "accounts/other", Reason: "x"})
		refused(v.t, "freeze another", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = accounts.UnfreezeAccount(v.t.Context(), &vaultv1.UnfreezeAccountRequest{Name: "accounts/other"})
		refused(v.t, "unfreeze another", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		for _, reason := range []string{"", strings.Repeat("x", 201), "a\nb", "a\x1b[31m"} {
			_, err = accounts.FreezeAccount(v.t.Context(), &vaultv1.FreezeAccountRequest{Name: "accounts/acme", Reason: reason})
			refused(v.t, "freeze without a good reason", err, codes.InvalidArgument, "INVALID_FIELDS")
		}
		_, err = vaultv1.NewAccountServiceClient(v.services.Dial(v.t, brokerID)).GetAccount(v.t.Context(), &vaultv1.GetAccountRequest{Name: "accounts/acme"})
		refused(v.t, "read by the broker", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		v.audit()
	})
}
