package year_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// secretLike finds the simulator's secrets, tokens and assertions.
var secretLike = regexp.MustCompile(`8Q~|eyJ`)

// lived is what a process says that lives through a day, or what else the flags say, and how that ended; its temporary files are in the folder.
func lived(t *testing.T, folder string, flags ...string) (violations []string, said string, err error) {
	t.Helper()
	process := exec.CommandContext(t.Context(), os.Args[0], append([]string{
		"-test.run=^TestYear$", "-test.v", "-year.days=1", "-year.integrations=4", "-year.federated=3", "-year.leases=4",
	}, flags...)...)
	process.Env = append(os.Environ(), "TMPDIR="+folder)
	out, err := process.CombinedOutput()
	return regexp.MustCompile(`2000-01-0\S+ I2: .*`).FindAllString(string(out), -1), string(out), err
}

// What was violated is found again in the journal that is kept then, word for word; and no secret is.
func TestJournal_IsJudgedAgain(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	violated, said, err := lived(t, folder, "-year.proofs=9", "-year.replay=2")
	if err == nil || len(violated) == 0 || !bytes.Contains([]byte(said), []byte("seed 1 failed at attempt 1 of 2")) {
		t.Fatalf("nine proofs are demanded of a vault that has eight: %v\n%s", err, said)
	}
	kept, err := filepath.Glob(filepath.Join(folder, "year-1-*"))
	must(t, err)
	if len(kept) != 1 {
		t.Fatalf("kept are %q:\n%s", kept, said)
	}
	again, said, err := lived(t, folder, "-year.judge="+kept[0])
	if diff := cmp.Diff(violated, again); err == nil || diff != "" {
		t.Errorf("judged again it comes to something else: %v\n%s\n%s", err, diff, said)
	}

	written, err := os.ReadFile(kept[0])
	must(t, err)
	zip, err := gzip.NewReader(bytes.NewReader(written))
	must(t, err)
	text, err := io.ReadAll(zip)
	must(t, err)
	if found := secretLike.Find(text); found != nil {
		t.Errorf("I7: the journal has %q", found)
	}

	// A process that was killed leaves less.
	must(t, os.WriteFile(kept[0], written[:len(written)/2], 0o600))
	j, cut, err := judgeAgain(kept[0])
	must(t, err)
	if !cut || len(j.failures) > len(violated) || j.now.IsZero() {
		t.Errorf("half of a journal: cut short %t, until %s, violations: %q", cut, j.now, j.failures)
	}
}

// Of what went well nothing is kept, unless it is asked for.
func TestJournal_IsNotKeptOfWhatWentWell(t *testing.T) {
	t.Parallel()
	folder, journals := t.TempDir(), t.TempDir()
	if _, said, err := lived(t, folder); err != nil {
		t.Fatal(said)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	_, said, err := lived(t, folder, "-year.journal="+journals)
	if left, dir := os.ReadDir(journals); err != nil || dir != nil || len(left) != 1 {
		t.Errorf("asked for is one, and kept are %v: %v, %v\n%s", left, err, dir, said)
	}
}

// That a secret was logged is told without it: what is told is in the journal.
func TestLog_TellsOfASecretWithoutIt(t *testing.T) {
	t.Parallel()
	l := newLog()
	l.know("s3cret")
	_, err := l.Write([]byte("level=INFO msg=\"sent s3cret\" to=somebody\n"))
	must(t, err)
	var told []string
	l.reveal(func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
	l.reveal(func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
	if want := []string{"I7: a secret is in the log: level=INFO msg=\"sent [a secret]\" to=somebody\n"}; !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
}
