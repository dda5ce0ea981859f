package entrasim

import (
	"net/http"
	"strings"

	"phasekey.dev/pkg/entrasim/internal/odata"
)

func (r *role) view(subscription string) map[string]any {
	return map[string]any{
		"id": "/subscriptions/" + subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + r.id, "name": r.id,
		"type": "Microsoft.Authorization/roleDefinitions",
		"properties": map[string]any{
			"roleName": r.name, "type": "BuiltInRole", "description": r.description, "assignableScopes": []string{"/"},
			"permissions": []any{r.permission()},
			"createdOn":   "2015-02-02T21:55:09.8806423Z", "updatedOn": "2023-11-10T00:00:00.0000000Z", "createdBy": nil, "updatedBy": nil,
		},
	}
}

func (r *role) permission() map[string]any {
	return map[string]any{"actions": r.actions, "notActions": orEmpty(r.notActions), "dataActions": []string{}, "notDataActions": []string{}}
}

func (s *Simulator) listDefinitions(c *call, _ armTarget, sub *subscriptionRecord) reply {
	keep, bad := armFilter(c)
	if bad != nil {
		return *bad
	}
	found := []any{}
	for _, r := range builtInRoles() {
		ok, err := keep(func(name string) ([]string, bool) {
			return []string{r.name}, strings.EqualFold(name, "roleName")
		})
		if err != nil {
			return c.fail(http.StatusBadRequest, "InvalidFilter", "The filter is not supported here.")
		}
		if ok {
			found = append(found, r.view(sub.ID))
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}

func (s *Simulator) getDefinition(c *call, t armTarget, sub *subscriptionRecord) reply {
	for _, r := range builtInRoles() {
		if r.id == t.provider[1] {
			return armJSON(c, http.StatusOK, r.view(sub.ID))
		}
	}
	return c.fail(http.StatusNotFound, "RoleDefinitionDoesNotExist", "The specified role definition with ID '"+clip(t.provider[1], 64)+"' does not exist.")
}

func (a *RoleAssignment) view() map[string]any {
	moment := a.Created.Format(graphFineTime)
	name := a.ID[strings.LastIndexByte(a.ID, '/')+1:]
	return map[string]any{
		"id": a.ID, "name": name, "type": "Microsoft.Authorization/roleAssignments",
		"properties": map[string]any{
			"roleDefinitionId": "/subscriptions/" + subscriptionOf(a.Scope) + "/providers/Microsoft.Authorization/roleDefinitions/" + a.RoleID,
			"principalId":      a.PrincipalID, "principalType": a.PrincipalType, "scope": a.Scope, "condition": nil, "conditionVersion": nil,
			"createdOn": moment, "updatedOn": moment, "createdBy": nil, "updatedBy": nil, "delegatedManagedIdentityResourceId": nil, "description": nil,
		},
	}
}

// listAssignments is the list for a scope: at it, above and below, or with
// atScope() only at and above.
func (s *Simulator) listAssignments(c *call, t armTarget, sub *subscriptionRecord) reply {
	text := c.URL.Query().Get("$filter")
	principal, assignedTo := assigned(text)
	atScope := strings.EqualFold(strings.ReplaceAll(text, " ", ""), "atScope()")
	keep := odata.Filter(func(func(string) ([]string, bool)) (bool, error) { return true, nil })
	if !atScope && !assignedTo {
		var bad *reply
		if keep, bad = armFilter(c); bad != nil {
			return *bad
		}
	}
	found := []any{}
	for _, a := range sub.seenAssignments(c.replica, c.now) {
		if !covers(a.Scope, t.scope) && (atScope || !covers(t.scope, a.Scope)) {
			continue
		}
		if assignedTo && !strings.EqualFold(a.PrincipalID, principal) {
			continue
		}
		ok, err := keep(func(name string) ([]string, bool) {
			return []string{a.PrincipalID}, strings.EqualFold(name, "principalId") || strings.EqualFold(name, "assignedTo")
		})
		if err != nil {
			return c.fail(http.StatusBadRequest, "UnsupportedQuery", "The filter '"+clip(text, 128)+"' is not supported. Supported filters are atScope(), assignedTo('{value}'), principalId eq '{value}'.")
		}
		if ok {
			found = append(found, a.view())
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found, "nextLink": nil})
}

// assigned is the principal of assignedTo('{id}'), which has what is assigned to
// its groups too; nobody here is in any.
func assigned(filter string) (principal string, ok bool) {
	rest, ok := strings.CutPrefix(filter, "assignedTo('")
	if !ok {
		return "", false
	}
	principal, ok = strings.CutSuffix(rest, "')")
	return principal, ok && !strings.Contains(principal, "'")
}

// armFilter reads $filter, one that keeps all when there is none.
func armFilter(c *call) (odata.Filter, *reply) {
	text := c.URL.Query().Get("$filter")
	if text == "" {
		return func(func(string) ([]string, bool)) (bool, error) { return true, nil }, nil
	}
	f, err := odata.ParseFilter(text)
	if err != nil {
		bad := c.fail(http.StatusBadRequest, "InvalidFilter", clip(err.Error(), 256))
		return nil, &bad
	}
	return f, nil
}

func assignmentKey(t armTarget) string {
	return strings.ToLower(t.scope + "/providers/" + authorizationProvider + "/roleAssignments/" + t.provider[1])
}

func (s *Simulator) getAssignment(c *call, t armTarget, _ *subscriptionRecord) reply {
	if r := s.state.assignments[assignmentKey(t)]; r != nil {
		if a := r.seen(PlaneARM, c.replica, c.now); a != nil {
			return armJSON(c, http.StatusOK, a.view())
		}
	}
	return c.fail(http.StatusNotFound, "RoleAssignmentNotFound", "The role assignment '"+clip(t.provider[1], 64)+"' is not found.")
}

func (s *Simulator) putAssignment(c *call, t armTarget, sub *subscriptionRecord) reply {
	var body struct {
		Properties struct {
			RoleDefinitionID string `json:"roleDefinitionId"`
			PrincipalID      string `json:"principalId"`
			PrincipalType    string `json:"principalType"`
		} `json:"properties"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return invalidContent(c)
	}
	p := body.Properties
	role := findRole(p.RoleDefinitionID)
	id := strings.ToLower(p.PrincipalID)
	switch {
	case !isGUID(t.provider[1]):
		return c.fail(http.StatusBadRequest, "InvalidRoleAssignmentId", "The role assignment ID '"+clip(t.provider[1], 64)+"' is not valid. The role assignment ID must be a GUID.")
	case role == nil:
		return c.fail(http.StatusBadRequest, "RoleDefinitionDoesNotExist", "The specified role definition with ID '"+clip(p.RoleDefinitionID, 128)+"' does not exist.")
	case !isGUID(id):
		return c.fail(http.StatusBadRequest, "InvalidPrincipalId", "The principal ID '"+clip(id, 64)+"' is not valid. Principal ID must be a GUID.")
	}
	// With the type named, a principal that has not replicated is no error.
	known := s.state.principals[id]
	if p.PrincipalType == "" && (known == nil || known.tenant != c.tenant || known.seen(PlaneGraph, c.replica, c.now) == nil) {
		return c.fail(http.StatusBadRequest, "PrincipalNotFound",
			"Principal "+id+" does not exist in the directory "+c.tenant+". Check that you have the correct principal ID. If you are creating this principal and then immediately assigning a role, this error might be related to a replication delay. In this case, set the role assignment principalType property to a value, such as ServicePrincipal, User, or Group.")
	}
	a := newAssignment(t.scope, t.provider[1], c.tenant, id, role.id, c.now)
	if p.PrincipalType != "" {
		a.PrincipalType = clip(p.PrincipalType, 32)
	}
	if other := sub.assigned(a); other != nil {
		if strings.EqualFold(other.ID, a.ID) {
			return armJSON(c, http.StatusOK, other.view())
		}
		return c.fail(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists.")
	}
	if r := s.state.assignments[assignmentKey(t)]; r != nil && r.latest() != nil {
		return c.fail(http.StatusBadRequest, "RoleAssignmentUpdateNotPermitted", "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.")
	}
	if err := s.commit(s.assign(a, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return armJSON(c, http.StatusCreated, a.view())
}

func (s *Simulator) deleteAssignment(c *call, t armTarget, _ *subscriptionRecord) reply {
	r := s.state.assignments[assignmentKey(t)]
	if r == nil || r.latest() == nil {
		h := http.Header{}
		armHeaders(c, h)
		return reply{status: http.StatusNoContent, header: h}
	}
	a := r.latest()
	if err := s.commit(s.unassign(a, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return armJSON(c, http.StatusOK, a.view())
}

// listPermissions is what the caller may do at the scope.
func (s *Simulator) listPermissions(c *call, t armTarget, sub *subscriptionRecord) reply {
	found := []any{}
	for _, a := range sub.seenAssignments(c.replica, c.now) {
		if r := findRole(a.RoleID); r != nil && a.PrincipalID == c.token.ObjectID && covers(a.Scope, t.scope) {
			found = append(found, r.permission())
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}
