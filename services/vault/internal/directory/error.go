package directory

import (
	"errors"
	"fmt"
	"time"
)

// Class is what a refusal means for the vault. It says nothing about how old the credential is: whether SecretRefused
// means "not replicated yet" or "broken" is for the state machine to decide. Two tables, not one, stand between a code and
// what is done: of codes to classes, here, and of classes to what they mean by who refused, in package rotation.
type Class int

const (
	// Unclassified is a code we do not know: retried, with a limit.
	Unclassified Class = iota
	// NotFound: Graph has no such object, or its replica does not know it yet.
	NotFound
	// ApplicationUnknown: the tenant's token service knows no such application (AADSTS700016): no consent, or not replicated.
	ApplicationUnknown
	// PrincipalMissing: the application is known, and has no service principal in that tenant (AADSTS7000229).
	PrincipalMissing
	// SecretRefused: AADSTS7000215.
	SecretRefused
	// SecretExpired: AADSTS7000222.
	SecretExpired
	// SecretUnreadable: the vault cannot open the text that it stored, and never will: nothing was asked.
	SecretUnreadable
	// TrustRefused: no federated credential of the application fits the assertion (AADSTS70021 and its kin), or none has been
	// replicated.
	TrustRefused
	// PrincipalDisabled: the customer disabled the principal (AADSTS7000112).
	PrincipalDisabled
	// TenantUnknown: no such tenant (AADSTS90002).
	TenantUnknown
	// ResourceUnknown: the tenant has no principal of what the token was to be for (AADSTS500011).
	ResourceUnknown
	// BlockedByPolicy: conditional access or a management policy of either tenant; only people can mend it.
	BlockedByPolicy
	// LifetimeRefused: the home tenant's policy wants shorter secrets.
	LifetimeRefused
	// QuotaExceeded: too many objects, or too many credentials on one.
	QuotaExceeded
	// Conflict: another write to the same object; nothing was done.
	Conflict
	// Throttled: come back after RetryAfter.
	Throttled
	// Transient: the service erred or did not answer, and nothing was done as far as it says.
	Transient
	// OutcomeUnknown: the request was sent and no answer came, or one that leaves open whether it was carried out.
	OutcomeUnknown
	// IssuerUnread: the token service could not read the vault's own issuer, or not find there the key that signed.
	IssuerUnread
	// Denied: our own credential may not do this, or a proxy on our way to the service does not let us.
	Denied
	// Malformed: a request that no retry will mend: a bug of ours.
	Malformed
)

var names = [...]string{ //nolint:gochecknoglobals // constant names
	Unclassified:       "unclassified",
	NotFound:           "not_found",
	ApplicationUnknown: "application_unknown",
	PrincipalMissing:   "principal_missing",
	SecretRefused:      "secret_refused",
	SecretExpired:      "secret_expired",
	SecretUnreadable:   "secret_unreadable",
	TrustRefused:       "trust_refused",
	PrincipalDisabled:  "principal_disabled",
	TenantUnknown:      "tenant_unknown",
	ResourceUnknown:    "resource_unknown",
	BlockedByPolicy:    "blocked_by_policy",
	LifetimeRefused:    "lifetime_refused",
	QuotaExceeded:      "quota_exceeded",
	Conflict:           "conflict",
	Throttled:          "throttled",
	Transient:          "transient",
	OutcomeUnknown:     "outcome_unknown",
	IssuerUnread:       "issuer_unread",
	Denied:             "denied",
	Malformed:          "malformed",
}

// String is the class in metrics, logs and docs/errors.md.
func (c Class) String() string {
	if c < 0 || int(c) >= len(names) {
		return names[Unclassified]
	}
	return names[c]
}

// Error is a refusal by Entra ID or Graph.
type Error struct {
	// Op is what was asked, for example "add password".
	Op string
	// Class is what it means.
	Class Class
	// Code is the service's own: `AADSTS700016`, `Request_ResourceNotFound`; empty without an answer.
	Code string
	// RetryAfter is how long the service asks to wait; 0 when it does not say.
	RetryAfter time.Duration
	// Err is the cause, for the log; never shown to a caller.
	Err error
}

func (e *Error) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %s: %v", e.Op, e.Code, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of the first Error in err's chain, and Unclassified when there is none.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Unclassified
}
