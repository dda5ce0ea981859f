// Package keyfile keeps the key of links in a file beside the database.
//
// It guarantees that a key is made once, for an empty database, and that a process never goes on with another key than
// the one its database began with: the links that were sent out would be worthless. The file is for its owner alone;
// one that others can read is refused. It does not copy the file to other replicas: whoever runs several does.
package keyfile

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"phasekey.dev/services/broker/internal/consent"
)

// The errors of this package; the text around them says more.
var (
	// ErrMissing means that the database knows a key, and there is no file.
	ErrMissing = errors.New("the key file of this database is missing")
	// ErrForeign means that the file holds another key than the database began with.
	ErrForeign = errors.New("the key file is not this database's")
	// ErrExposed means that others than the owner may read or write the file.
	ErrExposed = errors.New("the key file must have mode 0600 or 0400")
)

// othersMode are the permissions of everybody but the owner.
const othersMode = 0o077

// ledger remembers which key a database began with.
type ledger interface {
	// StateKey returns the fingerprint, nil if there is none.
	StateKey(ctx context.Context) ([]byte, error)
	// RecordStateKey records a fingerprint unless there is one, and returns the one there is.
	RecordStateKey(ctx context.Context, fingerprint []byte) ([]byte, error)
}

// Open reads the key, or makes the file when neither it nor a recorded fingerprint exists.
func Open(ctx context.Context, path string, in ledger) (consent.Key, error) {
	key, made, err := load(ctx, path, in)
	if err != nil {
		return consent.Key{}, fmt.Errorf("open key file %s: %w", path, err)
	}
	recorded, err := in.RecordStateKey(ctx, key.Fingerprint())
	if err != nil {
		return consent.Key{}, fmt.Errorf("open key file %s: %w", path, err)
	}
	if !bytes.Equal(recorded, key.Fingerprint()) {
		if made {
			// Another replica began the database at this moment. Leaving ours would only mislead.
			_ = os.Remove(path)
		}
		return consent.Key{}, fmt.Errorf("open key file %s: %w", path, ErrForeign)
	}
	return key, nil
}

func load(ctx context.Context, path string, in ledger) (key consent.Key, made bool, err error) {
	key, err = read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	recorded, err := in.StateKey(ctx)
	if err != nil {
		return consent.Key{}, false, err
	}
	if recorded != nil {
		return consent.Key{}, false, ErrMissing
	}
	key, err = create(path)
	return key, err == nil, err
}

func read(path string) (consent.Key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return consent.Key{}, err
	}
	if info.Mode().Perm()&othersMode != 0 {
		return consent.Key{}, fmt.Errorf("%w, not %#o", ErrExposed, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path) //nolint:gosec // the file that the configuration names
	if err != nil {
		return consent.Key{}, err
	}
	return consent.NewKey(raw)
}

// create makes the file, whole or not at all, and on disk before anything depends on it.
func create(path string) (consent.Key, error) {
	raw := make([]byte, consent.KeySize)
	_, _ = rand.Read(raw) // never fails: crypto/rand crashes the program instead
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return consent.Key{}, err
	}
	draft, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return consent.Key{}, err
	}
	defer func() { _ = os.Remove(draft.Name()) }()
	_, err = draft.Write(raw)
	if err = errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return consent.Key{}, err
	}
	// A link, not a rename: it fails if a file appeared meanwhile, instead of replacing somebody's key.
	if err := os.Link(draft.Name(), path); err != nil {
		return consent.Key{}, err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return consent.Key{}, err
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return consent.Key{}, err
	}
	return consent.NewKey(raw)
}
