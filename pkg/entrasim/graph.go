package entrasim

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim/internal/odata"
)

const (
	codeDenied      = "Authorization_RequestDenied"
	messageDenied   = "Insufficient privileges to complete the operation."
	codeBadRequest  = "Request_BadRequest"
	codeNotFound    = "Request_ResourceNotFound"
	graphContent    = "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8"
	graphTime       = "2006-01-02T15:04:05Z"
	graphFineTime   = "2006-01-02T15:04:05.0000000Z"
	graphErrorTime  = "2006-01-02T15:04:05"
	keepDeletedDays = 30
)

// graphKey is how a request names a thing: by id, appId or uniqueName.
type graphKey struct{ name, value string }

type graphRoute struct {
	operation string
	may       func(*accessToken) bool
	run       func(*call, graphKey) reply
}

func (s *Simulator) graphRoutes() map[string]graphRoute {
	return map[string]graphRoute{
		"POST applications":                                         {"graph.application.create", writeApplications, s.createApplication},
		"GET applications":                                          {"graph.application.list", readApplications, s.listApplications},
		"GET applications/{}":                                       {"graph.application.get", readApplications, s.getApplication},
		"PATCH applications/{}":                                     {"graph.application.update", writeApplications, s.updateApplication},
		"DELETE applications/{}":                                    {"graph.application.delete", writeApplications, s.deleteApplication},
		"POST applications/{}/addpassword":                          {"graph.application.addPassword", writeApplications, s.addPassword},
		"POST applications/{}/removepassword":                       {"graph.application.removePassword", writeApplications, s.removePassword},
		"POST applications/{}/federatedidentitycredentials":         {"graph.federatedCredential.create", writeApplications, s.createFederated},
		"GET applications/{}/federatedidentitycredentials":          {"graph.federatedCredential.list", readApplications, s.listFederated},
		"GET applications/{}/federatedidentitycredentials/{}":       {"graph.federatedCredential.get", readApplications, s.getFederated},
		"PATCH applications/{}/federatedidentitycredentials/{}":     {"graph.federatedCredential.update", writeApplications, s.updateFederated},
		"DELETE applications/{}/federatedidentitycredentials/{}":    {"graph.federatedCredential.delete", writeApplications, s.deleteFederated},
		"GET directory/deleteditems/graph.application":              {"graph.deletedItem.list", readApplications, s.listDeleted},
		"GET directory/deleteditems/{}":                             {"graph.deletedItem.get", readApplications, s.getDeleted},
		"DELETE directory/deleteditems/{}":                          {"graph.deletedItem.delete", writeApplications, s.purgeDeleted},
		"POST directory/deleteditems/{}/restore":                    {"graph.deletedItem.restore", writeApplications, s.restoreDeleted},
		"GET serviceprincipals":                                     {"graph.servicePrincipal.list", readApplications, s.listPrincipals},
		"POST serviceprincipals":                                    {"graph.servicePrincipal.create", writeApplications, s.createPrincipal},
		"GET serviceprincipals/{}":                                  {"graph.servicePrincipal.get", readApplications, s.getPrincipal},
		"PATCH serviceprincipals/{}":                                {"graph.servicePrincipal.update", writeApplications, s.updatePrincipal},
		"DELETE serviceprincipals/{}":                               {"graph.servicePrincipal.delete", writeApplications, s.deletePrincipal},
		"POST serviceprincipals/{}/addpassword":                     {"graph.servicePrincipal.addPassword", writeApplications, s.addPrincipalPassword},
		"POST serviceprincipals/{}/removepassword":                  {"graph.servicePrincipal.removePassword", writeApplications, s.removePrincipalPassword},
		"GET policies/defaultappmanagementpolicy":                   {"graph.defaultAppManagementPolicy.get", readPolicies, s.getDefaultPolicy},
		"PATCH policies/defaultappmanagementpolicy":                 {"graph.defaultAppManagementPolicy.update", writePolicies, s.updateDefaultPolicy},
		"POST policies/appmanagementpolicies":                       {"graph.appManagementPolicy.create", writePolicies, s.createPolicy},
		"GET policies/appmanagementpolicies":                        {"graph.appManagementPolicy.list", readPolicies, s.listPolicies},
		"GET policies/appmanagementpolicies/{}":                     {"graph.appManagementPolicy.get", readPolicies, s.getPolicy},
		"PATCH policies/appmanagementpolicies/{}":                   {"graph.appManagementPolicy.update", writePolicies, s.updatePolicy},
		"DELETE policies/appmanagementpolicies/{}":                  {"graph.appManagementPolicy.delete", writePolicies, s.deletePolicy},
		"GET policies/appmanagementpolicies/{}/appliesto":           {"graph.appManagementPolicy.listAppliesTo", readAssignments, s.listApplied},
		"GET applications/{}/appmanagementpolicies":                 {"graph.application.listPolicies", readAssignments, s.listApplicationPolicies},
		"POST applications/{}/appmanagementpolicies/$ref":           {"graph.application.assignPolicy", assignPolicies, s.assignApplicationPolicy},
		"DELETE applications/{}/appmanagementpolicies/{}/$ref":      {"graph.application.unassignPolicy", assignPolicies, s.unassignApplicationPolicy},
		"GET serviceprincipals/{}/appmanagementpolicies":            {"graph.servicePrincipal.listPolicies", readAssignments, s.listPrincipalPolicies},
		"POST serviceprincipals/{}/appmanagementpolicies/$ref":      {"graph.servicePrincipal.assignPolicy", assignPolicies, s.assignPrincipalPolicy},
		"DELETE serviceprincipals/{}/appmanagementpolicies/{}/$ref": {"graph.servicePrincipal.unassignPolicy", assignPolicies, s.unassignPrincipalPolicy},
		"GET applications/{}/owners":                                {"graph.application.listOwners", readApplications, s.listApplicationOwners},
		"POST applications/{}/owners/$ref":                          {"graph.application.addOwner", writeApplications, s.addApplicationOwner},
		"DELETE applications/{}/owners/{}/$ref":                     {"graph.application.removeOwner", writeApplications, s.removeApplicationOwner},
		"GET serviceprincipals/{}/owners":                           {"graph.servicePrincipal.listOwners", readApplications, s.listPrincipalOwners},
		"POST serviceprincipals/{}/owners/$ref":                     {"graph.servicePrincipal.addOwner", writeApplications, s.addPrincipalOwner},
		"DELETE serviceprincipals/{}/owners/{}/$ref":                {"graph.servicePrincipal.removeOwner", writeApplications, s.removePrincipalOwner},
		"GET organization":                                          {"graph.organization.list", readApplications, s.listOrganization},
		"GET organization/{}":                                       {"graph.organization.get", readApplications, s.getOrganization},
	}
}

