package entrasim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Sentinels of the Go methods. The planes answer in their own error shapes.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	ErrInvalid  = errors.New("invalid")
)

// change is one committed event: what was done, and the resulting things. It is
// a line of the state file and, less its contents, an entry of the journal.
type change struct {
	Seq       uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"`
	Actor     string    `json:"actor,omitempty"`
	RequestID string    `json:"requestId,omitempty"`

	Visible Visibility `json:"visible,omitzero"`
	// PrincipalVisible is for Principal where it goes with an Application.
	PrincipalVisible Visibility `json:"principalVisible,omitzero"`

	Tenant       *Tenant           `json:"tenant,omitempty"`
	Block        *SignInBlock      `json:"block,omitempty"`
	Person       *Person           `json:"person,omitempty"`
	Subscription *Subscription     `json:"subscription,omitempty"`
	Application  *application      `json:"application,omitempty"`
	Purged       bool              `json:"purged,omitempty"` // Application is gone for good
	Secret       *secret           `json:"secret,omitempty"`
	Policy       *managementPolicy `json:"policy,omitempty"`
	Repealed     bool              `json:"repealed,omitempty"` // Policy has been deleted
	Quota        *quotaSetting     `json:"quota,omitempty"`
	Federated    *federated        `json:"federated,omitempty"`
	Unfederated  bool              `json:"unfederated,omitempty"` // Federated has been removed
	Principal    *principal        `json:"principal,omitempty"`
	Assignment   *RoleAssignment   `json:"assignment,omitempty"`
	Unassigned   bool              `json:"unassigned,omitempty"` // Assignment has been removed
	Denial       *DenyAssignment   `json:"denial,omitempty"`
	Undenied     bool              `json:"undenied,omitempty"` // Denial has been removed
	Management   *ManagementGroup  `json:"management,omitempty"`
	Group        *resourceGroup    `json:"group,omitempty"`
	Registration *registration     `json:"registration,omitempty"`
	Key          []byte            `json:"key,omitempty"` // PKCS #8
}

// applicationRecord is an application with its secrets and federated credentials.
type applicationRecord struct {
	history[application]

	id, appID, tenant string
	order             uint64 // among all that was made
	written           time.Time
	passwordAdded     time.Time
	secrets           []*secret
	federated         []*federatedRecord // in the order they were made
}

type federatedRecord struct {
	history[federated]

	id    string
	order uint64
}

type principalRecord struct {
	history[principal]

	id, appID, tenant string
	order             uint64
	secrets           []*secret // its own
}

type policyRecord struct {
	history[managementPolicy]

	id    string
	order uint64
}

// shelf is a tenant's assignments of one kind, in the order they were made.
type shelf[T any] struct {
	all  []*history[T]
	byID map[string]*history[T] // lower case
}

// put makes a version of the thing with the ID; nil removes it.
func (s *shelf[T]) put(now time.Time, id string, value *T, visible Visibility) {
	id = strings.ToLower(id)
	h := s.byID[id]
	if h == nil {
		if s.byID == nil {
			s.byID = make(map[string]*history[T])
		}
		h = &history[T]{}
		s.byID[id] = h
		s.all = append(s.all, h)
	}
	h.add(now, value, visible)
}

// get returns the thing's history, nil when there never was one.
func (s *shelf[T]) get(id string) *history[T] { return s.byID[strings.ToLower(id)] }

// seen are those that a replica of Resource Manager honours.
func (s *shelf[T]) seen(replica int, now time.Time) []*T {
	var out []*T
	for _, h := range s.all {
		if value := h.seen(PlaneARM, replica, now); value != nil {
			out = append(out, value)
		}
	}
	return out
}

type tenantRecord struct {
	Tenant

	people        []Person
	subscriptions []string
	applications  []*applicationRecord        // in the order they were made
	leaving       []*applicationRecord        // of those, the purged ones that a replica still shows
	principals    []*principalRecord          // in the order they were made
	principal     map[string]*principalRecord // the newest one, by application ID
	blocks        map[string]string           // codes, by application ID, or empty for all
	policies      []*policyRecord             // in the order they were made
	defaultPolicy policyRecord                // without versions until somebody changes it
	purged        []time.Time                 // when applications were, in order, of late
	quota         *int                        // of directory objects, when it is not the usual one
	management    map[string]*ManagementGroup // all but the root, by lower-case ID
	assignments   shelf[RoleAssignment]
	denials       shelf[DenyAssignment]
}

type subscriptionRecord struct {
	Subscription

	groups        map[string]*resourceGroup         // by lower-case name
	registrations map[string]*history[registration] // by namespace
}

