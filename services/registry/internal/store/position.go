package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/resource"
)

// ErrUnused means a database that no registry has served from, of which there is nothing to restore.
var ErrUnused = errors.New("no registry has used this database")

// position is the moment that the transaction sees.
func position(ctx context.Context, tx sqldb.Tx) (at resource.Position, err error) {
	err = tx.QueryRow(ctx, `SELECT incarnation, revision FROM registry WHERE id = 1`).Scan(&at.Incarnation, &at.Revision)
	if err != nil {
		return at, fmt.Errorf("read the revision: %w", err)
	}
	return at, nil
}

// follows refuses a database that is older than it was before the transaction began: a backup, or a standby that had not heard of
// everything, has taken its place. Until somebody says so, by Renew, its next revisions would be taken for those that were lost.
func follows(before, at resource.Position) error {
	if at.Incarnation == before.Incarnation && at.Revision < before.Revision {
		return fmt.Errorf("%w: it has gone back from revision %d to %d; if it was restored, run 'registryd restored'",
			resource.ErrUnavailable, before.Revision, at.Revision)
	}
	return nil
}

// see remembers the position of a transaction before which begun was the newest.
func (s *Store) see(begun *resource.Position, at resource.Position) {
	for {
		now := s.newest.Load()
		switch {
		case now.Incarnation == at.Incarnation && now.Revision >= at.Revision:
			return
		case now.Incarnation != at.Incarnation && now != begun:
			// Another transaction has seen another incarnation meanwhile, which may be the later one.
			return
		}
		if s.newest.CompareAndSwap(now, &at) {
			return
		}
	}
}

// Renew gives the database a new incarnation, as of which all cursors and page tokens given before are void: for one that was restored from
// a backup. Replicas that serve from it notice by themselves. ErrUnused means that there is nothing in it.
func Renew(ctx context.Context, db *sqldb.DB) (before, after resource.Position, err error) {
	err = db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		after.Incarnation = uuid.NewString()
		// Nobody takes a revision meanwhile.
		if _, err := tx.Exec(ctx, `UPDATE registry SET revision = revision WHERE id = 1`); err != nil {
			return err
		}
		if before, err = position(ctx, tx); errors.Is(err, sqldb.ErrNoRows) {
			return ErrUnused
		}
		if err != nil {
			return err
		}
		after.Revision = before.Revision
		_, err := tx.Exec(ctx, `UPDATE registry SET incarnation = $1 WHERE id = 1`, after.Incarnation)
		return err
	})
	if err != nil {
		return before, after, fmt.Errorf("renew the incarnation: %w", meaning(err))
	}
	return before, after, nil
}
