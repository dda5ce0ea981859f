package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// Each alert is of metrics that there are, and the operators' page says what to do about it.
func TestDeployedAlerts_AreExplained(t *testing.T) {
	root := filepath.Join("..", "..")
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	rules, page := read(filepath.Join(root, "deploy", "alerts.yaml")), read(filepath.Join(root, "docs", "operations.md"))
	var source strings.Builder
	for _, folder := range []string{"services", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				source.WriteString(read(path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	metrics := regexp.MustCompile(`phasekey_[a-z_]+`)
	for _, metric := range metrics.FindAllString(rules, -1) {
		if !regexp.MustCompile(`Name:\s+"` + metric + `"`).MatchString(source.String()) {
			t.Errorf("nothing has the metric %s", metric)
		}
	}
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if len(alerts) == 0 {
		t.Error("there are no alerts")
	}
	for _, alert := range alerts {
		if !regexp.MustCompile("(?m)^\\| .*`" + alert[1] + "`.* \\| .+ \\| .+ \\|$").MatchString(page) {
			t.Errorf("docs/operations.md does not say what to do about %s", alert[1])
		}
	}
	for _, named := range regexp.MustCompile("`(Phasekey[A-Z]\\w+)`").FindAllStringSubmatch(page, -1) {
		if !strings.Contains(rules, "alert: "+named[1]+"\n") {
			t.Errorf("docs/operations.md tells of %s, which no rule is", named[1])
		}
	}
}
