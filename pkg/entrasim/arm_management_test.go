package entrasim_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

const (
	landing    = "/providers/Microsoft.Management/managementGroups/landing"
	corp       = "/providers/Microsoft.Management/managementGroups/corp"
	online     = "/providers/Microsoft.Management/managementGroups/online"
	rootScope  = "/providers/Microsoft.Management/managementGroups/" + customerID
	corpSub    = "44444444-4444-4444-8444-444444444444"
	corpScope  = "/subscriptions/" + corpSub
	everybody  = entrasim.AllPrincipals
	stackWrite = "*/write"
)

// newEstate is a world with a hierarchy: landing, with corp and online in it, and
// a subscription in corp; the other subscription is in the root.
func newEstate(t *testing.T, config entrasim.Config) *world {
	t.Helper()
	w := newWorld(t, config)
	for _, m := range []entrasim.ManagementGroup{{ID: "landing"}, {ID: "corp", Parent: "Landing"}, {ID: "online", Parent: "landing"}} {
		m.Tenant = customerID
		_, err := w.sim.CreateManagementGroup(m)
		w.must(err)
	}
	_, err := w.sim.CreateSubscription(entrasim.Subscription{ID: corpSub, Tenant: customerID, ManagementGroup: "CORP"})
	w.must(err)
	return w
}

// listed are the scopes in a list of assignments.
func (w *world) listed(kind, scope, filter, bearer string) []string {
	w.Helper()
	got := w.send(http.MethodGet, "https://management.azure.com"+scope+"/providers/Microsoft.Authorization/"+kind+"?"+
		url.Values{"api-version": {"2022-04-01"}, "$filter": {filter}}.Encode(), bearer, "")
	if got.status != http.StatusOK {
		return []string{got.text("error/code")}
	}
	all, _ := got.at("value").([]any)
	scopes := []string{}
	for _, one := range all {
		m, _ := one.(map[string]any)
		p, _ := m["properties"].(map[string]any)
		s, _ := p["scope"].(string)
		scopes = append(scopes, s)
	}
	slices.Sort(scopes)
	return scopes
}

func TestARM_ManagementGroupsInherit(t *testing.T) {
	for _, c := range []struct {
		name, scope string
		allowed     []string
		refused     []string
	}{
		{"at the root", rootScope, []string{rootScope, landing, corp, online, corpScope, scope}, nil},
		{"at the top", landing, []string{landing, corp, online, corpScope, corpScope + "/resourceGroups/network"}, []string{rootScope, scope}},
		{"in the middle", "/providers/microsoft.management/MANAGEMENTGROUPS/Corp", []string{corp, corpScope}, []string{rootScope, landing, online, scope}},
		{"beside", online, []string{online}, []string{landing, corp, corpScope, scope}},
		{"in a subscription", corpScope, []string{corpScope}, []string{corp, landing, scope}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEstate(t, entrasim.Config{})
			a, p := w.consented("one")
			w.assign(p.ID, "Reader", c.scope)
			bearer := w.token(customerID, a.clientID, a.secret, armScope)
			for want, scopes := range map[int][]string{200: c.allowed, 403: c.refused} {
				for _, at := range scopes {
					for _, kind := range []string{"roleAssignments", "permissions", "denyAssignments", "roleDefinitions"} {
						got := w.arm(http.MethodGet, at+"/providers/Microsoft.Authorization/"+kind, bearer, "")
						if got.status != want || want == 403 && got.text("error/code") != "AuthorizationFailed" {
							t.Errorf("%s of %s: %d %s", kind, at, got.status, got.body)
						}
					}
				}
			}
			subs := w.arm(http.MethodGet, "/subscriptions", bearer, "")
			if has := strings.Contains(subs.body, corpSub); has != slices.Contains(c.allowed, corpScope) {
				t.Errorf("subscriptions: %s", subs.body)
			}
		})
	}
}

