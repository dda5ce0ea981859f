package entrasim

import (
	"context"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // x5t is an SHA-1 thumbprint by its definition
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	jwtBearer    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" //nolint:gosec // a type, no secret
	maxAssertion = 1 << 16                                                  // bytes
	earliness    = 5 * time.Minute                                          // how long before its beginning an assertion is taken

	certificateHelp = "Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials ."
	federationHelp  = "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
)

// assertion is a client assertion as it was sent, its signature not verified.
type assertion struct {
	jwt.RegisteredClaims

	token  *jwt.Token
	signed string // what the signature is of
}

func invalidClient(code, text string) *problem {
	return &problem{http.StatusUnauthorized, "invalid_client", code, text}
}

// invalidJWT is about a token's form.
func invalidJWT(text string) *problem {
	return &problem{http.StatusBadRequest, "invalid_request", "50027", "JWT token is invalid or malformed. " + text}
}

func readAssertion(text string) (*assertion, *problem) {
	if len(text) > maxAssertion {
		return nil, invalidJWT("It is too long.")
	}
	a := &assertion{}
	token, parts, err := jwt.NewParser().ParseUnverified(text, &a.RegisteredClaims)
	switch {
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return nil, unsupportedAlgorithm(token)
	case err != nil:
		return nil, invalidJWT("It cannot be read.")
	case token.Header["crit"] != nil:
		return nil, invalidJWT("It has critical headers that are not understood.")
	case a.Issuer == "" || a.Subject == "" || len(a.Audience) == 0 || a.ExpiresAt == nil:
		return nil, invalidJWT("It must have the claims iss, sub, aud and exp.")
	}
	a.token, a.signed = token, parts[0]+"."+parts[1]
	return a, nil
}

func unsupportedAlgorithm(token *jwt.Token) *problem {
	name, _ := token.Header["alg"].(string)
	return &problem{http.StatusBadRequest, "invalid_request", "5002738", "Invalid JWT token. '" + clip(name, 64) + "' is not a supported signature algorithm."}
}

// signedBy verifies the signature.
func (a *assertion) signedBy(key *rsa.PublicKey) bool {
	return a.token.Method.Verify(a.signed, a.token.Signature, key) == nil
}

// inTime judges the assertion's times: its end to the instant, its beginning
// with an allowance, for MSAL for Node rounds the time it signs up or down.
func (a *assertion) inTime(now time.Time) *problem {
	from := time.Unix(0, 0)
	if a.NotBefore != nil {
		from = a.NotBefore.Time
	}
	if !now.Before(from.Add(-earliness)) && now.Before(a.ExpiresAt.Time) {
		return nil
	}
	return invalidClient("700024", fmt.Sprintf(
		"Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s. %s",
		now.UTC().Format(graphFineTime), from.UTC().Format(graphFineTime), a.ExpiresAt.UTC().Format(graphFineTime), certificateHelp))
}

// checkAssertion finds the credential by which an assertion speaks for the
// client: a certificate when the client issued it, else a federated credential.
func (s *Simulator) checkAssertion(c *call, who *client, text string) *problem {
	a, bad := readAssertion(text)
	if bad != nil {
		return bad
	}
	if isGUID(a.Issuer) {
		return checkCertificate(c, who, a)
	}
	return s.checkFederated(c, who, a)
}

func (s *Simulator) checkFederated(c *call, who *client, a *assertion) *problem {
	f, bad := s.matchFederated(c, who, a)
	if bad != nil {
		return bad
	}
	c.keyID = f.ID
	if a.token.Method.Alg() != jwt.SigningMethodRS256.Alg() {
		return unsupportedAlgorithm(a.token)
	}
	id, _ := a.token.Header["kid"].(string)
	key, err := s.issuers.key(c.Context(), f.Issuer, id)
	switch {
	case errors.Is(err, context.Canceled): // the caller has gone
		gone := c.problem("90033")
		return &gone
	case err != nil:
		s.config.Log.WarnContext(c.Context(), "issuer cannot be read", "issuer", f.Issuer, "error", err)
		return &problem{http.StatusBadRequest, "invalid_request", "50166", "Request to External OIDC endpoint failed."}
	case key == nil:
		return invalidClient("7000272", "The certificate with identifier "+clip(id, 128)+" used to sign the federated credential could not be found in the metadata of identity provider "+f.Issuer+
			". Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.")
	case !a.signedBy(key):
		return invalidClient("50013", "Assertion failed signature validation. [Reason - The provided signature value did not match the expected signature value., Thumbprint of key used by client: '"+clip(id, 128)+"'].")
	}
	return a.inTime(c.now)
}

