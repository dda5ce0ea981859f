package operator

import (
	"bytes"
	"strings"
	"testing"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func TestPermissions_SayWhatIsDenied(t *testing.T) {
	const scope = "/subscriptions/s"
	for _, tt := range []struct {
		name string
		in   *vaultv1.ScopePermissions
		want []string
	}{
		{"nothing", &vaultv1.ScopePermissions{Scope: scope}, []string{"Denied -"}},
		{"by two", &vaultv1.ScopePermissions{Scope: scope, Denied: true, DenyAssignments: []*vaultv1.DenyAssignment{
			{DenyAssignment: "a stack", Scope: scope, Read: vaultv1.ScopePermissions_LEVEL_NONE, Write: vaultv1.ScopePermissions_LEVEL_PARTIAL},
			{DenyAssignment: "a service", Scope: "above", Read: vaultv1.ScopePermissions_LEVEL_NONE, Write: vaultv1.ScopePermissions_LEVEL_FULL},
		}}, []string{"Denied a stack at /subscriptions/s: takes none of reading, some of writing", "a service at above: takes none of reading, all of writing"}},
		{"nobody knows by what", &vaultv1.ScopePermissions{Scope: scope, Denied: true}, []string{"Denied by deny assignments that cannot be read, or may be"}},
		{"data", &vaultv1.ScopePermissions{Scope: scope, Roles: []*vaultv1.AssignedRole{{Role: "Blobs", Scope: scope, DataActions: true}}}, []string{"Roles Blobs, also of data"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := card(&printer{out: &out}, permissionsView, scopePermissions{tt.in}); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(strings.Fields(out.String()), " ")
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("%s\nlacks %q", out.String(), want)
				}
			}
		})
	}
}