// routeGraph names a Graph request's operation, caller and target.
func (s *Simulator) routeGraph(c *call) {
	c.operation = "graph.unknown"
	c.fail = func(status int, code, message string) reply { return graphError(c, status, code, message) }
	token, err := s.checkToken(c.Header.Get("Authorization"), c.now, s.graphResource())
	if token != nil && err == nil {
		s.identifyBearer(c, token)
	}
	pattern, key, part, keyErr := graphPattern(c.path)
	c.part = part
	route, found := s.graphRoutes()[c.Method+" "+pattern]
	if found {
		c.operation = route.operation
		switch upsert := strings.Contains(strings.ToLower(c.Header.Get("Prefer")), "create-if-missing"); {
		case upsert && route.operation == "graph.application.update" && key.name == "uniqueName":
			c.operation, route.run = "graph.application.upsert", s.upsertApplication
		case upsert && route.operation == "graph.federatedCredential.update" && part.name == "name":
			c.operation, route.run = "graph.federatedCredential.upsert", s.upsertFederated
		}
		c.application = s.graphTarget(c, pattern, key)
	}
	if batch := c.Method+" "+pattern == "POST "+batchSegment; batch {
		c.operation, c.run = "graph.batch", func(c *call) reply {
			if err != nil {
				return graphUnauthorized(c, err)
			}
			return s.batch(c)
		}
		return
	}
	c.run = func(c *call) reply {
		switch {
		case err != nil:
			return graphUnauthorized(c, err)
		case keyErr != nil:
			return c.fail(http.StatusBadRequest, "BadRequest", keyErr.Error())
		case !found:
			return c.fail(http.StatusBadRequest, "BadRequest", "Resource not found for the segment '"+clip(pattern, 128)+"'.")
		case !route.may(c.token):
			return c.fail(http.StatusForbidden, codeDenied, messageDenied)
		}
		for _, option := range []string{"$search", "$orderby", "$skip", "$apply", "$expand"} {
			// An answer that leaves one out would be taken for one that heeds it.
			if heeded := option == "$expand" && route.operation == "graph.application.get" && c.URL.Query().Get(option) == expandable; heeded {
				continue
			}
			if c.Method == http.MethodGet && c.URL.Query().Has(option) {
				return c.fail(http.StatusBadRequest, "Request_UnsupportedQuery", "The query option '"+option+"' is not supported.")
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.state.tenants[c.tenant] == nil {
			return graphUnauthorized(c, errTokenInvalid)
		}
		return route.run(c, key)
	}
	if run := c.run; err == nil && !s.config.Budgets.Unlimited {
		c.run = func(c *call) reply { return s.graphMetered(c, run) }
	}
}

// graphPattern turns a path into a route's pattern, the key it names, and the
// key of a part of that thing.
func graphPattern(segments []string) (pattern string, key, part graphKey, err error) {
	if len(segments) < 2 || segments[0] != "v1.0" {
		return strings.Join(segments, "/"), key, part, nil
	}
	collection, name, value, err := odata.ParseKey(segments[1])
	if err != nil {
		return segments[1], key, part, err
	}
	out := []string{strings.ToLower(collection)}
	rest := segments[2:]
	switch {
	case name != "":
		key = graphKey{name, value}
		out = append(out, "{}")
	case out[0] == "policies" && len(rest) > 0:
		collection, name, value, err := odata.ParseKey(rest[0])
		if err != nil {
			return rest[0], key, part, err
		}
		out, rest = append(out, strings.ToLower(collection)), rest[1:]
		switch {
		case name != "":
			key = graphKey{name, value}
			out = append(out, "{}")
		case len(rest) > 0:
			key = graphKey{"id", rest[0]}
			out, rest = append(out, "{}"), rest[1:]
		}
	case out[0] == "directory" && len(rest) > 1:
		out = append(out, strings.ToLower(rest[0]))
		if last := strings.TrimPrefix(strings.ToLower(rest[1]), "microsoft."); last == "graph.application" {
			out = append(out, last)
		} else {
			key = graphKey{"id", rest[1]}
			out = append(out, "{}")
		}
		rest = rest[2:]
	case len(rest) > 0:
		key = graphKey{"id", rest[0]}
		out = append(out, "{}")
		rest = rest[1:]
	}
	if len(rest) > 0 && (out[0] == "applications" || out[0] == "serviceprincipals") {
		collection, name, value, err := odata.ParseKey(rest[0])
		collection = strings.ToLower(collection)
		hasParts := collection == "federatedidentitycredentials" || collection == "appmanagementpolicies" || collection == "owners"
		switch {
		case err != nil:
			return rest[0], key, part, err
		case hasParts && name != "":
			part, rest = graphKey{name, value}, append([]string{collection, "{}"}, rest[1:]...)
		case hasParts && len(rest) > 1 && rest[1] != "$ref":
			part, rest = graphKey{"id", rest[1]}, append([]string{collection, "{}"}, rest[2:]...)
		}
	}
	for _, segment := range rest {
		out = append(out, strings.TrimPrefix(strings.ToLower(segment), "microsoft.graph."))
	}
	return strings.Join(out, "/"), key, part, nil
}

// graphTarget is the application ID of what the key names, empty when unknown.
func (s *Simulator) graphTarget(c *call, pattern string, key graphKey) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.ToLower(key.value)
	switch {
	case key.name == "uniqueName":
		if r := s.state.uniqueNames[uniqueKey(c.tenant, key.value)]; r != nil {
			return r.appID
		}
	case key.name == "appId":
		if s.state.clients[id] != nil {
			return id
		}
	case strings.HasPrefix(pattern, "serviceprincipals"):
		if r := s.state.principals[id]; r != nil {
			return r.appID
		}
	default:
		if r := s.state.applications[id]; r != nil {
			return r.appID
		}
	}
	return ""
}

// identifyBearer names the caller by a token. Where the state has the same
// texts they are taken from there: what the caller makes keeps them, and a copy
// of each in each thing made would be much of it.
func (s *Simulator) identifyBearer(c *call, token *accessToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.state.tenants[token.TenantID]; t != nil {
		token.TenantID = t.ID
	}
	if p := s.state.principals[token.ObjectID]; p != nil {
		token.ObjectID = p.id
	}
	// Only a known client has a generator of its own.
	if r := s.state.clients[token.AppID]; r != nil {
		token.AppID = r.appID
		c.actor = r.appID
	}
	c.token, c.tenant = token, token.TenantID
}

// What operations ask of a caller's permissions; who owns a thing is judged later.

func writeApplications(t *accessToken) bool {
	return slices.Contains(t.Roles, roleReadWriteAll) || slices.Contains(t.Roles, roleReadWriteOwnedBy)
}

func readApplications(t *accessToken) bool {
	return writeApplications(t) || slices.Contains(t.Roles, roleReadAll)
}

func writePolicies(t *accessToken) bool {
	return slices.Contains(t.Roles, rolePolicyReadWrite)
}

func readPolicies(t *accessToken) bool {
	return writePolicies(t) || slices.Contains(t.Roles, rolePolicyRead)
}

func assignPolicies(t *accessToken) bool {
	return writePolicies(t) && readApplications(t)
}

func readAssignments(t *accessToken) bool {
	return readPolicies(t) && readApplications(t)
}

// mayChange tells whether the caller may write to a thing with these owners.
func (c *call) mayChange(owners []string) bool {
	return slices.Contains(c.token.Roles, roleReadWriteAll) || slices.Contains(owners, c.token.ObjectID)
}

func graphError(c *call, status int, code, message string, details ...errorDetail) reply {
	out := jsonReply(status, map[string]any{"error": struct {
		Code    string            `json:"code"`
		Message string            `json:"message"`
		Details []errorDetail     `json:"details,omitempty"`
		Inner   map[string]string `json:"innerError"`
	}{code, message, details, map[string]string{
		"date": c.now.Format(graphErrorTime), "request-id": c.requestID, "client-request-id": c.clientRequestID,
	}}})
	out.code = code
	out.header.Set("Content-Type", "application/json")
	graphHeaders(c, out.header)
	return out
}

// errorDetail is one of the details an error may have.
type errorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Target  string `json:"target"`
}

