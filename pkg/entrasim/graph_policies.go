package entrasim

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	policyCollection  = "policies/appManagementPolicies"
	maxPolicyName     = 256
	maxPolicyDescribe = 1024
)

// view is a policy as Graph shows it.
func (p *managementPolicy) view() map[string]any {
	out := map[string]any{
		"id": p.ID, "displayName": p.DisplayName, "description": p.Description, "isEnabled": p.Enabled, "deletedDateTime": nil,
	}
	if p.ID == defaultPolicyID {
		out["applicationRestrictions"], out["servicePrincipalRestrictions"] = p.Applications.view(), p.Principals.view()
	} else {
		out["restrictions"] = p.Restrictions.view()
	}
	return out
}

func (p *managementPolicy) property(name string) (value any, known bool) {
	switch name {
	case "id":
		return p.ID, true
	case "displayName":
		return p.DisplayName, true
	}
	return nil, false
}

// applyPolicy takes the request's body into p and judges the outcome: lists of
// restrictions as a whole, everything else by itself.
func applyPolicy(c *call, p *managementPolicy) *reply {
	fail := func(text string) *reply {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, text)
		return &bad
	}
	var given map[string]json.RawMessage
	if bad := decodeBody(c, &given); bad != nil {
		return bad
	}
	isDefault := p.ID == defaultPolicyID
	for name, value := range given {
		var err error
		switch {
		case strings.Contains(name, "@odata."):
		case name == "displayName":
			p.DisplayName, err = textOf(value)
		case name == "description":
			p.Description, err = textOf(value)
		case name == "isEnabled":
			err = json.Unmarshal(value, &p.Enabled)
		case name == "restrictions" && !isDefault:
			p.Restrictions, err = p.Restrictions.merge(value)
		case name == "applicationRestrictions" && isDefault:
			p.Applications, err = p.Applications.merge(value)
		case name == "servicePrincipalRestrictions" && isDefault:
			p.Principals, err = p.Principals.merge(value)
		default:
			return fail("Invalid property '" + clip(name, 64) + "'.")
		}
		if err != nil {
			return fail("A property has a value of the wrong type.")
		}
	}
	switch {
	case p.DisplayName == "" || utf8.RuneCountInString(p.DisplayName) > maxPolicyName:
		return fail("Invalid value specified for property 'displayName' of a policy.")
	case p.Description == "" || utf8.RuneCountInString(p.Description) > maxPolicyDescribe:
		return fail("Invalid value specified for property 'description' of a policy.")
	}
	for _, r := range []restrictions{p.Applications, p.Principals, p.Restrictions} {
		if text := r.wrong(); text != "" {
			return fail(text)
		}
	}
	return nil
}

// policyChange is a change of a policy of which the record, if there is one, keeps
// the former states.
func (s *Simulator) policyChange(c *call, kind string, r *policyRecord, p *managementPolicy) *change {
	visible := Visibility{Graph: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Graph)}
	if r != nil {
		visible = r.follow(c.now, visible)
	}
	return &change{Time: c.now, Kind: kind, Actor: c.actor, RequestID: c.requestID, Policy: p, Visible: visible}
}

func (s *Simulator) getDefaultPolicy(c *call, _ graphKey) reply {
	p := s.state.tenants[c.tenant].defaultPolicy.seen(PlaneGraph, c.replica, c.now)
	if p == nil {
		usual := usualPolicy(c.tenant)
		p = &usual
	}
	return s.entity(c, http.StatusOK, "policies/defaultAppManagementPolicy", p.view())
}

