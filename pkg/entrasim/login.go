package entrasim

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	stamp   = "2006-01-02 15:04:05Z"
)

// routeLogin names a login request's operation and who asks.
func (s *Simulator) routeLogin(c *call) {
	c.fail = func(status int, code, message string) reply {
		return loginError(c, problem{status: status, oauth: oauthOf(code, status), code: code, text: message})
	}
	c.operation, c.run = "login.unknown", func(c *call) reply {
		return loginError(c, problem{http.StatusNotFound, "invalid_request", "90015", "The requested address is not known here."})
	}
	tenant, rest := "", ""
	if len(c.path) > 0 {
		tenant, rest = c.path[0], strings.ToLower(strings.Join(c.path[1:], "/"))
	}
	c.tenant = clip(tenant, 64)
	c.tenantName = c.tenant
	s.mu.Lock()
	if t := s.state.tenant(tenant); t != nil {
		c.tenant, c.tenantName = t.ID, t.DisplayName
	}
	s.mu.Unlock()
	only := func(method, operation string, run func(*call) reply) {
		c.operation, c.run = operation, run
		if c.Method != method && (method != http.MethodGet || c.Method != http.MethodHead) {
			c.run = func(c *call) reply {
				return loginError(c, problem{http.StatusMethodNotAllowed, "invalid_request", "900561",
					"The endpoint only accepts " + method + " requests. Received a " + clip(c.Method, 16) + " request."})
			}
		}
	}
	switch rest {
	case "oauth2/v2.0/token", "oauth2/token":
		only(http.MethodPost, "login.token", s.token)
		s.identifyClient(c)
	case "v2.0/.well-known/openid-configuration":
		only(http.MethodGet, "login.configuration", s.openIDConfiguration)
	case "discovery/v2.0/keys":
		only(http.MethodGet, "login.keys", s.keys)
	case "discovery/instance":
		only(http.MethodGet, "login.instance", s.instanceDiscovery)
	case "v2.0/adminconsent", "adminconsent":
		c.operation, c.run = "login.adminconsent", s.adminConsent
		c.fail = func(status int, code, message string) reply {
			return s.consentTrouble(c, problem{status: status, oauth: oauthOf(code, status), code: code, text: message})
		}
		s.identifyClient(c)
	}
}

