package quota_test

import (
	"errors"
	"strings"
	"testing"

	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
)

func TestConfig_Check(t *testing.T) {
	cfg := quota.Config{Integrations: 2, Projects: 3, Attachments: 4, Accounts: map[string]quota.Limits{"big": {Integrations: 5}}}
	for _, tt := range []struct {
		name    string
		account string
		kind    quota.Kind
		have    int
		limit   string // of the refusal; empty when it is none
	}{
		{"below", "acme", quota.Integrations, 1, ""},
		{"at it", "acme", quota.Integrations, 2, "2"},
		{"above, since it was lowered", "acme", quota.Integrations, 3, "2"},
		{"projects", "acme", quota.Projects, 3, "3"},
		{"attachments", "acme", quota.Attachments, 4, "4"},
		{"an account of its own limits", "big", quota.Integrations, 4, ""},
		{"at them", "big", quota.Integrations, 5, "5"},
		{"what these do not say", "big", quota.Projects, 3, "3"},
		{"no such kind", "acme", "applications", 0, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := cfg.Check(tt.account, tt.kind, tt.have)
			if tt.limit == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var refusal *resource.Error
			if !errors.Is(err, quota.ErrExceeded) || !errors.As(err, &refusal) {
				t.Fatalf("got %v", err)
			}
			if got := refusal.Metadata; got["quota"] != string(tt.kind) || got["limit"] != tt.limit || got["name"] != "accounts/"+tt.account {
				t.Errorf("metadata %v", got)
			}
		})
	}
}

func TestConfig_Validate(t *testing.T) {
	if err := quota.Default().Validate(); err != nil {
		t.Fatal(err)
	}
	err := quota.Config{
		Integrations: 1, Attachments: quota.MaxLimit + 1,
		Accounts: map[string]quota.Limits{"acme": {Projects: -1}, "Not/An/ID": {}, "fine": {Projects: quota.MaxLimit}},
	}.Validate()
	if err == nil {
		t.Fatal("nothing is wrong")
	}
	for _, problem := range []string{"projects: 0 is not from 1 to", "attachments: 1000001 ", "accounts.acme.projects: -1 is not from 0 to", `accounts: "Not/An/ID" `} {
		if !strings.Contains(err.Error(), problem) {
			t.Errorf("%q does not tell %q", err, problem)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 {
		t.Errorf("%d problems:\n%v", n, err)
	}
}
