package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"phasekey.dev/pkg/obs"
)

// Identity is a caller that the configuration knows.
type Identity struct {
	// ID is the SPIFFE ID.
	ID string `yaml:"id"`
	// Role is what the policy of methods names.
	Role string `yaml:"role"`
	// Accounts are the accounts whose resources it may name; AllAccounts for every one and for requests that name none.
	Accounts []string `yaml:"accounts"`
}

// unlimited reports whether the identity may name any account, and none.
func (id Identity) unlimited() bool { return slices.Contains(id.Accounts, AllAccounts) }

// word is what a role or an account may look like: one segment of a resource name.
var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]{0,62}$`)

// ValidateIdentities reports all that is wrong with a configuration's identities.
func ValidateIdentities(identities []Identity) error {
	var errs []error
	seen := map[string]bool{}
	for i, id := range identities {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("identities[%d]: "+format, append([]any{i}, args...)...))
		}
		if _, err := spiffeid.FromString(id.ID); err != nil {
			bad("id %q: %w", id.ID, err)
		}
		if seen[id.ID] {
			bad("id %q stands twice", id.ID)
		}
		seen[id.ID] = true
		switch {
		case !word.MatchString(id.Role):
			bad("role %q is not a word", id.Role)
		case id.Role == RoleGrant:
			bad("role %q is for whoever shows a grant, not for an identity", id.Role)
		}
		if len(id.Accounts) == 0 {
			bad("no accounts (%q means all)", AllAccounts)
		}
		for _, a := range id.Accounts {
			if a != AllAccounts && !word.MatchString(a) {
				bad("account %q is not a word", a)
			}
		}
		if id.unlimited() && len(id.Accounts) > 1 {
			bad("%q stands beside other accounts", AllAccounts)
		}
	}
	return errors.Join(errs...)
}

// identityKey is the context key of the caller's Identity.
type identityKey struct{}

// IdentityFromContext returns the caller that the configuration knows, false for an anonymous one (grant methods and
// health only).
func IdentityFromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}

// RequestID returns the ID of the request being served: the caller's x-request-id if it was a sane one, else one made here.
func RequestID(ctx context.Context) string { return obs.RequestID(ctx) }
