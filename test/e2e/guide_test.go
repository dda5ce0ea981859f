package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks are a document's fenced blocks: their language, and their text.
func blocks(text string) [][2]string {
	var out [][2]string
	for _, match := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		out = append(out, [2]string{match[1], match[2]})
	}
	return out
}

// What docs/registry.md has its reader paste works in that order, and says what it says.
func TestRegistryGuide_WorksWhenPasted(t *testing.T) {
	t.Parallel()
	grpcurl, err := binary("grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, t.TempDir())
	// Where the reader stands: the folder with .bin and .build/dev.
	here := t.TempDir()
	for name, target := range map[string]string{".bin": filepath.Dir(grpcurl), ".build/dev": d.dir} {
		at := filepath.Join(here, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	// One shell after another, each beginning with what the first block defined.
	var preamble, printed string
	pasted, checked := 0, 0
	for i, block := range blocks(string(text)) {
		switch block[0] {
		case "sh":
			script := regexp.MustCompile(`(?m)^registry=\S+`).ReplaceAllString(block[1], "registry="+d.at.Registry)
			if i == 0 {
				preamble, _, _ = strings.Cut(script, "pk $registry list")
			} else {
				script = preamble + script
			}
			command := exec.CommandContext(t.Context(), "/bin/bash", "-euo", "pipefail", "-c", script)
			command.Dir = here
			out, err := command.CombinedOutput()
			if err != nil {
				t.Fatalf("%s\n%v\n%s", block[1], err, out)
			}
			printed = string(out)
			pasted++
		case "text":
			rest := printed
			for line := range strings.SplitSeq(strings.TrimSpace(block[1]), "\n") {
				_, after, found := strings.Cut(rest, line)
				if !found {
					t.Errorf("%q is not what comes next of\n%s", line, printed)
					break
				}
				rest = after
				checked++
			}
		default:
			t.Errorf("a block of %s is neither pasted nor compared", block[0])
		}
	}
	if pasted < 10 || checked < 15 {
		t.Errorf("only %d blocks were pasted, and %d lines compared", pasted, checked)
	}
}
