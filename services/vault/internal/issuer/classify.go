package issuer

import (
	"errors"
	"fmt"
	"time"

	"phasekey.dev/services/vault/internal/directory"
)

// refused reports whether a failure is about the version that was asked with: then another one may be granted. An
// application that is not known is among them, for what a replica of Entra has not heard of may be the newest thing only.
func refused(err error) bool {
	switch directory.ClassOf(err) {
	case directory.SecretRefused, directory.TrustRefused, directory.SecretExpired, directory.SecretUnreadable, directory.ApplicationUnknown, directory.PrincipalMissing:
		return true
	default:
		return false
	}
}

// classify says what the failures of all versions that were tried, the newest version's first, amount to: the first that
// is about consent, else the last. A failure that is not Entra's is returned as it is.
func classify(failures []error) error {
	for _, err := range failures {
		if missing(err) {
			return fmt.Errorf("%w: %w", ErrConsentMissing, err)
		}
	}
	last := failures[len(failures)-1]
	if refused(last) {
		return fmt.Errorf("%w: %w", ErrNotReady, last)
	}
	if _, ok := errors.AsType[*directory.Error](last); ok {
		return fmt.Errorf("%w: %w", ErrEntra, last)
	}
	return last
}

// missing reports whether a failure says that the customer's tenant does not let the application in, whatever it shows.
func missing(err error) bool {
	switch directory.ClassOf(err) {
	case directory.ApplicationUnknown, directory.PrincipalMissing, directory.PrincipalDisabled, directory.TenantUnknown, directory.BlockedByPolicy:
		return true
	default:
		return false
	}
}

// retryAfter is how long Entra asked to wait.
func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*directory.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}
