package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Each command that the operators' page shows exists and takes the flags shown; and it shows each that there is.
func TestOperationsPage_ShowsWhatThereIs(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^\$ vaultd (.*)$`).FindAllStringSubmatch(string(page), -1) {
		args := strings.Fields(line[1])
		shown[args[0]] = true
		flag, _ := config(t, good)
		_, file, _ := strings.Cut(flag, "=")
		for i, arg := range args {
			if arg == "vaultd.yaml" {
				args[i] = file
			}
		}
		var out bytes.Buffer
		if err := program().Run(t.Context(), append(args, "--check-config"), nil, &out); err != nil || !strings.Contains(out.String(), "configuration is good") {
			t.Errorf("vaultd %s: %v\n%s", line[1], err, out.String())
		}
	}
	for _, command := range program().Commands {
		if !shown[command.Name] {
			t.Errorf("the page does not show %s", command.Name)
		}
		for short := range command.Flags {
			if !strings.Contains(string(page), "vaultd "+command.Name+" --config vaultd.yaml --"+short+" ") {
				t.Errorf("the page does not show %s with --%s", command.Name, short)
			}
		}
	}
	// Commands in the text too.
	for _, inline := range regexp.MustCompile("`vaultd ([a-z-]+)").FindAllStringSubmatch(string(page), -1) {
		if !shown[inline[1]] {
			t.Errorf("the text names %s, which is not shown", inline[1])
		}
	}
}
