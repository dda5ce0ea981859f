package store_test

import (
	"context"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/fence"
)

// divide divides a database into shards, as a replica that starts does.
func divide(t testing.TB, db *sqldb.DB, shards int) {
	t.Helper()
	if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, shards) }); err != nil {
		t.Fatal(err)
	}
}
