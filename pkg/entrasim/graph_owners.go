package entrasim

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxOwners is how many an application or principal can have.
const maxOwners = 100

// user is a person as Graph lists them among owners.
type user struct{ *Person }

func (u user) property(name string) (value any, known bool) {
	switch name {
	case "id":
		return u.ID, true
	case "displayName":
		return u.DisplayName, true
	case "userPrincipalName":
		return u.UserName, true
	}
	return nil, false
}

func (u user) view() map[string]any {
	return map[string]any{"id": u.ID, "displayName": u.DisplayName, "userPrincipalName": u.UserName}
}

// owner finds the person or principal of the caller's tenant with the ID.
func (s *Simulator) owner(c *call, id string) (listed, bool) {
	t := s.state.tenants[c.tenant]
	if i := slices.IndexFunc(t.people, func(p Person) bool { return strings.EqualFold(p.ID, id) }); i >= 0 {
		return listed{uint64(i) + 1, typed{listed{item: user{&t.people[i]}}, "user"}}, true
	}
	record, p := s.findPrincipal(c, graphKey{"id", id})
	if p == nil {
		return listed{}, false
	}
	// Principals come after all people: pages go on by an order of which there is
	// one each.
	return listed{record.order + 1<<32, typed{listed{item: p}, "servicePrincipal"}}, true
}

// listOwners lists those of the owners that are still there.
func (s *Simulator) listOwners(c *call, ids []string) reply {
	var items []listed
	for _, id := range ids {
		if l, found := s.owner(c, id); found {
			items = append(items, l)
		}
	}
	slices.SortFunc(items, func(a, b listed) int { return cmp.Compare(a.order, b.order) })
	return s.collection(c, "directoryObjects", items)
}

// addedOwner is the owners with the one that a request names by its URL.
func (s *Simulator) addedOwner(c *call, owners []string) ([]string, *reply) {
	var body struct {
		ID string `json:"@odata.id"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return nil, bad
	}
	id, bad := s.namedOwner(c, "@odata.id", body.ID)
	switch {
	case bad != nil:
		return nil, bad
	case slices.Contains(owners, id):
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "One or more added object references already exist for the following modified properties: 'owners'.")
		return nil, &bad
	}
	return appendOwner(c, owners, id)
}

// firstOwners are those of what a request makes: the caller, and whom it names.
func (s *Simulator) firstOwners(c *call) ([]string, *reply) {
	var body struct {
		Owners []string `json:"owners@odata.bind"`
	}
	if bad := decodeBody(c, &body); bad != nil {
		return nil, bad
	}
	owners := []string{c.token.ObjectID}
	for _, link := range body.Owners {
		id, bad := s.namedOwner(c, "owners@odata.bind", link)
		if bad == nil && !slices.Contains(owners, id) {
			owners, bad = appendOwner(c, owners, id)
		}
		if bad != nil {
			return nil, bad
		}
	}
	return owners, nil
}

// namedOwner is the ID of the person or principal that a property names by URL.
func (s *Simulator) namedOwner(c *call, property, link string) (string, *reply) {
	u, err := url.Parse(link)
	var path []string
	if err == nil {
		path = split(u)
	}
	n := len(path)
	if n < 2 || !slices.Contains([]string{"directoryobjects", "serviceprincipals", "users"}, strings.ToLower(path[n-2])) {
		bad := c.fail(http.StatusBadRequest, codeBadRequest, "Invalid value specified for property '"+property+"': it does not name a user or service principal.")
		return "", &bad
	}
	id := strings.ToLower(path[n-1])
	if _, found := s.owner(c, id); !found {
		bad := notFound(c, graphKey{"id", id})
		return "", &bad
	}
	return id, nil
}

func appendOwner(c *call, owners []string, id string) ([]string, *reply) {
	if len(owners) >= maxOwners {
		bad := c.fail(http.StatusForbidden, "Directory_ResourceSizeExceeded", "The object cannot have more than 100 owners.")
		return nil, &bad
	}
	return append(slices.Clone(owners), id), nil
}

// withoutOwner is the owners without the one that a request names, who may be the
// last one, and the caller.
func withoutOwner(c *call, owners []string) ([]string, *reply) {
	i := slices.Index(owners, strings.ToLower(c.part.value))
	if i < 0 {
		bad := notFound(c, c.part)
		return nil, &bad
	}
	return slices.Delete(slices.Clone(owners), i, i+1), nil
}

func (s *Simulator) listApplicationOwners(c *call, key graphKey) reply {
	_, a := s.findApplication(c, key)
	if a == nil {
		return notFound(c, key)
	}
	return s.listOwners(c, a.Owners)
}

func (s *Simulator) addApplicationOwner(c *call, key graphKey) reply {
	record, latest, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	next := *latest
	if next.Owners, bad = s.addedOwner(c, latest.Owners); bad != nil {
		return *bad
	}
	return s.commitAssignment(c, record, &next)
}

func (s *Simulator) removeApplicationOwner(c *call, key graphKey) reply {
	record, latest, bad := s.changeable(c, key)
	if bad != nil {
		return *bad
	}
	next := *latest
	if next.Owners, bad = withoutOwner(c, latest.Owners); bad != nil {
		return *bad
	}
	return s.commitAssignment(c, record, &next)
}

func (s *Simulator) listPrincipalOwners(c *call, key graphKey) reply {
	_, p := s.findPrincipal(c, key)
	if p == nil {
		return notFound(c, key)
	}
	return s.listOwners(c, p.Owners)
}

func (s *Simulator) addPrincipalOwner(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	if next.Owners, bad = s.addedOwner(c, next.Owners); bad != nil {
		return *bad
	}
	return s.commitPrincipalAssignment(c, next)
}

func (s *Simulator) removePrincipalOwner(c *call, key graphKey) reply {
	next, bad := s.changeablePrincipal(c, key)
	if bad != nil {
		return *bad
	}
	if next.Owners, bad = withoutOwner(c, next.Owners); bad != nil {
		return *bad
	}
	return s.commitPrincipalAssignment(c, next)
}
