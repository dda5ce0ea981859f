package rpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
)

// gives has the integration give these materials, as JSON.
func (v *vault) gives(materials string) {
	v.t.Helper()
	v.exec(`UPDATE integrations SET delivery_materials = $1`, materials)
	v.exec(`UPDATE change_counter SET seq = seq + 1`)
	v.exec(`INSERT INTO changes (seq, integration_uid, grant_uid, time) SELECT seq, 'uid', '', 0 FROM change_counter`)
}

// whole asks for the secret.
func whole(instance string) *vaultv1.FetchCredentialRequest {
	return &vaultv1.FetchCredentialRequest{InstanceId: instance, Material: typev1.Material_MATERIAL_CLIENT_SECRET}
}

// detail is what a refusal says beside its reason.
func detail(err error, key string) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()[key]
		}
	}
	return ""
}

const both = `["ACCESS_TOKEN","CLIENT_SECRET"]`

func TestCredentials_FetchOfASecret(t *testing.T) {
	created, delivered := "GrantCreated platform", []string{"LeaseOpened  instance-1", "CredentialDelivered  instance-1"}
	long := func(r *vaultv1.CreateGrantRequest) {
		r.Grant.ExpireTime = timestamppb.New(time.Now().Add(24 * time.Hour))
	}
	for _, tt := range []struct {
		name      string
		create    func(*vaultv1.CreateGrantRequest)
		materials string
		request   *vaultv1.FetchCredentialRequest
		code      codes.Code
		reason    string
		key       string
		value     string
		field     string
		audit     []string
	}{
		{name: "given", materials: both, request: whole("instance-1"), audit: delivered},
		{name: "given alone", materials: `["CLIENT_SECRET"]`, request: whole("instance-1"), audit: delivered},
		{name: "a token besides", materials: both, request: fetch("instance-1"), audit: delivered},
		{name: "a token by name", materials: "[]", request: &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Material: typev1.Material_MATERIAL_ACCESS_TOKEN}, audit: delivered},
		{name: "not given", materials: "[]", request: whole("instance-1"), code: codes.PermissionDenied, reason: "MATERIAL_NOT_ALLOWED", key: "material", value: "CLIENT_SECRET"},
		{name: "tokens alone", materials: `["ACCESS_TOKEN"]`, request: whole("instance-1"), code: codes.PermissionDenied, reason: "MATERIAL_NOT_ALLOWED", key: "material", value: "CLIENT_SECRET"},
		{name: "a token where secrets are given alone", materials: `["CLIENT_SECRET"]`, request: fetch("instance-1"), code: codes.PermissionDenied, reason: "MATERIAL_NOT_ALLOWED", key: "material", value: "ACCESS_TOKEN"},
		{
			name: "with an audience", materials: both, code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "audience",
			request: &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Material: typev1.Material_MATERIAL_CLIENT_SECRET, Audience: arm},
		},
		{
			name: "a material that there is not", materials: both, code: codes.InvalidArgument, reason: "INVALID_FIELDS", field: "material",
			request: &vaultv1.FetchCredentialRequest{InstanceId: "instance-1", Material: 99},
		},
		{
			name: "for longer than the secret lasts", create: long, materials: both, request: whole("instance-1"), code: codes.FailedPrecondition, reason: "HOLD_TOO_LONG",
			key: "latestExpireTime", value: "2000-01-01T23:55:00Z",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				v.gives(tt.materials)
				g, ctx := v.grant(orNothing(tt.create))
				resp, err := v.runner.FetchCredential(ctx, tt.request)
				c := resp.GetCredential()
				switch {
				case tt.code != codes.OK:
					refused(v.t, "fetch", err, tt.code, tt.reason)
					if tt.key != "" && detail(err, tt.key) != tt.value || tt.field != "" && !slices.Equal(fields(err), []string{tt.field}) {
						v.t.Errorf("tells %q, %q: %v", detail(err, tt.key), fields(err), err)
					}
				case err != nil:
					v.t.Error(err)
				case tt.request.GetMaterial() == typev1.Material_MATERIAL_CLIENT_SECRET:
					if c.GetClientSecret().GetSecret() != "CANARY-secret" || c.GetAccessToken() != nil || c.GetCredentialVersion() != 1 ||
						!c.GetExpireTime().AsTime().Equal(g.GetExpireTime().AsTime()) || !c.GetRefreshTime().AsTime().Equal(g.GetExpireTime().AsTime()) {
						v.t.Errorf("fetched version %d until %s", c.GetCredentialVersion(), c.GetExpireTime().AsTime())
					}
				case !strings.HasPrefix(c.GetAccessToken().GetToken(), "CANARY-token-") || c.GetClientSecret() != nil:
					v.t.Error("fetched no token")
				}
				v.audit(append([]string{created}, tt.audit...)...)
			})
		})
	}
}

