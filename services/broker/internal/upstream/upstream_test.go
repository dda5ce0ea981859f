package upstream_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/upstream"
)

const name = "accounts/acme/integrations/net"

// fakeConn answers every call alike.
type fakeConn struct {
	grpc.ClientConnInterface
	method string
	asked  proto.Message
	answer proto.Message
	err    error
}

func (c *fakeConn) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	c.method = method
	if asked, ok := args.(proto.Message); ok {
		c.asked = asked
	}
	if into, ok := reply.(proto.Message); ok && c.answer != nil {
		proto.Merge(into, c.answer)
	}
	return c.err
}

func TestRegistry_Integration(t *testing.T) {
	condition := func(s registryv1.Condition_Status) []*registryv1.Condition {
		return []*registryv1.Condition{
			{Type: registryv1.Condition_TYPE_CONSENTED, Status: registryv1.Condition_STATUS_TRUE},
			{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: s},
		}
	}
	when := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	said := func(reason string, s registryv1.Condition_Status, principal string) *registryv1.Integration {
		return &registryv1.Integration{ServicePrincipalObjectId: principal, Conditions: []*registryv1.Condition{
			{Type: registryv1.Condition_TYPE_CONSENTED, Status: s, Reason: reason, LastTransitionTime: timestamppb.New(when)},
		}}
	}
	for _, tc := range []struct {
		name   string
		answer *registryv1.Integration
		want   consent.Integration
	}{
		{"new", &registryv1.Integration{Name: name, Uid: "uid", TenantId: "tenant"},
			consent.Integration{Name: name, UID: "uid", TenantID: "tenant", Cloud: "public"}},
		{"with what pages show", &registryv1.Integration{DisplayName: "Network", DefaultSubscriptionId: "sub", ApplicationDisplayName: "phasekey Network"},
			consent.Integration{Cloud: "public", DisplayName: "Network", SubscriptionID: "sub", ApplicationName: "phasekey Network"}},
		{"ready", &registryv1.Integration{ClientId: "client", Cloud: "china", Conditions: condition(registryv1.Condition_STATUS_TRUE)},
			consent.Integration{ClientID: "client", Cloud: "china", Ready: true}},
		{"not ready any more", &registryv1.Integration{ClientId: "client", Conditions: condition(registryv1.Condition_STATUS_FALSE)},
			consent.Integration{ClientID: "client", Cloud: "public"}},
		{"readiness unknown", &registryv1.Integration{Conditions: condition(registryv1.Condition_STATUS_UNKNOWN)}, consent.Integration{Cloud: "public"}},
		{"not consented yet", said("AwaitingConsent", registryv1.Condition_STATUS_FALSE, ""), consent.Integration{Cloud: "public", Standing: consent.Standing{Time: when}}},
		{"consented", said("PrincipalFound", registryv1.Condition_STATUS_TRUE, "oid"),
			consent.Integration{Cloud: "public", Standing: consent.Standing{Time: when, Holds: true, PrincipalObjectID: "oid"}}},
		{"consented, by nobody knows whom", said("PrincipalFound", registryv1.Condition_STATUS_TRUE, ""), consent.Integration{Cloud: "public"}},
		{"consent lost", said("AADSTS7000112", registryv1.Condition_STATUS_FALSE, "oid"), consent.Integration{Cloud: "public", Standing: consent.Standing{Time: when, Loss: "AADSTS7000112"}}},
		{"consent lost, for no reason", said("", registryv1.Condition_STATUS_FALSE, "oid"), consent.Integration{Cloud: "public", Standing: consent.Standing{Time: when, Loss: "ConsentLost"}}},
		{"consent not known", said("AADSTS7000112", registryv1.Condition_STATUS_UNKNOWN, "oid"), consent.Integration{Cloud: "public"}},
		{"deleting by its state", &registryv1.Integration{State: registryv1.Integration_STATE_DELETING}, consent.Integration{Cloud: "public", Deleting: true}},
		{"deleting by its time", &registryv1.Integration{DeleteTime: timestamppb.Now()}, consent.Integration{Cloud: "public", Deleting: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := &fakeConn{answer: tc.answer}
			got, err := upstream.NewRegistry(conn).Integration(t.Context(), name)
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
			if !proto.Equal(conn.asked, &registryv1.GetIntegrationRequest{Name: name}) {
				t.Errorf("asked %v", conn.asked)
			}
		})
	}
}

func TestRegistry_OnlyItsOwnNotFoundMeansGone(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want error
	}{
		{"its own", rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "no such integration"), consent.ErrIntegrationNotFound},
		{"a proxy's", status.Error(codes.NotFound, "404"), consent.ErrUnavailable},
		{"an unknown method", status.Error(codes.Unimplemented, "unknown method"), consent.ErrUnavailable},
		{"a refusal", rpcerr.New(codes.PermissionDenied, "CALLER_NOT_ALLOWED", "no"), consent.ErrUnavailable},
		{"away", status.Error(codes.Unavailable, "connection refused"), consent.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := upstream.NewRegistry(&fakeConn{err: tc.err}).Integration(t.Context(), name)
			if !errors.Is(err, tc.want) || errors.Is(err, consent.ErrUnavailable) && errors.Is(err, consent.ErrIntegrationNotFound) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := upstream.NewRegistry(&fakeConn{err: status.FromContextError(ctx.Err()).Err()}).Integration(ctx, name)
	if !errors.Is(err, context.Canceled) || errors.Is(err, consent.ErrUnavailable) {
		t.Errorf("a caller that went away: error %v", err)
	}
}