func (s *Simulator) updateDefaultPolicy(c *call, _ graphKey) reply {
	t := s.state.tenants[c.tenant]
	next := t.latestDefault()
	if bad := applyPolicy(c, &next); bad != nil {
		return *bad
	}
	if err := s.commit(s.policyChange(c, "policy.updated", &t.defaultPolicy, &next)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) listPolicies(c *call, _ graphKey) reply {
	var items []listed
	for _, r := range s.state.tenants[c.tenant].policies {
		if p := r.seen(PlaneGraph, c.replica, c.now); p != nil {
			items = append(items, listed{r.order, p})
		}
	}
	return s.collection(c, policyCollection, items)
}

func (s *Simulator) createPolicy(c *call, _ graphKey) reply {
	p := &managementPolicy{Tenant: c.tenant}
	if bad := applyPolicy(c, p); bad != nil {
		return *bad
	}
	p.ID = s.dice.Of(c.actor).UUID()
	if err := s.commit(s.policyChange(c, "policy.created", nil, p)); err != nil {
		return unavailable(c)
	}
	return s.entity(c, http.StatusCreated, policyCollection, p.view())
}

func (s *Simulator) getPolicy(c *call, key graphKey) reply {
	_, p := s.state.tenants[c.tenant].policy(c, strings.ToLower(key.value))
	if p == nil {
		return notFound(c, key)
	}
	return s.entity(c, http.StatusOK, policyCollection, p.view())
}

// changeablePolicy finds a policy for a write: the request must land on a replica
// that shows it, and acts on what was committed last.
func (s *Simulator) changeablePolicy(c *call, key graphKey) (*policyRecord, *managementPolicy, *reply) {
	r, p := s.state.tenants[c.tenant].policy(c, strings.ToLower(key.value))
	if p == nil || r.latest() == nil {
		bad := notFound(c, key)
		return nil, nil, &bad
	}
	next := *r.latest()
	return r, &next, nil
}

func (s *Simulator) updatePolicy(c *call, key graphKey) reply {
	r, next, bad := s.changeablePolicy(c, key)
	if bad != nil {
		return *bad
	}
	if bad := applyPolicy(c, next); bad != nil {
		return *bad
	}
	if err := s.commit(s.policyChange(c, "policy.updated", r, next)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// deletePolicy takes a policy away, from those to which it is assigned too.
func (s *Simulator) deletePolicy(c *call, key graphKey) reply {
	r, next, bad := s.changeablePolicy(c, key)
	if bad != nil {
		return *bad
	}
	ch := s.policyChange(c, "policy.deleted", r, next)
	ch.Repealed = true
	if err := s.commit(ch); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

// listApplied lists the applications and principals to which a policy is assigned.
func (s *Simulator) listApplied(c *call, key graphKey) reply {
	t, id := s.state.tenants[c.tenant], strings.ToLower(key.value)
	if _, p := t.policy(c, id); p == nil {
		return notFound(c, key)
	}
	var items []listed
	add := func(kind string, l listed) { items = append(items, listed{l.order, typed{l, kind}}) }
	// An application and its principal may have been made at once; pages go on by
	// an order of which there is one each.
	for _, r := range t.applications {
		if a := r.seen(PlaneGraph, c.replica, c.now); a != nil && a.Deleted == nil && a.Policy == id {
			add("application", listed{2 * r.order, a})
		}
	}
	for _, r := range t.principals {
		if p := r.seen(PlaneGraph, c.replica, c.now); p != nil && p.Deleted == nil && p.Policy == id {
			add("servicePrincipal", listed{2*r.order + 1, p})
		}
	}
	slices.SortFunc(items, func(a, b listed) int { return cmp.Compare(a.order, b.order) })
	return s.collection(c, "directoryObjects", items)
}

// typed is an item of a list in which others are of another type.
type typed struct {
	listed

	kind string
}

func (t typed) property(name string) (value any, known bool) { return t.item.property(name) }

func (t typed) view() map[string]any {
	out := t.item.view()
	out["@odata.type"] = "#microsoft.graph." + t.kind
	return out
}

func (s *Simulator) listApplicationPolicies(c *call, key graphKey) reply {
	_, a := s.findApplication(c, key)
	if a == nil {
		return notFound(c, key)
	}
	return s.assigned(c, a.Policy)
}

func (s *Simulator) listPrincipalPolicies(c *call, key graphKey) reply {
	_, p := s.findPrincipal(c, key)
	if p == nil {
		return notFound(c, key)
	}
	return s.assigned(c, p.Policy)
}

// assigned lists the one policy that something can have, if it has it.
func (s *Simulator) assigned(c *call, id string) reply {
	var items []listed
	if r, p := s.state.tenants[c.tenant].policy(c, id); p != nil {
		items = append(items, listed{r.order, p})
	}
	return s.collection(c, policyCollection, items)
}

// assignment is the ID of the policy that a request names by its URL, for
// something that has the one with the other ID, or none.
func (s *Simulator) assignment(c *call, has string) (string, *reply) {
	var body struct {
		ID string `json:"@odata.id"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return "", bad
	}
	u, err := url.Parse(body.ID)
	var path []string
	if err == nil {
		path = split(u)
	}
	n := len(path)
	if n < 3 || !strings.EqualFold(strings.Join(path[n-3:n-1], "/"), policyCollection) {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Invalid value specified for property '@odata.id': it does not name a policy.")
		return "", &bad
	}
	t, id := s.state.tenants[c.tenant], strings.ToLower(path[n-1])
	if _, p := t.policy(c, id); p == nil {
		bad := notFound(c, graphKey{"id", id})
		return "", &bad
	}
	if _, other := t.policy(c, has); other != nil {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Only one policy can be assigned to an application or service principal, and '"+has+"' is.")
		return "", &bad
	}
	return id, nil
}

// applicationToAssign finds an application whose assignment is to change. Whose
// policies one may write, one need not own.
func (s *Simulator) applicationToAssign(c *call, key graphKey) (*applicationRecord, *application, *reply) {
	record, a := s.findApplication(c, key)
	if a == nil || record.latest() == nil || record.latest().Deleted != nil {
		bad := notFound(c, key)
		return nil, nil, &bad
	}
	next := *record.latest()
	return record, &next, s.conflict(c, record)
}

// commitAssignment commits a change of what an application is tied to, which
// concerns Graph alone.
func (s *Simulator) commitAssignment(c *call, record *applicationRecord, next *application) reply {
	if err := s.commitApplication(c, "application.updated", record, next, Visibility{Graph: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Graph)}); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) assignApplicationPolicy(c *call, key graphKey) reply {
	record, next, bad := s.applicationToAssign(c, key)
	if bad != nil {
		return *bad
	}
	id, bad := s.assignment(c, next.Policy)
	if bad != nil {
		return *bad
	}
	next.Policy = id
	return s.commitAssignment(c, record, next)
}

func (s *Simulator) unassignApplicationPolicy(c *call, key graphKey) reply {
	record, next, bad := s.applicationToAssign(c, key)
	if bad != nil {
		return *bad
	}
	if !strings.EqualFold(next.Policy, c.part.value) {
		return notFound(c, c.part)
	}
	next.Policy = ""
	return s.commitAssignment(c, record, next)
}

// principalToAssign is applicationToAssign of principals.
func (s *Simulator) principalToAssign(c *call, key graphKey) (*principal, *reply) {
	record, p := s.findPrincipal(c, key)
	if p == nil || record.latest().Deleted != nil {
		bad := notFound(c, key)
		return nil, &bad
	}
	next := *record.latest()
	return &next, nil
}

func (s *Simulator) commitPrincipalAssignment(c *call, next *principal) reply {
	if err := s.commit(s.principalChange(c.now, next, s.dice.Of(c.actor), c.actor, c.requestID)); err != nil {
		return unavailable(c)
	}
	return noContent(c)
}

func (s *Simulator) assignPrincipalPolicy(c *call, key graphKey) reply {
	next, bad := s.principalToAssign(c, key)
	if bad != nil {
		return *bad
	}
	id, bad := s.assignment(c, next.Policy)
	if bad != nil {
		return *bad
	}
	next.Policy = id
	return s.commitPrincipalAssignment(c, next)
}

func (s *Simulator) unassignPrincipalPolicy(c *call, key graphKey) reply {
	next, bad := s.principalToAssign(c, key)
	if bad != nil {
		return *bad
	}
	if !strings.EqualFold(next.Policy, c.part.value) {
		return notFound(c, c.part)
	}
	next.Policy = ""
	return s.commitPrincipalAssignment(c, next)
}
