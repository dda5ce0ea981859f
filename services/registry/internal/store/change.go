package store

import (
	"context"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/resource"
)

// compactBatch bounds one transaction of a compaction.
const compactBatch = 1000

// Changes gives the changes after a position, in order, at most limit of them, and the newest revision there is. A position of
// another incarnation, one that does not exist yet, or one after which changes have been compacted away, is resource.ErrCursor.
//
// Revisions have no gaps, so a change that is missing right after the position can only have been compacted: nothing needs
// to be kept about how far compaction has come.
func (s *Store) Changes(ctx context.Context, after resource.Position, limit int) (changes []change.Change, head int64, err error) {
	at, err := s.read(ctx, func(ctx context.Context, v view) error {
		var err error
		changes, err = sqldb.Collect(ctx, v.Tx, scanChange(v.at.Incarnation),
			`SELECT revision, kind, deleted, payload FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2`, after.Revision, limit)
		return err
	})
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("read changes after %d: %w", after.Revision, err)
	case after.Incarnation != at.Incarnation:
		return nil, 0, fmt.Errorf("read changes of incarnation %s in %s: %w", after.Incarnation, at.Incarnation, resource.ErrCursor)
	case after.Revision > at.Revision, after.Revision < 0:
		return nil, 0, fmt.Errorf("read changes after %d of %d: %w", after.Revision, at.Revision, resource.ErrCursor)
	case after.Revision < at.Revision && (len(changes) == 0 || changes[0].Revision != after.Revision+1):
		return nil, 0, fmt.Errorf("read changes after %d, which are compacted: %w", after.Revision, resource.ErrCursor)
	}
	return changes, at.Revision, nil
}

func scanChange(in string) func(row sqldb.Row) (change.Change, error) {
	return func(row sqldb.Row) (c change.Change, err error) {
		var kind, payload string
		if err := row.Scan(&c.Revision, &kind, &c.Deleted, &payload); err != nil {
			return c, err
		}
		return c, fill(&c, in, kind, payload)
	}
}

// Head is the newest position.
func (s *Store) Head(ctx context.Context) (resource.Position, error) {
	return s.read(ctx, func(context.Context, view) error { return nil })
}

// Compact removes the changes made before a time, tombstones included: cursors before them become invalid. It goes
// from the oldest up to the first that is to be kept.
func (s *Store) Compact(ctx context.Context, before time.Time) error {
	for {
		var removed int64
		err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			oldest, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (c struct{ revision, time int64 }, err error) {
				return c, row.Scan(&c.revision, &c.time)
			}, `SELECT revision, change_time FROM changes ORDER BY revision LIMIT $1`, compactBatch)
			if err != nil {
				return err
			}
			var last int64
			for _, c := range oldest {
				if c.time >= sqldb.Micros(before) {
					break
				}
				last = c.revision
			}
			removed, err = tx.Exec(ctx, `DELETE FROM changes WHERE revision <= $1`, last)
			return err
		})
		if err != nil {
			return fmt.Errorf("compact changes: %w", meaning(err))
		}
		if removed < compactBatch {
			return nil
		}
	}
}
