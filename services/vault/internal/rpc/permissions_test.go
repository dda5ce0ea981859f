package rpc_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/permission"
	"phasekey.dev/services/vault/internal/rolecheck"
	"phasekey.dev/services/vault/internal/rotation"
)

// fakeChecker answers what it is told to.
type fakeChecker struct {
	answer rolecheck.Result
	err    error
	asked  [][]string
}

func (f *fakeChecker) Check(_ context.Context, _ string, scopes []string) (rolecheck.Result, error) {
	f.asked = append(f.asked, scopes)
	return f.answer, f.err
}

const group = "/subscriptions/3fe2a1c4-0000-4000-8000-00000000000a/resourceGroups/network"

func TestAccess_CheckPermissions(t *testing.T) {
	at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	inBubble(t, func(v *vault) {
		v.checker.answer = rolecheck.Result{PrincipalObjectID: "oid", Time: at, Verdicts: []permission.Verdict{
			permission.Judge(group, "oid", permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{
				{Role: "Reader", Scope: group, Permissions: []permission.Permission{{Actions: []string{"*/read"}}}},
				{Role: "Owner", Scope: group, Conditional: true, Data: true, Permissions: []permission.Permission{{Actions: []string{"*"}}}},
			}, Denials: []permission.Denial{{Name: "a stack", Scope: group, Permissions: []permission.Permission{{Actions: []string{"*"}, NotActions: []string{"*/read"}}}}}}),
			{Scope: "other", Visibility: permission.Denied, Read: permission.None, Write: permission.None, ReadCommand: "a", WriteCommand: "b"},
		}}
		want := &vaultv1.CheckPermissionsResponse{ServicePrincipalObjectId: "oid", CheckTime: timestamppb.New(at), Scopes: []*vaultv1.ScopePermissions{
			{
				Scope: group, Visibility: vaultv1.ScopePermissions_VISIBILITY_ASSIGNMENTS,
				Roles: []*vaultv1.AssignedRole{{Role: "Reader", Scope: group}, {Role: "Owner", Scope: group, Conditional: true, DataActions: true}},
				Read:  vaultv1.ScopePermissions_LEVEL_FULL, Write: vaultv1.ScopePermissions_LEVEL_NONE, Denied: true,
				DenyAssignments: []*vaultv1.DenyAssignment{
					{DenyAssignment: "a stack", Scope: group, Read: vaultv1.ScopePermissions_LEVEL_NONE, Write: vaultv1.ScopePermissions_LEVEL_FULL},
				},
				WriteCommand: "az role assignment create --assignee-object-id oid --assignee-principal-type ServicePrincipal --role Contributor --scope " + group,
			},
			{Scope: "other", Visibility: vaultv1.ScopePermissions_VISIBILITY_DENIED, Read: vaultv1.ScopePermissions_LEVEL_NONE, Write: vaultv1.ScopePermissions_LEVEL_NONE,
				ReadCommand: "a", WriteCommand: "b"},
		}}
		for _, caller := range []string{platformID, operatorID, brokerID} {
			got, err := vaultv1.NewAccessServiceClient(v.services.Dial(v.t, caller)).CheckPermissions(v.t.Context(),
				&vaultv1.CheckPermissionsRequest{Integration: "accounts/acme/integrations/read", Scopes: []string{group}})
			if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
				v.t.Errorf("by %s: %v, %s", caller, err, diff)
			}
		}
	})
}

func TestAccess_CheckPermissionsRefusals(t *testing.T) {
	const known = "accounts/acme/integrations/read"
	for _, tt := range []struct {
		name        string
		integration string
		scopes      []string
		err         error
		code        codes.Code
		reason      string
	}{
		{name: "no integration's name", integration: "accounts/acme/integrations/!", code: codes.InvalidArgument, reason: "INVALID_FIELDS"},
		{name: "a scope that is none", integration: known, scopes: []string{"/subscriptions/x"}, code: codes.InvalidArgument, reason: "INVALID_FIELDS"},
		{name: "a scope that leads elsewhere", integration: known, scopes: []string{"/providers/Microsoft.Management/managementGroups/.."}, code: codes.InvalidArgument, reason: "INVALID_FIELDS"},
		{name: "a scope twice", integration: known, scopes: []string{group, group}, code: codes.InvalidArgument, reason: "INVALID_FIELDS"},
		{name: "no such integration", integration: known, err: sqldb.ErrNoRows, code: codes.NotFound, reason: "RESOURCE_NOT_FOUND"},
		{name: "another account's", integration: "accounts/umbrella/integrations/read", code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"},
		{name: "deleting", integration: known, err: rotation.ErrDeleting, code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING"},
		{name: "no subscription", integration: known, err: rolecheck.ErrNoSubscription, code: codes.FailedPrecondition, reason: "NO_SUBSCRIPTION"},
		{name: "no proven credential", integration: known, err: rotation.ErrNotReady, code: codes.Unavailable, reason: "CREDENTIAL_NOT_READY"},
		{name: "consent lost", integration: known, err: issuer.ErrConsentMissing, code: codes.Unavailable, reason: "CONSENT_MISSING"},
		{name: "away", integration: known, err: rotation.ErrEntra, code: codes.Unavailable, reason: "ENTRA_UNAVAILABLE"},
		{name: "database away", integration: known, err: sqldb.ErrUnavailable, code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(v *vault) {
				if tt.err != nil {
					v.checker.err = fmt.Errorf("check: %w: detail of the inside", tt.err)
				}
				_, err := vaultv1.NewAccessServiceClient(v.services.Dial(v.t, platformID)).CheckPermissions(v.t.Context(),
					&vaultv1.CheckPermissionsRequest{Integration: tt.integration, Scopes: tt.scopes})
				refused(v.t, "check", err, tt.code, tt.reason)
				if strings.Contains(err.Error(), "inside") {
					v.t.Errorf("tells too much: %v", err)
				}
				if tt.err == nil && len(v.checker.asked) != 0 {
					v.t.Error("it was looked all the same")
				}
			})
		})
	}
}
