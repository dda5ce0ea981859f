package directory_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"phasekey.dev/services/vault/internal/directory"
)

const root = "../../../../"

// rows are docs/errors.md's: a code's class.
func rows(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(root + "docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 7 || strings.TrimSpace(cells[1]) == "code" || strings.HasPrefix(cells[1], "---") {
			continue
		}
		code := strings.TrimSpace(cells[1])
		if out[code] != "" {
			t.Errorf("%s has two rows", code)
		}
		for i, cell := range cells[1:6] {
			if strings.TrimSpace(cell) == "" {
				t.Errorf("%s: column %d is empty", code, i+1)
			}
		}
		out[code] = strings.TrimSpace(cells[2])
	}
	return out
}

// simulated are the codes that the simulator's source names: numbers of the token service, and Graph's words.
func simulated(t *testing.T) (numbers []int, words []string) {
	t.Helper()
	files, err := filepath.Glob(root + "pkg/entrasim/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source: %v", err)
	}
	number := regexp.MustCompile(`^[5-9]\d{4,6}$|^1\d{6}$`)
	word := regexp.MustCompile(`^(Request|Directory|Authorization)_[A-Za-z]+$|^[A-Z][A-Za-z]+AsPerAppPolicy$|^Cannot[A-Z][A-Za-z]+$|^Invalid[A-Z][A-Za-z]+(Token|Value)$|^TooManyRequests$|^BadRequest$|^FailedDependency$`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case number.MatchString(text):
				n, _ := strconv.Atoi(text)
				numbers = append(numbers, n)
			// Resource Manager's words look like Graph's.
			case word.MatchString(text) && !strings.HasPrefix(filepath.Base(file), "arm"):
				words = append(words, text)
			}
			return true
		})
	}
	return numbers, words
}

func TestCodes_EveryOneOfTheSimulatorIsClassified(t *testing.T) {
	numbers, words := simulated(t)
	if len(numbers) < 50 || len(words) < 15 {
		t.Fatalf("only %v and %v were found", numbers, words)
	}
	for _, n := range numbers {
		if directory.TokenCodes()[n] == directory.Unclassified {
			t.Errorf("AADSTS%d is not classified", n)
		}
	}
	for _, word := range words {
		if directory.GraphCodes()[word] == directory.Unclassified {
			t.Errorf("%s is not classified", word)
		}
	}
}

func TestCodes_AreDocumented(t *testing.T) {
	want := map[string]string{}
	for n, class := range directory.TokenCodes() {
		want["AADSTS"+strconv.Itoa(n)] = class.String()
	}
	for word, class := range directory.GraphCodes() {
		want[word] = class.String()
	}
	have := rows(t)
	for _, code := range slices.Sorted(maps.Keys(want)) {
		if have[code] != want[code] {
			t.Errorf("%s: docs/errors.md says %q, the class is %s", code, have[code], want[code])
		}
	}
	for _, code := range slices.Sorted(maps.Keys(have)) {
		if want[code] == "" {
			t.Errorf("%s is in docs/errors.md, and in no table", code)
		}
	}
}
