package operator

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

// scopePermissions are told from others by their scope.
type scopePermissions struct{ *vaultv1.ScopePermissions }

// GetName implements named.
func (p scopePermissions) GetName() string { return p.GetScope() }

var permissionsView = view[scopePermissions]{
	{head: "SCOPE", cell: scopePermissions.GetScope},
	{head: "ROLES", cell: func(p scopePermissions) string {
		var roles []string
		for _, r := range p.GetRoles() {
			role := r.GetRole()
			if r.GetScope() != p.GetScope() {
				role += " at " + r.GetScope()
			}
			if r.GetConditional() {
				role += ", under a condition"
			}
			if r.GetDataActions() {
				role += ", also of data"
			}
			roles = append(roles, role)
		}
		return strings.Join(roles, "\n")
	}},
	{head: "READING", cell: func(p scopePermissions) string { return word(p.GetRead()) }},
	{head: "WRITING", cell: func(p scopePermissions) string { return word(p.GetWrite()) }},
	{label: "Denied", cell: func(p scopePermissions) string {
		if p.GetDenied() && len(p.GetDenyAssignments()) == 0 {
			return "by deny assignments that cannot be read, or may be"
		}
		var denied []string
		for _, d := range p.GetDenyAssignments() {
			denied = append(denied, d.GetDenyAssignment()+" at "+d.GetScope()+": takes "+taken(d.GetRead())+" of reading, "+taken(d.GetWrite())+" of writing")
		}
		return strings.Join(denied, "\n")
	}},
	{label: "Visible", cell: visible},
	{label: "To read", cell: scopePermissions.GetReadCommand},
	{label: "To write", cell: scopePermissions.GetWriteCommand},
}

// visible says what Azure showed.
func visible(p scopePermissions) string {
	switch p.GetVisibility() {
	case vaultv1.ScopePermissions_VISIBILITY_ASSIGNMENTS:
		return "role assignments"
	case vaultv1.ScopePermissions_VISIBILITY_ACTIONS:
		return "what the principal may do, and not by which roles"
	case vaultv1.ScopePermissions_VISIBILITY_DENIED:
		return "nothing: the principal has no role here that shows anything, or there is no such scope"
	case vaultv1.ScopePermissions_VISIBILITY_UNSPECIFIED:
	}
	return ""
}

// taken says how much a deny assignment takes away.
func taken(l vaultv1.ScopePermissions_Level) string {
	switch l {
	case vaultv1.ScopePermissions_LEVEL_FULL:
		return "all"
	case vaultv1.ScopePermissions_LEVEL_PARTIAL:
		return "some"
	case vaultv1.ScopePermissions_LEVEL_NONE, vaultv1.ScopePermissions_LEVEL_UNSPECIFIED:
	}
	return "none"
}

func (o *options) checkPermissions() *cobra.Command {
	var scopes []string
	c := o.watchable(o.verb("permissions INTEGRATION", "Show which Azure roles the principal holds, and what gives it those it lacks", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		name, err := s.in("integrations", args[0])
		if err != nil {
			return err
		}
		conn, err := s.vault()
		if err != nil {
			return err
		}
		client := vaultv1.NewAccessServiceClient(conn)
		check := func(ctx context.Context) (*vaultv1.CheckPermissionsResponse, error) {
			return client.CheckPermissions(ctx, &vaultv1.CheckPermissionsRequest{Integration: name, Scopes: scopes})
		}
		if s.watching {
			return watch(ctx, s.printer, permissionsView, func(ctx context.Context) ([]scopePermissions, error) {
				answer, err := check(ctx)
				return byScope(answer), err
			})
		}
		answer, err := check(ctx)
		if err != nil {
			return err
		}
		if s.json {
			return s.document(answer)
		}
		for i, scope := range byScope(answer) {
			if i > 0 {
				if _, err := fmt.Fprintln(s.out); err != nil {
					return err
				}
			}
			if err := card(s.printer, permissionsView, scope); err != nil {
				return err
			}
		}
		s.note("looked at %s, which is done at most once in ten seconds; Azure takes some minutes to show a new role", at(answer.GetCheckTime()))
		return nil
	}))
	c.Flags().StringArrayVar(&scopes, "scope", nil, "a subscription, resource group or management group, by its Azure ID (/subscriptions/ID, /subscriptions/ID/resourceGroups/NAME, /providers/Microsoft.Management/managementGroups/ID); repeatable; the default subscription otherwise")
	return c
}

func byScope(answer *vaultv1.CheckPermissionsResponse) []scopePermissions {
	var all []scopePermissions
	for _, p := range answer.GetScopes() {
		all = append(all, scopePermissions{p})
	}
	return all
}
