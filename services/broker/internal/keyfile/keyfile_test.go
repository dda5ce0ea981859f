package keyfile_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/keyfile"
)

var errAway = errors.New("away")

// fakeLedger is a database: what it recorded, and what another replica records at the last moment.
type fakeLedger struct {
	recorded []byte
	rival    []byte
	err      error
}

func (l *fakeLedger) StateKey(context.Context) ([]byte, error) { return l.recorded, l.err }

func (l *fakeLedger) RecordStateKey(_ context.Context, fingerprint []byte) ([]byte, error) {
	if l.recorded == nil {
		l.recorded = fingerprint
		if l.rival != nil {
			l.recorded = l.rival
		}
	}
	return l.recorded, l.err
}

func raw(b byte) []byte { return bytes.Repeat([]byte{b}, consent.KeySize) }

func fingerprint(t *testing.T, b byte) []byte {
	t.Helper()
	k, err := consent.NewKey(raw(b))
	if err != nil {
		t.Fatal(err)
	}
	return k.Fingerprint()
}

func TestOpen_MakesTheKeyOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "state.key")
	ledger := &fakeLedger{}
	first, err := keyfile.Open(t.Context(), path, ledger)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 || info.Size() != consent.KeySize {
		t.Errorf("mode %v, %d bytes", info.Mode(), info.Size())
	}
	again, err := keyfile.Open(t.Context(), path, ledger)
	if err != nil || !bytes.Equal(first.Fingerprint(), again.Fingerprint()) {
		t.Errorf("opened again: error %v, the same key: %v", err, bytes.Equal(first.Fingerprint(), again.Fingerprint()))
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files: %v, error %v", files, err)
	}
	other, err := keyfile.Open(t.Context(), path+"2", &fakeLedger{})
	if err != nil || bytes.Equal(first.Fingerprint(), other.Fingerprint()) {
		t.Errorf("another database: error %v", err)
	}
}

func TestOpen_Refuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		// content is the file's; nil for none.
		content []byte
		mode    fs.FileMode
		ledger  fakeLedger
		want    error
		// left is whether a file is there afterwards.
		left bool
	}{
		{"no file beside a database that knows one", nil, 0, fakeLedger{recorded: fingerprint(t, 1)}, keyfile.ErrMissing, false},
		{"another database's file", raw(2), 0o600, fakeLedger{recorded: fingerprint(t, 1)}, keyfile.ErrForeign, true},
		{"a file that others can read", raw(1), 0o640, fakeLedger{}, keyfile.ErrExposed, true},
		{"half a file", raw(1)[:16], 0o600, fakeLedger{}, consent.ErrKey, true},
		{"another replica was first with its own", nil, 0, fakeLedger{rival: fingerprint(t, 1)}, keyfile.ErrForeign, false},
		{"another replica was first, our file stays", raw(2), 0o600, fakeLedger{rival: fingerprint(t, 1)}, keyfile.ErrForeign, true},
		{"the database does not answer", nil, 0, fakeLedger{err: errAway}, errAway, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.key")
			if tc.content != nil {
				if err := os.WriteFile(path, tc.content, tc.mode); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := keyfile.Open(t.Context(), path, &tc.ledger); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if _, err := os.Stat(path); (err == nil) != tc.left {
				t.Errorf("a file afterwards: %v", err)
			}
		})
	}
}