func graphUnauthorized(c *call, err error) reply {
	message := "Access token validation failure. Invalid signature."
	switch {
	case errors.Is(err, errTokenMissing):
		message = "Access token is empty."
	case errors.Is(err, errTokenAudience):
		message = "Access token validation failure. Invalid audience."
	case errors.Is(err, errTokenExpired), errors.Is(err, errTokenTooEarly):
		message = "Lifetime validation failed, the token is expired."
	}
	out := graphError(c, http.StatusUnauthorized, "InvalidAuthenticationToken", message)
	out.header.Set("Www-Authenticate", `Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", client_id="`+graphAppID+`"`)
	return out
}

func graphHeaders(c *call, h http.Header) {
	h.Set("Request-Id", c.requestID)
	h.Set("Client-Request-Id", c.clientRequestID)
	h.Set("Date", c.now.Format(http.TimeFormat))
	h.Set("Cache-Control", "no-cache")
	h.Set("Odata-Version", "4.0")
}

func notFound(c *call, key graphKey) reply {
	return c.fail(http.StatusNotFound, codeNotFound,
		"Resource '"+clip(key.value, 256)+"' does not exist or one of its queried reference-property objects are not present.")
}

func noContent(c *call) reply {
	h := http.Header{}
	graphHeaders(c, h)
	return reply{status: http.StatusNoContent, header: h}
}