// TestCredentials_ASecretIsHeldForADay has a grant extended again and again.
func TestCredentials_ASecretIsHeldForADay(t *testing.T) {
	inBubble(t, func(v *vault) {
		v.gives(both)
		v.exec(`UPDATE credential_versions SET end_time = $1`, time.Now().Add(90*24*time.Hour).UnixMicro())
		began := time.Now()
		g, ctx := v.grant()
		if _, err := v.runner.FetchCredential(ctx, whole("instance-1")); err != nil {
			v.t.Fatal(err)
		}
		extend := func(end time.Time) error {
			_, err := v.platform.ExtendGrant(v.t.Context(), &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(end)})
			return err
		}
		time.Sleep(30 * time.Minute)
		if err := extend(began.Add(24 * time.Hour)); err != nil {
			v.t.Errorf("to a day: %v", err)
		}
		err := extend(began.Add(24*time.Hour + time.Microsecond))
		refused(v.t, "beyond", err, codes.FailedPrecondition, "HOLD_TOO_LONG")
		if latest := detail(err, "latestExpireTime"); latest != began.Add(24*time.Hour).UTC().Format(time.RFC3339) {
			v.t.Errorf("may be extended until %q", latest)
		}
	})
}

func TestCredentials_StreamOfASecret(t *testing.T) {
	created, opened, sent := "GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1"
	for _, tt := range []streamCase{
		{name: "first", taken: []string{"INITIAL"}, audit: []string{created, opened, sent}, holders: 1},
		{name: "policy withdrawn", step: func(v *vault, _ *vaultv1.Grant) { v.gives("[]") }, wait: time.Second, taken: []string{"INITIAL"},
			code: codes.PermissionDenied, reason: "MATERIAL_NOT_ALLOWED", audit: []string{created, opened, sent}, holders: 1},
		{name: "extended", step: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.platform.ExtendGrant(v.t.Context(), &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(time.Now().Add(2 * time.Hour))}); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL", "REFRESH"}, audit: []string{created, opened, sent, "GrantExtended platform", sent}, holders: 1},
		{name: "extended by more than the secret lasts", step: func(v *vault, g *vaultv1.Grant) {
			_, err := v.platform.ExtendGrant(v.t.Context(), &vaultv1.ExtendGrantRequest{Name: g.GetName(), ExpireTime: timestamppb.New(time.Now().Add(24 * time.Hour))})
			refused(v.t, "extend", err, codes.FailedPrecondition, "HOLD_TOO_LONG")
			if latest := detail(err, "latestExpireTime"); latest != "2000-01-01T23:55:00Z" {
				v.t.Errorf("may be extended until %q", latest)
			}
		}, taken: []string{"INITIAL"}, audit: []string{created, opened, sent}, holders: 1},
		{name: "closed", step: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.runner.CloseLease(show(v.t.Context(), g.GetToken()), &vaultv1.CloseLeaseRequest{InstanceId: "instance-1"}); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL"}, code: codes.PermissionDenied, reason: "LEASE_CLOSED", audit: []string{created, opened, sent, "LeaseClosed  instance-1"}},
		{name: "revoked", step: func(v *vault, g *vaultv1.Grant) {
			if _, err := v.platform.RevokeGrant(v.t.Context(), &vaultv1.RevokeGrantRequest{Name: g.GetName()}); err != nil {
				v.t.Error(err)
			}
		}, taken: []string{"INITIAL"}, code: codes.PermissionDenied, reason: "GRANT_REVOKED", audit: []string{created, opened, sent, "GrantRevoked platform"}},
	} {
		tt.run(t, typev1.Material_MATERIAL_CLIENT_SECRET)
	}
	inBubble(t, func(v *vault) {
		_, ctx := v.grant()
		r := v.stream(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1", Material: typev1.Material_MATERIAL_CLIENT_SECRET, Audience: arm})
		_, err := r.state()
		refused(v.t, "with an audience", err, codes.InvalidArgument, "INVALID_FIELDS")
		v.audit("GrantCreated platform")
	})
}

func TestRotation_ListCredentialVersions(t *testing.T) {
	const parent = "accounts/acme/integrations/read"
	inBubble(t, func(v *vault) {
		began := time.Now()
		at := func(minutes int) *timestamppb.Timestamp {
			return timestamppb.New(began.Add(time.Duration(minutes) * time.Minute))
		}
		for i, state := range []string{"INTENDED", "STAGED", "PROPAGATING", "RETIRING", "REVOKING", "REVOKED", "ABANDONED"} {
			n := i + 2
			v.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
				end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since,
				attempts, next_time, holders, reason) VALUES ($1, 'uid', $2, $3, $4, $5, 'CANARY', $6, 0, $7, 0, $8, 0, 0, $9, $10, 0, $11, 8, 0, 0, 0, 0, 0, $2, $12)`,
				fmt.Sprint("v", n), n, state, fmt.Sprint("name-", n), fmt.Sprint("key-", n), sqldb.Micros(began.Add(time.Minute)),
				sqldb.Micros(began.Add(2*time.Minute)), sqldb.Micros(began.Add(6*time.Minute)), sqldb.Micros(began.Add(3*time.Minute)),
				sqldb.Micros(began.Add(4*time.Minute)), sqldb.Micros(began.Add(5*time.Minute)), "Reason"+fmt.Sprint(n))
		}
		v.exec(`UPDATE integrations SET deleting = 1`) // no reason to be silent
		var states []string
		req := &vaultv1.ListCredentialVersionsRequest{Parent: parent, PageSize: 3}
		for {
			resp, err := v.rotation.ListCredentialVersions(v.t.Context(), req)
			if err != nil {
				v.t.Fatal(err)
			}
			for _, version := range resp.GetCredentialVersions() {
				states = append(states, strings.TrimPrefix(version.GetState().String(), "STATE_"))
				if version.GetName() != parent+"/credentialVersions/5" {
					continue
				}
				want := &vaultv1.CredentialVersion{
					Name: parent + "/credentialVersions/5", State: vaultv1.CredentialVersion_STATE_RETIRING, Reason: "Reason5", KeyId: "key-5", EntraDisplayName: "name-5",
					Proofs: 8, Holders: 5, CreateTime: at(1), AddTime: at(2), ActivateTime: at(3), RetireTime: at(4), RemoveTime: at(5), ExpireTime: at(6),
				}
				if diff := cmp.Diff(want, version, protocmp.Transform()); diff != "" {
					v.t.Errorf("version differs: %s", diff)
				}
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
			for name, other := range map[string]*vaultv1.ListCredentialVersionsRequest{
				"another list's token": {Parent: "accounts/acme/integrations/other", PageToken: req.GetPageToken()},
				"no token":             {Parent: parent, PageToken: "AAAAAAAAAAAAAAAA"},
			} {
				_, err := v.rotation.ListCredentialVersions(v.t.Context(), other)
				refused(v.t, name, err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
			}
			_, err = v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{Parent: "accounts/acme", PageToken: req.GetPageToken()})
			refused(v.t, "token of versions for grants", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
		if want := []string{"ABANDONED", "REVOKED", "REVOKING", "RETIRING", "PROPAGATING", "STAGED", "INTENDED", "ACTIVE"}; !slices.Equal(states, want) {
			v.t.Errorf("listed %v, want %v", states, want)
		}
		operator := vaultv1.NewRotationServiceClient(v.services.Dial(v.t, operatorID))
		resp, err := operator.ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: parent})
		if err != nil || len(resp.GetCredentialVersions()) != 8 || resp.GetNextPageToken() != "" {
			v.t.Errorf("by an operator: %d versions, %v", len(resp.GetCredentialVersions()), err)
		}
		_, err = v.rotation.ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: "accounts/acme/integrations/none"})
		refused(v.t, "no such integration", err, codes.NotFound, "RESOURCE_NOT_FOUND")
		_, err = v.rotation.ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: "accounts/other/integrations/read"})
		refused(v.t, "another account's", err, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED")
		_, err = vaultv1.NewRotationServiceClient(v.services.Dial(v.t, brokerID)).ListCredentialVersions(v.t.Context(), &vaultv1.ListCredentialVersionsRequest{Parent: parent})
		refused(v.t, "by the broker", err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
		v.audit()
	})
}

func TestCredentials_AcknowledgeReleasesWhatIsOlder(t *testing.T) {
	inBubble(t, func(v *vault) {
		v.gives(both)
		_, ctx := v.grant()
		acknowledge := func(ctx context.Context, instance string, generation int64) ([]int64, error) {
			resp, err := v.runner.AcknowledgeCredential(ctx, &vaultv1.AcknowledgeCredentialRequest{InstanceId: instance, Generation: generation})
			return resp.GetReleasedVersions(), err
		}
		if _, err := v.runner.FetchCredential(ctx, whole("instance-1")); err != nil {
			v.t.Fatal(err)
		}
		v.exec(`INSERT INTO credential_versions (id, integration_uid, number, state, name, key_id, sealed, intend_time, send_time, add_time, start_time,
			end_time, propagate_time, prove_time, activate_time, retire_time, revoke_time, remove_time, proofs, probe_time, refusals, refused_since, attempts, next_time, reason)
			SELECT 'v2', integration_uid, 2, 'RETIRING', 'v2', key_id, sealed, 0, 0, 0, 0, end_time, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '' FROM credential_versions`)
		v.exec(`UPDATE credential_versions SET state = 'RETIRING'`)
		v.exec(`UPDATE credential_versions SET state = 'ACTIVE' WHERE id = 'v2'`)
		second, err := v.runner.FetchCredential(ctx, whole("instance-1"))
		if err != nil || second.GetCredential().GetCredentialVersion() != 2 || second.GetCredential().GetGeneration() != 2 {
			v.t.Fatalf("second: version %d, %v", second.GetCredential().GetCredentialVersion(), err)
		}
		for _, want := range [][]int64{{1}, nil} {
			if released, err := acknowledge(ctx, "instance-1", 2); err != nil || !slices.Equal(released, want) {
				v.t.Errorf("released %v, %v; want %v", released, err, want)
			}
		}
		for name, wrong := range map[string]struct {
			instance   string
			generation int64
		}{"a generation to come": {"instance-1", 3}, "none": {"instance-1", 0}, "another instance": {"instance-2", 1}} {
			_, err := acknowledge(ctx, wrong.instance, wrong.generation)
			refused(v.t, name, err, codes.InvalidArgument, "INVALID_FIELDS")
			if !slices.Equal(fields(err), []string{"generation"}) {
				v.t.Errorf("%s: names %v", name, fields(err))
			}
		}
		_, err = acknowledge(v.t.Context(), "instance-1", 2)
		refused(v.t, "no token", err, codes.Unauthenticated, "GRANT_UNKNOWN")
		v.audit("GrantCreated platform", "LeaseOpened  instance-1", "CredentialDelivered  instance-1", "CredentialDelivered  instance-1", "LeaseAcknowledged  instance-1")
	})
}
