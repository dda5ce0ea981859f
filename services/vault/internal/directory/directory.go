// Package directory is the vault's vocabulary for Entra ID: the objects it makes there, and what a refusal means. It talks
// to nobody; package entra does, with the SDKs.
package directory

import (
	"time"

	"phasekey.dev/pkg/secret"
)

// Spec is what an integration's application shall look like.
type Spec struct {
	// UniqueName identifies the application for ever (Graph's uniqueName); creation is idempotent by it.
	UniqueName string
	// DisplayName is what the customer's administrator reads, and becomes the service principal's name.
	DisplayName string
	// RedirectURI is where Entra sends the administrator's browser after consent; matched exactly.
	RedirectURI string
}

// Application is what the home tenant has.
type Application struct {
	// ObjectID addresses it in Graph; it is not the client ID.
	ObjectID string
	// ClientID (appId) is what tokens are asked with, in every tenant.
	ClientID string
	// DisplayName as the directory has it.
	DisplayName string
	// Passwords are its client secrets, without their texts.
	Passwords []Password
	// Trusts are its federated credentials; only FindApplication tells them.
	Trusts []Trust
}

// Password is one client secret of an application, without its text, which Graph shows once.
type Password struct {
	KeyID       string
	DisplayName string
	StartTime   time.Time
	EndTime     time.Time
}

// TokenRequest asks one tenant for one token by client credentials.
type TokenRequest struct {
	TenantID string
	ClientID string
	// Secret is the application's, or Assertion is what it shows instead, by a federated credential.
	Secret    secret.Text
	Assertion secret.Text
	// Audience is the resource, without `/.default`.
	Audience string
	// RequestID travels as client-request-id, so that the customer's sign-in log can be matched with the audit. UUID.
	RequestID string
}

// Token is an access token. It cannot be revoked.
type Token struct {
	Text       secret.Text
	IssueTime  time.Time
	ExpireTime time.Time
	// PrincipalObjectID is the `oid` claim: the service principal in the tenant that was asked.
	PrincipalObjectID string
}
