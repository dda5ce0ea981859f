package directory

import (
	"errors"
	"fmt"
	"time"
)

// Class is what a refusal means for the vault. It says nothing about how old the credential is: whether SecretRefused
// means "not replicated yet" or "broken" is for the state machine to decide.
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
	// PrincipalDisabled: the customer disabled the principal (AADSTS7000112).
	PrincipalDisabled
	// TenantUnknown: no such tenant (AADSTS90002).
	TenantUnknown
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
	// Denied: our own credential may not do this.
	Denied
	// Malformed: a request that no retry will mend: a bug of ours.
	Malformed
)

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
