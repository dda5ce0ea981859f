package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
)

// pageKey reads the key of the database's page tokens, which it makes where there is none. Of replicas that start at once one makes it, and the others wait.
func pageKey(ctx context.Context, tx sqldb.Tx) (secret.Text, error) {
	fresh := make([]byte, sha256.Size)
	_, _ = rand.Read(fresh) // never fails
	if _, err := tx.Exec(ctx, `INSERT INTO page_token_keys (id, secret) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, hex.EncodeToString(fresh)); err != nil {
		return secret.Text{}, fmt.Errorf("make the key of page tokens: %w", err)
	}
	var key string
	if err := tx.QueryRow(ctx, `SELECT secret FROM page_token_keys WHERE id = 1`).Scan(&key); err != nil {
		return secret.Text{}, fmt.Errorf("read the key of page tokens: %w", err)
	}
	return secret.New(key), nil
}

// PageKey is what this database's page tokens are sealed with, at all replicas.
func (s *Store) PageKey() secret.Text { return s.pageKey }
