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
		holds       bool
		reason      string
	}{
		{"no role", permission.None, permission.None, false, "NoRole"},
		{"some reading", permission.Partial, permission.None, true, "CanReadSome"},
		{"reading", permission.Full, permission.None, true, "CanRead"},
		{"some changing", permission.Full, permission.Partial, true, "CanWriteSome"},
		{"changing", permission.Full, permission.Full, true, "CanWrite"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := credential.Facts{Permissions: permission.Check{Time: epoch, Read: tc.read, Write: tc.write}}
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
