package entrasim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kinds of restrictions. Those of symmetric keys and of passwords that a client
// chooses are kept and shown, but there is nothing here that they could refuse.
const (
	passwordAddition      = "passwordAddition"
	passwordLifetime      = "passwordLifetime"
	asymmetricKeyLifetime = "asymmetricKeyLifetime"
)

const (
	stateEnabled  = "enabled"
	stateDisabled = "disabled"
)

// defaultPolicyID is that of every tenant's default policy.
const defaultPolicyID = "00000000-0000-0000-0000-000000000000"

// managementPolicy restricts the credentials of applications and principals: as
// a tenant's default, or of those to which it is assigned.
type managementPolicy struct {
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	DisplayName string `json:"displayName"`
	Description string `json:"description"`
	Enabled     bool   `json:"enabled"`
	// Applications and Principals are the default policy's, Restrictions are
	// another's.
	Applications restrictions `json:"applications,omitzero"`
	Principals   restrictions `json:"principals,omitzero"`
	Restrictions restrictions `json:"restrictions,omitzero"`
}

type restrictions struct {
	Passwords []restriction `json:"passwordCredentials"`
	Keys      []restriction `json:"keyCredentials"`
}

type restriction struct {
	Type string `json:"restrictionType"`
	// State is enabled or disabled.
	State string `json:"state"`
	// MaxLifetime is an ISO 8601 duration, of restrictions of a lifetime.
	MaxLifetime *string `json:"maxLifetime"`
	// CreatedAfter spares what was created before it.
	CreatedAfter *time.Time `json:"restrictForAppsCreatedAfterDateTime"`
}

// rules are what a policy says about one application or principal. The zero
// value allows everything.
type rules struct {
	policy  string
	what    restrictions
	created time.Time // the application, or principal
}

func applicationRules(p *managementPolicy) restrictions { return p.Applications }
func principalRules(p *managementPolicy) restrictions   { return p.Principals }

// rulesOf finds the rules for an application or a principal: those of the policy
// that is assigned to it, on or off, and else of the tenant's default, as the
// replica shows either.
func (s *Simulator) rulesOf(c *call, assigned string, byDefault func(*managementPolicy) restrictions, created time.Time) rules {
	t := s.state.tenants[c.tenant]
	if _, p := t.policy(c, assigned); p != nil {
		if !p.Enabled {
			return rules{}
		}
		return rules{p.ID, p.Restrictions, created}
	}
	if p := t.defaultPolicy.seen(PlaneGraph, c.replica, c.now); p != nil && p.Enabled {
		return rules{p.ID, byDefault(p), created}
	}
	return rules{}
}

// applying finds a restriction of a kind if it is in force.
func (r rules) applying(list []restriction, kind string) *restriction {
	i := slices.IndexFunc(list, func(x restriction) bool {
		return x.Type == kind && x.State != stateDisabled && (x.CreatedAfter == nil || !r.created.Before(*x.CreatedAfter))
	})
	if i < 0 {
		return nil
	}
	return &list[i]
}

func (r rules) judgePassword(c *call, start, end time.Time) *reply {
	if r.applying(r.what.Passwords, passwordAddition) != nil {
		bad := graphError(c, http.StatusBadRequest, "CredentialTypeNotAllowedAsPerAppPolicy", "Credential type not allowed as per assigned policy '"+r.policy+"'.")
		return &bad
	}
	return r.judgeLifetime(c, r.applying(r.what.Passwords, passwordLifetime), start, end)
}

func (r rules) judgeKey(c *call, start, end time.Time) *reply {
	return r.judgeLifetime(c, r.applying(r.what.Keys, asymmetricKeyLifetime), start, end)
}

func (r rules) judgeLifetime(c *call, x *restriction, start, end time.Time) *reply {
	if x == nil {
		return nil
	}
	if longest, ok := parseDuration(*x.MaxLifetime); !ok || end.Sub(start) <= longest {
		return nil
	}
	text := "Credential lifetime exceeds the max value allowed as per assigned policy '" + r.policy + "'."
	bad := graphError(c, http.StatusBadRequest, "CredentialInvalidLifetimeAsPerAppPolicy", text, errorDetail{"InvalidKeyEndDate", text, "EndDate"})
	return &bad
}

