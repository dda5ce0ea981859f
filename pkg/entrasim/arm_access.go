package entrasim

import (
	"net/http"
	"slices"
	"strings"

	"phasekey.dev/pkg/entrasim/internal/odata"
)

// definitionID is a role's definition as it is called in a scope: of a
// subscription, or of the tenant.
func definitionID(scope, roleID string) string {
	id := "/providers/Microsoft.Authorization/roleDefinitions/" + roleID
	if sub := subscriptionOf(scope); sub != "" {
		return "/subscriptions/" + sub + id
	}
	return id
}

func (r *role) view(scope string) map[string]any {
	return map[string]any{
		"id": definitionID(scope, r.id), "name": r.id,
		"type": "Microsoft.Authorization/roleDefinitions",
		"properties": map[string]any{
			"roleName": r.name, "type": "BuiltInRole", "description": r.description, "assignableScopes": []string{"/"},
			"permissions": []any{r.permission()},
			"createdOn":   "2015-02-02T21:55:09.8806423Z", "updatedOn": "2023-11-10T00:00:00.0000000Z", "createdBy": nil, "updatedBy": nil,
		},
	}
}

func (r *role) permission() map[string]any {
	return map[string]any{"actions": r.actions, "notActions": orEmpty(r.notActions), "dataActions": orEmpty(r.dataActions), "notDataActions": []string{}}
}

func (s *Simulator) listDefinitions(c *call, t armTarget, _ *subscriptionRecord) reply {
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
			found = append(found, r.view(t.scope))
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}

func (s *Simulator) getDefinition(c *call, t armTarget, _ *subscriptionRecord) reply {
	for _, r := range builtInRoles() {
		if r.id == t.provider[1] {
			return armJSON(c, http.StatusOK, r.view(t.scope))
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
			"roleDefinitionId": definitionID(a.Scope, a.RoleID),
			"principalId":      a.PrincipalID, "principalType": a.PrincipalType, "scope": a.Scope, "condition": nil, "conditionVersion": nil,
			"createdOn": moment, "updatedOn": moment, "createdBy": nil, "updatedBy": nil, "delegatedManagedIdentityResourceId": nil, "description": nil,
		},
	}
}

// listAssignments is the list for a scope: at it, above and below, or with
// atScope() only at and above.
func (s *Simulator) listAssignments(c *call, t armTarget, _ *subscriptionRecord) reply {
	ask, bad := parseAccessFilter(c)
	if bad != nil {
		return *bad
	}
	tenant := s.state.tenants[c.tenant]
	found := []any{}
	for _, a := range tenant.assignments.seen(c.replica, c.now) {
		if !s.listed(ask, t.scope, a.Scope, tenant) || ask.assignedTo != "" && !strings.EqualFold(a.PrincipalID, ask.assignedTo) {
			continue
		}
		ok, err := ask.keep(func(name string) ([]string, bool) {
			return []string{a.PrincipalID}, strings.EqualFold(name, "principalId")
		})
		if err != nil {
			return unsupportedFilter(c, "atScope(), assignedTo('{value}'), principalId eq '{value}'")
		}
		if ok {
			found = append(found, a.view())
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found, "nextLink": nil})
}

// listed tells whether a list for a scope has what is assigned at another.
func (s *Simulator) listed(ask accessFilter, scope, other string, t *tenantRecord) bool {
	return s.state.covers(other, scope, t) || !ask.atScope && s.state.covers(scope, other, t)
}

func unsupportedFilter(c *call, known string) reply {
	return c.fail(http.StatusBadRequest, "UnsupportedQuery", "The filter '"+clip(c.URL.Query().Get("$filter"), 128)+"' is not supported. Supported filters are "+known+".")
}

// accessFilter is $filter of a list of assignments: what two functions ask for,
// and the rest.
type accessFilter struct {
	atScope bool
	// assignedTo is a principal: those that name it or, but nobody here is in
	// any, a group it is in.
	assignedTo string
	keep       odata.Filter
}

// parseAccessFilter reads the functions, joined by "and", and leaves what else
// there is to OData.
func parseAccessFilter(c *call) (accessFilter, *reply) {
	var f accessFilter
	var rest []string
	if text := c.URL.Query().Get("$filter"); text != "" {
		for term := range strings.SplitSeq(text, " and ") {
			compact := strings.ReplaceAll(term, " ", "")
			principal, ok := strings.CutPrefix(compact, "assignedTo('")
			principal, closed := strings.CutSuffix(principal, "')")
			switch {
			case strings.EqualFold(compact, "atScope()"):
				f.atScope = true
			case ok && closed && principal != "" && !strings.Contains(principal, "'"):
				f.assignedTo = principal
			default:
				rest = append(rest, term)
			}
		}
	}
	var bad *reply
	f.keep, bad = parsedFilter(c, strings.Join(rest, " and "))
	return f, bad
}

// armFilter reads $filter, one that keeps all when there is none.
func armFilter(c *call) (odata.Filter, *reply) {
	return parsedFilter(c, c.URL.Query().Get("$filter"))
}