func TestARM_ListsOfManagementGroups(t *testing.T) {
	w := newEstate(t, entrasim.Config{})
	a, p := w.consented("one")
	_, other := w.consented("two")
	for _, at := range []string{rootScope, landing, corp, online, corpScope} {
		w.assign(p.ID, "Reader", at)
	}
	w.assign(other.ID, "Contributor", corp)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	mine := "assignedTo('" + p.ID + "')"
	for _, c := range []struct {
		scope, filter string
		want          []string
	}{
		{corp, mine, []string{rootScope, corp, landing, corpScope}},
		{corp, "principalId eq '" + p.ID + "'", []string{rootScope, corp, landing, corpScope}},
		{corp, "atScope() and " + mine, []string{rootScope, corp, landing}},
		{corp, "atScope() and principalId eq '" + other.ID + "'", []string{corp}},
		{corp, "atScope()", []string{rootScope, corp, corp, landing}},
		{corpScope, mine, []string{rootScope, corp, landing, corpScope}},
		{corpScope, "assignedTo('" + other.ID + "')", []string{corp}},
		{landing, mine, []string{rootScope, corp, landing, online, corpScope}},
		{scope, mine, []string{rootScope}},
		{corp, "assignedTo('')", []string{"InvalidFilter"}},
		{corp, "atScope() or " + mine, []string{"InvalidFilter"}},
		{corp, "createdBy eq 'x'", []string{"UnsupportedQuery"}},
	} {
		slices.Sort(c.want)
		if got := w.listed("roleAssignments", c.scope, c.filter, bearer); !slices.Equal(got, c.want) {
			t.Errorf("%s by %s: %q, want %q", c.scope, c.filter, got, c.want)
		}
	}
}

func TestARM_RolesAreAssignedAtManagementGroups(t *testing.T) {
	w := newEstate(t, entrasim.Config{})
	a, p := w.consented("one")
	_, other := w.consented("two")
	w.assign(p.ID, "Owner", landing)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	where := "/providers/Microsoft.Authorization/roleAssignments/" + homeID
	body := `{"properties":{"roleDefinitionId":"/providers/Microsoft.Authorization/roleDefinitions/` + reader + `","principalId":"` + other.ID + `"}}`
	for _, step := range []struct {
		name, method, scope, body string
		status                    int
		want                      string
	}{
		{"above", http.MethodPut, rootScope, body, 403, "AuthorizationFailed"},
		{"where there is no group", http.MethodPut, corp + "x", body, 403, "AuthorizationFailed"},
		{"below", http.MethodPut, corp, body, 201, `"roleDefinitionId":"/providers/Microsoft.Authorization/roleDefinitions/` + reader},
		{"read it", http.MethodGet, corp, "", 200, `"scope":"` + corp + `"`},
		{"read its role", http.MethodGet, "", "", 404, "InvalidResourceType"},
		{"remove it", http.MethodDelete, corp, "", 200, ""},
		{"the group itself", http.MethodPatch, corp, "", 404, "InvalidResourceType"},
	} {
		if got := w.arm(step.method, step.scope+where, bearer, step.body); got.status != step.status || !strings.Contains(got.body, step.want) {
			t.Errorf("%s: %d %s", step.name, got.status, got.body)
		}
	}
	// Another tenant's group of the same name is another group.
	_, err := w.sim.CreateManagementGroup(entrasim.ManagementGroup{Tenant: homeID, ID: "corp"})
	w.must(err)
	home := w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, armScope)
	if got := w.arm(http.MethodGet, corp+"/providers/Microsoft.Authorization/roleAssignments", home, ""); got.status != 403 {
		t.Errorf("by another tenant: %d %s", got.status, got.body)
	}
}

