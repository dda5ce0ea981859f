package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeployedConfigurations_AreGood(t *testing.T) {
	for _, daemon := range []string{"registryd", "vaultd", "brokerd"} {
		t.Run(daemon, func(t *testing.T) {
			path, err := binary(daemon)
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), path, "--config", filepath.Join("..", "..", "deploy", "config", daemon+".yaml"), "--check-config").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "configuration is good") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
