package rpc_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/rpc"
)

func TestGrants_Create(t *testing.T) {
	inBubble(t, func(v *vault) {
		now := time.Now()
		g, _ := v.grant()
		if !strings.HasPrefix(g.GetToken(), grant.Prefix) || !strings.HasPrefix(g.GetName(), "accounts/acme/grants/") {
			v.t.Errorf("name %q, token of %d characters", g.GetName(), len(g.GetToken()))
		}
		want := &vaultv1.Grant{
			Name: g.GetName(), Token: g.GetToken(), Project: project, Phase: typev1.Phase_PHASE_PLANNING, Run: "run-1",
			ExpireTime: timestamppb.New(now.Add(time.Hour)), Access: typev1.Access_ACCESS_READ, Integration: "accounts/acme/integrations/read",
			SubscriptionId: "sub", State: vaultv1.Grant_STATE_ACTIVE, CreateTime: timestamppb.New(now),
		}
		if diff := cmp.Diff(want, g, protocmp.Transform()); diff != "" {
			v.t.Errorf("grant differs: %s", diff)
		}
		want.Token = ""
		for name, client := range map[string]vaultv1.GrantServiceClient{"platform": v.platform, "operator": v.operator} {
			read, err := client.GetGrant(v.t.Context(), &vaultv1.GetGrantRequest{Name: g.GetName()})
			if diff := cmp.Diff(want, read, protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("read by %s: %v, %s", name, err, diff)
			}
		}
		v.audit("GrantCreated platform")
	})
}

func TestGrants_CreateRefuses(t *testing.T) {
	deny := func(code codes.Code, reason string) error {
		return rpcerr.New(code, reason, "refused by the registry", rpcerr.Metadata("access", "READ"))
	}
	for _, tt := range []struct {
		name     string
		request  *vaultv1.CreateGrantRequest
		operator bool
		registry error
		answer   typev1.Access
		code     codes.Code
		reason   string
		field    string
	}{
		{name: "nothing said", request: &vaultv1.CreateGrantRequest{}, code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "no grant", request: &vaultv1.CreateGrantRequest{Parent: "accounts/acme"}, code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant"},
		{name: "no phase", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.Phase = 0 }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.phase"},
		{name: "another account's project", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.Project = "accounts/other/projects/network" }), code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "past", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = timestamppb.New(time.Unix(1, 0)) }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "too far", request: request(func(r *vaultv1.CreateGrantRequest) {
			r.Grant.ExpireTime = &timestamppb.Timestamp{Seconds: 9_000_000_000}
		}), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "the first moment there is", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = timestamppb.New(time.Time{}) }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "no time at all", request: request(func(r *vaultv1.CreateGrantRequest) { r.Grant.ExpireTime = &timestamppb.Timestamp{Nanos: -1} }), code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "grant.expire_time"},
		{name: "by an operator", request: request(), operator: true, code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"},
		{name: "no such project", request: request(), registry: deny(codes.NotFound, "RESOURCE_NOT_FOUND"), code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "nothing attached", request: request(), registry: deny(codes.FailedPrecondition, "NOTHING_ATTACHED"), code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED"},
		{name: "no subscription", request: request(), registry: deny(codes.FailedPrecondition, "NO_SUBSCRIPTION"), code: codes.FailedPrecondition, reason: "NO_SUBSCRIPTION"},
		{name: "deleting", request: request(), registry: deny(codes.FailedPrecondition, "INTEGRATION_DELETING"), code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "registry away", request: request(), registry: status.Error(codes.Unavailable, "connection refused at 10.0.0.1"), code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "registry refuses the vault", request: request(), registry: deny(codes.PermissionDenied, "CALLER_NOT_ALLOWED"), code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
		{name: "registry would have planning write", request: request(), answer: typev1.Access_ACCESS_WRITE, code: codes.Internal, reason: "INTERNAL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.resolver.err, v.resolver.answer.Access = tt.registry, tt.answer
				client := v.platform
				if tt.operator {
					client = v.operator
				}
				_, err := client.CreateGrant(v.t.Context(), tt.request)
				refused(v.t, "create", err, tt.code, tt.reason)
				if tt.field != "" && !slices.Equal(fields(err), []string{tt.field}) {
					v.t.Errorf("names %v, want %s", fields(err), tt.field)
				}
				if strings.Contains(err.Error(), "10.0.0.1") {
					v.t.Errorf("tells the caller of the inside: %v", err)
				}
				v.audit()
			})
		})
	}
	// An identity without a limit of accounts gets as far as the handler's own check.
	inBubble(t, func(v *vault) {
		unlimited := grpctest.Start(v.t, grpctest.Config{
			Register: rpc.Register(rpc.Config{Grants: v.store, Hub: v.hub, Resolver: v.resolver, Prober: v.prober, Checker: v.checker, Changed: v.hub.Nudge}),
			Policy:   grpcserver.OptionPolicy(optionsv1.E_Callers), Identities: []grpcserver.Identity{{ID: platformID, Role: "platform", Accounts: []string{"*"}}},
		})
		_, err := vaultv1.NewGrantServiceClient(unlimited.Dial(v.t, platformID)).CreateGrant(v.t.Context(), request(func(r *vaultv1.CreateGrantRequest) {
			r.Grant.Project = "accounts/acme2/projects/network"
		}))
		refused(v.t, "project of another account", err, codes.InvalidArgument, "INVALID_FIELDS")
		if !slices.Equal(fields(err), []string{"grant.project"}) || len(v.resolver.asked) != 0 {
			v.t.Errorf("names %v, asked the registry %d times", fields(err), len(v.resolver.asked))
		}
	})
}

