package entrasim

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Consent is what an administrator does on the consent page.
type Consent struct {
	Tenant      string `json:"tenant"` // ID, domain, or organizations
	ClientID    string `json:"clientId"`
	RedirectURI string `json:"redirectUri"`
	// Scope is https://graph.microsoft.com/.default when empty.
	Scope    string `json:"scope"`
	State    string `json:"state"`
	UserName string `json:"userName"`
	Decline  bool   `json:"decline"`
	// V1 goes through the older page, which takes no scope and sends the
	// browser back with other parameters.
	V1 bool `json:"v1"`
}

// ConsentError is a consent page that showed an error instead of sending the
// browser back.
type ConsentError struct {
	Status int
	Code   string // such as AADSTS50011
}

// Error names the code.
func (e *ConsentError) Error() string {
	return fmt.Sprintf("consent page answered %d %s", e.Status, e.Code)
}

// Consent goes through the consent page as a browser would, and returns where
// the page sends it: to the redirect URI, with the outcome in its query. A page
// that keeps the browser is a *ConsentError.
func (s *Simulator) Consent(ctx context.Context, n Consent) (string, error) {
	if n.Scope == "" {
		n.Scope = "https://graph.microsoft.com/.default"
	}
	decision := "accept"
	if n.Decline {
		decision = "cancel"
	}
	form := url.Values{
		"client_id": {n.ClientID}, "redirect_uri": {n.RedirectURI}, "scope": {n.Scope},
		"username": {n.UserName}, "decision": {decision},
	}
	if n.State != "" {
		form.Set("state", n.State)
	}
	where := s.config.endpoints().Login + "/" + url.PathEscape(n.Tenant) + "/v2.0/adminconsent"
	if n.V1 {
		where = s.config.endpoints().Login + "/" + url.PathEscape(n.Tenant) + "/adminconsent"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, where, strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("consent in tenant %q: %w: %w", n.Tenant, ErrInvalid, err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := s.serve(r, PlaneLogin)
	switch {
	case err != nil:
		return "", fmt.Errorf("consent in tenant %q: %w", n.Tenant, err)
	case answer.cut || answer.short:
		return "", fmt.Errorf("consent in tenant %q: %w", n.Tenant, io.ErrUnexpectedEOF)
	case answer.status != http.StatusFound:
		return "", &ConsentError{Status: answer.status, Code: answer.code}
	}
	return answer.header.Get("Location"), nil
}

// consentRequest is a consent under way, as far as the request has been checked.
type consentRequest struct {
	Tenant      *tenantRecord // nil while it is to be the signed-in person's
	App         *application
	Publisher   *tenantRecord
	RedirectURI string
	Scope       string
	State       string
	Person      *Person
}

// adminConsent is GET and POST /{tenant}/v2.0/adminconsent, and the older
// /{tenant}/adminconsent. The page keeps nothing between its steps: each form
// carries all that is needed.
func (s *Simulator) adminConsent(c *call) reply {
	form, bad := c.consentForm()
	if bad != nil {
		return consentProblem(c, *bad)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, bad := s.checkConsent(c, form)
	if bad != nil {
		return consentProblem(c, *bad)
	}
	userName := strings.TrimSpace(form.Get("username"))
	if userName == "" {
		return signInPage(c, q, "")
	}
	q.Person = s.state.person(userName)
	if q.Person == nil {
		return signInPage(c, q, "We couldn't find an account with that username. AADSTS50034")
	}
	if q.Tenant == nil {
		q.Tenant = s.state.tenants[q.Person.Tenant]
		if bad := q.checkAudience(); bad != nil {
			return consentProblem(c, *bad)
		}
	}
	c.tenant, c.tenantName = q.Tenant.ID, q.Tenant.DisplayName
	switch {
	case c.restricted(q.Tenant.Tenant):
		return consentProblem(c, c.problem("500021"))
	case q.Person.Tenant != q.Tenant.ID:
		return consentProblem(c, problem{http.StatusBadRequest, "interaction_required", "50020",
			"User account '" + q.Person.UserName + "' from identity provider '" + issuerPrefix + q.Person.Tenant + "/' does not exist in tenant '" + q.Tenant.DisplayName +
				"' and cannot access the application '" + q.App.AppID + "'(" + q.App.Set.DisplayName + ") in that tenant. The account needs to be added as an external user in the tenant first. Sign out and sign in again with a different Azure Active Directory user account."})
	case !q.Person.Admin && q.Tenant.ConsentWorkflow:
		return consentProblem(c, c.problem("90095"))
	case !q.Person.Admin:
		return consentProblem(c, problem{http.StatusForbidden, "interaction_required", "90094",
			"Need admin approval: " + q.App.Set.DisplayName + " needs permission to access resources in your organization that only an admin can grant. Please ask an admin to grant permission to this app before you can use it."})
	}
	if code := q.Tenant.blocked(q.App.AppID); code != "" {
		return consentProblem(c, c.problem(code))
	}
	if bad := s.checkResources(c, q); bad != nil {
		return consentTrouble(c, q, *bad)
	}
	switch form.Get("decision") {
	case "accept":
		return s.acceptConsent(c, q)
	case "cancel":
		return consentTrouble(c, q, c.problem("65004"))
	default:
		return consentPage(c, q)
	}
}

// consentForm is what a step of the page was sent.
func (c *call) consentForm() (url.Values, *problem) {
	form := c.URL.Query()
	switch c.Method {
	case http.MethodGet, http.MethodHead:
		// Following a link decides nothing.
		form.Del("decision")
		form.Del("username")
	case http.MethodPost:
		posted, err := url.ParseQuery(string(c.body))
		if err != nil {
			bad := missingParameter("client_id")
			return nil, &bad
		}
		maps.Copy(form, posted)
	default:
		return nil, &problem{http.StatusMethodNotAllowed, "invalid_request", "900561",
			"The endpoint only accepts GET, POST requests. Received a " + clip(c.Method, 16) + " request."}
	}
	return form, nil
}

// consentTrouble ends a consent: the browser is sent back with the problem or
// stays on the page, depending on which it is.
func consentTrouble(c *call, q *consentRequest, p problem) reply {
	if !knownProblems()[p.code].redirects {
		return consentProblem(c, p)
	}
	return consentRedirect(c, q, &p)
}

// consentTrouble is the same for a request that has not been looked at: it is
// sent nowhere but where a good one would be.
func (s *Simulator) consentTrouble(c *call, p problem) reply {
	form, bad := c.consentForm()
	if bad != nil {
		return consentProblem(c, *bad)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, bad := s.checkConsent(c, form)
	if bad != nil {
		return consentProblem(c, *bad)
	}
	return consentTrouble(c, q, p)
}

// checkResources judges the permissions that the application asks for: of
// resources that are in the tenant, and at least one of Graph. Graph and
// Resource Manager are in every tenant, other applications where they have a
// principal.
func (s *Simulator) checkResources(c *call, q *consentRequest) *problem {
	code, graph := "", false
	for _, r := range q.App.Set.RequiredResourceAccess {
		id := strings.ToLower(r.ResourceAppID)
		graph = graph || id == graphAppID
		here, app := q.Tenant.principal[id], s.state.clients[id]
		switch {
		case code != "" || id == graphAppID || id == armAppID:
		case app != nil && (app.latest() == nil || app.latest().Deleted != nil):
			code = "650054"
		case here == nil || here.latest().Deleted != nil:
			code = "650052"
		}
	}
	switch {
	case len(q.App.Set.RequiredResourceAccess) == 0:
		code = "650056"
	case code == "" && !graph:
		code = "90008"
	case code == "":
		return nil
	}
	bad := c.problem(code)
	return &bad
}

// checkConsent judges what can be judged before anybody signs in, as the replica
// sees the application.
func (s *Simulator) checkConsent(c *call, form url.Values) (*consentRequest, *problem) {
	q := &consentRequest{RedirectURI: form.Get("redirect_uri"), Scope: form.Get("scope"), State: form.Get("state")}
	name := strings.ToLower(c.path[0])
	if name != "organizations" && (name != "common" || !c.isV1()) {
		if q.Tenant = s.state.tenant(name); q.Tenant == nil {
			return nil, &problem{http.StatusBadRequest, "invalid_request", "90002", tenantNotFound(c.path[0])}
		}
	}
	for _, p := range []string{"client_id", "scope", "redirect_uri"} {
		if form.Get(p) == "" && (p != "scope" || !c.isV1()) {
			bad := missingParameter(p)
			return nil, &bad
		}
	}
	id := strings.ToLower(form.Get("client_id"))
	if r := s.state.clients[id]; r != nil {
		q.App = r.seen(PlaneLogin, c.replica, c.now)
	}
	if q.App == nil || q.App.Deleted != nil {
		directory := name
		if q.Tenant != nil {
			directory = q.Tenant.DisplayName
		}
		return nil, &problem{http.StatusBadRequest, "unauthorized_client", "700016",
			"Application with identifier '" + clip(id, 64) + "' was not found in the directory '" + directory +
				"'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."}
	}
	q.Publisher = s.state.tenants[q.App.Tenant]
	set := q.App.Set
	known := slices.Concat(set.Web.RedirectURIs, set.SPA.RedirectURIs, set.PublicClient.RedirectURIs)
	if !slices.Contains(known, q.RedirectURI) {
		return nil, &problem{http.StatusBadRequest, "invalid_request", "50011",
			"The redirect URI '" + clip(q.RedirectURI, 256) + "' specified in the request does not match the redirect URIs configured for the application '" + id +
				"'. Make sure the redirect URI sent in the request matches one added to your application in the Azure portal. Navigate to https://aka.ms/redirectUriMismatchError to learn more about how to troubleshoot this error."}
	}
	if q.Tenant != nil {
		return q, q.checkAudience()
	}
	return q, nil
}

// checkAudience refuses an application of one tenant in another.
func (q *consentRequest) checkAudience() *problem {
	if q.Tenant.ID == q.App.Tenant || q.App.Set.SignInAudience != "AzureADMyOrg" {
		return nil
	}
	return &problem{http.StatusBadRequest, "invalid_request", "50194",
		"Application '" + q.App.AppID + "'(" + q.App.Set.DisplayName + ") is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps created after '10/15/2018'. Use a tenant-specific endpoint or configure the application to be multi-tenant."}
}

// acceptConsent makes the principal, or finds it made already.
func (s *Simulator) acceptConsent(c *call, q *consentRequest) reply {
	roles := grantedRoles(q.App)
	kind, p, known := "principal.created", (*principal)(nil), (*principalRecord)(nil)
	if r := q.Tenant.principal[q.App.AppID]; r != nil && r.latest().Deleted == nil {
		if s.config.ConsentRace && !r.versions[0].visible.everywhere(c.now) {
			return consentTrouble(c, q, c.problem("650051"))
		}
		old := *r.latest()
		if sameRoles(old.Roles, roles) {
			return consentRedirect(c, q, nil)
		}
		old.Roles = roles
		kind, p, known = "principal.updated", &old, r
	}
	dice := s.dice.Of(c.actor)
	if p == nil && !s.roomFor(q.Tenant, c.now) {
		return consentTrouble(c, q, c.problem("90093"))
	}
	if p == nil {
		p = &principal{
			ID: dice.UUID(), Tenant: q.Tenant.ID, AppID: q.App.AppID, HomeTenant: q.App.Tenant, DisplayName: q.App.Set.DisplayName,
			AccountEnabled: true, Created: c.now, ReplyURLs: q.App.Set.Web.RedirectURIs, Roles: roles,
		}
	}
	visible := s.principalLag(dice, c.now, s.config.Lags.Principal)
	if known != nil {
		visible = known.follow(c.now, visible)
	}
	err := s.commit(&change{Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Principal: p, Visible: visible})
	if err != nil {
		return consentProblem(c, c.problem("90033"))
	}
	return consentRedirect(c, q, nil)
}

// grantedRoles are the application permissions that consenting grants.
func grantedRoles(a *application) map[string][]string {
	names := graphRoles()
	var out map[string][]string
	for _, r := range a.Set.RequiredResourceAccess {
		for _, access := range r.ResourceAccess {
			if name := names[access.ID]; r.ResourceAppID == graphAppID && access.Type == "Role" && name != "" {
				if out == nil {
					out = make(map[string][]string)
				}
				out[graphAppID] = append(out[graphAppID], name)
			}
		}
	}
	return out
}

func sameRoles(a, b map[string][]string) bool {
	return slices.Equal(a[graphAppID], b[graphAppID])
}

// consentRedirect sends the browser back, with the documented parameters and no
// others: of the outcome, and the state if there was one.
func consentRedirect(c *call, q *consentRequest, bad *problem) reply {
	code := ""
	if bad != nil {
		code = "AADSTS" + bad.code
	}
	query := q.outcome(c, bad)
	glue := "?"
	if strings.Contains(q.RedirectURI, "?") {
		glue = "&"
	}
	return reply{
		status: http.StatusFound, code: code,
		header: http.Header{"Location": {q.RedirectURI + glue + query}, "Cache-Control": {"no-store"}, "X-Ms-Request-Id": {c.requestID}},
	}
}

// outcome is the query the browser takes back. The older page says nothing of
// the state when the administrator declines.
func (q *consentRequest) outcome(c *call, bad *problem) string {
	state := ""
	if q.State != "" {
		state = "&state=" + url.QueryEscape(q.State)
	}
	switch {
	case bad == nil && c.isV1():
		return "tenant=" + q.Tenant.ID + state + "&admin_consent=True"
	case bad == nil:
		return "admin_consent=True&tenant=" + q.Tenant.ID + "&scope=" + url.QueryEscape(q.Scope) + state
	case c.isV1() && bad.code == "65004":
		return "error=permission_denied&error_description=" + url.QueryEscape("The admin canceled the request")
	case c.isV1():
		return "error=" + url.QueryEscape(bad.oauth) + "&error_description=" + url.QueryEscape(bad.description(c)) + state
	default:
		return "admin_consent=True&error=" + url.QueryEscape(bad.oauth) + "&error_description=" + url.QueryEscape(bad.description(c)) + state
	}
}
