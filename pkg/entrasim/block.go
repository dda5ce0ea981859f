package entrasim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// SignInBlock is a tenant that refuses sign-ins which are otherwise in order, as
// conditional access for workload identities does. It acts at once.
type SignInBlock struct {
	Tenant string `json:"tenant"`
	// ClientID is the application that is refused; empty: all, and the people on
	// the consent page.
	ClientID string `json:"clientId"`
	// Code is 53003 for a policy of conditional access, 530032 for one of
	// security; empty lifts the block.
	Code string `json:"code"`
}

// BlockSignIn puts a block in force in place of the one of the same tenant and
// application, or lifts it. A block of one application does not lift, nor is it
// lifted by, that of all of them.
func (s *Simulator) BlockSignIn(b SignInBlock) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(b.Tenant)
	if t == nil {
		return fmt.Errorf("tenant %q: %w", b.Tenant, ErrNotFound)
	}
	b.Tenant, b.ClientID = t.ID, strings.ToLower(b.ClientID)
	switch {
	case b.ClientID != "" && s.state.clients[b.ClientID] == nil:
		return fmt.Errorf("application %q: %w", b.ClientID, ErrNotFound)
	case !slices.Contains([]string{"", "53003", "530032"}, b.Code):
		return fmt.Errorf("code %q of a block is neither 53003 nor 530032: %w", b.Code, ErrInvalid)
	}
	kind := "signIn.blocked"
	if b.Code == "" {
		kind = "signIn.unblocked"
	}
	return s.commit(&change{Time: time.Now().UTC(), Kind: kind, Actor: control, Block: &b})
}

func (s *Simulator) adminBlock(b SignInBlock) (any, error) {
	return map[string]string{}, s.BlockSignIn(b)
}

// blocked returns the code by which the tenant refuses an application's
// sign-ins, empty when it does not.
func (t *tenantRecord) blocked(clientID string) string {
	if code := t.blocks[clientID]; code != "" {
		return code
	}
	return t.blocks[""]
}
