package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
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
		for _, key := range want {
			if err := store.AddKey(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.AddKey(t.Context(), keyring.WrappedKey{ID: 1, Wrapped: []byte("other")}); !errors.Is(err, keyring.ErrKeyExists) {
			t.Errorf("the same ID: %v, want ErrKeyExists", err)
		}
		got, err := store.Keys(t.Context())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
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
				if rings[i], err = keyring.Open(t.Context(), kek, store); err != nil {
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
				if text, err := to.Open("record", sealed); err != nil || text.Expose() != "text" {
					t.Errorf("opened at another replica: %v", err)
				}
			}
		}
	})
}