// state is everything there is, as the committed changes made it. Simulator.mu
// guards it; values once put in are never changed, only replaced.
type state struct {
	tenants       map[string]*tenantRecord
	domains       map[string]*tenantRecord
	applications  map[string]*applicationRecord // by object ID
	clients       map[string]*applicationRecord // by application ID
	uniqueNames   map[string]*applicationRecord // by tenant, NUL, name
	principals    map[string]*principalRecord   // by object ID
	subscriptions map[string]*subscriptionRecord
	key           []byte
}

func newState() *state {
	return &state{
		tenants:       make(map[string]*tenantRecord),
		domains:       make(map[string]*tenantRecord),
		applications:  make(map[string]*applicationRecord),
		clients:       make(map[string]*applicationRecord),
		uniqueNames:   make(map[string]*applicationRecord),
		principals:    make(map[string]*principalRecord),
		subscriptions: make(map[string]*subscriptionRecord),
	}
}

// tenant finds a tenant by ID or domain name, nil when there is none.
func (st *state) tenant(name string) *tenantRecord {
	name = strings.ToLower(name)
	if t := st.tenants[name]; t != nil {
		return t
	}
	return st.domains[name]
}

// apply makes the change part of the state. It depends on nothing but its
// inputs, so replaying the file gives the same state again.
func (st *state) apply(c *change) error {
	if t := c.Tenant; t != nil {
		r := &tenantRecord{
			Tenant: *t, principal: make(map[string]*principalRecord), blocks: make(map[string]string),
			management: make(map[string]*ManagementGroup),
		}
		st.tenants[t.ID] = r
		st.domains[strings.ToLower(t.Domain)] = r
	}
	if p := c.Person; p != nil {
		t := st.tenants[p.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of person: %w", p.Tenant, ErrNotFound)
		}
		t.people = append(t.people, *p)
	}
	if sub := c.Subscription; sub != nil {
		t := st.tenants[sub.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of subscription: %w", sub.Tenant, ErrNotFound)
		}
		t.subscriptions = append(t.subscriptions, sub.ID)
		st.subscriptions[sub.ID] = &subscriptionRecord{
			Subscription: *sub, groups: make(map[string]*resourceGroup), registrations: make(map[string]*history[registration]),
		}
	}
	if b := c.Block; b != nil {
		t := st.tenants[b.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of block: %w", b.Tenant, ErrNotFound)
		}
		t.blocks[b.ClientID] = b.Code
	}
	if c.Key != nil {
		st.key = c.Key
	}
	return errors.Join(st.applyApplication(c), st.applySecret(c), st.applyFederated(c), st.applyPrincipal(c), st.applyPolicy(c), st.applyQuota(c), st.applyAzure(c))
}

func (st *state) applyApplication(c *change) error {
	a := c.Application
	if a == nil {
		return nil
	}
	t := st.tenants[a.Tenant]
	if t == nil {
		return fmt.Errorf("tenant %s of application: %w", a.Tenant, ErrNotFound)
	}
	r := st.applications[a.ID]
	if r == nil {
		r = &applicationRecord{id: a.ID, appID: a.AppID, tenant: a.Tenant, order: c.Seq}
		st.applications[a.ID] = r
		st.clients[a.AppID] = r
		t.applications = append(t.applications, r)
	}
	r.written = c.Time
	if c.Secret != nil && !c.Secret.Gone {
		r.passwordAdded = c.Time
	}
	name := uniqueKey(a.Tenant, a.UniqueName)
	if c.Purged {
		r.add(c.Time, nil, c.Visible)
	} else {
		r.add(c.Time, a, c.Visible)
	}
	switch {
	case a.UniqueName == "":
	case a.Deleted == nil && !c.Purged:
		st.uniqueNames[name] = r
	case st.uniqueNames[name] == r:
		delete(st.uniqueNames, name)
	}
	if c.Purged {
		t.purge(c.Time)
		t.leaving = append(t.leaving, r)
	}
	t.leaving = slices.DeleteFunc(t.leaving, func(r *applicationRecord) bool { return st.forget(t, r, c.Time) })
	return nil
}

// forget drops a purged application, with its secrets, once no replica can show
// it any more, and tells whether it has.
func (st *state) forget(t *tenantRecord, r *applicationRecord, now time.Time) bool {
	if !r.versions[len(r.versions)-1].visible.everywhere(now) {
		return false
	}
	delete(st.applications, r.id)
	delete(st.clients, r.appID)
	if i := slices.Index(t.applications, r); i >= 0 {
		t.applications = slices.Delete(t.applications, i, i+1)
	}
	return true
}

