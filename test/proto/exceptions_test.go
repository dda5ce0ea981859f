package proto

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// included and disabled are lines of api-linter's configuration: files, and a rule that is not for them.
	included = regexp.MustCompile(`^- included_paths: \[(.*)\]$`)
	disabled = regexp.MustCompile(`^    - core::(\S+)$`)
	path     = regexp.MustCompile(`'([^']+)'`)
	// row is one of the table's, quoted what it names.
	row    = regexp.MustCompile(`(?m)^\| (` + "`0[^|]+) \\| ([^|]+) \\| \\S[^|]+" + ` \|$`)
	quoted = regexp.MustCompile("`([^`]+)`")
)

// TestExceptions_HaveReasons: what api-linter is told to overlook, and nothing else, stands in the decision with a reason.
func TestExceptions_HaveReasons(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const everywhere = "everywhere"
	var overlooked, reasoned, files []string
	for line := range strings.Lines(read("proto/api-linter.yaml")) {
		line = strings.TrimRight(line, "\n")
		switch in, rule := included.FindStringSubmatch(line), disabled.FindStringSubmatch(line); {
		case in != nil:
			files = nil
			for _, found := range path.FindAllStringSubmatch(in[1], -1) {
				file := strings.TrimSuffix(strings.TrimPrefix(found[1], "phasekey/"), ".proto")
				files = append(files, strings.Replace(file, "**/*", everywhere, 1))
			}
		case rule != nil:
			for _, file := range files {
				overlooked = append(overlooked, rule[1]+" in "+file)
			}
		case line != "  disabled_rules:" && !strings.HasPrefix(strings.TrimSpace(line), "#"):
			t.Errorf("what does %q say?", line)
		}
	}
	for _, found := range row.FindAllStringSubmatch(read("docs/adr/0013-aip-exceptions.md"), -1) {
		in := quoted.FindAllStringSubmatch(found[2], -1)
		if found[2] == everywhere {
			in = [][]string{{"", everywhere}}
		}
		for _, rule := range quoted.FindAllStringSubmatch(found[1], -1) {
			for _, file := range in {
				reasoned = append(reasoned, rule[1]+" in "+file[1])
			}
		}
	}
	slices.Sort(overlooked)
	slices.Sort(reasoned)
	if !slices.Equal(overlooked, reasoned) {
		t.Errorf("overlooked is\n%s\nand reasons has\n%s", strings.Join(overlooked, "\n"), strings.Join(reasoned, "\n"))
	}
	if len(overlooked) < 20 {
		t.Errorf("only %d exceptions were found", len(overlooked))
	}
}