func TestARM_DenyAssignmentsOverrideRoles(t *testing.T) {
	deny := func(w *world, d entrasim.DenyAssignment) entrasim.DenyAssignment {
		w.Helper()
		d.Tenant, d.Name = customerID, "held by a stack"
		made, err := w.sim.Deny(d)
		w.must(err)
		return made
	}
	const below = corpScope + "/resourceGroups/network"
	for _, c := range []struct {
		name        string
		deny        func(me string) entrasim.DenyAssignment
		read, write int
	}{
		{"writing, to everybody", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corpScope, Actions: []string{stackWrite}, Principals: []string{everybody}}
		}, 200, 403},
		{"but for one", func(me string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corpScope, Actions: []string{stackWrite}, Principals: []string{everybody}, ExcludePrincipals: []string{me}}
		}, 200, 201},
		{"to one", func(me string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corp, Actions: []string{"*"}, NotActions: []string{"*/read"}, Principals: []string{me}}
		}, 200, 403},
		{"to another", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corp, Actions: []string{"*"}, Principals: []string{homeID}}
		}, 200, 201},
		{"everything", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: landing, Actions: []string{"*"}, Principals: []string{everybody}}
		}, 403, 403},
		{"in the scope alone", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corpScope, Actions: []string{"*"}, Principals: []string{everybody}, DoNotApplyToChildScopes: true}
		}, 403, 201},
		{"data alone", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: corpScope, DataActions: []string{"*"}, Principals: []string{everybody}}
		}, 200, 201},
		{"beside", func(string) entrasim.DenyAssignment {
			return entrasim.DenyAssignment{Scope: scope, Actions: []string{"*"}, Principals: []string{everybody}}
		}, 200, 201},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEstate(t, entrasim.Config{})
			a, p := w.consented("one")
			w.assign(p.ID, "Contributor", landing)
			made := deny(w, c.deny(p.ID))
			bearer := w.token(customerID, a.clientID, a.secret, armScope)
			read, write := w.arm(http.MethodGet, corpScope, bearer, ""), w.arm(http.MethodPut, below, bearer, `{"location":"westeurope"}`)
			if read.status != c.read || write.status != c.write {
				t.Errorf("read %d %s\nwrite %d %s", read.status, read.body, write.status, write.body)
			}
			if c.write == 403 && (write.text("error/code") != "DenyAssignmentAuthorizationFailed" ||
				!strings.Contains(write.text("error/message"), "has permission to perform action 'Microsoft.Resources/subscriptions/resourceGroups/write' on scope '"+below+
					"'; however, the access is denied because of the deny assignment with name 'held by a stack' and Id '")) {
				t.Errorf("%s", write.body)
			}
			w.must(w.sim.RemoveDenial(made.ID))
			if got := w.arm(http.MethodPut, below, bearer, `{"location":"westeurope"}`); got.status >= 400 {
				t.Errorf("after its removal: %d %s", got.status, got.body)
			}
		})
	}
}

func TestARM_ListsDenyAssignments(t *testing.T) {
	w := newEstate(t, entrasim.Config{})
	a, p := w.consented("one")
	w.assign(p.ID, "Reader", landing)
	made := map[string]entrasim.DenyAssignment{}
	for name, d := range map[string]entrasim.DenyAssignment{
		"all":  {Scope: corp, Principals: []string{everybody}, ExcludePrincipals: []string{homeID}},
		"mine": {Scope: corpScope, Principals: []string{p.ID}},
		"far":  {Scope: online, Principals: []string{p.ID}},
	} {
		d.Tenant, d.Name, d.Actions = customerID, name, []string{"*/delete"}
		one, err := w.sim.Deny(d)
		w.must(err)
		made[name] = one
	}
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	for _, c := range []struct {
		scope, filter string
		want          []string
	}{
		{corpScope, "", []string{corp, corpScope}},
		{corp, "", []string{corp, corpScope}},
		{corp, "atScope()", []string{corp}},
		{corpScope, "atScope()", []string{corp, corpScope}},
		{landing, "assignedTo('" + p.ID + "')", []string{online, corpScope}},
		{landing, "principalId eq '" + p.ID + "'", []string{online, corpScope}},
		{landing, "denyAssignmentName eq 'all'", []string{corp}},
		{landing, "gdprExportPrincipalId eq 'x'", []string{"UnsupportedQuery"}},
	} {
		slices.Sort(c.want)
		if got := w.listed("denyAssignments", c.scope, c.filter, bearer); !slices.Equal(got, c.want) {
			t.Errorf("%s by %q: %q, want %q", c.scope, c.filter, got, c.want)
		}
	}
	got := w.arm(http.MethodGet, made["all"].ID, bearer, "")
	for _, want := range []string{`"denyAssignmentName":"all"`, `"principals":[{"id":"` + everybody + `","type":"SystemDefined"}]`, `"excludePrincipals":[{"id":"` + homeID, `"actions":["*/delete"]`} {
		if got.status != 200 || !strings.Contains(got.body, want) {
			t.Errorf("%d %s lacks %s", got.status, got.body, want)
		}
	}
	if got := w.arm(http.MethodGet, corp+"/providers/Microsoft.Authorization/denyAssignments/"+homeID, bearer, ""); got.status != 404 {
		t.Errorf("one that is not there: %d %s", got.status, got.body)
	}
}

