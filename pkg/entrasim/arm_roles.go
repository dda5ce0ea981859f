package entrasim

import (
	"cmp"
	"net/http"
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
	dataActions           []string
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
		{
			id: "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", name: "Storage Blob Data Reader",
			description: "Allows for read access to Azure Storage blob containers and data",
			actions:     []string{"Microsoft.Storage/storageAccounts/blobServices/containers/read", "Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action"},
			dataActions: []string{"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"},
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

// managementProvider is under which management groups are.
const managementProvider = "Microsoft.Management"

// managementScope is a management group's scope.
func managementScope(id string) string {
	return "/providers/" + managementProvider + "/managementGroups/" + id
}

// managementGroupOf returns the lower-case ID of the management group that a path
// begins with, empty when it begins with something else.
func managementGroupOf(path []string) string {
	if len(path) < 4 || !strings.EqualFold(path[0], "providers") || !strings.EqualFold(path[1], managementProvider) || !strings.EqualFold(path[2], "managementGroups") {
		return ""
	}
	return strings.ToLower(path[3])
}

// managementGroup finds one by ID, the root too.
func (t *tenantRecord) managementGroup(id string) *ManagementGroup {
	id = strings.ToLower(id)
	if id == t.ID {
		return &ManagementGroup{ID: t.ID, Tenant: t.ID, DisplayName: "Tenant Root Group"}
	}
	return t.management[id]
}

// above is the lower-case ID of a management group's parent, empty for the root.
func (t *tenantRecord) above(id string) string {
	if m := t.management[id]; m != nil {
		return cmp.Or(strings.ToLower(m.Parent), t.ID)
	}
	return ""
}

// scopeExists tells whether there is a tenant's subscription or management group
// that a scope is or is in.
func (st *state) scopeExists(scope string, t *tenantRecord) bool {
	if id := managementGroupOf(segments(scope)); id != "" {
		return t.managementGroup(id) != nil
	}
	sub := st.subscriptions[subscriptionOf(scope)]
	return sub != nil && sub.Tenant == t.ID
}

// covers tells whether a scope is the other one or above it, in a tenant's
// hierarchy.
func (st *state) covers(scope, other string, t *tenantRecord) bool {
	scope, other = strings.ToLower(scope), strings.ToLower(other)
	if scope == other || strings.HasPrefix(other, strings.TrimSuffix(scope, "/")+"/") {
		return true
	}
	group := managementGroupOf(segments(scope))
	if group == "" {
		return false
	}
	at := managementGroupOf(segments(other))
	if at == "" {
		sub := st.subscriptions[subscriptionOf(other)]
		if sub == nil || sub.Tenant != t.ID {
			return false
		}
		at = cmp.Or(strings.ToLower(sub.ManagementGroup), t.ID)
	}
	for ; at != ""; at = t.above(at) {
		if at == group {
			return true
		}
	}
	return false
}

// refusal is the answer to a caller who may not do something in a scope, nil for
// one who may: by a role held there or above, and by no deny assignment against it.
func (s *Simulator) refusal(c *call, action, scope string) *reply {
	t := s.state.tenants[c.tenant]
	who := "The client '" + c.token.AppID + "' with object id '" + c.token.ObjectID + "' "
	allowed := t != nil && s.state.scopeExists(scope, t) && slices.ContainsFunc(t.assignments.seen(c.replica, c.now), func(a *RoleAssignment) bool {
		if a.PrincipalID != c.token.ObjectID || !s.state.covers(a.Scope, scope, t) {
			return false
		}
		r := findRole(a.RoleID)
		return r != nil && r.allows(action)
	})
	if !allowed {
		bad := c.fail(http.StatusForbidden, "AuthorizationFailed",
			who+"does not have authorization to perform action '"+action+"' over scope '"+clip(scope, 256)+
				"' or the scope is invalid. If access was recently granted, please refresh your credentials.")
		return &bad
	}
	for _, d := range t.denials.seen(c.replica, c.now) {
		if d.concerns(c.token.ObjectID) && d.denies(action) && s.state.holds(d, scope, t) {
			bad := c.fail(http.StatusForbidden, "DenyAssignmentAuthorizationFailed",
				who+"has permission to perform action '"+action+"' on scope '"+clip(scope, 256)+"'; however, the access is denied because of the deny assignment with name '"+
					d.Name+"' and Id '"+strings.ReplaceAll(path.Base(d.ID), "-", "")+"' at scope '"+d.Scope+"'.")
			return &bad
		}
	}
	return nil
}

// holds tells whether a deny assignment is in force in a scope.
func (st *state) holds(d *DenyAssignment, scope string, t *tenantRecord) bool {
	if d.DoNotApplyToChildScopes {
		return strings.EqualFold(d.Scope, scope)
	}
	return st.covers(d.Scope, scope, t)
}

// concerns tells whether it is about the principal.
func (d *DenyAssignment) concerns(principalID string) bool {
	return !slices.Contains(d.ExcludePrincipals, principalID) &&
		(slices.Contains(d.Principals, AllPrincipals) || slices.Contains(d.Principals, principalID))
}

// denies tells whether it is about the action.
func (d *DenyAssignment) denies(action string) bool {
	match := func(pattern string) bool { return actionMatches(pattern, action) }
	return slices.ContainsFunc(d.Actions, match) && !slices.ContainsFunc(d.NotActions, match)
}

// assigned returns a committed assignment of the same role to the same principal
// at the same scope, nil when there is none.
func (t *tenantRecord) assigned(n *RoleAssignment) *RoleAssignment {
	for _, h := range t.assignments.all {
		if a := h.latest(); a != nil && a.PrincipalID == n.PrincipalID && a.RoleID == n.RoleID && strings.EqualFold(a.Scope, n.Scope) {
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
		Visible: s.state.tenants[a.Tenant].assignments.get(a.ID).follow(a.Created, Visibility{ARM: s.draw(dice, a.Created, s.config.Lags.Role)}),
	}
}

func (s *Simulator) unassign(a *RoleAssignment, dice *chance.Dice, actor, requestID string) *change {
	now := time.Now().UTC()
	return &change{
		Time: now, Kind: "role.removed", Actor: actor, RequestID: requestID, Assignment: a, Unassigned: true,
		Visible: s.state.tenants[a.Tenant].assignments.get(a.ID).follow(now, Visibility{ARM: s.draw(dice, now, s.config.Lags.Removal)}),
	}
}