// wrong says what is wrong with the restrictions, nothing when all is well.
func (r restrictions) wrong() string {
	for _, list := range []struct {
		of    []restriction
		kinds []string
	}{
		{r.Passwords, []string{passwordAddition, passwordLifetime, "symmetricKeyAddition", "symmetricKeyLifetime", "customPasswordAddition"}},
		{r.Keys, []string{asymmetricKeyLifetime}},
	} {
		seen := make(map[string]bool)
		for _, x := range list.of {
			lifetime := strings.HasSuffix(x.Type, "Lifetime")
			switch {
			case !slices.Contains(list.kinds, x.Type):
				return "Invalid value '" + clip(x.Type, 64) + "' specified for property 'restrictionType'."
			case seen[x.Type]:
				return "The restriction '" + x.Type + "' is given twice."
			case x.State != stateEnabled && x.State != stateDisabled:
				return "Invalid value '" + clip(x.State, 64) + "' specified for property 'state'."
			case lifetime && x.MaxLifetime == nil:
				return "A value is required for property 'maxLifetime' of the restriction '" + x.Type + "'."
			case !lifetime && x.MaxLifetime != nil:
				return "Property 'maxLifetime' cannot be set of the restriction '" + x.Type + "'."
			}
			if lifetime {
				if _, ok := parseDuration(*x.MaxLifetime); !ok {
					return "Invalid value '" + clip(*x.MaxLifetime, 64) + "' specified for property 'maxLifetime'."
				}
			}
			seen[x.Type] = true
		}
	}
	return ""
}

// merge replaces the lists that a request gives.
func (r restrictions) merge(value json.RawMessage) (restrictions, error) {
	if string(value) == "null" {
		return restrictions{}, nil
	}
	var given struct {
		Passwords *[]restriction `json:"passwordCredentials"`
		Keys      *[]restriction `json:"keyCredentials"`
	}
	if err := json.Unmarshal(value, &given); err != nil {
		return r, err
	}
	for _, list := range []struct {
		given *[]restriction
		to    *[]restriction
	}{{given.Passwords, &r.Passwords}, {given.Keys, &r.Keys}} {
		if list.given == nil {
			continue
		}
		*list.to = *list.given
		for i := range *list.to {
			if x := &(*list.to)[i]; x.State == "" {
				x.State = stateEnabled
			}
		}
	}
	return r, nil
}

func (r restrictions) view() restrictions {
	return restrictions{orEmpty(r.Passwords), orEmpty(r.Keys)}
}

// iso8601 are the durations that OData knows, up to 273 years: of days and less.
var iso8601 = regexp.MustCompile(`^P(?:(\d{1,5})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,6})S)?)?$`)

// parseDuration reads a duration above zero.
func parseDuration(text string) (time.Duration, bool) {
	parts := iso8601.FindStringSubmatch(text)
	if parts == nil {
		return 0, false
	}
	var d time.Duration
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
		n, err := strconv.Atoi(parts[i+1])
		if err == nil { // else it is absent
			d += time.Duration(n) * unit
		}
	}
	return d, d > 0
}

// formatDuration writes whole seconds, up to what parseDuration reads.
func formatDuration(d time.Duration) string {
	const day = 24 * time.Hour
	return fmt.Sprintf("P%dDT%dS", d/day, d%day/time.Second)
}

// policy finds a policy other than the default one, as the replica shows it; p is
// nil when it does not.
func (t *tenantRecord) policy(c *call, id string) (r *policyRecord, p *managementPolicy) {
	i := slices.IndexFunc(t.policies, func(r *policyRecord) bool { return r.id == id })
	if i < 0 {
		return nil, nil
	}
	return t.policies[i], t.policies[i].seen(PlaneGraph, c.replica, c.now)
}

// usualPolicy is a tenant's default policy before anybody changes it.
func usualPolicy(tenant string) managementPolicy {
	return managementPolicy{
		ID: defaultPolicyID, Tenant: tenant, DisplayName: "Default app management tenant policy",
		Description: "Default tenant policy that enforces app management restrictions on applications and service principals. To apply policy to targeted resources, create a new policy under appManagementPolicies collection.",
	}
}

