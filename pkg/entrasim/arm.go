package entrasim

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

const authorizationProvider = "microsoft.authorization"

// armTarget is what a Resource Manager path names.
type armTarget struct {
	subscription string // lower case
	group        string
	management   string // of a management group, lower case
	scope        string // as the caller wrote it
	provider     []string
	namespace    string // of a resource provider to read or register
}

// parseARM reads /subscriptions/ID[/resourcegroups/NAME], with /resources or
// /providers/Microsoft.Authorization/… after it, or /subscriptions/ID/providers
// and what registers one; or /providers/Microsoft.Management/managementGroups/ID
// with /providers/Microsoft.Authorization/… after it.
func parseARM(path []string) (armTarget, bool) {
	var t armTarget
	rest := path
	if id := managementGroupOf(path); id != "" {
		t.management, t.scope, rest = id, managementScope(path[3]), path[4:]
	}
	if len(rest) > 0 && strings.EqualFold(rest[0], "subscriptions") {
		if len(rest) == 1 {
			return t, true
		}
		t.subscription, t.scope, rest = strings.ToLower(rest[1]), "/subscriptions/"+rest[1], rest[2:]
		if len(rest) > 0 && strings.EqualFold(rest[0], "resourcegroups") {
			if len(rest) == 1 {
				t.provider = []string{"resourcegroups"}
				return t, true
			}
			t.group, t.scope, rest = rest[1], t.scope+"/resourceGroups/"+rest[1], rest[2:]
		}
	}
	if len(rest) == 1 && strings.EqualFold(rest[0], "resources") {
		t.provider = []string{"resources"}
		return t, t.subscription != ""
	}
	// Their kinds begin with a slash, as no type of Microsoft.Authorization does.
	if len(rest) > 0 && strings.EqualFold(rest[0], "providers") && t.subscription != "" && t.group == "" {
		switch {
		case len(rest) == 1:
			t.provider = []string{"/providers"}
			return t, true
		case len(rest) == 2:
			t.provider, t.namespace = []string{"/provider"}, rest[1]
			return t, true
		case len(rest) == 3 && strings.EqualFold(rest[2], "register"):
			t.provider, t.namespace = []string{"/register"}, rest[1]
			return t, true
		}
	}
	if len(rest) > 2 && strings.EqualFold(rest[0], "providers") && strings.EqualFold(rest[1], authorizationProvider) {
		for _, part := range rest[2:] {
			t.provider = append(t.provider, strings.ToLower(part))
		}
		return t, true
	}
	return t, len(rest) == 0 && t.subscription != ""
}

// armRoute is an operation of Resource Manager and the action it needs.
type armRoute struct {
	operation string
	action    string // empty: no subscription is asked for
	run       func(*call, armTarget, *subscriptionRecord) reply
}

func (s *Simulator) armRoute(method string, t armTarget) (armRoute, bool) {
	kind := "subscription"
	switch {
	case len(t.provider) > 2:
		return armRoute{}, false
	case len(t.provider) > 0:
		kind = t.provider[0]
		if len(t.provider) == 2 {
			kind += "/{}"
		}
	case t.group != "":
		kind = "resourcegroup"
	case t.subscription == "":
		kind = "subscriptions"
	}
	const groups = "Microsoft.Resources/subscriptions/resourceGroups/"
	const auth = "Microsoft.Authorization/"
	const providers = "Microsoft.Resources/subscriptions/providers/read"
	r, found := map[string]armRoute{
		"GET subscriptions":         {"arm.subscription.list", "", s.listSubscriptions},
		"GET subscription":          {"arm.subscription.get", "Microsoft.Resources/subscriptions/read", s.getSubscription},
		"GET resourcegroups":        {"arm.resourceGroup.list", groups + "read", s.listGroups},
		"GET resourcegroup":         {"arm.resourceGroup.get", groups + "read", s.getGroup},
		"HEAD resourcegroup":        {"arm.resourceGroup.check", groups + "read", s.checkGroup},
		"PUT resourcegroup":         {"arm.resourceGroup.put", groups + "write", s.putGroup},
		"PATCH resourcegroup":       {"arm.resourceGroup.update", groups + "write", s.patchGroup},
		"DELETE resourcegroup":      {"arm.resourceGroup.delete", groups + "delete", s.deleteGroup},
		"GET resources":             {"arm.resource.list", groups + "resources/read", s.listResources},
		"GET roledefinitions":       {"arm.roleDefinition.list", auth + "roleDefinitions/read", s.listDefinitions},
		"GET roledefinitions/{}":    {"arm.roleDefinition.get", auth + "roleDefinitions/read", s.getDefinition},
		"GET roleassignments":       {"arm.roleAssignment.list", auth + "roleAssignments/read", s.listAssignments},
		"GET roleassignments/{}":    {"arm.roleAssignment.get", auth + "roleAssignments/read", s.getAssignment},
		"PUT roleassignments/{}":    {"arm.roleAssignment.put", auth + "roleAssignments/write", s.putAssignment},
		"DELETE roleassignments/{}": {"arm.roleAssignment.delete", auth + "roleAssignments/delete", s.deleteAssignment},
		"GET denyassignments":       {"arm.denyAssignment.list", auth + "denyAssignments/read", s.listDenials},
		"GET denyassignments/{}":    {"arm.denyAssignment.get", auth + "denyAssignments/read", s.getDenial},
		"GET /providers":            {"arm.provider.list", providers, s.listProviders},
		"GET /provider":             {"arm.provider.get", providers, s.getProvider},
		"POST /register":            {"arm.provider.register", clip(t.namespace, 128) + "/register/action", s.registerProvider},
		"GET permissions":           {"arm.permissions.list", auth + "permissions/read", s.listPermissions},
	}[method+" "+kind]
	if t.subscription == "" && t.management == "" && kind != "subscriptions" {
		found = false
	}
	return r, found
}