// entity answers with one thing, reduced to what $select asks for.
func (s *Simulator) entity(c *call, status int, collection string, item map[string]any) reply {
	if bad := selectProperties(c, collection, item); bad != nil {
		return *bad
	}
	item["@odata.context"] = s.origin(c) + "/v1.0/$metadata#" + collection + "/$entity"
	out := jsonReply(status, item)
	out.header.Set("Content-Type", graphContent)
	graphHeaders(c, out.header)
	return out
}

// selectProperties keeps the properties $select names, all when it names none. A
// write has been carried out by now, and is not refused for a name any more.
func selectProperties(c *call, collection string, item map[string]any) *reply {
	text := c.URL.Query().Get("$select")
	if text == "" || text == "*" {
		return nil
	}
	wanted := map[string]bool{c.URL.Query().Get("$expand"): true}
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		if _, known := item[name]; !known && c.Method == http.MethodGet {
			bad := c.fail(http.StatusBadRequest, codeBadRequest,
				"Could not find a property named '"+clip(name, 64)+"' on type 'microsoft.graph."+strings.TrimSuffix(path.Base(collection), "s")+"'.")
			return &bad
		}
		wanted[name] = true
	}
	for name := range item {
		if !wanted[name] && !strings.HasPrefix(name, "@") {
			delete(item, name)
		}
	}
	return nil
}

// decodeBody reads a JSON object, an empty one when there is no body.
func decodeBody(c *call, into any) *reply {
	body := bytes.TrimSpace(c.body)
	if len(body) == 0 {
		body = []byte("{}")
	}
	if err := json.Unmarshal(body, into); err != nil || body[0] != '{' {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Unable to read JSON request payload. Please ensure Content-Type header is set and payload is of valid JSON format.")
		return &bad
	}
	return nil
}

// unavailable is the answer when the state could not be written.
func unavailable(c *call) reply {
	return c.fail(http.StatusServiceUnavailable, "ServiceUnavailable", "The service is temporarily unavailable. Please try again later.")
}

// expired tells whether a soft-deleted thing is past its time in the bin.
func expired(deleted *time.Time, now time.Time) bool {
	return deleted != nil && now.Sub(*deleted) > keepDeletedDays*24*time.Hour
}