func TestGrants_ValidateOnlyMakesNothing(t *testing.T) {
	inBubble(t, func(v *vault) {
		check := func(r *vaultv1.CreateGrantRequest) {
			r.ValidateOnly, r.RequestId = true, "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11"
		}
		g, err := v.platform.CreateGrant(v.t.Context(), request(check))
		if err != nil || g.GetName() != "" || g.GetToken() != "" || g.GetAccess() != typev1.Access_ACCESS_READ {
			v.t.Errorf("answer %v, %v", g, err)
		}
		v.resolver.err = rpcerr.New(codes.FailedPrecondition, "NOTHING_ATTACHED", "attach one")
		_, err = v.platform.CreateGrant(v.t.Context(), request(check))
		refused(v.t, "nothing attached", err, codes.FailedPrecondition, "NOTHING_ATTACHED")
		v.audit()
	})
}

func TestGrants_Repeats(t *testing.T) {
	inBubble(t, func(v *vault) {
		id := func(r *vaultv1.CreateGrantRequest) { r.RequestId = "0d4b6a7e-6c3b-4d0c-8a53-5d1f6c2f9a11" }
		first, old := v.grant(id)
		checked, err := v.platform.CreateGrant(v.t.Context(), request(id, func(r *vaultv1.CreateGrantRequest) { r.ValidateOnly = true }))
		if err != nil || checked.GetName() != "" || checked.GetToken() != "" {
			v.t.Errorf("checked only: %v, %v", checked, err)
		}
		v.audit("GrantCreated platform")
		v.resolver.err = errors.New("registry is away")
		again, shown := v.grant(id)
		if again.GetName() != first.GetName() || again.GetToken() == first.GetToken() {
			v.t.Errorf("repeat made %q", again.GetName())
		}
		_, err = v.runner.FetchCredential(old, fetch("instance-1"))
		refused(v.t, "old token", err, codes.Unauthenticated, "GRANT_UNKNOWN")
		_, err = v.platform.CreateGrant(v.t.Context(), request(id, func(r *vaultv1.CreateGrantRequest) { r.Grant.Run = "run-2" }))
		refused(v.t, "other contents", err, codes.AlreadyExists, "REQUEST_ID_REUSED")
		if _, err := v.runner.FetchCredential(shown, fetch("instance-1")); err != nil {
			v.t.Error(err)
		}
		_, err = v.platform.CreateGrant(v.t.Context(), request(id))
		refused(v.t, "after use", err, codes.AlreadyExists, "GRANT_IN_USE")
		v.audit("GrantCreated platform", "GrantTokenReplaced platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1")
	})
}

