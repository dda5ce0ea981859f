package eventlog

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// After a write has failed nobody knows what is on the disk, so that nothing may
// be accepted even if writing works again.
func TestLog_AFailedWriteBreaksIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	kept := 0
	open := func() *Log {
		t.Helper()
		kept = 0
		l, err := Open(path, func(json.RawMessage) error { kept++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	if err := l.Append("one"); err != nil {
		t.Fatal(err)
	}
	good := l.file
	bad, err := os.Open(path) // which is not for writing
	if err != nil {
		t.Fatal(err)
	}
	l.file = bad
	if err := l.Append("two"); err == nil || errors.Is(err, ErrBroken) {
		t.Errorf("the write itself gave %v", err)
	}
	l.file = good
	if err := l.Append("three"); !errors.Is(err, ErrBroken) {
		t.Errorf("the next one gave %v, want ErrBroken", err)
	}
	if err := errors.Join(l.Close(), bad.Close()); err != nil {
		t.Fatal(err)
	}
	again := open()
	if kept != 1 {
		t.Errorf("%d records, want 1", kept)
	}
	if err := again.Append("four"); err != nil {
		t.Error(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
