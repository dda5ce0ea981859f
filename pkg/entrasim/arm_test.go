package entrasim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

const (
	scope = "/subscriptions/" + subID
	group = scope + "/resourcegroups/network"
)

func (w *world) assign(principal, role, scope string) entrasim.RoleAssignment {
	w.Helper()
	a, err := w.sim.AssignRole(entrasim.NewAssignment{Scope: scope, PrincipalID: principal, Role: role})
	w.must(err)
	return a
}

func TestARM_RolesDecide(t *testing.T) {
	for _, c := range []struct {
		role                      string
		read, write, grant, erase int
	}{
		{"", 403, 403, 403, 403},
		{"Reader", 200, 403, 403, 403},
		{"Contributor", 200, 201, 403, 200},
		{"Owner", 200, 201, 201, 200},
		{"User Access Administrator", 200, 403, 201, 403},
	} {
		t.Run("as "+c.role, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{})
			a, p := w.consented("one")
			if c.role != "" {
				w.assign(p.ID, c.role, scope)
			}
			bearer := w.token(customerID, a.clientID, a.secret, armScope)
			for _, step := range []struct {
				name, method, path, body string
				want                     int
			}{
				{"read the subscription", http.MethodGet, scope, "", c.read},
				{"list groups", http.MethodGet, scope + "/resourcegroups", "", c.read},
				{"list assignments", http.MethodGet, scope + "/providers/Microsoft.Authorization/roleAssignments", "", c.read},
				{"read own permissions", http.MethodGet, scope + "/providers/Microsoft.Authorization/permissions", "", c.read},
				{"make a group", http.MethodPut, group, `{"location":"West Europe"}`, c.write},
				{"give a role", http.MethodPut, scope + "/providers/Microsoft.Authorization/roleAssignments/" + homeID, `{"properties":{"roleDefinitionId":"` + scope + `/providers/Microsoft.Authorization/roleDefinitions/` + reader + `","principalId":"` + customerID + `","principalType":"ServicePrincipal"}}`, c.grant},
				{"delete the group", http.MethodDelete, group, "", c.erase},
			} {
				got := w.arm(step.method, step.path, bearer, step.body)
				if got.status != step.want {
					t.Errorf("%s: %d %s, want %d", step.name, got.status, got.body, step.want)
				}
				if got.status == 403 && (got.text("error/code") != "AuthorizationFailed" ||
					!strings.HasPrefix(got.text("error/message"), "The client '"+a.clientID+"' with object id '"+p.ID+"' does not have authorization to perform action 'Microsoft.")) {
					t.Errorf("%s: %s", step.name, got.body)
				}
			}
		})
	}
}

func TestARM_ScopesInherit(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	owner, op := w.consented("two")
	w.assign(op.ID, "Owner", scope)
	w.assign(p.ID, "Contributor", group)
	boss := w.token(customerID, owner.clientID, owner.secret, armScope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	for _, path := range []string{group, scope + "/resourceGroups/network-2"} {
		if got := w.arm(http.MethodPut, path, boss, `{"location":"westeurope"}`); got.status != 201 {
			t.Fatalf("%s: %s", path, got.body)
		}
	}
	for path, want := range map[string]int{group: 200, scope + "/RESOURCEGROUPS/NETWORK": 200, scope + "/resourcegroups/network-2": 403, scope: 403} {
		if got := w.arm(http.MethodGet, path, bearer, ""); got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
	}
	for filter, want := range map[string]int{"principalId%20eq%20'" + p.ID + "'": 1, "assignedTo('" + p.ID + "')": 1, "assignedTo('" + customerID + "')": 0} {
		mine := w.send(http.MethodGet, "https://management.azure.com"+scope+"/providers/Microsoft.Authorization/roleAssignments?api-version=2022-04-01&$filter="+filter, boss, "")
		if list, _ := mine.at("value").([]any); mine.status != 200 || len(list) != want {
			t.Errorf("assignments by %s, from above: %d %s", filter, mine.status, mine.body)
		}
	}
	if got := w.send(http.MethodGet, "https://management.azure.com"+scope+"/providers/Microsoft.Authorization/roleAssignments?api-version=2022-04-01&$filter=assignedTo('a'b')", boss, ""); got.status != 400 {
		t.Errorf("a filter that cannot be read: %d %s", got.status, got.body)
	}
	if got := w.send(http.MethodGet, "https://management.azure.com"+scope+"/providers/Microsoft.Authorization/roleAssignments?api-version=2022-04-01&$filter=atScope()", boss, ""); strings.Contains(got.body, p.ID) {
		t.Errorf("atScope() shows what is below: %s", got.body)
	}
	allowed := w.arm(http.MethodGet, group+"/providers/Microsoft.Authorization/permissions", bearer, "")
	if list, _ := allowed.at("value").([]any); len(list) != 1 || !strings.Contains(allowed.body, `"actions":["*"]`) {
		t.Errorf("permissions: %s", allowed.body)
	}
	if got := w.arm(http.MethodGet, "/subscriptions", bearer, ""); !strings.Contains(got.body, subID) {
		t.Errorf("subscriptions of one with a role below: %s", got.body)
	}
}

func tags(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`"t%d":"x"`, i)
	}
	return strings.Join(all, ",")
}