// routeARM names a Resource Manager request's operation, caller and target.
func (s *Simulator) routeARM(c *call) {
	c.operation = "arm.unknown"
	c.fail = func(status int, code, message string) reply { return armError(c, status, code, message) }
	if c.Method == http.MethodGet && strings.EqualFold(strings.Join(c.path, "/"), "metadata/endpoints") {
		c.operation, c.run = "arm.metadata", s.metadata
		return
	}
	token, err := s.checkToken(c.Header.Get("Authorization"), c.now, s.armResource())
	if token != nil && err == nil {
		s.identifyBearer(c, token)
		if c.actor != "anonymous" {
			c.application = c.actor
		}
	}
	target, ok := parseARM(c.path)
	route, found := armRoute{}, false
	if ok {
		if route, found = s.armRoute(c.Method, target); found {
			c.operation = route.operation
		}
	}
	c.run = func(c *call) reply {
		switch {
		case err != nil:
			return armUnauthorized(c, token, err)
		case !found:
			return c.fail(http.StatusNotFound, "InvalidResourceType", "The resource type could not be found for the request "+clip(c.Method, 16)+" '"+clip(c.URL.Path, 256)+"'.")
		case c.URL.Query().Get("api-version") == "":
			return missingVersion(c)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case target.management != "":
			if bad := s.refusal(c, route.action, target.scope); bad != nil {
				return *bad
			}
			return route.run(c, target, nil)
		case target.subscription == "":
			return route.run(c, target, nil)
		}
		sub := s.state.subscriptions[target.subscription]
		switch {
		case sub == nil && !isGUID(target.subscription):
			return c.fail(http.StatusBadRequest, "InvalidSubscriptionId", "The provided subscription identifier '"+clip(target.subscription, 64)+"' is malformed or invalid.")
		case sub == nil:
			return c.fail(http.StatusNotFound, "SubscriptionNotFound", "The subscription '"+target.subscription+"' could not be found.")
		case sub.Tenant != c.tenant:
			return armWrongTenant(c, sub)
		}
		if bad := s.refusal(c, route.action, target.scope); bad != nil {
			return *bad
		}
		return route.run(c, target, sub)
	}
	if run := c.run; err == nil && found && !s.config.Budgets.Unlimited {
		c.run = func(c *call) reply { return s.armMetered(c, target.subscription, run) }
	}
}

// armError is the CloudError envelope.
func armError(c *call, status int, code, message string) reply {
	out := jsonReply(status, map[string]any{"error": map[string]string{"code": code, "message": message}})
	out.code = code
	armHeaders(c, out.header)
	return out
}

