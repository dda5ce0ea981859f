package runner

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/secret"
)

// errUnusable is why a message of the vault was not taken: there is nothing in it that could be served.
var errUnusable = errors.New("unusable credential")

// Credential is what a runner holds at one moment: an access token for one audience, an assertion, or a client secret, and what it
// belongs to.
type Credential struct {
	// Lease is the lease's ID in the vault. Generation grows with every delivery of the lease.
	Lease      string
	Generation int64
	// Version is the number of the integration's credential version that the token was made with, or that the secret is.
	Version int64
	// Phase is what the run is doing, Access what it may do.
	Phase  typev1.Phase
	Access typev1.Access
	// Audience is the resource that takes the token. Both are empty where something else was asked for.
	Audience string
	Token    secret.Text
	// ClientSecret is the application's secret, empty unless it was asked for.
	ClientSecret secret.Text
	// Assertion is what Entra ID exchanges for tokens, empty unless it was asked for.
	Assertion secret.Text
	// What is held was made at IssueTime, is renewed by RefreshTime, and works until ExpireTime. A client secret is not
	// renewed: its times are the grant's end.
	IssueTime   time.Time
	RefreshTime time.Time
	ExpireTime  time.Time
	// GrantExpireTime is when the grant ends, unless it is extended.
	GrantExpireTime time.Time
	// Where the token works.
	Cloud          string
	TenantID       string
	ClientID       string
	SubscriptionID string
	// Environment is what the vault wants in a child's environment. No value is a secret.
	Environment map[string]string
}

// valid reports whether what is held works at now, by this machine's clock.
func (c Credential) valid(now time.Time) bool { return now.Before(c.ExpireTime) }

// lasting is c with the token that is held, if that is as good and ends later. Each replica of the vault keeps tokens of its own: while Entra ID is away, the next one may have an older one.
func (c Credential) lasting(held Credential) Credential {
	if alike := held.Lease == c.Lease && held.Version == c.Version && held.Audience == c.Audience; alike && !c.Token.IsZero() && held.ExpireTime.After(c.ExpireTime) {
		c.Token, c.IssueTime, c.ExpireTime = held.Token, held.IssueTime, held.ExpireTime
	}
	return c
}

// newCredential takes a message of the vault apart. It is errUnusable if the material that was asked for is not in it, or
// does not work at now.
func newCredential(now time.Time, material typev1.Material, m *vaultv1.Credential) (Credential, error) {
	token, clientSecret, assertion := m.GetAccessToken(), m.GetClientSecret(), m.GetFederatedToken()
	switch {
	case material == typev1.Material_MATERIAL_CLIENT_SECRET && clientSecret.GetSecret() == "":
		return Credential{}, fmt.Errorf("%w: no client secret in it", errUnusable)
	case material == typev1.Material_MATERIAL_FEDERATED_TOKEN && assertion.GetToken() == "":
		return Credential{}, fmt.Errorf("%w: no assertion in it", errUnusable)
	case material == typev1.Material_MATERIAL_ACCESS_TOKEN && (token.GetToken() == "" || token.GetAudience() == ""):
		return Credential{}, fmt.Errorf("%w: no access token in it", errUnusable)
	case m.GetExpireTime().CheckValid() != nil:
		return Credential{}, fmt.Errorf("%w: no expire_time", errUnusable)
	case !now.Before(m.GetExpireTime().AsTime()):
		return Credential{}, fmt.Errorf("%w: it had expired when it came (or this machine's clock is ahead)", errUnusable)
	}
	c := Credential{
		Lease:          m.GetLease(),
		Generation:     m.GetGeneration(),
		Version:        m.GetCredentialVersion(),
		Phase:          m.GetPhase(),
		Access:         m.GetAccess(),
		Audience:       token.GetAudience(),
		Token:          secret.New(token.GetToken()),
		ClientSecret:   secret.New(clientSecret.GetSecret()),
		Assertion:      secret.New(assertion.GetToken()),
		ExpireTime:     m.GetExpireTime().AsTime(),
		Cloud:          m.GetCloud(),
		TenantID:       m.GetTenantId(),
		ClientID:       m.GetClientId(),
		SubscriptionID: m.GetSubscriptionId(),
		Environment:    maps.Clone(m.GetEnvironment()),
	}
	if m.GetIssueTime().IsValid() {
		c.IssueTime = m.GetIssueTime().AsTime()
	}
	c.RefreshTime = c.ExpireTime
	if t := m.GetRefreshTime(); t.IsValid() && t.AsTime().Before(c.ExpireTime) {
		c.RefreshTime = t.AsTime()
	}
	if m.GetGrantExpireTime().IsValid() {
		c.GrantExpireTime = m.GetGrantExpireTime().AsTime()
	}
	return c, nil
}

// resourceManagerAliases are the older names of the clouds' Resource Managers, which SDKs still ask for. A token for the
// one works at the other.
var resourceManagerAliases = map[string]string{
	"https://management.core.windows.net":       "https://management.azure.com",
	"https://management.core.usgovcloudapi.net": "https://management.usgovcloudapi.net",
	"https://management.core.chinacloudapi.cn":  "https://management.chinacloudapi.cn",
}

// canonicalAudience gives the audiences that mean the same service one name. SDKs disagree about the trailing slash.
func canonicalAudience(audience string) string {
	a := strings.TrimSuffix(audience, "/")
	if name, ok := resourceManagerAliases[strings.ToLower(a)]; ok {
		return name
	}
	if id := strings.ToLower(a); audiencePattern.MatchString(id) && !strings.Contains(id, "://") {
		return id // an application's, which are the same in both cases
	}
	return a
}