func (st *state) applySecret(c *change) error {
	if c.Secret == nil {
		return nil
	}
	if id := c.Secret.Principal; id != "" {
		r := st.principals[id]
		if r == nil {
			return fmt.Errorf("principal %s of secret: %w", id, ErrNotFound)
		}
		r.secrets = c.Secret.joins(r.secrets, c.Time)
		return nil
	}
	r := st.clients[c.Secret.AppID]
	if r == nil {
		return fmt.Errorf("application %s of secret: %w", c.Secret.AppID, ErrNotFound)
	}
	r.secrets = c.Secret.joins(r.secrets, c.Time)
	return nil
}

// joins puts the secret in place of its former self, and forgets those that no
// replica has any more.
func (sec *secret) joins(secrets []*secret, now time.Time) []*secret {
	kept := make([]*secret, 0, len(secrets)+1)
	for _, old := range secrets {
		if old.KeyID != sec.KeyID && (!old.Gone || !old.Removed.Everywhere(now)) {
			kept = append(kept, old)
		}
	}
	return append(kept, sec)
}

func (st *state) applyFederated(c *change) error {
	f := c.Federated
	if f == nil {
		return nil
	}
	r := st.clients[f.AppID]
	if r == nil {
		return fmt.Errorf("application %s of federated credential: %w", f.AppID, ErrNotFound)
	}
	// Those that nothing can show any more are forgotten.
	r.federated = slices.DeleteFunc(slices.Clone(r.federated), func(old *federatedRecord) bool {
		return old.latest() == nil && old.versions[len(old.versions)-1].visible.everywhere(c.Time)
	})
	i := slices.IndexFunc(r.federated, func(old *federatedRecord) bool { return old.id == f.ID })
	if i < 0 {
		i = len(r.federated)
		r.federated = append(r.federated, &federatedRecord{id: f.ID, order: c.Seq})
	}
	if c.Unfederated {
		f = nil
	}
	r.written = c.Time
	r.federated[i].add(c.Time, f, c.Visible)
	return nil
}

func (st *state) applyPrincipal(c *change) error {
	p := c.Principal
	if p == nil {
		return nil
	}
	t := st.tenants[p.Tenant]
	if t == nil {
		return fmt.Errorf("tenant %s of principal: %w", p.Tenant, ErrNotFound)
	}
	r := st.principals[p.ID]
	if r == nil {
		r = &principalRecord{id: p.ID, appID: p.AppID, tenant: p.Tenant, order: c.Seq}
		st.principals[p.ID] = r
		t.principals = append(t.principals, r)
	}
	t.principal[p.AppID] = r
	visible := c.Visible
	if c.Application != nil {
		visible = c.PrincipalVisible
	}
	r.add(c.Time, p, visible)
	return nil
}

func (st *state) applyAzure(c *change) error {
	if m := c.Management; m != nil {
		t := st.tenants[m.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of management group: %w", m.Tenant, ErrNotFound)
		}
		t.management[strings.ToLower(m.ID)] = m
	}
	if a := c.Assignment; a != nil {
		t := st.tenants[a.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of role assignment: %w", a.Tenant, ErrNotFound)
		}
		id := a.ID
		if c.Unassigned {
			a = nil
		}
		t.assignments.put(c.Time, id, a, c.Visible)
	}
	if d := c.Denial; d != nil {
		t := st.tenants[d.Tenant]
		if t == nil {
			return fmt.Errorf("tenant %s of deny assignment: %w", d.Tenant, ErrNotFound)
		}
		id := d.ID
		if c.Undenied {
			d = nil
		}
		t.denials.put(c.Time, id, d, c.Visible)
	}
	if g := c.Group; g != nil {
		sub := st.subscriptions[g.Subscription]
		if sub == nil {
			return fmt.Errorf("subscription %s of resource group: %w", g.Subscription, ErrNotFound)
		}
		if g.Deleted {
			delete(sub.groups, strings.ToLower(g.Name))
		} else {
			sub.groups[strings.ToLower(g.Name)] = g
		}
	}
	if p := c.Registration; p != nil {
		sub := st.subscriptions[p.Subscription]
		if sub == nil {
			return fmt.Errorf("subscription %s of resource provider: %w", p.Subscription, ErrNotFound)
		}
		r := &history[registration]{}
		r.add(c.Time, p, c.Visible)
		sub.registrations[p.Namespace] = r
	}
	return nil
}

func uniqueKey(tenant, name string) string {
	return tenant + "\x00" + name
}

// segments are the parts of a scope.
func segments(scope string) []string { return strings.Split(strings.Trim(scope, "/"), "/") }

// subscriptionOf returns the lower-case subscription ID a scope begins with.
func subscriptionOf(scope string) string {
	parts := segments(strings.ToLower(scope))
	if len(parts) < 2 || parts[0] != "subscriptions" {
		return ""
	}
	return parts[1]
}