// latestDefault is the tenant's default policy as it was committed last.
func (t *tenantRecord) latestDefault() managementPolicy {
	if p := t.defaultPolicy.latest(); p != nil {
		return *p
	}
	return usualPolicy(t.ID)
}

func (st *state) applyPolicy(c *change) error {
	p := c.Policy
	if p == nil {
		return nil
	}
	t := st.tenants[p.Tenant]
	if t == nil {
		return fmt.Errorf("tenant %s of policy: %w", p.Tenant, ErrNotFound)
	}
	if p.ID == defaultPolicyID {
		t.defaultPolicy.add(c.Time, p, c.Visible)
		return nil
	}
	// Those that nothing can show any more are forgotten.
	t.policies = slices.DeleteFunc(slices.Clone(t.policies), func(old *policyRecord) bool {
		return old.latest() == nil && old.versions[len(old.versions)-1].visible.everywhere(c.Time)
	})
	i := slices.IndexFunc(t.policies, func(old *policyRecord) bool { return old.id == p.ID })
	if i < 0 {
		i = len(t.policies)
		t.policies = append(t.policies, &policyRecord{id: p.ID, order: c.Seq})
	}
	if c.Repealed {
		p = nil
	}
	t.policies[i].add(c.Time, p, c.Visible)
	return nil
}

// PasswordPolicy is what a tenant allows of new secrets, of applications and
// principals alike.
type PasswordPolicy struct {
	Tenant string `json:"tenant"`
	// MaxLifetime is how long they may be valid, in whole seconds; 0 means that
	// nothing is said about it.
	MaxLifetime time.Duration `json:"-"`
	// Forbidden says that there may be none.
	Forbidden bool `json:"forbidden"`
}

// SetPasswordPolicy makes a tenant's default policy say this and nothing else, as
// its administrator would; the zero policy turns it off. It reaches Graph's
// replicas as other writes do.
func (s *Simulator) SetPasswordPolicy(n PasswordPolicy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(n.Tenant)
	switch {
	case t == nil:
		return fmt.Errorf("tenant %q: %w", n.Tenant, ErrNotFound)
	case n.MaxLifetime < 0 || n.MaxLifetime%time.Second != 0 || n.MaxLifetime >= 100_000*24*time.Hour:
		return fmt.Errorf("maximum lifetime %v is not of whole seconds, and below 100,000 days: %w", n.MaxLifetime, ErrInvalid)
	}
	p := t.latestDefault()
	p.Enabled = n.Forbidden || n.MaxLifetime > 0
	p.Applications = restrictions{}
	if n.Forbidden {
		p.Applications.Passwords = append(p.Applications.Passwords, restriction{Type: passwordAddition, State: stateEnabled})
	}
	if n.MaxLifetime > 0 {
		longest := formatDuration(n.MaxLifetime)
		p.Applications.Passwords = append(p.Applications.Passwords, restriction{Type: passwordLifetime, State: stateEnabled, MaxLifetime: &longest})
	}
	p.Principals = p.Applications
	now := time.Now().UTC()
	return s.commit(&change{
		Time: now, Kind: "policy.updated", Actor: control, Policy: &p,
		Visible: t.defaultPolicy.follow(now, Visibility{Graph: s.draw(s.dice.Of(control), now, s.config.Lags.Graph)}),
	})
}

// adminPasswordPolicy is SetPasswordPolicy with the lifetime as text, such as "720h".
func (s *Simulator) adminPasswordPolicy(n struct {
	PasswordPolicy

	MaxLifetime string `json:"maxLifetime"`
}) (any, error) {
	if n.MaxLifetime != "" {
		d, err := time.ParseDuration(n.MaxLifetime)
		if err != nil {
			return nil, fmt.Errorf("maximum lifetime: %w: %w", ErrInvalid, err)
		}
		n.PasswordPolicy.MaxLifetime = d
	}
	return map[string]string{}, s.SetPasswordPolicy(n.PasswordPolicy)
}
