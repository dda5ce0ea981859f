package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A mistake that cannot be made any more, since the code has changed, proves nothing, and neither does one that the documentation does not name.
func TestMistakes_CanBeMade(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	table, err := os.ReadFile(filepath.Join(root, "docs", "proof.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mistakes {
		good, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if n := strings.Count(string(good), m.from); n != 1 {
			t.Errorf("%s: %s has %d places to make it, not one", m.name, m.file, n)
		}
		if !strings.Contains(string(table), "| "+m.name+" |") {
			t.Errorf("%s: is not in docs/proof.md", m.name)
		}
	}
}
