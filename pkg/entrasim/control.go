package entrasim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// NewTenant describes a tenant to make. What is empty is made up.
type NewTenant struct {
	ID          string `json:"id"`
	DisplayName string `json:"displayName"`
	Domain      string `json:"domain"`
	// Verified says that the tenant has a verified domain.
	Verified bool `json:"verified"`
	// ConsentWorkflow has the consent page answer those who are no administrators
	// with AADSTS90095, that they may ask one, instead of 90094.
	ConsentWorkflow bool `json:"consentWorkflow"`
}

// NewPlatform describes an application, with its principal at home, that
// manages other applications.
type NewPlatform struct {
	Tenant      string `json:"tenant"`
	DisplayName string `json:"displayName"`
	// Roles are Graph application permissions, Application.ReadWrite.OwnedBy when empty.
	Roles []string `json:"roles"`
	// SecretLife is how long its secret is valid, two years when zero.
	SecretLife time.Duration `json:"-"`
}

// Platform is such an application, and the only sight of its secret.
type Platform struct {
	Tenant       string `json:"tenant"`
	ClientID     string `json:"clientId"`
	ObjectID     string `json:"objectId"`
	PrincipalID  string `json:"principalId"`
	KeyID        string `json:"keyId"`
	ClientSecret string `json:"clientSecret"`
}

// NewAssignment describes a role assignment to make.
type NewAssignment struct {
	Scope       string `json:"scope"` // such as /subscriptions/ID or /providers/Microsoft.Management/managementGroups/ID
	PrincipalID string `json:"principalId"`
	Role        string `json:"role"` // a name such as Reader, or the definition's GUID
}

// ServicePrincipal is what the control side tells of a principal.
type ServicePrincipal struct {
	ID             string `json:"id"`
	Tenant         string `json:"tenant"`
	ClientID       string `json:"clientId"`
	DisplayName    string `json:"displayName"`
	AccountEnabled bool   `json:"accountEnabled"`
}

// SecretState says what the token service makes of one credential in one tenant,
// at every replica, now: a secret, a certificate or a federated credential. It
// takes the application, the principal, the credential and its times into
// account, as a token request does; what a federated credential's issuer would
// say is not asked.
type SecretState struct {
	KeyID string `json:"keyId"`
	// Replicas tells for each whether a token request would succeed.
	Replicas []bool `json:"replicas"`
	// Everywhere and Nowhere sum it up.
	Everywhere bool `json:"everywhere"`
	Nowhere    bool `json:"nowhere"`
}

// CreateTenant makes a tenant.
func (s *Simulator) CreateTenant(n NewTenant) (Tenant, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Tenant{ID: strings.ToLower(n.ID), DisplayName: n.DisplayName, Domain: strings.ToLower(n.Domain), Verified: n.Verified, ConsentWorkflow: n.ConsentWorkflow, Created: time.Now().UTC()}
	if t.ID == "" {
		t.ID = dice.UUID()
	}
	if t.DisplayName == "" {
		t.DisplayName = "Tenant " + t.ID[:min(8, len(t.ID))]
	}
	if t.Domain == "" {
		t.Domain = "t" + strings.ReplaceAll(t.ID, "-", "")[:min(12, len(t.ID))] + ".onmicrosoft.com"
	}
	switch {
	case !isGUID(t.ID):
		return Tenant{}, fmt.Errorf("tenant ID %q is not a GUID: %w", n.ID, ErrInvalid)
	case !isDomain(t.Domain):
		return Tenant{}, fmt.Errorf("tenant domain %q is not a domain name: %w", n.Domain, ErrInvalid)
	case s.state.tenants[t.ID] != nil:
		return Tenant{}, fmt.Errorf("tenant %s: %w", t.ID, ErrExists)
	case s.state.domains[t.Domain] != nil:
		return Tenant{}, fmt.Errorf("tenant domain %s: %w", t.Domain, ErrExists)
	}
	return t, s.commit(&change{Time: t.Created, Kind: "tenant.created", Actor: control, Tenant: &t})
}

