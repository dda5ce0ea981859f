package entrasim

import (
	"net/http"
	"strings"
	"time"
)

// known is how the login plane says a code whose words do not depend on the
// request, beyond the names of the application and the tenant.
type known struct {
	status int
	oauth  string
	text   string // {id} and {name} are the application's, {tenant} is the tenant's name
	// retryAfter is sent with it.
	retryAfter time.Duration
	// redirects: the consent page does not show it, but sends the browser back with it.
	redirects bool
}

// knownProblems are the codes that a fault may name without saying more. Texts
// are those of Microsoft's list of error codes, or as reported; the README says
// how sure the statuses are.
func knownProblems() map[string]known {
	const (
		again       = "A transient error has occurred. Please try again."
		unavailable = "The service is temporarily unavailable."
		temporary   = "temporarily_unavailable"
		grant       = "invalid_grant"
		client      = "invalid_client"
		denied      = "access_denied"
		interaction = "interaction_required"
		bad         = http.StatusBadRequest
		busy        = http.StatusServiceUnavailable
		notAllowed  = "Access to '{tenant}' tenant is denied."
	)
	return map[string]known{
		"90055":   {status: http.StatusTooManyRequests, oauth: temporary, text: "The server has terminated the request due to excessive request rate."},
		"90006":   {status: busy, oauth: temporary, text: unavailable},
		"90012":   {status: http.StatusGatewayTimeout, oauth: temporary, text: "The request has timed out."},
		"90024":   {status: busy, oauth: temporary, text: again},
		"90033":   {status: busy, oauth: temporary, text: again},
		"90090":   {status: busy, oauth: temporary, text: unavailable},
		"1000031": {status: bad, oauth: "unauthorized_client", text: "Application {name} cannot be accessed at this time. Contact your administrator."},
		"50196": {
			status: http.StatusTooManyRequests, oauth: grant, retryAfter: time.Minute,
			text: "The server terminated an operation because it encountered a client request loop. Please contact your app vendor.",
		},
		"53003":  {status: bad, oauth: grant, text: "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance."},
		"530032": {status: bad, oauth: grant, text: "The tenant admin has configured a security policy that blocks this request. Check the security policies that are defined on the tenant level to determine if your request meets the policy requirements."},
		"65001":  {status: bad, oauth: grant, text: "The user or administrator has not consented to use the application with ID '{id}' named '{name}'. Send an interactive authorization request for this user and resource."},
		"70001":  {status: bad, oauth: "unauthorized_client", text: "Application '{id}' is disabled."},
		"900384": {status: bad, oauth: "invalid_request", text: "JWT token failed signature validation."},
		"500021": {status: bad, oauth: denied, text: notAllowed},
		"500022": {status: bad, oauth: denied, text: notAllowed},

		"65004":  {status: bad, oauth: "consent_required", redirects: true, text: "User declined to consent to access the app."},
		"650051": {status: bad, oauth: client, redirects: true, text: "The application '{id}' could not be added: the service principal name is already present for the tenant {tenant}."},
		"650052": {status: bad, oauth: client, redirects: true, text: "The app needs access to a service that your organization '{tenant}' has not subscribed to or enabled. Contact your IT Admin to review the configuration of your service subscriptions."},
		"650054": {status: bad, oauth: client, redirects: true, text: "The application asked for permissions to access a resource that has been removed or is no longer available. Make sure that all resources the app is calling are present in the tenant you're operating in."},
		"650056": {
			status: bad, oauth: client, redirects: true,
			text: "Misconfigured application. This could be due to one of the following: the client has not listed any permissions in the requested permissions in the client's application registration. Or, the admin has not consented in the tenant. Or, check the application identifier in the request to ensure it matches the configured client application identifier. Please contact your admin to fix the configuration or consent on behalf of the tenant. Client app ID: {id}.",
		},
		"90093": {status: bad, oauth: denied, redirects: true, text: "The directory object quota limit for the Tenant has been exceeded. Please ask your administrator to increase the quota limit or delete objects to reduce the used quota."},
		"90008": {status: bad, oauth: "invalid_request", text: "The user or administrator has not consented to use the application with ID '{id}'. This happened because application is misconfigured: it must require access to Microsoft Graph by specifying at least 'Sign in and read user profile' permission."},
		"90072": {status: bad, oauth: interaction, text: "User account does not exist in tenant '{tenant}' and cannot access the application '{id}'({name}) in that tenant. The account needs to be added as an external user in the tenant first. Sign out and sign in again with a different Azure Active Directory user account."},
		"90095": {status: http.StatusForbidden, oauth: interaction, text: "Approval required: {name} needs an admin's approval. Send a request to your admins, who review it in the admin consent workflow."},
	}
}

// problem says a known code to the caller.
func (c *call) problem(code string) problem {
	k := knownProblems()[code]
	return problem{status: k.status, oauth: k.oauth, code: code, text: c.fill(k.text)}
}

func (c *call) fill(text string) string {
	return strings.NewReplacer("{id}", c.application, "{name}", c.applicationName, "{tenant}", c.tenantName).Replace(text)
}

// oauthOf is the OAuth error that goes with a code, or else with a status.
func oauthOf(code string, status int) string {
	if k, found := knownProblems()[code]; found {
		return k.oauth
	}
	if status == http.StatusTooManyRequests || status >= http.StatusInternalServerError {
		return "temporarily_unavailable"
	}
	return "invalid_request"
}

// restricted tells whether a proxy on the caller's way lets it reach only other
// tenants: it adds a header that lists those it permits, by ID or domain name.
func (c *call) restricted(t Tenant) bool {
	lists := c.Header.Values("Restrict-Access-To-Tenants")
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); strings.EqualFold(name, t.ID) || strings.EqualFold(name, t.Domain) {
				return false
			}
		}
	}
	return len(lists) > 0
}
