package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"
)

// fileScheme is our own: file:///path/to/key.
const fileScheme = "file"

// OpenKEK opens a key-encryption key by URL: file:///path for a file of 32 bytes, mode 0600, made by Init, or a URL of a gocloud.dev/secrets driver that the program
// links in. gocloud.dev's base64key is refused: left empty it means a new random key in each process.
func OpenKEK(ctx context.Context, kek string) (*secrets.Keeper, error) {
	location, err := url.Parse(kek)
	if err != nil {
		return nil, errors.New("key-encryption key: not a URL") // whose text may hold a credential
	}
	switch location.Scheme {
	case fileScheme:
		key, err := readKey(location)
		if err != nil {
			return nil, err
		}
		return localsecrets.NewKeeper(key), nil
	case localsecrets.Scheme, "":
		return nil, fmt.Errorf("key-encryption key: scheme %q is not to be used", location.Scheme)
	}
	if !secrets.DefaultURLMux().ValidKeeperScheme(location.Scheme) {
		return nil, fmt.Errorf("key-encryption key: scheme %q is not built into this program", location.Scheme)
	}
	keeper, err := secrets.OpenKeeper(ctx, kek)
	if err != nil {
		return nil, fmt.Errorf("open key-encryption key: %w", err)
	}
	return keeper, nil
}

// Init makes the key file that kek names, once: fs.ErrExist if it is there. It refuses (ErrKeyMissing) beside a store with data keys, which a new key could not unwrap: then the old file is what
// is needed. Only for file URLs; other services make their keys themselves.
func Init(ctx context.Context, kek string, store Store) error {
	location, err := url.Parse(kek)
	if err != nil || location.Scheme != fileScheme {
		return errors.New("key-encryption key: only a file:///path is made here")
	}
	path, err := keyPath(location)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("make key file %s: %w", path, fs.ErrExist)
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return fmt.Errorf("read data keys: %w", err)
	}
	if len(keys) > 0 {
		return fmt.Errorf("make key file %s: %w, and the database is encrypted with it", path, ErrKeyMissing)
	}
	return makeFile(kek)
}

// writeKey makes the file complete and durable or not at all: a half-written key would stop every later start, a lost one would lose the data. It is written beside, then linked
// to its name, which fails if the name is taken.
func writeKey(path string) (err error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key)                                  // never fails
	file, err := os.CreateTemp(filepath.Dir(path), ".key") // mode 0600
	if err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	_, err = file.Write(key)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := os.Link(file.Name(), path); err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}

// isFile reports whether kek names a file.
func isFile(kek string) bool {
	location, err := url.Parse(kek)
	return err == nil && location.Scheme == fileScheme
}

// makeFile makes the file that kek names, if it names one that is not there.
func makeFile(kek string) error {
	if !isFile(kek) {
		return nil
	}
	location, err := url.Parse(kek)
	if err != nil {
		return errors.New("key-encryption key: not a URL")
	}
	path, err := keyPath(location)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	return writeKey(path)
}

func keyPath(location *url.URL) (string, error) {
	if location.Host != "" || !filepath.IsAbs(location.Path) {
		return "", errors.New("key-encryption key: a file's URL is file:///path")
	}
	return location.Path, nil
}

func readKey(location *url.URL) (key [keySize]byte, err error) {
	path, err := keyPath(location)
	if err != nil {
		return key, err
	}
	file, err := os.Open(path) //nolint:gosec // the file that the configuration names
	if errors.Is(err, fs.ErrNotExist) {
		return key, fmt.Errorf("%s: %w", path, ErrKeyMissing)
	}
	if err != nil {
		return key, fmt.Errorf("open key file: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return key, fmt.Errorf("open key file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() != keySize {
		return key, fmt.Errorf("%s: %w: it has %d bytes and mode %v", path, ErrKeyFile, info.Size(), info.Mode())
	}
	if _, err := io.ReadFull(file, key[:]); err != nil {
		return key, fmt.Errorf("read key file: %w", err)
	}
	return key, nil
}