// identifyClient finds who asks, as far as the request says so.
func (s *Simulator) identifyClient(c *call) {
	id := c.URL.Query().Get("client_id")
	if c.Method == http.MethodPost {
		if form, err := url.ParseQuery(string(c.body)); err == nil {
			id = form.Get("client_id")
		}
		if user, _, ok := basicAuth(c); ok && id == "" {
			id = user
		}
	}
	id = strings.ToLower(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Only known clients get a generator: strangers could name any number.
	if r := s.state.clients[id]; r != nil {
		c.actor, c.application = id, id
		if a := r.latest(); a != nil {
			c.applicationName = a.Set.DisplayName
		}
	}
}

// basicAuth returns the client of an Authorization header, form-decoded as
// OAuth wants it.
func basicAuth(c *call) (id, secret string, ok bool) {
	user, pass, ok := c.BasicAuth()
	if !ok {
		return "", "", false
	}
	if v, err := url.QueryUnescape(user); err == nil {
		user = v
	}
	if v, err := url.QueryUnescape(pass); err == nil {
		pass = v
	}
	return user, pass, true
}

// isV1 tells whether a login request is to the older kind of endpoint.
func (c *call) isV1() bool {
	return !slices.ContainsFunc(c.path[1:], func(segment string) bool { return strings.EqualFold(segment, "v2.0") })
}

// token is POST /{tenant}/oauth2/v2.0/token, which is asked for a scope, and
// /{tenant}/oauth2/token, which is asked for a resource.
func (s *Simulator) token(c *call) reply {
	form, err := url.ParseQuery(string(c.body))
	if err != nil {
		return loginError(c, missingParameter("grant_type"))
	}
	id, text := form.Get("client_id"), form.Get("client_secret")
	if user, pass, ok := basicAuth(c); ok && text == "" {
		id, text = user, pass
	}
	grant := form.Get("grant_type")
	switch {
	case grant == "":
		return loginError(c, missingParameter("grant_type"))
	case id == "":
		return loginError(c, missingParameter("client_id"))
	case grant != "client_credentials":
		return loginError(c, problem{http.StatusBadRequest, "unsupported_grant_type", "70003",
			"The app requested an unsupported grant type '" + clip(grant, 64) + "'."})
	}
	audience, bad := form.Get("resource"), (*problem)(nil)
	switch {
	case c.isV1() && audience == "":
		return loginError(c, missingParameter("resource"))
	case !c.isV1() && audience != "":
		return loginError(c, problem{http.StatusBadRequest, "invalid_request", "901002", "The 'resource' request parameter is not supported."})
	case !c.isV1():
		audience, bad = audienceOf(form.Get("scope"))
	}
	if bad != nil {
		return loginError(c, *bad)
	}
	proof := proof{secret: text, kind: form.Get("client_assertion_type"), assertion: form.Get("client_assertion")}
	p, bad := s.authenticate(c, strings.ToLower(id), proof)
	if s.looped(c, audience, proof) {
		out := loginError(c, c.problem("50196"))
		retryAfter(out.header, knownProblems()["50196"].retryAfter)
		return out
	}
	if bad != nil {
		return loginError(c, *bad)
	}
	r := s.findResource(audience)
	if r == nil {
		return loginError(c, problem{http.StatusBadRequest, "invalid_resource", "500011",
			"The resource principal named " + clip(audience, 256) + " was not found in the tenant named " + c.tenant +
				". This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant."})
	}
	access, claims, err := s.mint(s.dice.Of(c.actor), c.now, p, proof, r, audience)
	if err != nil {
		s.config.Log.Error("token cannot be signed", "error", err)
		return loginError(c, c.problem("90033"))
	}
	life := claims.Expires - claims.IssuedAt - 1
	granted := map[string]any{"token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": access}
	if c.isV1() {
		number := func(n int64) string { return strconv.FormatInt(n, 10) }
		granted = map[string]any{
			"token_type": "Bearer", "expires_in": number(life), "ext_expires_in": number(life), "expires_on": number(claims.Expires),
			"not_before": number(claims.From), "resource": audience, "access_token": access,
		}
	}
	out := jsonReply(http.StatusOK, granted)
	loginHeaders(c, out.header)
	return out
}

// proof is what a client proves itself by.
type proof struct {
	secret          string
	kind, assertion string // of a client assertion
}

// asserted tells whether the proof is a client assertion, good or bad.
func (p proof) asserted() bool {
	return p.kind != "" || p.assertion != ""
}

// client is who a token request claims to come from, as the token service's
// replica sees it: a snapshot, for proving it may take a while.
type client struct {
	tenant    Tenant
	app       *application
	secrets   []*secret    // the application's, and its principal's own
	federated []*federated // those the replica knows
	coming    []*federated // those that have been committed
	principal *principal
	// missing is what is wrong with the principal.
	missing *problem
	// blocked is the code by which the tenant refuses it all the same, if it does.
	blocked string
}

// authenticate finds the principal that the proof speaks for, as the token
// service's replica sees it.
func (s *Simulator) authenticate(c *call, id string, p proof) (*principal, *problem) {
	who, bad := s.findClient(c, id)
	if bad != nil {
		return nil, bad
	}
	if who.missing != nil && !s.config.SecretBeforePrincipal {
		return nil, who.missing
	}
	if bad := s.prove(c, who, p); bad != nil {
		return nil, bad
	}
	if who.missing != nil {
		return nil, who.missing
	}
	if who.blocked != "" {
		bad := c.problem(who.blocked)
		return nil, &bad
	}
	return who.principal, nil
}

// prove checks the proof, and names the credential it is by.
func (s *Simulator) prove(c *call, who *client, p proof) *problem {
	switch {
	case p.asserted() && p.kind == "":
		bad := missingParameter("client_assertion_type")
		return &bad
	case p.asserted() && p.kind != jwtBearer:
		return &problem{http.StatusBadRequest, "invalid_request", "90100", "client_assertion_type parameter is empty or not valid."}
	case p.asserted() && p.assertion == "":
		bad := missingParameter("client_assertion")
		return &bad
	case p.asserted():
		return s.checkAssertion(c, who, p.assertion)
	case p.secret == "" && !c.isV1():
		return invalidClient("7000216", "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.")
	case p.secret == "":
		return invalidClient("7000218", "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	}
	return checkSecret(c, who, p.secret)
}

func (s *Simulator) findClient(c *call, id string) (*client, *problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(c.path[0])
	if t == nil {
		return nil, &problem{http.StatusBadRequest, "invalid_request", "90002", tenantNotFound(c.path[0])}
	}
	if c.restricted(t.Tenant) {
		bad := c.problem("500021")
		return nil, &bad
	}
	unknown := &problem{http.StatusBadRequest, "unauthorized_client", "700016",
		"Application with identifier '" + clip(id, 64) + "' was not found in the directory '" + t.DisplayName +
			"'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."}
	app := s.state.clients[id]
	if app == nil {
		return nil, unknown
	}
	who := &client{tenant: t.Tenant, app: app.seen(PlaneLogin, c.replica, c.now), secrets: app.secrets, blocked: t.blocked(id)}
	if who.app == nil || who.app.Deleted != nil {
		return nil, unknown
	}
	if r := t.principal[id]; r != nil {
		who.principal = r.seen(PlaneLogin, c.replica, c.now)
		who.secrets = slices.Concat(app.secrets, r.secrets)
	}
	absent := who.principal == nil || who.principal.Deleted != nil
	switch {
	case absent && who.app.Tenant != t.ID:
		return nil, unknown
	case absent:
		who.missing = invalidClient("7000229", "The client application '"+id+"' is missing service principal in the tenant '"+t.ID+
			"'. See instructions here: https://go.microsoft.com/fwlink/?linkid=2225119 to create one.")
	case !who.principal.AccountEnabled:
		who.missing = &problem{http.StatusBadRequest, "unauthorized_client", "7000112", "Application '" + id + "'(" + who.principal.DisplayName + ") is disabled."}
	}
	for _, r := range app.federated {
		if f := r.seen(PlaneLogin, c.replica, c.now); f != nil {
			who.federated = append(who.federated, f)
		}
		if f := r.latest(); f != nil {
			who.coming = append(who.coming, f)
		}
	}
	return who, nil
}

// checkSecret finds the secret that the text is, among those the replica knows.
func checkSecret(c *call, who *client, text string) *problem {
	var found *secret
	for _, sec := range who.secrets {
		if sec.is(text) && sec.known(c.replica, c.now) {
			found = sec
		}
	}
	if found != nil {
		c.keyID = found.KeyID
	}
	switch {
	case found == nil || c.now.Before(found.Start):
		return invalidClient("7000215", "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '"+who.app.AppID+"'.")
	case !c.now.Before(found.End):
		return invalidClient("7000222", "The provided client secret keys for app '"+who.app.AppID+"' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds.")
	}
	return nil
}

// is compares in constant time.
func (sec *secret) is(text string) bool {
	return subtle.ConstantTimeCompare(hashSecret(sec.Salt, text), sec.Hash) == 1
}

func hashSecret(salt []byte, text string) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// known tells whether a replica of the token service has the secret.
func (sec *secret) known(replica int, now time.Time) bool {
	return sec.Added.At(replica, now) && (!sec.Gone || !sec.Removed.At(replica, now))
}

// audienceOf reads a client credentials scope: one resource, its defaults.
func audienceOf(scope string) (string, *problem) {
	// MSAL adds the OpenID scopes to every request; without a person they mean nothing.
	scopes := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return s == "openid" || s == "profile" || s == "offline_access"
	})
	switch {
	case len(scopes) == 0:
		p := missingParameter("scope")
		return "", &p
	case len(scopes) > 1:
		return "", &problem{http.StatusBadRequest, "invalid_scope", "700022",
			"The provided value for the input parameter scope is not valid because it contains more than one resource."}
	}
	audience, ok := strings.CutSuffix(scopes[0], "/.default")
	if !ok || audience == "" {
		return "", &problem{http.StatusBadRequest, "invalid_scope", "70011",
			"The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope " + clip(scope, 256) + " is not valid."}
	}
	return audience, nil
}

// problem is an error of the login plane.
type problem struct {
	status int
	oauth  string // the OAuth error
	code   string // the AADSTS number
	text   string
}

func missingParameter(name string) problem {
	return problem{http.StatusBadRequest, "invalid_request", "900144", "The request body must contain the following parameter: '" + name + "'."}
}

func tenantNotFound(tenant string) string {
	return "Tenant '" + clip(tenant, 64) + "' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant."
}

// description is the text with everything support would ask for.
func (p problem) description(c *call) string {
	return fmt.Sprintf("AADSTS%s: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
		p.code, p.text, c.requestID, c.clientRequestID, c.now.Format(stamp))
}

func loginError(c *call, p problem) reply {
	number, err := strconv.Atoi(p.code)
	codes := []int{number}
	if err != nil { // a fault may name any code
		codes = []int{}
	}
	out := jsonReply(p.status, struct {
		Error         string `json:"error"`
		Description   string `json:"error_description"`
		Codes         []int  `json:"error_codes"`
		Timestamp     string `json:"timestamp"`
		TraceID       string `json:"trace_id"`
		CorrelationID string `json:"correlation_id"`
		URI           string `json:"error_uri"`
	}{
		p.oauth, p.description(c), codes, c.now.Format(stamp), c.requestID, c.clientRequestID,
		"https://login.microsoftonline.com/error?code=" + p.code,
	})
	out.code = "AADSTS" + p.code
	loginHeaders(c, out.header)
	return out
}

func loginHeaders(c *call, h http.Header) {
	h.Set("Cache-Control", "no-store, no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("X-Ms-Request-Id", c.requestID)
	if c.Header.Get("client-request-id") != "" {
		h.Set("Client-Request-Id", c.clientRequestID)
	}
}

// jsonReply encodes a value that is known to encode.
func jsonReply(status int, value any) reply {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{}`)
	}
	return reply{status: status, header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}, body: body}
}
