package permission_test

import (
	"testing"

	"phasekey.dev/services/vault/internal/permission"
)

const (
	subscription = "/subscriptions/3fe2a1c4-0000-4000-8000-00000000000a"
	group        = subscription + "/resourceGroups/network"
	managed      = "/providers/Microsoft.Management/managementGroups/corp"
)

func role(actions []string, not ...string) []permission.Permission {
	return []permission.Permission{{Actions: actions, NotActions: not}}
}

var (
	reader      = role([]string{"*/read"})
	contributor = role([]string{"*"}, "Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write", "Microsoft.Authorization/elevateAccess/Action")
	owner       = role([]string{"*"})
	access      = role([]string{"*/read", "Microsoft.Authorization/*", "Microsoft.Support/*"})
	network     = role([]string{"Microsoft.Network/*"})
	networkRead = role([]string{"Microsoft.Network/*/read"})
)

func TestJudge(t *testing.T) {
	of := func(scope string, p []permission.Permission) permission.Assignment {
		return permission.Assignment{Role: "a role", Scope: scope, Permissions: p}
	}
	conditional := of(subscription, owner)
	conditional.Conditional = true
	above := of("/providers/Microsoft.Management/managementGroups/top", contributor)
	above.Above = true
	for _, tc := range []struct {
		name        string
		scope       string
		assignments []permission.Assignment
		allowed     []permission.Permission
		read, write permission.Level
	}{
		{"nothing", subscription, nil, nil, permission.None, permission.None},
		{"Reader", subscription, []permission.Assignment{of(subscription, reader)}, nil, permission.Full, permission.None},
		{"Contributor", subscription, []permission.Assignment{of(subscription, contributor)}, nil, permission.Full, permission.Full},
		{"Owner", subscription, []permission.Assignment{of(subscription, owner)}, nil, permission.Full, permission.Full},
		{"User Access Administrator", subscription, []permission.Assignment{of(subscription, access)}, nil, permission.Full, permission.Partial},
		{"of one provider", subscription, []permission.Assignment{of(subscription, network)}, nil, permission.Partial, permission.Partial},
		{"reading of one provider", subscription, []permission.Assignment{of(subscription, networkRead)}, nil, permission.Partial, permission.None},
		{"Reader, and one provider", subscription, []permission.Assignment{of(subscription, reader), of(subscription, network)}, nil, permission.Full, permission.Partial},
		{"Contributor below", subscription, []permission.Assignment{of(group, contributor)}, nil, permission.Partial, permission.Partial},
		{"Contributor above", group, []permission.Assignment{of(subscription, contributor)}, nil, permission.Full, permission.Full},
		{"Contributor above, in other letters", group, []permission.Assignment{of("/SUBSCRIPTIONS/3FE2A1C4-0000-4000-8000-00000000000A", contributor)}, nil, permission.Full, permission.Full},
		{"a group of a like name", group, []permission.Assignment{of(group+"ing", contributor)}, nil, permission.Partial, permission.Partial},
		{"a group that the name of another begins with", group + "ing", []permission.Assignment{of(group, contributor)}, nil, permission.Partial, permission.Partial},
		{"of a management group", subscription, []permission.Assignment{of(managed, contributor)}, nil, permission.Full, permission.Full},
		{"of the root", subscription, []permission.Assignment{of("/", reader)}, nil, permission.Full, permission.None},
		{"in a management group", managed, []permission.Assignment{of(managed, reader)}, nil, permission.Full, permission.None},
		{"of another management group", managed, []permission.Assignment{of(managed+"-below", contributor)}, nil, permission.Partial, permission.Partial},
		{"of a management group above another", managed, []permission.Assignment{above}, nil, permission.Full, permission.Full},
		{"under a condition", subscription, []permission.Assignment{conditional}, nil, permission.Partial, permission.Partial},
		{"all but changing", subscription, []permission.Assignment{of(subscription, role([]string{"*"}, "*/write"))}, nil, permission.Full, permission.Partial},
		{"all but reading", subscription, []permission.Assignment{of(subscription, role([]string{"*"}, "*/read"))}, nil, permission.None, permission.Full},
		{"nothing at all", subscription, []permission.Assignment{of(subscription, role([]string{"*"}, "*"))}, nil, permission.None, permission.None},
		{"what is allowed alone", group, nil, reader, permission.Full, permission.None},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := permission.Judge(tc.scope, "oid", permission.Seen{Visibility: permission.Assignments, Assignments: tc.assignments, Allowed: tc.allowed})
			if got.Read != tc.read || got.Write != tc.write {
				t.Errorf("read %s, write %s", got.Read, got.Write)
			}
			if (got.ReadCommand == "") != (tc.read == permission.Full) || (got.WriteCommand == "") != (tc.write == permission.Full) {
				t.Errorf("commands %q, %q", got.ReadCommand, got.WriteCommand)
			}
		})
	}
}

