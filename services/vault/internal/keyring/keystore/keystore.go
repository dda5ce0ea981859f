// Package keystore keeps the keyring's wrapped data keys in the vault's database, in table data_keys.
package keystore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/keyring"
)

// Store is a keyring.Store. Make it with New.
type Store struct {
	db *sqldb.DB
}

// New makes a store of a database that has the vault's migrations.
func New(db *sqldb.DB) *Store { return &Store{db: db} }

// Keys gives all data keys. See keyring.Store.
func (s *Store) Keys(ctx context.Context) (keys []keyring.WrappedKey, err error) {
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		keys, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (key keyring.WrappedKey, err error) {
			err = row.Scan(&key.ID, &key.Wrapped)
			return key, err
		}, `SELECT id, wrapped FROM data_keys ORDER BY id`)
		return err
	})
	return keys, err
}

// Swap replaces the data keys. See keyring.Store. All rows are locked, in one order, so that of two who swap at once the second finds what the first made.
func (s *Store) Swap(ctx context.Context, from, to []keyring.WrappedKey) error {
	next := make(map[uint32][]byte, len(to))
	for _, key := range to {
		next[key.ID] = key.Wrapped
	}
	from = slices.SortedFunc(slices.Values(from), func(a, b keyring.WrappedKey) int { return cmp.Compare(a.ID, b.ID) })
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		fresh := maps.Clone(next)
		for _, key := range from {
			if next[key.ID] == nil {
				return fmt.Errorf("data key %d would be deleted", key.ID)
			}
			n, err := tx.Exec(ctx, `UPDATE data_keys SET wrapped = $3 WHERE id = $1 AND wrapped = $2`, int64(key.ID), key.Wrapped, next[key.ID])
			if err != nil {
				return err
			}
			if n == 0 {
				return keyring.ErrKeysChanged
			}
			delete(fresh, key.ID)
		}
		for _, id := range slices.Sorted(maps.Keys(fresh)) {
			if _, err := tx.Exec(ctx, `INSERT INTO data_keys (id, wrapped, create_time) VALUES ($1, $2, $3)`, int64(id), fresh[id], sqldb.Micros(time.Now())); err != nil {
				return err
			}
		}
		var count int
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM data_keys`).Scan(&count); err != nil {
			return err
		}
		if count != len(next) {
			return keyring.ErrKeysChanged
		}
		return nil
	})
	if sqldb.UniqueOn(err, "data_keys", "id") {
		err = keyring.ErrKeysChanged
	}
	if err != nil {
		return fmt.Errorf("replace data keys: %w", err)
	}
	return nil
}