func parsedFilter(c *call, text string) (odata.Filter, *reply) {
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

func assignmentID(t armTarget) string {
	return t.scope + "/providers/" + authorizationProvider + "/roleAssignments/" + t.provider[1]
}

func (s *Simulator) getAssignment(c *call, t armTarget, _ *subscriptionRecord) reply {
	if a := s.state.tenants[c.tenant].assignments.get(assignmentID(t)).seen(PlaneARM, c.replica, c.now); a != nil {
		return armJSON(c, http.StatusOK, a.view())
	}
	return c.fail(http.StatusNotFound, "RoleAssignmentNotFound", "The role assignment '"+clip(t.provider[1], 64)+"' is not found.")
}

func (s *Simulator) putAssignment(c *call, t armTarget, _ *subscriptionRecord) reply {
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
	tenant := s.state.tenants[c.tenant]
	if other := tenant.assigned(a); other != nil {
		if strings.EqualFold(other.ID, a.ID) {
			return armJSON(c, http.StatusOK, other.view())
		}
		return c.fail(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists.")
	}
	if tenant.assignments.get(a.ID).latest() != nil {
		return c.fail(http.StatusBadRequest, "RoleAssignmentUpdateNotPermitted", "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.")
	}
	if err := s.commit(s.assign(a, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return armJSON(c, http.StatusCreated, a.view())
}

func (s *Simulator) deleteAssignment(c *call, t armTarget, _ *subscriptionRecord) reply {
	a := s.state.tenants[c.tenant].assignments.get(assignmentID(t)).latest()
	if a == nil {
		h := http.Header{}
		armHeaders(c, h)
		return reply{status: http.StatusNoContent, header: h}
	}
	if err := s.commit(s.unassign(a, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return armJSON(c, http.StatusOK, a.view())
}

// listPermissions is what the caller's roles allow at the scope.
func (s *Simulator) listPermissions(c *call, t armTarget, _ *subscriptionRecord) reply {
	tenant := s.state.tenants[c.tenant]
	found := []any{}
	for _, a := range tenant.assignments.seen(c.replica, c.now) {
		if r := findRole(a.RoleID); r != nil && a.PrincipalID == c.token.ObjectID && s.state.covers(a.Scope, t.scope, tenant) {
			found = append(found, r.permission())
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}

func (d *DenyAssignment) view() map[string]any {
	named := func(ids []string) []any {
		out := []any{}
		for _, id := range ids {
			kind := "ServicePrincipal"
			if id == AllPrincipals {
				kind = "SystemDefined"
			}
			out = append(out, map[string]string{"id": id, "type": kind})
		}
		return out
	}
	return map[string]any{
		"id": d.ID, "name": d.ID[strings.LastIndexByte(d.ID, '/')+1:], "type": "Microsoft.Authorization/denyAssignments",
		"properties": map[string]any{
			"denyAssignmentName": d.Name, "description": d.Description, "scope": d.Scope, "doNotApplyToChildScopes": d.DoNotApplyToChildScopes, "isSystemProtected": true,
			"permissions": []any{map[string]any{
				"actions": orEmpty(d.Actions), "notActions": orEmpty(d.NotActions), "dataActions": orEmpty(d.DataActions), "notDataActions": orEmpty(d.NotDataActions),
			}},
			"principals": named(d.Principals), "excludePrincipals": named(d.ExcludePrincipals),
		},
	}
}

// listDenials is the list of deny assignments for a scope, as that of role
// assignments is. assignedTo() has those that name the principal, and not those
// that are about everybody.
func (s *Simulator) listDenials(c *call, t armTarget, _ *subscriptionRecord) reply {
	ask, bad := parseAccessFilter(c)
	if bad != nil {
		return *bad
	}
	tenant := s.state.tenants[c.tenant]
	found := []any{}
	for _, d := range tenant.denials.seen(c.replica, c.now) {
		if !s.listed(ask, t.scope, d.Scope, tenant) || ask.assignedTo != "" && !slices.Contains(d.Principals, strings.ToLower(ask.assignedTo)) {
			continue
		}
		ok, err := ask.keep(func(name string) ([]string, bool) {
			switch {
			case strings.EqualFold(name, "principalId"):
				return d.Principals, true
			case strings.EqualFold(name, "denyAssignmentName"):
				return []string{d.Name}, true
			}
			return nil, false
		})
		if err != nil {
			return unsupportedFilter(c, "atScope(), assignedTo('{value}'), principalId eq '{value}', denyAssignmentName eq '{value}'")
		}
		if ok {
			found = append(found, d.view())
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found, "nextLink": nil})
}

func (s *Simulator) getDenial(c *call, t armTarget, _ *subscriptionRecord) reply {
	id := t.scope + "/providers/" + authorizationProvider + "/denyAssignments/" + t.provider[1]
	if d := s.state.tenants[c.tenant].denials.get(id).seen(PlaneARM, c.replica, c.now); d != nil {
		return armJSON(c, http.StatusOK, d.view())
	}
	return c.fail(http.StatusNotFound, "DenyAssignmentNotFound", "The deny assignment '"+clip(t.provider[1], 64)+"' is not found.")
}