func TestManagementGroupsAndDenials_AreRefusedWhenTheyCannotBe(t *testing.T) {
	w := newEstate(t, entrasim.Config{})
	for _, m := range []entrasim.ManagementGroup{{Tenant: homeID + "x"}, {Tenant: customerID, ID: "a b"}, {Tenant: customerID, ID: "CORP"}, {Tenant: customerID, ID: customerID}, {Tenant: customerID, ID: "new", Parent: "nowhere"}} {
		if _, err := w.sim.CreateManagementGroup(m); err == nil {
			t.Errorf("%+v was made", m)
		}
	}
	if _, err := w.sim.CreateSubscription(entrasim.Subscription{Tenant: customerID, ManagementGroup: "nowhere"}); err == nil {
		t.Error("a subscription in no group was made")
	}
	for _, d := range []entrasim.DenyAssignment{
		{Scope: corp + "x", Actions: []string{"*"}, Principals: []string{everybody}},
		{Scope: corp, Principals: []string{everybody}},
		{Scope: corp, Actions: []string{"*"}},
		{Scope: corp, Actions: []string{"*"}, Principals: []string{everybody}, ExcludePrincipals: []string{everybody}},
	} {
		d.Tenant = customerID
		if _, err := w.sim.Deny(d); err == nil {
			t.Errorf("%+v was made", d)
		}
	}
	if err := w.sim.RemoveDenial(corp); err == nil {
		t.Error("a deny assignment that is not there was removed")
	}
	_, p := w.consented("one")
	for _, at := range []string{corp + "x", "/subscriptions/" + homeID} {
		if _, err := w.sim.AssignRole(entrasim.NewAssignment{Scope: at, PrincipalID: p.ID, Role: "Reader"}); err == nil {
			t.Errorf("a role was assigned at %s", at)
		}
	}
}

func TestState_KeepsHierarchyAndDenials(t *testing.T) {
	dir := t.TempDir()
	w := newEstate(t, entrasim.Config{StateDir: dir})
	a, p := w.consented("one")
	w.assign(p.ID, "Contributor", landing)
	d, err := w.sim.Deny(entrasim.DenyAssignment{Tenant: customerID, Scope: corp, Actions: []string{stackWrite}, Principals: []string{everybody}})
	w.must(err)
	w.must(w.sim.Close())
	w.sim = open(t, entrasim.Config{StateDir: dir})
	w.client = &http.Client{Transport: w.sim.Transport()}
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	put := func() int {
		return w.arm(http.MethodPut, corpScope+"/resourceGroups/network", bearer, `{"location":"westeurope"}`).status
	}
	if got := put(); got != 403 {
		t.Errorf("denied, after a restart: %d", got)
	}
	w.must(w.sim.RemoveDenial(d.ID))
	if got := put(); got != 201 {
		t.Errorf("allowed from above, after a restart: %d", got)
	}
}