func TestARM_ResourceGroups(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	w.assign(p.ID, "Contributor", scope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	for _, step := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"read what is not there", http.MethodGet, group, "", 404, "ResourceGroupNotFound"},
		{"make it nowhere", http.MethodPut, group, `{}`, 400, "LocationRequired"},
		{"make it of rubbish", http.MethodPut, group, `{`, 400, "InvalidRequestContent"},
		{"make a bad name", http.MethodPut, scope + "/resourcegroups/a%20b", `{"location":"westeurope"}`, 400, "InvalidResourceGroup"},
		{"make it", http.MethodPut, group, `{"location":"westeurope","tags":{"a":"1"}}`, 201, `"provisioningState":"Succeeded"`},
		{"make it again", http.MethodPut, group, `{"location":"westeurope","tags":{"a":"2"}}`, 200, `"a":"2"`},
		{"move it", http.MethodPut, group, `{"location":"northeurope"}`, 409, "InvalidResourceGroupLocation"},
		{"tag it", http.MethodPatch, group, `{"tags":{"b":"3"}}`, 200, `"tags":{"b":"3"}`},
		{"tag it too often", http.MethodPatch, group, `{"tags":{` + tags(51) + `}}`, 400, "InvalidTagCount"},
		{"tag it as often as can be", http.MethodPatch, group, `{"tags":{` + tags(50) + `}}`, 200, `"t49":"x"`},
		{"list", http.MethodGet, scope + "/resourcegroups", "", 200, `"name":"network"`},
		{"what is in it", http.MethodGet, group + "/resources", "", 200, `{"value":[]}`},
		{"what is in another", http.MethodGet, group + "x/resources", "", 404, "ResourceGroupNotFound"},
		{"what is in all", http.MethodGet, scope + "/resources", "", 200, `{"value":[]}`},
		{"delete it", http.MethodDelete, group, "", 200, ""},
		{"delete it again", http.MethodDelete, group, "", 404, "ResourceGroupNotFound"},
		{"a type that is not", http.MethodGet, group + "/providers/Microsoft.Network/virtualNetworks", "", 404, "InvalidResourceType"},
	} {
		if got := w.arm(step.method, step.path, bearer, step.body); got.status != step.status || !strings.Contains(got.body, step.want) {
			t.Errorf("%s: %d %s", step.name, got.status, got.body)
		}
	}
	got := w.send(http.MethodGet, "https://management.azure.com"+group, bearer, "")
	if got.status != 400 || got.text("error/code") != "MissingApiVersionParameter" {
		t.Errorf("no version: %d %s", got.status, got.body)
	}
}

func TestARM_ChecksTheToken(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	home := w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, armScope)
	for _, c := range []struct{ name, bearer, code string }{
		{"none", "", "AuthenticationFailed"},
		{"rubbish", "a.b.c", "InvalidAuthenticationToken"},
		{"for Graph", w.token(customerID, a.clientID, a.secret, graphScope), "InvalidAuthenticationTokenAudience"},
		{"of another tenant", home, "InvalidAuthenticationTokenTenant"},
	} {
		got := w.arm(http.MethodGet, scope, c.bearer, "")
		if got.status != 401 || got.text("error/code") != c.code || got.header.Get("Www-Authenticate") == "" {
			t.Errorf("%s: %d %s", c.name, got.status, got.body)
		}
	}
	for path, code := range map[string]string{"/subscriptions/" + homeID: "SubscriptionNotFound", "/subscriptions/x": "InvalidSubscriptionId"} {
		if got := w.arm(http.MethodGet, path, home, ""); got.text("error/code") != code {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func TestARM_RoleAssignmentRules(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	w.assign(p.ID, "Owner", scope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	where := scope + "/providers/Microsoft.Authorization/roleAssignments/"
	body := func(role, principal, kind string) string {
		return `{"properties":{"roleDefinitionId":"` + role + `","principalId":"` + principal + `","principalType":"` + kind + `"}}`
	}
	for _, step := range []struct {
		name, method, id, body string
		status                 int
		code                   string
	}{
		{"of nobody", http.MethodPut, homeID, body(reader, customerID, ""), 400, "PrincipalNotFound"},
		{"of another tenant's principal", http.MethodPut, homeID, body(reader, w.platform.PrincipalID, ""), 400, "PrincipalNotFound"},
		{"of nobody yet, with the type", http.MethodPut, homeID, body(reader, customerID, "ServicePrincipal"), 201, ""},
		{"the same", http.MethodPut, homeID, body(reader, customerID, "ServicePrincipal"), 200, ""},
		{"the same by another name", http.MethodPut, subID, body(reader, customerID, "ServicePrincipal"), 409, "RoleAssignmentExists"},
		{"no such role", http.MethodPut, subID, body(homeID, p.ID, ""), 400, "RoleDefinitionDoesNotExist"},
		{"not a GUID", http.MethodPut, "x", body(reader, p.ID, ""), 400, "InvalidRoleAssignmentId"},
		{"read", http.MethodGet, homeID, "", 200, ""},
		{"remove", http.MethodDelete, homeID, "", 200, ""},
		{"remove again", http.MethodDelete, homeID, "", 204, ""},
		{"read what is gone", http.MethodGet, homeID, "", 404, "RoleAssignmentNotFound"},
	} {
		if got := w.arm(step.method, where+step.id, bearer, step.body); got.status != step.status || got.text("error/code") != step.code {
			t.Errorf("%s: %d %s", step.name, got.status, got.body)
		}
	}
	got := w.send(http.MethodGet, "https://management.azure.com"+scope+"/providers/Microsoft.Authorization/roleDefinitions?api-version=2022-04-01&$filter=roleName%20eq%20'Reader'", bearer, "")
	if list, _ := got.at("value").([]any); len(list) != 1 || !strings.Contains(got.body, reader) {
		t.Errorf("definitions: %s", got.body)
	}
}
