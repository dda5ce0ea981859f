package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The command is what people install on laptops and runners: it stands on the APIs, and on nothing that serves them.
func TestCommand_ImportsNoService(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]bool{}
	for _, name := range strings.Fields(string(out)) {
		for _, not := range []string{"phasekey.dev/pkg/entrasim", "phasekey.dev/pkg/sqldb", "github.com/microsoftgraph", "github.com/redis", "modernc.org/"} {
			if strings.HasPrefix(name, not) {
				t.Errorf("%s is imported", name)
			}
		}
		if strings.HasPrefix(name, "phasekey.dev/") {
			if !strings.HasPrefix(name, "phasekey.dev/gen/") && !strings.HasPrefix(name, "phasekey.dev/pkg/") && !strings.HasPrefix(name, "phasekey.dev/services/phasekey/") {
				t.Errorf("%s is imported", name)
			}
			ours[name] = true
		}
	}
	if !ours["phasekey.dev/gen/phasekey/vault/v1"] || !ours["phasekey.dev/pkg/runner"] {
		t.Errorf("only %v", ours)
	}
}