func missingVersion(c *call) reply {
	return c.fail(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
}

func armHeaders(c *call, h http.Header) {
	h.Set("X-Ms-Request-Id", c.requestID)
	h.Set("X-Ms-Correlation-Request-Id", c.clientRequestID)
	h.Set("Cache-Control", "no-cache")
	h.Set("Pragma", "no-cache")
}

func armJSON(c *call, status int, value any) reply {
	out := jsonReply(status, value)
	armHeaders(c, out.header)
	return out
}

func armUnauthorized(c *call, token *accessToken, err error) reply {
	code, message := "InvalidAuthenticationToken", "The access token is invalid."
	switch {
	case errors.Is(err, errTokenMissing):
		code, message = "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
	case errors.Is(err, errTokenAudience):
		code = "InvalidAuthenticationTokenAudience"
		message = "The access token has been obtained for wrong audience or resource '" + clip(token.Audience, 128) +
			"'. It should exactly match with one of the allowed audiences 'https://management.core.windows.net/','https://management.core.windows.net','https://management.azure.com/','https://management.azure.com'."
	case errors.Is(err, errTokenExpired):
		code = "ExpiredAuthenticationToken"
		message = "The access token expiry UTC time '" + time.Unix(token.Expires, 0).UTC().Format("1/2/2006 3:04:05 PM") +
			"' is earlier than current UTC time '" + c.now.Format("1/2/2006 3:04:05 PM") + "'."
	}
	out := armError(c, http.StatusUnauthorized, code, message)
	out.header.Set("Www-Authenticate", `Bearer authorization_uri="https://login.windows.net/", error="invalid_token", error_description="`+message+`"`)
	return out
}

func armWrongTenant(c *call, sub *subscriptionRecord) reply {
	message := "The access token is from the wrong issuer '" + c.token.Issuer + "'. It must match the tenant '" + issuerPrefix + sub.Tenant +
		"/' associated with this subscription. Please use the authority (URL) 'https://login.windows.net/" + sub.Tenant +
		"' to get the token. Note, if the subscription is transferred to another tenant there is no impact to the services, but information about new tenant could take time to propagate (up to an hour). If you just transferred your subscription and see this error message, please try back later."
	out := armError(c, http.StatusUnauthorized, "InvalidAuthenticationTokenTenant", message)
	out.header.Set("Www-Authenticate", `Bearer authorization_uri="https://login.windows.net/`+sub.Tenant+`", error="invalid_token", error_description="The access token is from the wrong issuer."`)
	return out
}

func (sub *subscriptionRecord) view() map[string]any {
	return map[string]any{
		"id": "/subscriptions/" + sub.ID, "subscriptionId": sub.ID, "tenantId": sub.Tenant, "displayName": sub.DisplayName, "state": "Enabled",
		"subscriptionPolicies": map[string]string{"locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"},
		"authorizationSource":  "RoleBased", "managedByTenants": []any{},
	}
}

// listSubscriptions shows those in which the caller holds any role.
func (s *Simulator) listSubscriptions(c *call, _ armTarget, _ *subscriptionRecord) reply {
	found := []any{}
	if t := s.state.tenants[c.tenant]; t != nil {
		seen := t.assignments.seen(c.replica, c.now)
		for _, id := range t.subscriptions {
			sub := s.state.subscriptions[id]
			if scope := "/subscriptions/" + id; slices.ContainsFunc(seen, func(a *RoleAssignment) bool {
				return a.PrincipalID == c.token.ObjectID && (s.state.covers(a.Scope, scope, t) || s.state.covers(scope, a.Scope, t))
			}) {
				found = append(found, sub.view())
			}
		}
	}
	return armJSON(c, http.StatusOK, map[string]any{
		"value": found, "count": map[string]any{"type": "Total", "value": len(found)},
	})
}

func (s *Simulator) getSubscription(c *call, _ armTarget, sub *subscriptionRecord) reply {
	return armJSON(c, http.StatusOK, sub.view())
}

func groupID(g *resourceGroup) string {
	return "/subscriptions/" + g.Subscription + "/resourceGroups/" + g.Name
}

func (g *resourceGroup) view() map[string]any {
	out := map[string]any{
		"id": groupID(g), "name": g.Name, "type": "Microsoft.Resources/resourceGroups", "location": g.Location,
		"properties": map[string]string{"provisioningState": "Succeeded"},
	}
	if g.Tags != nil {
		out["tags"] = g.Tags
	}
	if g.ManagedBy != "" {
		out["managedBy"] = g.ManagedBy
	}
	return out
}

func (s *Simulator) listGroups(c *call, _ armTarget, sub *subscriptionRecord) reply {
	found := []any{}
	for _, name := range slices.Sorted(maps.Keys(sub.groups)) {
		found = append(found, sub.groups[name].view())
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}

// listResources says that there are none: resources within groups are not
// simulated. azurerm asks before it deletes a group.
func (s *Simulator) listResources(c *call, t armTarget, sub *subscriptionRecord) reply {
	if t.group != "" && sub.groups[strings.ToLower(t.group)] == nil {
		return groupNotFound(c, t.group)
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": []any{}})
}

func groupNotFound(c *call, name string) reply {
	return c.fail(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '"+clip(name, 128)+"' could not be found.")
}

func (s *Simulator) getGroup(c *call, t armTarget, sub *subscriptionRecord) reply {
	g := sub.groups[strings.ToLower(t.group)]
	if g == nil {
		return groupNotFound(c, t.group)
	}
	return armJSON(c, http.StatusOK, g.view())
}

func (s *Simulator) checkGroup(c *call, t armTarget, sub *subscriptionRecord) reply {
	status := http.StatusNoContent
	if sub.groups[strings.ToLower(t.group)] == nil {
		status = http.StatusNotFound
	}
	h := http.Header{}
	armHeaders(c, h)
	return reply{status: status, header: h}
}

// groupBody is what a client may say of a resource group.
type groupBody struct {
	Location  string             `json:"location"`
	ManagedBy *string            `json:"managedBy"`
	Tags      *map[string]string `json:"tags"`
}

func invalidContent(c *call) reply {
	return c.fail(http.StatusBadRequest, "InvalidRequestContent", "The request content was invalid and could not be deserialized.")
}

func (s *Simulator) putGroup(c *call, t armTarget, sub *subscriptionRecord) reply {
	var body groupBody
	if bad := decodeBody(c, &body); bad != nil {
		return invalidContent(c)
	}
	old := sub.groups[strings.ToLower(t.group)]
	body.Location = strings.ToLower(strings.ReplaceAll(body.Location, " ", ""))
	switch {
	case body.Location == "":
		return c.fail(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	case !isGroupName(t.group):
		return c.fail(http.StatusBadRequest, "InvalidResourceGroup", "The provided resource group name '"+clip(t.group, 128)+"' has these invalid characters or is too long. The name can only be a letter, digit, '-', '.', '(', ')' or '_', at most 90, and cannot end with a period.")
	case old != nil && old.Location != body.Location:
		return c.fail(http.StatusConflict, "InvalidResourceGroupLocation", "Invalid resource group location '"+clip(body.Location, 64)+"'. The Resource group already exists in location '"+old.Location+"'.")
	}
	g := &resourceGroup{Subscription: sub.ID, Name: t.group, Location: clip(body.Location, 64)}
	status := http.StatusCreated
	if old != nil {
		status, g.Name = http.StatusOK, old.Name
	}
	return s.writeGroup(c, g, body, status)
}

func (s *Simulator) patchGroup(c *call, t armTarget, sub *subscriptionRecord) reply {
	old := sub.groups[strings.ToLower(t.group)]
	if old == nil {
		return groupNotFound(c, t.group)
	}
	var body groupBody
	if bad := decodeBody(c, &body); bad != nil {
		return invalidContent(c)
	}
	g := *old
	return s.writeGroup(c, &g, body, http.StatusOK)
}

func (s *Simulator) writeGroup(c *call, g *resourceGroup, body groupBody, status int) reply {
	if body.Tags != nil {
		if len(*body.Tags) > 50 {
			return c.fail(http.StatusBadRequest, "InvalidTagCount", "The maximum number of tags for one resource is 50.")
		}
		g.Tags = *body.Tags
	}
	if body.ManagedBy != nil {
		g.ManagedBy = *body.ManagedBy
	}
	if err := s.commit(&change{Time: c.now, Kind: "group.written", Actor: c.actor, RequestID: c.requestID, Group: g}); err != nil {
		return unavailable(c)
	}
	return armJSON(c, status, g.view())
}

func (s *Simulator) deleteGroup(c *call, t armTarget, sub *subscriptionRecord) reply {
	old := sub.groups[strings.ToLower(t.group)]
	if old == nil {
		return groupNotFound(c, t.group)
	}
	g := *old
	g.Deleted = true
	if err := s.commit(&change{Time: c.now, Kind: "group.deleted", Actor: c.actor, RequestID: c.requestID, Group: &g}); err != nil {
		return unavailable(c)
	}
	h := http.Header{}
	armHeaders(c, h)
	return reply{status: http.StatusOK, header: h}
}

func isGroupName(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.()"
	return name != "" && len(name) <= 90 && !strings.HasSuffix(name, ".") && strings.Trim(name, allowed) == ""
}