func TestGrants_List(t *testing.T) {
	inBubble(t, func(v *vault) {
		var want []string
		for range 5 {
			g, _ := v.grant()
			want = append(want, g.GetName())
			time.Sleep(time.Millisecond)
		}
		var have []string
		req := &vaultv1.ListGrantsRequest{Parent: "accounts/acme", PageSize: 2}
		for pages := 1; ; pages++ {
			resp, err := v.operator.ListGrants(v.t.Context(), req)
			if err != nil {
				v.t.Fatal(err)
			}
			for _, g := range resp.GetGrants() {
				if g.GetToken() != "" {
					v.t.Error("a list shows a token")
				}
				have = append(have, g.GetName())
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				if pages != 3 {
					v.t.Errorf("%d pages", pages)
				}
				break
			}
			_, err = v.operator.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/other", PageToken: req.GetPageToken()})
			refused(v.t, "another list's token", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
		if !slices.Equal(have, want) {
			v.t.Errorf("listed %v, want %v", have, want)
		}
		for _, token := range []string{"x", "????", "AAAAAAAAAAAAAAAA"} {
			_, err := v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/acme", PageToken: token})
			refused(v.t, token, err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
		_, err := v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/other"})
		refused(v.t, "another account", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
	})
}

func TestGrants_ExtendAndRevoke(t *testing.T) {
	inBubble(t, func(v *vault) {
		ctx := v.t.Context()
		g, _ := v.grant()
		extend := func(name string, by time.Duration) (*vaultv1.ExtendGrantResponse, error) {
			return v.platform.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: name, ExpireTime: timestamppb.New(time.Now().Add(by))})
		}
		resp, err := extend(g.GetName(), 3*time.Hour)
		if err != nil || !resp.GetGrant().GetExpireTime().AsTime().Equal(time.Now().Add(3*time.Hour)) || resp.GetGrant().GetToken() != "" {
			v.t.Errorf("extended to %v, %v", resp, err)
		}
		_, err = extend(g.GetName(), 30*time.Hour)
		refused(v.t, "too far", err, codes.InvalidArgument, "INVALID_FIELDS")
		_, err = v.platform.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(time.Time{})})
		refused(v.t, "the first moment there is", err, codes.InvalidArgument, "INVALID_FIELDS")
		_, err = extend("accounts/acme/grants/none", time.Hour)
		refused(v.t, "no such grant", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = v.operator.ExtendGrant(ctx, &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: g.GetExpireTime()})
		refused(v.t, "by an operator", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")

		for range 2 {
			resp, err := v.operator.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: g.GetName()})
			if err != nil || resp.GetGrant().GetState() != vaultv1.Grant_STATE_REVOKED {
				v.t.Errorf("revoked: %v, %v", resp, err)
			}
		}
		_, err = v.platform.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: "accounts/acme/grants/none"})
		refused(v.t, "no such grant", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = extend(g.GetName(), 4*time.Hour)
		refused(v.t, "revoked", err, codes.PermissionDenied, "GRANT_REVOKED")
		over, _ := v.grant()
		time.Sleep(time.Hour)
		_, err = extend(over.GetName(), time.Hour)
		refused(v.t, "over", err, codes.PermissionDenied, "GRANT_EXPIRED")
		v.audit("GrantCreated platform", "GrantExtended platform", "GrantRevoked operator", "GrantCreated platform")
	})
}
