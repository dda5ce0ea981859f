package keystore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/keyring/keystore"
)

func migrations(t *testing.T) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
		name := driver + "/0001_shards_and_keys.sql"
		text, err := os.ReadFile("../../store/migrations/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	return files
}

func TestStore_KeepsKeys(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		store := keystore.New(db)
		want := []keyring.WrappedKey{{ID: 1, Wrapped: []byte{0, 1, 0xff}}, {ID: 1<<32 - 1, Wrapped: []byte("x")}}
		if err := store.Swap(t.Context(), nil, want); err != nil {
			t.Fatal(err)
		}
		for name, swap := range map[string]struct{ from, to []keyring.WrappedKey }{
			"as if there were none": {nil, []keyring.WrappedKey{{ID: 1, Wrapped: []byte("other")}}},
			"one is not told of":    {want[:1], []keyring.WrappedKey{{ID: 1, Wrapped: []byte("other")}}},
			"one is another":        {[]keyring.WrappedKey{want[0], {ID: 1<<32 - 1, Wrapped: []byte("y")}}, want},
			"the last is taken":     {want[:1], want},
		} {
			if err := store.Swap(t.Context(), swap.from, swap.to); !errors.Is(err, keyring.ErrKeysChanged) {
				t.Errorf("%s: %v, want ErrKeysChanged", name, err)
			}
		}
		if err := store.Swap(t.Context(), want, want[:1]); err == nil {
			t.Error("a data key was deleted")
		}
		got, err := store.Keys(t.Context())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}

// Of those who replace the keys at once one is first, and the others change nothing.
func TestStore_SwapsOnce(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		store := keystore.New(db)
		have := []keyring.WrappedKey{{ID: 1, Wrapped: []byte("1")}}
		if err := store.Swap(t.Context(), nil, have); err != nil {
			t.Fatal(err)
		}
		for round := range 10 {
			// One adds a key, two wrap those there are anew.
			wants := [][]keyring.WrappedKey{append(slices.Clone(have), keyring.WrappedKey{ID: uint32(len(have) + 1), Wrapped: []byte("new")})}
			for i := range 2 {
				want := slices.Clone(have)
				for j := range want {
					want[j].Wrapped = fmt.Appendf(nil, "%d %d %d", round, i, j)
				}
				wants = append(wants, want)
			}
			errs := make([]error, len(wants))
			var all sync.WaitGroup
			for i, want := range wants {
				all.Go(func() { errs[i] = store.Swap(t.Context(), have, want) })
			}
			all.Wait()
			got, err := store.Keys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			first := 0
			for i, err := range errs {
				switch {
				case err == nil:
					first++
					if diff := cmp.Diff(wants[i], got); diff != "" {
						t.Error(diff)
					}
				case !errors.Is(err, keyring.ErrKeysChanged):
					t.Error(err)
				}
			}
			if first != 1 {
				t.Fatalf("%d of %d were first", first, len(wants))
			}
			have = got
		}
	})
}

// Replicas that start together on an empty database come to use one key.
func TestOpen_ReplicasAgree(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		store := keystore.New(db)
		kek := "file://" + filepath.Join(t.TempDir(), "key")
		if err := keyring.Init(t.Context(), kek, store); err != nil {
			t.Fatal(err)
		}
		rings := make([]*keyring.Keyring, 4)
		var all sync.WaitGroup
		for i := range rings {
			all.Go(func() {
				var err error
				if rings[i], err = keyring.Open(t.Context(), store, kek); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
		for _, from := range rings {
			sealed, err := from.Seal("record", secret.New("text"))
			if err != nil {
				t.Fatal(err)
			}
			for _, to := range rings {
				if text, err := to.Open(t.Context(), "record", sealed); err != nil || text.Expose() != "text" {
					t.Errorf("opened at another replica: %v", err)
				}
			}
		}
	})
}
