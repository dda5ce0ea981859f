package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/vault/internal/permission"
	"phasekey.dev/services/vault/internal/rolecheck"
)

// checker looks which Azure roles an integration's principal holds.
type checker interface {
	Check(ctx context.Context, integrationName string, scopes []string) (rolecheck.Result, error)
}

func (s accessService) CheckPermissions(ctx context.Context, req *vaultv1.CheckPermissionsRequest) (*vaultv1.CheckPermissionsResponse, error) {
	for _, scope := range req.GetScopes() {
		// The field's pattern allows names that lead elsewhere, such as `..`.
		if !permission.IsScope(scope) {
			return nil, rpcerr.Invalid("scopes", "must be a subscription, resource group or management group")
		}
	}
	found, err := s.checker.Check(ctx, req.GetIntegration(), req.GetScopes())
	if err != nil {
		return nil, statusAbout(err, req.GetIntegration())
	}
	resp := &vaultv1.CheckPermissionsResponse{ServicePrincipalObjectId: found.PrincipalObjectID, CheckTime: timestamppb.New(found.Time)}
	for _, v := range found.Verdicts {
		resp.Scopes = append(resp.Scopes, scopeToProto(v))
	}
	return resp, nil
}

func scopeToProto(v permission.Verdict) *vaultv1.ScopePermissions {
	out := &vaultv1.ScopePermissions{
		Scope: v.Scope, Read: levelToProto(v.Read), Write: levelToProto(v.Write), ReadCommand: v.ReadCommand, WriteCommand: v.WriteCommand, Denied: v.Denied,
	}
	switch v.Visibility {
	case permission.Assignments:
		out.Visibility = vaultv1.ScopePermissions_VISIBILITY_ASSIGNMENTS
	case permission.Actions:
		out.Visibility = vaultv1.ScopePermissions_VISIBILITY_ACTIONS
	case permission.Denied:
		out.Visibility = vaultv1.ScopePermissions_VISIBILITY_DENIED
	}
	for _, a := range v.Assignments {
		out.Roles = append(out.Roles, &vaultv1.AssignedRole{Role: a.Role, Scope: a.Scope, Conditional: a.Conditional, DataActions: a.Data})
	}
	for _, d := range v.Denials {
		out.DenyAssignments = append(out.DenyAssignments, &vaultv1.DenyAssignment{DenyAssignment: d.Name, Scope: d.Scope, Read: levelToProto(d.Read), Write: levelToProto(d.Write)})
	}
	return out
}

func levelToProto(l permission.Level) vaultv1.ScopePermissions_Level {
	switch l {
	case permission.None:
		return vaultv1.ScopePermissions_LEVEL_NONE
	case permission.Partial:
		return vaultv1.ScopePermissions_LEVEL_PARTIAL
	case permission.Full:
		return vaultv1.ScopePermissions_LEVEL_FULL
	default:
		return vaultv1.ScopePermissions_LEVEL_UNSPECIFIED
	}
}
