// Package keystore keeps the keyring's wrapped data keys in the vault's database, in table data_keys.
package keystore

import (
	"context"
	"fmt"
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

// AddKey adds a data key. See keyring.Store.
func (s *Store) AddKey(ctx context.Context, key keyring.WrappedKey) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO data_keys (id, wrapped, create_time) VALUES ($1, $2, $3)`, int64(key.ID), key.Wrapped, sqldb.Micros(time.Now()))
		return err
	})
	if sqldb.UniqueOn(err, "data_keys", "id") {
		return fmt.Errorf("add data key %d: %w", key.ID, keyring.ErrKeyExists)
	}
	return err
}
