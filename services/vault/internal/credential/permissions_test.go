package credential_test

import (
	"testing"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/permission"
)

func TestConditions_OfPermissions(t *testing.T) {
	for _, tc := range []struct {
		name        string
		read, write permission.Level
		denied      bool
		holds       bool
		reason      string
	}{
		{"no role", permission.None, permission.None, false, false, "NoRole"},
		{"some reading", permission.Partial, permission.None, false, true, "CanReadSome"},
		{"reading", permission.Full, permission.None, false, true, "CanRead"},
		{"some changing", permission.Full, permission.Partial, false, true, "CanWriteSome"},
		{"changing", permission.Full, permission.Full, false, true, "CanWrite"},
		{"changing but for what is denied", permission.Full, permission.Partial, true, false, "DenyAssignment"},
		{"denied everything", permission.None, permission.None, true, false, "DenyAssignment"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := credential.Facts{Permissions: permission.Check{Time: epoch, Read: tc.read, Write: tc.write, Denied: tc.denied}}
			all := credential.Conditions(epoch, f, credential.Timing{})
			got := all[len(all)-1]
			if got.Type != credential.PermissionsVerified || got.True != tc.holds || got.Reason != tc.reason || got.Message == "" {
				t.Errorf("%+v", got)
			}
		})
	}
	for _, c := range credential.Conditions(epoch, credential.Facts{}, credential.Timing{}) {
		if c.Type == credential.PermissionsVerified {
			t.Errorf("never looked at: %+v", c)
		}
	}
}
