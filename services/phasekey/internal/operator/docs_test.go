package operator

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Each command that the documents, or an advice, name in a sentence is there, with the flags that they name.
func TestSentences_NameCommandsThatExist(t *testing.T) {
	texts := map[string]string{}
	for reason, text := range advice {
		texts[reason] = text
	}
	pages, err := filepath.Glob("../../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(page)] = string(text)
	}
	root := &cobra.Command{Use: "phasekey"}
	root.AddCommand(Commands(func(string) (string, bool) { return "", false })...)
	elsewhere := []string{"exec", "conformance", "completion", "version"}
	found := 0
	for where, text := range texts {
		for _, match := range regexp.MustCompile("`phasekey ([^`]+)`").FindAllStringSubmatch(text, -1) {
			words := strings.Fields(match[1])
			if slices.Contains(elsewhere, words[0]) {
				continue
			}
			found++
			c, rest, err := root.Find(words)
			if err != nil || c == root || c.HasSubCommands() && len(rest) > 0 {
				t.Errorf("%s: there is no `phasekey %s`", where, match[1])
				continue
			}
			for _, word := range rest {
				name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
				if strings.HasPrefix(word, "--") && c.Flag(name) == nil || len(word) == 2 && word[0] == '-' && c.Flags().ShorthandLookup(name) == nil && c.InheritedFlags().ShorthandLookup(name) == nil {
					t.Errorf("%s: `phasekey %s` has no %s", where, match[1], word)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d are named", found)
	}
}