func TestVault_CheckPermissions(t *testing.T) {
	scope := &vaultv1.ScopePermissions{Read: vaultv1.ScopePermissions_LEVEL_FULL, Write: vaultv1.ScopePermissions_LEVEL_PARTIAL}
	none := &vaultv1.ScopePermissions{Read: vaultv1.ScopePermissions_LEVEL_NONE}
	denied := &vaultv1.ScopePermissions{Read: vaultv1.ScopePermissions_LEVEL_NONE, Write: vaultv1.ScopePermissions_LEVEL_NONE, Denied: true}
	for _, tc := range []struct {
		name   string
		scopes []*vaultv1.ScopePermissions
		err    error
		want   consent.Permissions
		fails  error
	}{
		{"denied", []*vaultv1.ScopePermissions{denied}, nil, consent.Permissions{Read: consent.None, Write: consent.None, Denied: true}, nil},
		{"some", []*vaultv1.ScopePermissions{scope}, nil, consent.Permissions{Read: consent.Full, Write: consent.Partial}, nil},
		{"none, and one that is not known", []*vaultv1.ScopePermissions{none}, nil, consent.Permissions{Read: consent.None}, nil},
		{"no scope", nil, nil, consent.Permissions{}, consent.ErrUnavailable},
		{"not ready", nil, rpcerr.New(codes.Unavailable, "CREDENTIAL_NOT_READY", "not yet"), consent.Permissions{}, consent.ErrNotReady},
		{"away", nil, status.Error(codes.Unavailable, "connection refused"), consent.Permissions{}, consent.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := &fakeConn{err: tc.err, answer: &vaultv1.CheckPermissionsResponse{ServicePrincipalObjectId: "oid", Scopes: tc.scopes}}
			principal, got, err := upstream.NewVault(conn).CheckPermissions(t.Context(), name)
			if got != tc.want || !errors.Is(err, tc.fails) || (err == nil) != (principal == "oid") {
				t.Errorf("got %s %+v, error %v", principal, got, err)
			}
			if !proto.Equal(conn.asked, &vaultv1.CheckPermissionsRequest{Integration: name}) {
				t.Errorf("asked %v", conn.asked)
			}
		})
	}
}

func TestVault_ProbeConsent(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name   string
		answer *vaultv1.ProbeConsentResponse
		err    error
		want   consent.Proof
		fails  error
	}{
		{"consented", &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", ProbeTime: timestamppb.New(at)}, nil,
			consent.Proof{Consented: true, PrincipalObjectID: "oid", Time: at}, nil},
		{"refused", &vaultv1.ProbeConsentResponse{AadstsCode: 700016, ProbeTime: timestamppb.New(at)}, nil, consent.Proof{Refusal: "AADSTS700016", Time: at}, nil},
		{"refused some time ago", &vaultv1.ProbeConsentResponse{AadstsCode: 700016, ProbeTime: timestamppb.New(at), Age: durationpb.New(time.Second)}, nil,
			consent.Proof{Refusal: "AADSTS700016", Time: at, Age: time.Second}, nil},
		{"consented some time ago", &vaultv1.ProbeConsentResponse{Consented: true, ServicePrincipalObjectId: "oid", ProbeTime: timestamppb.New(at), Age: durationpb.New(time.Second)}, nil,
			consent.Proof{Consented: true, PrincipalObjectID: "oid", Time: at, Age: time.Second}, nil},
		{"refused, with an ID all the same", &vaultv1.ProbeConsentResponse{AadstsCode: 7000112, ServicePrincipalObjectId: "oid", ProbeTime: timestamppb.New(at)}, nil,
			consent.Proof{Refusal: "AADSTS7000112", Time: at}, nil},
		{"consented by nobody", &vaultv1.ProbeConsentResponse{Consented: true}, nil, consent.Proof{}, upstream.ErrNoPrincipal},
		{"not found is no answer", nil, rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "not yet"), consent.Proof{}, consent.ErrUnavailable},
		{"not ready is no answer", nil, rpcerr.New(codes.Unavailable, "CREDENTIAL_NOT_READY", "not yet"), consent.Proof{}, consent.ErrUnavailable},
		{"not ready, by its name", nil, rpcerr.New(codes.Unavailable, "CREDENTIAL_NOT_READY", "not yet"), consent.Proof{}, consent.ErrNotReady},
		{"entra is away, by its name", nil, rpcerr.New(codes.Unavailable, "ENTRA_UNAVAILABLE", "not yet"), consent.Proof{}, consent.ErrEntra},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := &fakeConn{err: tc.err}
			if tc.answer != nil {
				conn.answer = tc.answer
			}
			got, err := upstream.NewVault(conn).ProbeConsent(t.Context(), name)
			if got != tc.want || !errors.Is(err, tc.fails) {
				t.Errorf("got %+v, error %v", got, err)
			}
			if conn.method != vaultv1.AccessService_ProbeConsent_FullMethodName {
				t.Errorf("called %s", conn.method)
			}
		})
	}
}