// Tenants returns all tenants, by ID.
func (s *Simulator) Tenants() []Tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Tenant, 0, len(s.state.tenants))
	for _, t := range s.state.tenants {
		out = append(out, t.Tenant)
	}
	slices.SortFunc(out, func(a, b Tenant) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// CreatePerson makes somebody who can sign in. An empty ID is made up, as is a
// user name in the tenant's domain.
func (s *Simulator) CreatePerson(p Person) (Person, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(p.Tenant)
	if t == nil {
		return Person{}, fmt.Errorf("tenant %q: %w", p.Tenant, ErrNotFound)
	}
	p.Tenant = t.ID
	if p.ID == "" {
		p.ID = dice.UUID()
	}
	if p.UserName == "" {
		p.UserName = "person" + fmt.Sprint(len(t.people)+1) + "@" + t.Domain
	}
	if p.DisplayName == "" {
		p.DisplayName, _, _ = strings.Cut(p.UserName, "@")
	}
	if s.state.person(p.UserName) != nil {
		return Person{}, fmt.Errorf("person %s: %w", p.UserName, ErrExists)
	}
	return p, s.commit(&change{Time: time.Now().UTC(), Kind: "person.created", Actor: control, Person: &p})
}

// People returns those who can sign in to a tenant.
func (s *Simulator) People(tenant string) ([]Person, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	if t == nil {
		return nil, fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	}
	return slices.Clone(t.people), nil
}

// person finds somebody by user name, in any tenant.
func (st *state) person(userName string) *Person {
	for _, t := range st.tenants {
		for i := range t.people {
			if strings.EqualFold(t.people[i].UserName, userName) {
				return &t.people[i]
			}
		}
	}
	return nil
}

// CreateSubscription makes a subscription of a tenant. An empty ID is made up.
func (s *Simulator) CreateSubscription(n Subscription) (Subscription, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(n.Tenant)
	if t == nil {
		return Subscription{}, fmt.Errorf("tenant %q: %w", n.Tenant, ErrNotFound)
	}
	n.Tenant, n.ID = t.ID, strings.ToLower(n.ID)
	if n.ID == "" {
		n.ID = dice.UUID()
	}
	if n.DisplayName == "" {
		n.DisplayName = "Subscription " + n.ID[:min(8, len(n.ID))]
	}
	switch {
	case !isGUID(n.ID):
		return Subscription{}, fmt.Errorf("subscription ID %q is not a GUID: %w", n.ID, ErrInvalid)
	case s.state.subscriptions[n.ID] != nil:
		return Subscription{}, fmt.Errorf("subscription %s: %w", n.ID, ErrExists)
	case n.ManagementGroup != "" && t.managementGroup(n.ManagementGroup) == nil:
		return Subscription{}, fmt.Errorf("management group %q: %w", n.ManagementGroup, ErrNotFound)
	}
	return n, s.commit(&change{Time: time.Now().UTC(), Kind: "subscription.created", Actor: control, Subscription: &n})
}

// Subscriptions returns a tenant's subscriptions, in the order they were made.
func (s *Simulator) Subscriptions(tenant string) ([]Subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	if t == nil {
		return nil, fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	}
	out := make([]Subscription, 0, len(t.subscriptions))
	for _, id := range t.subscriptions {
		out = append(out, s.state.subscriptions[id].Subscription)
	}
	return out, nil
}

// CreatePlatform makes an application that may manage others, its principal at
// home and its secret, all visible at once everywhere.
func (s *Simulator) CreatePlatform(n NewPlatform) (Platform, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(n.Tenant)
	if t == nil {
		return Platform{}, fmt.Errorf("tenant %q: %w", n.Tenant, ErrNotFound)
	}
	if n.DisplayName == "" {
		n.DisplayName = "platform"
	}
	if len(n.Roles) == 0 {
		n.Roles = []string{roleReadWriteOwnedBy}
	}
	known := slices.Collect(maps.Values(graphRoles()))
	for _, role := range n.Roles {
		if !slices.Contains(known, role) {
			return Platform{}, fmt.Errorf("permission %q of Graph is not one the simulator knows: %w", role, ErrInvalid)
		}
	}
	if n.SecretLife <= 0 {
		n.SecretLife = secretLife
	}
	now := time.Now().UTC()
	app := &application{ID: dice.UUID(), AppID: dice.UUID(), Tenant: t.ID, Publisher: t.Domain, Created: now}
	app.Set = &applicationProperties{DisplayName: n.DisplayName, SignInAudience: "AzureADMyOrg"}
	text, sec := newSecret(dice, app.AppID, now, now.Add(n.SecretLife))
	app.Passwords = []password{{KeyID: sec.KeyID, Hint: text[:3], Start: sec.Start, End: sec.End}}
	p := &principal{
		ID: dice.UUID(), Tenant: t.ID, AppID: app.AppID, HomeTenant: t.ID, DisplayName: n.DisplayName,
		AccountEnabled: true, Created: now, Roles: map[string][]string{graphAppID: n.Roles},
	}
	app.Owners = []string{p.ID}
	err := s.commit(&change{Time: now, Kind: "application.created", Actor: control, Application: app, Principal: p})
	if err == nil {
		err = s.commit(&change{Time: now, Kind: "password.added", Actor: control, Application: app, Secret: sec})
	}
	if err != nil {
		return Platform{}, err
	}
	return Platform{Tenant: t.ID, ClientID: app.AppID, ObjectID: app.ID, PrincipalID: p.ID, KeyID: sec.KeyID, ClientSecret: text}, nil
}

// Principal returns an application's principal in a tenant, replicated or not.
func (s *Simulator) Principal(tenant, clientID string) (ServicePrincipal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	if t == nil {
		return ServicePrincipal{}, fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	}
	r := t.principal[strings.ToLower(clientID)]
	if r == nil || r.latest().Deleted != nil {
		return ServicePrincipal{}, fmt.Errorf("principal of %s in tenant %s: %w", clientID, t.ID, ErrNotFound)
	}
	p := r.latest()
	return ServicePrincipal{ID: p.ID, Tenant: p.Tenant, ClientID: p.AppID, DisplayName: p.DisplayName, AccountEnabled: p.AccountEnabled}, nil
}

// EnablePrincipal lets an application's principal in a tenant sign in, or not,
// as that tenant's administrator would.
func (s *Simulator) EnablePrincipal(tenant, clientID string, enabled bool) error {
	return s.changePrincipal(tenant, clientID, func(p *principal) { p.AccountEnabled = enabled })
}

// RemovePrincipal deletes an application's principal from a tenant: consent is
// taken back. A later consent makes a new one.
func (s *Simulator) RemovePrincipal(tenant, clientID string) error {
	now := time.Now().UTC()
	return s.changePrincipal(tenant, clientID, func(p *principal) { p.Deleted = &now })
}

func (s *Simulator) changePrincipal(tenant, clientID string, edit func(*principal)) error {
	found, err := s.Principal(tenant, clientID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.principals[found.ID].latest()
	edit(&next)
	return s.commit(s.principalChange(time.Now().UTC(), &next, s.dice.Of(control), control, ""))
}

// SecretState judges the secret or certificate with the key ID, or the federated
// credential with the ID. One that the application never had, or whose removal
// is complete, works nowhere.
func (s *Simulator) SecretState(tenant, clientID, keyID string) (SecretState, error) {
	now := time.Now().UTC()
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(tenant)
	if t == nil {
		return SecretState{}, fmt.Errorf("tenant %q: %w", tenant, ErrNotFound)
	}
	clientID = strings.ToLower(clientID)
	app := s.state.clients[clientID]
	if app == nil {
		return SecretState{}, fmt.Errorf("application %q: %w", clientID, ErrNotFound)
	}
	out := SecretState{KeyID: keyID, Replicas: make([]bool, s.config.Replicas), Everywhere: true, Nowhere: true}
	for i := range out.Replicas {
		a := app.seen(PlaneLogin, i, now)
		var p *principal
		secrets := app.secrets
		if r := t.principal[clientID]; r != nil {
			p, secrets = r.seen(PlaneLogin, i, now), slices.Concat(secrets, r.secrets)
		}
		ok := t.blocked(clientID) == "" && a != nil && a.Deleted == nil && p != nil && p.Deleted == nil && p.AccountEnabled && (slices.ContainsFunc(secrets, func(sec *secret) bool {
			return sec.KeyID == keyID && sec.known(i, now) && !now.Before(sec.Start) && now.Before(sec.End)
		}) || slices.ContainsFunc(slices.Concat(a.Keys, p.Keys), func(k keyCredential) bool {
			return k.KeyID == keyID && !now.Before(k.Start) && now.Before(k.End)
		}) || slices.ContainsFunc(app.federated, func(r *federatedRecord) bool {
			return r.id == keyID && r.seen(PlaneLogin, i, now) != nil
		}))
		out.Replicas[i] = ok
		out.Everywhere = out.Everywhere && ok
		out.Nowhere = out.Nowhere && !ok
	}
	return out, nil
}

// SecretKey returns the key ID of the secret of the application, or of one of its
// principals, that the text is, replicated or not.
func (s *Simulator) SecretKey(clientID, text string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	app := s.state.clients[strings.ToLower(clientID)]
	if app == nil {
		return "", fmt.Errorf("application %q: %w", clientID, ErrNotFound)
	}
	secrets := app.secrets
	for _, t := range s.state.tenants {
		if r := t.principal[app.appID]; r != nil {
			secrets = slices.Concat(secrets, r.secrets)
		}
	}
	for _, sec := range secrets {
		if sec.is(text) {
			return sec.KeyID, nil
		}
	}
	return "", fmt.Errorf("secret of application %s: %w", clientID, ErrNotFound)
}

// AssignRole gives a principal a role, as its tenant's administrator would. The
// assignment takes its time to reach Resource Manager.
func (s *Simulator) AssignRole(n NewAssignment) (RoleAssignment, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	role := findRole(n.Role)
	if role == nil {
		return RoleAssignment{}, fmt.Errorf("role %q: %w", n.Role, ErrNotFound)
	}
	scope := "/" + strings.Trim(n.Scope, "/")
	p := s.state.principals[n.PrincipalID]
	if p == nil {
		return RoleAssignment{}, fmt.Errorf("principal %q: %w", n.PrincipalID, ErrNotFound)
	}
	t := s.state.tenants[p.tenant]
	if !s.state.scopeExists(scope, t) {
		return RoleAssignment{}, fmt.Errorf("scope %q in the principal's tenant: %w", n.Scope, ErrNotFound)
	}
	a := newAssignment(scope, dice.UUID(), t.ID, n.PrincipalID, role.id, time.Now().UTC())
	if other := t.assigned(a); other != nil {
		return RoleAssignment{}, fmt.Errorf("role assignment %s: %w", other.ID, ErrExists)
	}
	return *a, s.commit(s.assign(a, dice, control, ""))
}

// RemoveRole removes a role assignment by its ID; Resource Manager's replicas
// honour it for the removal lag.
func (s *Simulator) RemoveRole(id string) error {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.state.tenants {
		if a := t.assignments.get(id).latest(); a != nil {
			return s.commit(s.unassign(a, dice, control, ""))
		}
	}
	return fmt.Errorf("role assignment %q: %w", id, ErrNotFound)
}

// CreateManagementGroup makes a management group of a tenant. An empty ID is made
// up; without a parent it is in the root.
func (s *Simulator) CreateManagementGroup(n ManagementGroup) (ManagementGroup, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(n.Tenant)
	if t == nil {
		return ManagementGroup{}, fmt.Errorf("tenant %q: %w", n.Tenant, ErrNotFound)
	}
	if n.ID == "" {
		n.ID = dice.UUID()
	}
	if n.DisplayName == "" {
		n.DisplayName = n.ID
	}
	n.Tenant, n.Parent = t.ID, cmp.Or(n.Parent, t.ID)
	switch {
	case !isGroupName(n.ID):
		return ManagementGroup{}, fmt.Errorf("management group ID %q has other characters than letters, digits, '-', '_', '.', '(' and ')', or is too long: %w", n.ID, ErrInvalid)
	case t.managementGroup(n.ID) != nil:
		return ManagementGroup{}, fmt.Errorf("management group %s: %w", n.ID, ErrExists)
	case t.managementGroup(n.Parent) == nil:
		return ManagementGroup{}, fmt.Errorf("management group %q: %w", n.Parent, ErrNotFound)
	}
	return n, s.commit(&change{Time: time.Now().UTC(), Kind: "managementGroup.created", Actor: control, Management: &n})
}

// Deny makes a deny assignment, as a service of Azure's or a deployment stack
// does. Its ID is made up. It takes as long as a role to reach Resource Manager.
func (s *Simulator) Deny(n DenyAssignment) (DenyAssignment, error) {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tenant(n.Tenant)
	if t == nil {
		return DenyAssignment{}, fmt.Errorf("tenant %q: %w", n.Tenant, ErrNotFound)
	}
	n.Tenant, n.Scope, n.Created = t.ID, "/"+strings.Trim(n.Scope, "/"), time.Now().UTC()
	switch {
	case !s.state.scopeExists(n.Scope, t):
		return DenyAssignment{}, fmt.Errorf("scope %q: %w", n.Scope, ErrNotFound)
	case len(n.Actions)+len(n.DataActions) == 0 || len(n.Principals) == 0:
		return DenyAssignment{}, fmt.Errorf("a deny assignment of nothing, or to nobody: %w", ErrInvalid)
	case slices.Contains(n.ExcludePrincipals, AllPrincipals):
		return DenyAssignment{}, fmt.Errorf("a deny assignment that excludes everybody: %w", ErrInvalid)
	}
	n.ID = n.Scope + "/providers/Microsoft.Authorization/denyAssignments/" + dice.UUID()
	n.Name = cmp.Or(n.Name, n.ID[strings.LastIndexByte(n.ID, '/')+1:])
	return n, s.commit(&change{
		Time: n.Created, Kind: "denial.made", Actor: control, Denial: &n, Visible: Visibility{ARM: s.draw(dice, n.Created, s.config.Lags.Role)},
	})
}

// RemoveDenial removes a deny assignment by its ID; Resource Manager's replicas
// honour it for the removal lag.
func (s *Simulator) RemoveDenial(id string) error {
	dice := s.dice.Of(control)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	for _, t := range s.state.tenants {
		h := t.denials.get(id)
		if d := h.latest(); d != nil {
			return s.commit(&change{
				Time: now, Kind: "denial.removed", Actor: control, Denial: d, Undenied: true,
				Visible: h.follow(now, Visibility{ARM: s.draw(dice, now, s.config.Lags.Removal)}),
			})
		}
	}
	return fmt.Errorf("deny assignment %q: %w", id, ErrNotFound)
}

func isDomain(name string) bool {
	if len(name) > 253 || !strings.Contains(name, ".") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}
