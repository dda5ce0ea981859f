package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/resource"
)

// Report takes in what a mastership of the vault found out about an integration. It is refused, as resource.ErrFenced, once
// a newer mastership has reported, of the shard or on the integration, and as resource.ErrInvalid when its epoch cannot be.
func (s *Store) Report(ctx context.Context, now time.Time, by integration.Mastership, uid string, report integration.Report) error {
	return s.reported(ctx, now, by, uid, func(ctx context.Context, w *writing) error {
		i, err := w.lockReported(ctx, by, uid)
		if err != nil {
			return err
		}
		next, news := i.Observe(w.now, report)
		if news == integration.NoNews {
			return nil
		}
		if news == integration.Substance {
			w.record(change.Change{Integration: &next})
		}
		return w.updateIntegration(ctx, next)
	})
}

// RemoveIntegration forgets an integration whose application is gone for good; removable says whether it may be. A repeat,
// while the tombstone is kept, does nothing.
func (s *Store) RemoveIntegration(ctx context.Context, now time.Time, by integration.Mastership, uid string, removable func(integration.Integration) error) error {
	return s.reported(ctx, now, by, uid, func(ctx context.Context, w *writing) error {
		i, err := w.lockReported(ctx, by, uid)
		if errors.Is(err, resource.ErrNotFound) {
			return w.checkTombstone(ctx, uid)
		}
		if err != nil {
			return err
		}
		if err := removable(i); err != nil {
			return err
		}
		if _, err := w.Exec(ctx, `DELETE FROM integrations WHERE uid = $1`, uid); err != nil {
			return err
		}
		w.record(change.Change{Deleted: true, Integration: &i})
		return nil
	})
}

// reported runs fn in a write that begins by proving the mastership. The fence is a write, and comes first: a report that
// waits for it judges it anew when it gets it, so nothing of an older mastership lands after a newer one's.
func (s *Store) reported(ctx context.Context, now time.Time, by integration.Mastership, uid string, fn func(ctx context.Context, w *writing) error) error {
	if err := resource.Invalid("mastership.", by.Check(now)...); err != nil {
		return fmt.Errorf("report on integration %s: %w", uid, err)
	}
	err := s.write(ctx, now, func(ctx context.Context, w *writing) error {
		passed, err := w.Exec(ctx, `INSERT INTO report_fences (shard, epoch, holder) VALUES ($1, $2, $3)
			ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, holder = excluded.holder
			WHERE report_fences.epoch < excluded.epoch OR (report_fences.epoch = excluded.epoch AND report_fences.holder = excluded.holder)`,
			by.Shard, by.Epoch, by.Holder)
		if err != nil {
			return fmt.Errorf("fence shard %d: %w", by.Shard, err)
		}
		if passed == 0 {
			return fenced(by, fmt.Sprintf("shard %d", by.Shard))
		}
		return fn(ctx, w)
	})
	if err != nil {
		return fmt.Errorf("report on integration %s: %w", uid, err)
	}
	return nil
}

// lockReported makes all other writers of the integration wait, and reads it, unless a newer mastership has reported on it: the shard that it
// belongs to changes with the number of shards, and then the fence of the former one has seen nothing of its masters.
func (w *writing) lockReported(ctx context.Context, by integration.Mastership, uid string) (integration.Integration, error) {
	i, err := scanIntegration(w.at.Incarnation)(w.QueryRow(ctx, `UPDATE integrations SET writes = writes + 1, report_epoch = $2, report_holder = $3
		WHERE uid = $1 AND (report_epoch < $2 OR (report_epoch = $2 AND report_holder = $3)) RETURNING `+integrationColumns, uid, by.Epoch, by.Holder))
	if !errors.Is(err, sqldb.ErrNoRows) {
		return i, err
	}
	var newer int64
	err = w.QueryRow(ctx, `SELECT report_epoch FROM integrations WHERE uid = $1`, uid).Scan(&newer)
	if err != nil {
		return i, notFound(err, "integration "+uid)
	}
	return i, fenced(by, "integration "+uid)
}

// fenced is the refusal of a report after a newer mastership's, of or on something.
func fenced(by integration.Mastership, subject string) error {
	return &resource.Error{
		Reason:  resource.ErrFenced,
		Message: fmt.Sprintf("a newer mastership than that of shard %d in epoch %d has reported on %s", by.Shard, by.Epoch, subject),
		Subject: subject, Advice: "stop working as this mastership; another replica of the vault goes on",
		Metadata: map[string]string{"shard": strconv.Itoa(int(by.Shard)), "epoch": strconv.FormatInt(by.Epoch, 10), "subject": subject},
	}
}

func (w *writing) checkTombstone(ctx context.Context, uid string) error {
	var revision int64
	err := w.QueryRow(ctx, `SELECT revision FROM changes WHERE uid = $1 AND deleted AND kind = $2`, uid, kindIntegration).Scan(&revision)
	if errors.Is(err, sqldb.ErrNoRows) {
		return resource.NotFound("integration " + uid)
	}
	return err
}
