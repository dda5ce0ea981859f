// Planted breaks the code in one way after another, each a mistake that somebody could make, and sees to it that the tests find it. It prints a table,
// which docs/proof.md has, and fails when a mistake goes unnoticed, or when the code has changed so that it cannot be made any more.
//
// Nothing on the disk is changed: the broken file takes the place of the good one by the go command's -overlay.
//
// Usage, from the repository's root: go run ./test/cmd/planted [-run PATTERN]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// mistake is one way to break the code.
type mistake struct {
	name string
	file string
	// from stands in the file exactly once; to takes its place.
	from, to string
	// test is what go test is called with; it must fail, and say says.
	test []string
	says string
}

// limit is how long the tests may take, building apart, on a machine that has other things to do.
const limit = 5 * time.Minute

const nameWidth, testWidth = 76, 58

func main() {
	pattern := flag.String("run", ".", "only the mistakes whose names match")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *pattern); err != nil {
		fmt.Fprintln(os.Stderr, "planted:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, pattern string) error {
	chosen, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	var unnoticed []string
	fmt.Printf("| %-*s | %-*s | seconds |\n|%s|%s|---|\n", nameWidth, "mistake", testWidth, "found by", strings.Repeat("-", nameWidth+2), strings.Repeat("-", testWidth+2))
	for _, m := range mistakes {
		if !chosen.MatchString(m.name) {
			continue
		}
		began := time.Now()
		fmt.Printf("| %-*s | ", nameWidth, m.name)
		by, err := m.plant(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			fmt.Println("NOT FOUND:", err)
			unnoticed = append(unnoticed, m.name)
		default:
			fmt.Printf("%-*s | %.0f |\n", testWidth, strings.TrimPrefix(m.test[0], "./services/vault/internal/")+" "+by, time.Since(began).Seconds())
		}
	}
	if len(unnoticed) > 0 {
		return fmt.Errorf("%d mistakes were not found", len(unnoticed))
	}
	return nil
}

var (
	errUnnoticed = errors.New("the tests pass")
	errHangs     = errors.New("the tests hang: what waits for something needs a bound")
)

// failure is the line by which a test says that it failed; tests in tests are set in.
var failure = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// plant runs the tests with the mistake in, and returns the one that finds it.
func (m mistake) plant(ctx context.Context) (by string, err error) {
	file, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	good, err := os.ReadFile(file) //nolint:gosec // one of the list's
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(good), m.from); n != 1 {
		return "", fmt.Errorf("%s has %d places to make it, not one", m.file, n)
	}
	dir, err := os.MkdirTemp("", "planted")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	broken, overlay := filepath.Join(dir, "broken.go"), filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {file: broken}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		os.WriteFile(broken, []byte(strings.Replace(string(good), m.from, m.to, 1)), 0o600), //nolint:gosec // a folder of our own
		os.WriteFile(overlay, text, 0o600),
	); err != nil {
		return "", err
	}
	test := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-failfast", "-timeout=" + limit.String(), "-overlay=" + overlay}, m.test...)...) //nolint:gosec // what the list says
	test.Env = append(os.Environ(), "TMPDIR="+dir)                                                                                                               // what a test that fails keeps to be looked at, nobody looks at
	out, err := test.CombinedOutput()
	failed := failure.FindStringSubmatch(string(out))
	switch {
	case err == nil:
		return "", errUnnoticed
	case strings.Contains(string(out), "[build failed]"), strings.Contains(string(out), "[setup failed]"):
		return "", fmt.Errorf("it does not compile:\n%s", out)
	case failed == nil && strings.Contains(string(out), "panic: test timed out"):
		return "", errHangs
	case failed == nil:
		return "", fmt.Errorf("the tests end without a failure:\n%s", out)
	case !strings.Contains(string(out), m.says):
		return "", fmt.Errorf("the tests fail without saying %q:\n%s", m.says, out)
	}
	return failed[1], nil
}
