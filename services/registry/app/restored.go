package app

import (
	"context"
	"errors"
	"fmt"
	"io"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/store"
)

// Restored says of the database that it was restored from a backup, and tells out what that meant: it gets a new incarnation, so that cursors and
// page tokens from before, of which some are of a time that the backup has not seen, are refused instead of taken for its own. Replicas may serve from it
// meanwhile; those that watch list again. Done once more than needed it costs just that.
func Restored(ctx context.Context, cfg Config, out io.Writer) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	db, err := sqldb.Open(ctx, cfg.Database, store.Migrations())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	before, after, err := store.Renew(ctx, db)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "The registry's database, at revision %d, is now incarnation %s; it was %s.\n"+
		"Cursors, page tokens and etags from before are void: vaults list everything again by themselves.\n", after.Revision, after.Incarnation, before.Incarnation)
	return err
}