// matchFederated finds the federated credential that an assertion fits, among
// those the replica knows. One that has not reached the replica is missed in
// either of the ways that have been seen: without details, or with.
func (s *Simulator) matchFederated(c *call, who *client, a *assertion) (*federated, *problem) {
	if strings.HasPrefix(a.Issuer, issuerPrefix) || strings.HasPrefix(a.Issuer, "https://login.microsoftonline.com/") {
		return nil, invalidClient("700222", "AAD-issued tokens may not be used for federated identity flows.")
	}
	fits := func(f *federated) bool {
		return f.Issuer == a.Issuer && f.Subject == a.Subject && slices.Contains(a.Audience, f.Audiences[0])
	}
	if i := slices.IndexFunc(who.federated, fits); i >= 0 {
		return who.federated[i], nil
	}
	if slices.ContainsFunc(who.coming, fits) && s.dice.Of(c.actor).Chance(0.5) {
		return nil, invalidClient("70021", "No matching federated identity record found for presented assertion. Assertion Issuer: '"+clip(a.Issuer, maxFederatedText)+"'. Assertion Subject: '"+clip(a.Subject, maxFederatedText)+
			"'. Assertion Audience: '"+clip(a.Audience[0], maxFederatedText)+"'. https://learn.microsoft.com/entra/workload-id/workload-identity-federation")
	}
	none := "No matching federated identity record found for presented assertion "
	left := slices.DeleteFunc(slices.Clone(who.federated), func(f *federated) bool { return f.Issuer != a.Issuer })
	sameSubject := slices.ContainsFunc(left, func(f *federated) bool { return f.Subject == a.Subject })
	nearly := slices.ContainsFunc(left, func(f *federated) bool { return strings.EqualFold(f.Subject, a.Subject) })
	switch {
	case len(who.federated) == 0:
		return nil, invalidClient("70025", "The client '"+who.app.AppID+"'("+who.app.Set.DisplayName+") has no configured federated identity credentials.")
	case len(left) == 0:
		return nil, invalidClient("700211", none+"issuer '"+clip(a.Issuer, maxFederatedText)+"'. "+federationHelp)
	case sameSubject:
		return nil, invalidClient("700212", none+"audience '"+clip(a.Audience[0], maxFederatedText)+"'. "+federationHelp)
	case nearly:
		return nil, invalidClient("7002138", none+"subject '"+clip(a.Subject, maxFederatedText)+"'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison. "+federationHelp)
	default:
		return nil, invalidClient("700213", none+"subject '"+clip(a.Subject, maxFederatedText)+"'. "+federationHelp)
	}
}

func checkCertificate(c *call, who *client, a *assertion) *problem {
	if !strings.EqualFold(a.Issuer, who.app.AppID) || !strings.EqualFold(a.Subject, who.app.AppID) {
		return invalidClient("700021", "Client assertion application identifier doesn't match 'client_id' parameter. "+certificateHelp)
	}
	if alg := a.token.Method.Alg(); alg != jwt.SigningMethodRS256.Alg() && alg != jwt.SigningMethodPS256.Alg() {
		return unsupportedAlgorithm(a.token)
	}
	print1, print256 := thumbprint(a.token, "x5t"), thumbprint(a.token, "x5t#S256")
	if print1 == nil && print256 == nil {
		print1 = thumbprint(a.token, "kid") // as HashiCorp's clients have it
	}
	if print1 == nil && print256 == nil {
		return invalidJWT("No certificate thumbprint specified in token header.")
	}
	shown := fmt.Sprintf("%X", print1)
	if print1 == nil {
		shown = fmt.Sprintf("%X", print256)
	}
	keys := who.app.Keys
	if who.principal != nil {
		keys = slices.Concat(keys, who.principal.Keys)
	}
	i := slices.IndexFunc(keys, func(k keyCredential) bool {
		sha, sha2 := sha1.Sum(k.Certificate), sha256.Sum256(k.Certificate) //nolint:gosec // see above
		return (print1 == nil || string(print1) == string(sha[:])) && (print256 == nil || string(print256) == string(sha2[:]))
	})
	if i < 0 {
		return invalidClient("700027", "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found., Thumbprint of key used by client: '"+shown+
			"', Please visit the Azure Portal, Graph Explorer or directly use MS Graph to see configured keys for app Id '"+who.app.AppID+"'].")
	}
	k := keys[i]
	c.keyID = k.KeyID
	found := fmt.Sprintf("Thumbprint of key used by client: '%s', Found key 'Start=%s, End=%s'", shown, k.Start.Format("01/02/2006 15:04:05"), k.End.Format("01/02/2006 15:04:05"))
	invalid := func(reason string) *problem {
		return invalidClient("700027", "Client assertion contains an invalid signature. [Reason - "+reason+", "+found+"].")
	}
	switch key := k.publicKey(); {
	case c.now.Before(k.Start) || !c.now.Before(k.End):
		return invalid("The key used is expired.")
	case key == nil:
		return &problem{http.StatusBadRequest, "invalid_request", "5002730", "Invalid JWT token. Unsupported key for the signing algorithm."}
	case !a.signedBy(key):
		return invalid("The provided signature value did not match the expected signature value.")
	case len(a.Audience) != 1:
		return invalidJWT("It must have one audience.")
	case !who.isAudience(a.Audience[0], c.Host):
		return invalidClient("700023", "Client assertion audience claim does not match Realm issuer. "+certificateHelp)
	}
	return a.inTime(c.now)
}

// thumbprint reads a header that is a thumbprint, nil when there is none. MSAL
// for Go writes the standard alphabet, others the one for URLs.
func thumbprint(token *jwt.Token, name string) []byte {
	text, _ := token.Header[name].(string)
	text = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "="))
	sum, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || text == "" {
		return nil
	}
	return sum
}

// publicKey is the certificate's key, nil when assertions cannot be signed by it.
func (k keyCredential) publicKey() *rsa.PublicKey {
	certificate, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return nil
	}
	key, ok := certificate.PublicKey.(*rsa.PublicKey)
	if !ok || !usableKey(key) {
		return nil
	}
	return key
}

// isAudience tells whether a certificate's assertion is for this login service:
// for a token endpoint or an issuer of the tenant, under the name by which the
// service was called.
func (who *client) isAudience(text, host string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || !strings.EqualFold(u.Host, host) || u.RawQuery != "" {
		return false
	}
	tenant, rest, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	return (strings.EqualFold(tenant, who.tenant.ID) || strings.EqualFold(tenant, who.tenant.Domain)) &&
		slices.Contains([]string{"oauth2/v2.0/token", "oauth2/token", "v2.0"}, rest)
}
