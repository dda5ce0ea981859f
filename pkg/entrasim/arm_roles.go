package entrasim

import (
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// role is a built-in role definition.
type role struct {
	id, name, description string
	actions, notActions   []string
}

// builtInRoles are those the simulator knows, with Azure's own identifiers.
func builtInRoles() []role {
	return []role{
		{
			id: "acdd72a7-3385-48ef-bd42-f606fba81ae7", name: "Reader",
			description: "View all resources, but does not allow you to make any changes.", actions: []string{"*/read"},
		},
		{
			id: "b24988ac-6180-42a0-ab88-20f7382dd24c", name: "Contributor",
			description: "Grants full access to manage all resources, but does not allow you to assign roles in Azure RBAC, manage assignments in Azure Blueprints, or share image galleries.",
			actions:     []string{"*"},
			notActions: []string{
				"Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write", "Microsoft.Authorization/elevateAccess/Action",
				"Microsoft.Blueprint/blueprintAssignments/write", "Microsoft.Blueprint/blueprintAssignments/delete", "Microsoft.Compute/galleries/share/action",
			},
		},
		{
			id: "8e3af657-a8ff-443c-a75c-2fe8c4bcb635", name: "Owner",
			description: "Grants full access to manage all resources, including the ability to assign roles in Azure RBAC.", actions: []string{"*"},
		},
		{
			id: "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9", name: "User Access Administrator",
			description: "Lets you manage user access to Azure resources.",
			actions:     []string{"*/read", "Microsoft.Authorization/*", "Microsoft.Support/*"},
		},
	}
}

// findRole finds a role by name, GUID or resource ID.
func findRole(text string) *role {
	text = path.Base(text)
	for _, r := range builtInRoles() {
		if strings.EqualFold(text, r.name) || strings.EqualFold(text, r.id) {
			return &r
		}
	}
	return nil
}

// allows tells whether the role permits the action.
func (r *role) allows(action string) bool {
	match := func(pattern string) bool { return actionMatches(pattern, action) }
	return slices.ContainsFunc(r.actions, match) && !slices.ContainsFunc(r.notActions, match)
}

// actionMatches compares an action with a pattern in which * stands for any text.
func actionMatches(pattern, action string) bool {
	parts := strings.Split(strings.ToLower(pattern), "*")
	rest, found := strings.CutPrefix(strings.ToLower(action), parts[0])
	if !found {
		return false
	}
	if len(parts) == 1 {
		return rest == ""
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, part)
		if i < 0 {
			return false
		}
		rest = rest[i+len(part):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// covers tells whether a scope is the other one or above it.
func covers(scope, other string) bool {
	scope, other = strings.ToLower(scope), strings.ToLower(other)
	return scope == other || strings.HasPrefix(other, strings.TrimSuffix(scope, "/")+"/")
}

// seenAssignments are those a replica of Resource Manager honours.
func (sub *subscriptionRecord) seenAssignments(replica int, now time.Time) []*RoleAssignment {
	var out []*RoleAssignment
	for _, r := range sub.assignments {
		if a := r.seen(PlaneARM, replica, now); a != nil {
			out = append(out, a)
		}
	}
	return out
}

// allowed tells whether a role held at the scope or above permits the action.
func (sub *subscriptionRecord) allowed(principalID, action, scope string, replica int, now time.Time) bool {
	return slices.ContainsFunc(sub.seenAssignments(replica, now), func(a *RoleAssignment) bool {
		if a.PrincipalID != principalID || !covers(a.Scope, scope) {
			return false
		}
		r := findRole(a.RoleID)
		return r != nil && r.allows(action)
	})
}

// assigned returns a committed assignment of the same role to the same principal
// at the same scope, nil when there is none.
func (sub *subscriptionRecord) assigned(n *RoleAssignment) *RoleAssignment {
	for _, r := range sub.assignments {
		if a := r.latest(); a != nil && a.PrincipalID == n.PrincipalID && a.RoleID == n.RoleID && strings.EqualFold(a.Scope, n.Scope) {
			return a
		}
	}
	return nil
}

func newAssignment(scope, name, tenant, principalID, roleID string, now time.Time) *RoleAssignment {
	return &RoleAssignment{
		ID:     scope + "/providers/Microsoft.Authorization/roleAssignments/" + url.PathEscape(name),
		Tenant: tenant, Scope: scope, PrincipalID: principalID, PrincipalType: "ServicePrincipal", RoleID: roleID, Created: now,
	}
}

func (s *Simulator) assign(a *RoleAssignment, dice *chance.Dice, actor, requestID string) *change {
	return &change{
		Time: a.Created, Kind: "role.assigned", Actor: actor, RequestID: requestID, Assignment: a,
		Visible: s.assignmentLag(dice, a, a.Created, s.config.Lags.Role),
	}
}

func (s *Simulator) unassign(a *RoleAssignment, dice *chance.Dice, actor, requestID string) *change {
	now := time.Now().UTC()
	return &change{
		Time: now, Kind: "role.removed", Actor: actor, RequestID: requestID, Assignment: a, Unassigned: true,
		Visible: s.assignmentLag(dice, a, now, s.config.Lags.Removal),
	}
}

// assignmentLag draws when Resource Manager's replicas see a change of an assignment.
func (s *Simulator) assignmentLag(dice *chance.Dice, a *RoleAssignment, now time.Time, lag Range) Visibility {
	visible := Visibility{ARM: s.draw(dice, now, lag)}
	if r := s.state.assignments[strings.ToLower(a.ID)]; r != nil {
		return r.follow(now, visible)
	}
	return visible
}
