package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/keyring"
)

// memory is a Store.
type memory struct {
	mu    sync.Mutex
	keys  []keyring.WrappedKey
	reads int
	away  error
}

func (m *memory) Keys(context.Context) ([]keyring.WrappedKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	return slices.Clone(m.keys), m.away
}

func (m *memory) Swap(_ context.Context, from, to []keyring.WrappedKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.EqualFunc(m.keys, from, func(a, b keyring.WrappedKey) bool { return a.ID == b.ID && bytes.Equal(a.Wrapped, b.Wrapped) }) {
		return keyring.ErrKeysChanged
	}
	m.keys = slices.Clone(to)
	return nil
}

// started makes a key file and a keyring, as a first start does.
func started(t testing.TB) (path string, store *memory, ring *keyring.Keyring) {
	t.Helper()
	path, store = filepath.Join(t.TempDir(), "keys", "kek"), &memory{}
	if err := keyring.Init(t.Context(), "file://"+path, store); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(t.Context(), store, "file://"+path)
	if err != nil {
		t.Fatal(err)
	}
	return path, store, ring
}

func seal(t testing.TB, ring *keyring.Keyring, identity, text string) []byte {
	t.Helper()
	sealed, err := ring.Seal(identity, secret.New(text))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestKeyring_OpensWhatItSealed(t *testing.T) {
	path, store, ring := started(t)
	for _, text := range []string{"", "x", "a client secret", strings.Repeat("long ", 10_000), "\x00\xff"} {
		sealed := seal(t, ring, "versions/1", text)
		if len(text) > 1 && bytes.Contains(sealed, []byte(text)) {
			t.Error("the text is seen in what was sealed")
		}
		if again := seal(t, ring, "versions/1", text); bytes.Equal(sealed, again) {
			t.Error("sealed twice alike")
		}
		restarted, err := keyring.Open(t.Context(), store, "file://"+path)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []*keyring.Keyring{ring, restarted} {
			if got, err := r.Open(t.Context(), "versions/1", sealed); err != nil || got.Expose() != text {
				t.Errorf("%d bytes came back as %d, %v", len(text), len(got.Expose()), err)
			}
		}
	}
	if len(store.keys) != 1 {
		t.Errorf("%d data keys after two starts, want one", len(store.keys))
	}
}

func TestKeyring_RefusesWhatItDidNotSealThere(t *testing.T) {
	_, _, ring := started(t)
	one, two := seal(t, ring, "versions/1", "first"), seal(t, ring, "versions/2", "second")
	_, _, foreign := started(t)
	for name, test := range map[string]struct {
		identity string
		sealed   []byte
	}{
		"swapped":               {"versions/1", two},
		"swapped the other way": {"versions/2", one},
		"identity cut short":    {"versions/", one},
		"nothing":               {"versions/1", nil},
		"header only":           {"versions/1", one[:5]},
		"cut short":             {"versions/1", one[:len(one)-1]},
		"longer":                {"versions/1", append(slices.Clone(one), 0)},
		"another database's":    {"versions/1", seal(t, foreign, "versions/1", "first")},
		"mixed":                 {"versions/1", append(slices.Clone(one[:17]), two[17:]...)},
	} {
		if text, err := ring.Open(t.Context(), test.identity, test.sealed); !errors.Is(err, keyring.ErrCorrupt) || !text.IsZero() {
			t.Errorf("%s: %v, want ErrCorrupt and no text", name, err)
		}
	}
	for i := range len(one) * 8 {
		flipped := slices.Clone(one)
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := ring.Open(t.Context(), "versions/1", flipped); !errors.Is(err, keyring.ErrCorrupt) && !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("bit %d flipped: %v", i, err)
		}
	}
	if _, err := ring.Seal("", secret.New("x")); !errors.Is(err, keyring.ErrNoIdentity) {
		t.Errorf("sealed without an identity: %v", err)
	}
	if _, err := ring.Open(t.Context(), "", one); !errors.Is(err, keyring.ErrNoIdentity) {
		t.Errorf("opened without an identity: %v", err)
	}
}