func TestJudge_DenyAssignments(t *testing.T) {
	full, part, none := permission.Full, permission.Partial, permission.None
	for _, tc := range []struct {
		name        string
		denials     []permission.Permission
		hidden      bool
		read, write permission.Level
		denied      bool
	}{
		{"nothing", nil, false, full, full, false},
		{"everything", role([]string{"*"}), false, none, none, true},
		{"everything but reading", role([]string{"*"}, "*/read"), false, full, none, true},
		{"everything but some reading", role([]string{"*"}, "Microsoft.Storage/storageAccounts/read"), false, part, none, true},
		{"everything but some writing", role([]string{"*"}, "*/read", "Microsoft.Authorization/locks/delete"), false, full, part, true},
		{"writing and deleting", role([]string{"*/write", "*/delete"}), false, full, part, true},
		{"one action", role([]string{"Microsoft.Compute/virtualMachines/delete"}), false, full, part, true},
		{"reading of one provider", role([]string{"Microsoft.KeyVault/*/read"}), false, part, full, true},
		{"one provider", role([]string{"Microsoft.KeyVault/*"}), false, part, part, true},
		{"reading", role([]string{"*/READ"}), false, none, full, true},
		{"data alone", role(nil), false, full, full, false},
		{"what cannot be seen", nil, true, part, part, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen := permission.Seen{Visibility: permission.Assignments, Assignments: []permission.Assignment{{Role: "Contributor", Scope: subscription, Permissions: contributor}}, Hidden: tc.hidden}
			if tc.denials != nil {
				seen.Denials = []permission.Denial{{Name: "a stack", Scope: managed, Permissions: tc.denials}}
			}
			got := permission.Judge(subscription, "oid", seen)
			if got.Read != tc.read || got.Write != tc.write || got.Denied != tc.denied || len(got.Denials) != len(seen.Denials) {
				t.Errorf("%+v", got)
			}
			if got.ReadCommand != "" || got.WriteCommand != "" {
				t.Errorf("roles that are there are to be assigned: %q, %q", got.ReadCommand, got.WriteCommand)
			}
		})
	}
	if got := permission.Judge(subscription, "oid", permission.Seen{Visibility: permission.Denied, Hidden: true}); !got.Denied {
		t.Errorf("where a deny assignment keeps everything from being seen: %+v", got)
	}
}

func TestJudge_CommandsAreToBePasted(t *testing.T) {
	got := permission.Judge(subscription+"/resourceGroups/a(b)", "oid", permission.Seen{})
	want := "az role assignment create --assignee-object-id oid --assignee-principal-type ServicePrincipal --role Reader --scope '" + subscription + "/resourceGroups/a(b)'"
	if got.ReadCommand != want {
		t.Errorf("%s", got.ReadCommand)
	}
}

func TestIsScope(t *testing.T) {
	for scope, good := range map[string]bool{
		subscription: true, group: true, managed: true, subscription + "/resourceGroups/a(b)_c.d-e": true,
		"": false, "/": false, "/subscriptions/x": false, subscription + "/": false, subscription + "/resourceGroups/": false, subscription + "/resourceGroups/a.": false,
		subscription + "/resourceGroups/a/providers/x": false, subscription + "/resourceGroups/a;b": false, subscription + "/resourceGroups/a'b": false,
		subscription + "?x": false, managed + "/..": false, "/providers/Microsoft.Management/managementGroups/..": false, "https://evil.example" + subscription: false,
	} {
		if got := permission.IsScope(scope); got != good {
			t.Errorf("%q: %v", scope, got)
		}
	}
}
