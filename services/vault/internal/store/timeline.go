package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
)

// DatabaseFailedOver: the database went on from another point of its history; Reason says on which timeline, and on which it was before.
const DatabaseFailedOver AuditKind = "DatabaseFailedOver"

// FollowTimeline notices when the database goes on from another point of its history than before: another server took over, or a backup was restored, and what
// was committed last may be lost. Whoever notices first, of all replicas, is told that it changed: from then on Facts say so, every mastership has ended,
// the registry is listed anew, and all integrations are due: all of that, or, after a death, nothing yet. SQLite has no such history.
func (s *Store) FollowTimeline(ctx context.Context, now time.Time) (changed bool, err error) {
	if !s.db.HasTimeline() {
		return false, nil
	}
	same := false
	if err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		timeline, known, err := timelines(ctx, tx)
		same = known == timeline
		return err
	}); err != nil || same {
		return false, wrapTimeline(err)
	}
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		timeline, known, err := timelines(ctx, tx)
		if changed = known != "" && known != timeline; err != nil || known == timeline {
			return err
		}
		if !changed {
			_, err := tx.Exec(ctx, `INSERT INTO database_timeline (singleton, timeline) VALUES (1, $1) ON CONFLICT (singleton) DO NOTHING`, timeline)
			return err
		}
		n, err := tx.Exec(ctx, `UPDATE database_timeline SET timeline = $1, change_time = $2 WHERE singleton = 1 AND timeline = $3`, timeline, sqldb.Micros(now), known)
		if changed = n == 1; err != nil || !changed {
			return err
		}
		if err := endMasterships(ctx, tx, now); err != nil {
			return err
		}
		// As if the registry had never been heard of: whoever follows it goes on from what is lost.
		if _, err := tx.Exec(ctx, `UPDATE projection SET incarnation = '', cursor = '' WHERE singleton = 1`); err != nil {
			return err
		}
		if err := touchAll(ctx, tx, now); err != nil {
			return err
		}
		return s.audit(ctx, tx, AuditEvent{Time: now, Kind: DatabaseFailedOver, Reason: fmt.Sprintf("timeline %s after %s", timeline, known)})
	})
	return changed && err == nil, wrapTimeline(err)
}

func wrapTimeline(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("follow the database's timeline: %w", err)
}

// timelines are the one that the database is on, and the one that it was known to be on, empty if none was.
func timelines(ctx context.Context, tx sqldb.Tx) (timeline, known string, err error) {
	if timeline, err = sqldb.Timeline(ctx, tx); err != nil {
		return "", "", err
	}
	err = tx.QueryRow(ctx, `SELECT timeline FROM database_timeline WHERE singleton = 1`).Scan(&known)
	if errors.Is(err, sqldb.ErrNoRows) {
		return timeline, "", nil
	}
	return timeline, known, err
}