func TestOpen_StopsTheStart(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, path string, store *memory)
		want  error
	}{
		{"the key file is gone", func(t *testing.T, path string, _ *memory) { must(t, os.Remove(path)) }, keyring.ErrKeyMissing},
		{"others may read it", func(t *testing.T, path string, _ *memory) { must(t, os.Chmod(path, 0o640)) }, keyring.ErrKeyFile},
		{"it is cut short", func(t *testing.T, path string, _ *memory) { must(t, os.Truncate(path, 31)) }, keyring.ErrKeyFile},
		{"it is longer", func(t *testing.T, path string, _ *memory) { must(t, os.Truncate(path, 33)) }, keyring.ErrKeyFile},
		{"it is another key", func(t *testing.T, path string, _ *memory) {
			must(t, os.WriteFile(path, bytes.Repeat([]byte{1}, 32), 0o600))
		}, keyring.ErrUnwrap},
		{"a data key was changed", func(_ *testing.T, _ string, store *memory) { store.keys[0].Wrapped[30] ^= 1 }, keyring.ErrUnwrap},
		{"a data key is under another ID", func(_ *testing.T, _ string, store *memory) { store.keys[0].ID = 2 }, keyring.ErrUnwrap},
		{"one of several data keys is no key", func(_ *testing.T, _ string, store *memory) {
			store.keys = append(store.keys, keyring.WrappedKey{ID: 2})
		}, keyring.ErrUnwrap},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, store, _ := started(t)
			test.spoil(t, path, store)
			before := fmt.Sprint(store.keys)
			if _, err := keyring.Open(t.Context(), store, "file://"+path); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if after := fmt.Sprint(store.keys); after != before {
				t.Error("the stored keys were changed")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestInit_MakesTheFileOnce(t *testing.T) {
	path, store, _ := started(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Errorf("%v, %v, want 32 bytes of mode 0600", info, err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("beside the key there is more: %v, %v", names, err)
	}
	first, err := os.ReadFile(path)
	must(t, err)
	if err := keyring.Init(t.Context(), "file://"+path, store); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v, want fs.ErrExist", err)
	}
	second, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(first, second) {
		t.Error("the key was replaced")
	}
	must(t, os.Remove(path))
	if err := keyring.Init(t.Context(), "file://"+path, store); !errors.Is(err, keyring.ErrKeyMissing) {
		t.Errorf("beside stored data keys: %v, want ErrKeyMissing", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a key was made that fits nothing")
	}
}

func TestOpenKEK_RefusesOtherURLs(t *testing.T) {
	for _, kek := range []string{"", "base64key://", "base64key://smGbjm71Nxd1Ig5FS0wj9SlbzAIrnolCz9bQQ6uAhl4=", "/a/path", "file://host/path", "file:relative",
		"azurekeyvault://vault/keys/key", "file://%zz"} {
		if keeper, err := keyring.OpenKEK(t.Context(), kek); err == nil {
			_ = keeper.Close()
			t.Errorf("%q was opened", kek)
		}
	}
}

func FuzzKeyring_Open(f *testing.F) {
	_, _, ring := started(f)
	const identity = "versions/1"
	sealed := seal(f, ring, identity, "a client secret")
	f.Add(identity, sealed)
	f.Add(identity, []byte{})
	f.Add("", sealed)
	f.Add("versions/2", sealed)
	f.Add(identity, sealed[:20])
	f.Fuzz(func(t *testing.T, as string, data []byte) {
		text, err := ring.Open(t.Context(), as, data)
		if (err == nil) != (as == identity && bytes.Equal(data, sealed)) {
			t.Fatalf("opened %x as %q: %v", data, as, err)
		}
		if err != nil && !text.IsZero() {
			t.Fatal("an error and a text")
		}
	})
}
