package lease

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Material is the form in which a credential is delivered.
type Material string

// The materials there are.
const (
	// AccessToken: a token for one audience. The secret stays in the vault.
	AccessToken Material = "ACCESS_TOKEN"
	// ClientSecret: the secret itself, which the lease then holds.
	ClientSecret Material = "CLIENT_SECRET"
	// FederatedToken: an assertion that the vault signed for this lease, which Entra exchanges for tokens.
	FederatedToken Material = "FEDERATED_TOKEN"
)

// Allowed reports whether an integration of this policy gives the material away, which is federated or has a client secret. An empty policy
// gives access tokens alone, and federated tokens where there are such; no policy gives what the other kind has.
func Allowed(policy []Material, federated bool, m Material) bool {
	if federated && m == ClientSecret || !federated && m == FederatedToken {
		return false
	}
	if len(policy) == 0 {
		return m == AccessToken || m == FederatedToken
	}
	return slices.Contains(policy, m)
}

// ErrHoldTooLong is every HoldError.
var ErrHoldTooLong = errors.New("client secret ends before the grant")

// HoldError says until when a grant may last whose lease holds a secret. It is an ErrHoldTooLong.
type HoldError struct {
	// Latest is the latest end that the grant may have; it may be over.
	Latest time.Time
}

func (e *HoldError) Error() string {
	return fmt.Sprintf("%v: it may last until %s", ErrHoldTooLong, e.Latest.UTC().Format(time.RFC3339))
}

// Is makes it an ErrHoldTooLong.
func (e *HoldError) Is(target error) bool { return target == ErrHoldTooLong }

// CheckHold is nil when a grant with this end may hold a secret that can be held until latest, else a HoldError.
func CheckHold(end, latest time.Time) error {
	if end.After(latest) {
		return &HoldError{Latest: latest}
	}
	return nil
}
