package entra

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

// Token asks a tenant for a token by one request, with a credential object and a connection of its own: a retained object
// answers from its cache, which proves nothing. Errors are *directory.Error.
func (d *Directory) Token(ctx context.Context, request directory.TokenRequest) (directory.Token, error) {
	if err := d.notOwnClient(opToken, request.ClientID); err != nil {
		return directory.Token{}, err
	}
	options := d.authority
	options.Transport = &http.Client{Transport: d.transport(true)}
	if request.RequestID != "" {
		options.PerRetryPolicies = []policy.Policy{requestID(request.RequestID)}
	}
	credential, err := d.credential(request, options)
	if err != nil {
		return directory.Token{}, &directory.Error{Op: opToken, Class: directory.Malformed, Err: err}
	}
	issued := time.Now()
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{strings.TrimSuffix(request.Audience, "/") + "/.default"}})
	if err != nil {
		return directory.Token{}, err
	}
	return directory.Token{
		Text:              secret.New(token.Token),
		IssueTime:         issued,
		ExpireTime:        token.ExpiresOn,
		PrincipalObjectID: principal(token.Token),
	}, nil
}

type requestID string

func (id requestID) Do(request *policy.Request) (*http.Response, error) {
	request.Raw().Header.Set("client-request-id", string(id))
	return request.Next()
}

// principal reads the oid claim without verifying anything: the token came from the token service over TLS. Tokens for some
// audiences are opaque; then there is none.
func principal(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		ObjectID string `json:"oid"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	return claims.ObjectID
}
