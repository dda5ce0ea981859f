package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
)

// RequestBatch stores that all the integrations of a scope are to be rotated, and returns how many there are. Their masters begin
// with a few at a time. Errors: grant.ErrRequestIDReused, and for rotation by schedule a credential.PauseError when all of the scope
// is paused.
func (s *Store) RequestBatch(ctx context.Context, now time.Time, r credential.BatchRequest, caller grant.Caller) (credential.Batch, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return credential.Batch{}, fmt.Errorf("name batch: %w", err)
	}
	var out credential.Batch
	request := func(ctx context.Context, tx sqldb.Tx) error {
		contents := fmt.Sprintf("batch %s %q %q", r.Reason, r.TenantID, r.Cloud)
		earlier, err := repeated(ctx, tx, now, r.Scope, r.RequestID, contents)
		if err != nil {
			return err
		}
		if earlier != "" {
			out, err = readBatch(ctx, tx, r.Scope, earlier)
			return err
		}
		if r.Reason == credential.Scheduled {
			if err := checkPause(ctx, tx, now, r.Scope); err != nil {
				return err
			}
		}
		if err := forgetBatches(ctx, tx, now); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO rotation_batches (id, scope, reason, tenant_id, cloud, creator, total, create_time, end_time)
			VALUES ($1, $2, $3, $4, $5, $6, 0, $7, 0)`,
			id.String(), r.Scope, string(r.Reason), r.TenantID, r.Cloud, caller.Identity, sqldb.Micros(now)); err != nil {
			return fmt.Errorf("insert batch: %w", err)
		}
		total, err := queueBatch(ctx, tx, id.String())
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rotation_batches SET total = $2 WHERE id = $1`, id.String(), total); err != nil {
			return fmt.Errorf("count integrations of batch: %w", err)
		}
		if err := remember(ctx, tx, now, r.Scope, r.RequestID, contents, id.String()); err != nil {
			return err
		}
		event := AuditEvent{Time: now, Kind: RotationBatchCreated, Caller: caller, Reason: string(r.Reason)}
		if r.Scope != credential.Everything {
			event.Account = accountOf(r.Scope)
		}
		if err := s.audit(ctx, tx, event); err != nil {
			return err
		}
		out, err = readBatch(ctx, tx, r.Scope, id.String())
		return err
	}
	err = s.db.Tx(ctx, request)
	if sqldb.UniqueOn(err, "rotation_requests", "scope", "request_id") {
		err = s.db.Tx(ctx, request) // as in RequestRotation
	}
	if err != nil {
		return credential.Batch{}, fmt.Errorf("request rotation of all of %s: %w", r.Scope, err)
	}
	return out, nil
}

// forgetBatches deletes those that ended long ago, and what was queued for such as have ended: the previous release leaves that.
func forgetBatches(ctx context.Context, tx sqldb.Tx, now time.Time) error {
	if _, err := tx.Exec(ctx, `DELETE FROM rotation_batches WHERE end_time > 0 AND end_time < $1`, sqldb.Micros(now.Add(-keepEnded))); err != nil {
		return fmt.Errorf("forget old batches: %w", err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM rotation_queue WHERE batch_id NOT IN (SELECT id FROM rotation_batches WHERE end_time = 0)`); err != nil {
		return fmt.Errorf("forget what was queued for old batches: %w", err)
	}
	return nil
}

// queueBatch queues the integrations that have something to be replaced now, unless somebody did, and returns how many. Of a rotation by
// schedule that is the ACTIVE version; of a compromise, all whose secrets somebody may have had, also such as are just being made. Which
// these are is said by their numbers: the clocks of those who made them and of whoever asks differ.
func queueBatch(ctx context.Context, tx sqldb.Tx, id string) (queued int64, err error) {
	if _, err := fence.Shards(ctx, tx); err != nil {
		return 0, err
	}
	first, err := tx.Exec(ctx, `UPDATE rotation_batches SET queued = 1 WHERE id = $1 AND queued = 0`, id)
	if err != nil || first == 0 {
		return 0, err
	}
	queued, err = tx.Exec(ctx, `INSERT INTO rotation_queue (batch_id, integration_uid, shard, up_to, next_time)
		SELECT b.id, i.uid, i.shard, MAX(v.number), 0
		FROM rotation_batches b JOIN integrations i ON i.deleting = 0
			AND (b.scope = 'accounts/-' OR i.name LIKE b.scope || '/%') AND b.tenant_id IN ('', i.tenant_id) AND b.cloud IN ('', i.cloud)
		JOIN credential_versions v ON v.integration_uid = i.uid AND `+replaceable+`
		WHERE b.id = $1 AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.integration_uid = i.uid AND r.batch_id = b.id)
		GROUP BY b.id, i.uid, i.shard`, id)
	if err != nil {
		return 0, fmt.Errorf("queue integrations of batch: %w", err)
	}
	return queued, nil
}

// replaceable holds for a version v that batch b is to replace, if it was there when that was asked for. What is REVOKING goes anyway.
const replaceable = `(v.state = 'ACTIVE' OR b.reason = 'COMPROMISED' AND v.state IN ('INTENDED', 'STAGED', 'PROPAGATING', 'RETIRING'))`

// Batch returns a scope's batch; sqldb.ErrNoRows when there is none.
func (s *Store) Batch(ctx context.Context, scope, id string) (credential.Batch, error) {
	var out credential.Batch
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = readBatch(ctx, tx, scope, id)
		return err
	})
	if err != nil {
		return credential.Batch{}, fmt.Errorf("read batch %s of %s: %w", id, scope, err)
	}
	return out, nil
}

// Batches returns at most limit of the scope's batches, the newest first; with a before only those that are older than the one of that ID.
func (s *Store) Batches(ctx context.Context, scope, before string, limit int) ([]credential.Batch, error) {
	var out []credential.Batch
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, scanBatch,
			`SELECT `+batchColumns+` FROM rotation_batches WHERE scope = $1 AND ($2 = '' OR id < $2) ORDER BY id DESC LIMIT $3`, scope, before, limit)
		for i := range out {
			if err := countBatch(ctx, tx, &out[i]); err != nil {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list batches of %s: %w", scope, err)
	}
	return out, nil
}

const batchColumns = `id, scope, reason, tenant_id, cloud, creator, total, create_time, end_time`

func scanBatch(row sqldb.Row) (credential.Batch, error) { return scanBatchAnd(row) }

// scanBatchAnd reads a row that begins with batchColumns; more are further columns.
func scanBatchAnd(row sqldb.Row, more ...any) (credential.Batch, error) {
	var b credential.Batch
	columns := []any{&b.ID, &b.Scope, &b.Reason, &b.TenantID, &b.Cloud, &b.Creator, &b.Total, at{&b.CreateTime}, at{&b.EndTime}}
	err := row.Scan(append(columns, more...)...)
	return b, err
}

func readBatch(ctx context.Context, tx sqldb.Tx, scope, id string) (credential.Batch, error) {
	b, err := scanBatch(tx.QueryRow(ctx, `SELECT `+batchColumns+` FROM rotation_batches WHERE scope = $1 AND id = $2`, scope, id))
	if err != nil {
		return credential.Batch{}, err
	}
	return b, countBatch(ctx, tx, &b)
}

// countBatch finds how far a batch is.
func countBatch(ctx context.Context, tx sqldb.Tx, b *credential.Batch) error {
	if err := tx.QueryRow(ctx, `SELECT COALESCE(SUM(CASE WHEN state IN ('COMPLETED', 'ABANDONED') THEN 0 ELSE 1 END), 0),
			COALESCE(SUM(CASE WHEN state = 'PROPAGATING' AND state_reason = 'AwaitingConsent' THEN 1 ELSE 0 END), 0),
			COALESCE(SUM(CASE WHEN state = 'COMPLETED' THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN state = 'ABANDONED' THEN 1 ELSE 0 END), 0)
		FROM rotations WHERE batch_id = $1 AND batch_id <> ''`, b.ID).Scan(&b.Running, &b.AwaitingConsent, &b.Completed, &b.Abandoned); err != nil {
		return fmt.Errorf("count rotations of batch: %w", err)
	}
	if !b.EndTime.IsZero() {
		return nil
	}
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM rotation_queue WHERE batch_id = $1`, b.ID).Scan(&b.Waiting); err != nil {
		return fmt.Errorf("count what a batch has yet to begin with: %w", err)
	}
	return nil
}

const (
	// batchWindow is how many of a batch's integrations of one shard may wait for a new secret: enough that the budget is spent, few enough
	// that what is due by schedule finds its place among them.
	batchWindow = 64
	// batchStuck is after how long one that waits takes no place in the window any more: something else than the budget is in its way.
	batchStuck = 10 * time.Minute
	// batchLater is when one is looked at again that cannot be begun with.
	batchLater = 5 * time.Minute
)

// AdvanceBatches begins with more integrations of the shard's in each batch that is under way, as far as earlier ones have their new
// secrets, and ends those batches of which nothing is left in any shard. It returns how many it began with. It looks at the next few of
// each batch and at none that it has done with: for every few seconds.
func (s *Store) AdvanceBatches(ctx context.Context, m election.Mastership, now time.Time) (begun int, err error) {
	type open struct {
		credential.Batch
		queued int64
	}
	var batches []open
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		batches, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (b open, err error) {
			b.Batch, err = scanBatchAnd(row, &b.queued)
			return b, err
		}, `SELECT `+batchColumns+`, queued FROM rotation_batches WHERE end_time = 0 ORDER BY id`)
		return err
	})
	for _, b := range batches {
		if err == nil && b.queued == 0 {
			err = s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
				_, err := queueBatch(ctx, tx.Tx, b.ID)
				return err
			})
		}
		if err != nil {
			break
		}
		var n int
		n, err = s.advanceBatch(ctx, m, now, b.Batch)
		begun += n
	}
	if err != nil {
		return begun, fmt.Errorf("advance batches in shard %d: %w", m.Shard, err)
	}
	return begun, nil
}

func (s *Store) advanceBatch(ctx context.Context, m election.Mastership, now time.Time, b credential.Batch) (begun int, err error) {
	var next batchNext
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		next, err = nextOfBatch(ctx, tx, m.Shard, now, b)
		return err
	})
	if err != nil {
		return 0, err
	}
	if next.over {
		return 0, s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
			_, err := tx.Exec(ctx, `UPDATE rotation_batches SET end_time = $2 WHERE id = $1 AND end_time = 0`, b.ID, sqldb.Micros(now))
			return err
		})
	}
	if len(next.done)+len(next.later) > 0 {
		err := s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
			if err := tx.unqueue(ctx, b, next.done...); err != nil {
				return err
			}
			return tx.putOff(ctx, now, b, next.later...)
		})
		if err != nil {
			return 0, err
		}
	}
	asked := credential.Rotation{Reason: b.Reason, BatchID: b.ID}
	for _, uid := range next.begin {
		id, err := uuid.NewV7()
		if err != nil {
			return begun, fmt.Errorf("name rotation: %w", err)
		}
		// One at a time: whoever has an application's row and then an audit writer's must not want another application's.
		err = s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
			integration, err := scanIntegration(tx.QueryRow(ctx, `SELECT `+integrationColumns+` FROM integrations WHERE uid = $1`, uid))
			if errors.Is(err, sqldb.ErrNoRows) {
				return tx.unqueue(ctx, b, uid)
			}
			if err != nil {
				return fmt.Errorf("read integration: %w", err)
			}
			answer, err := s.askRotation(ctx, tx.Tx, now, id.String(), integration, asked, grant.Caller{Identity: b.Creator})
			switch {
			case errors.Is(err, credential.ErrNotAdopted):
				return tx.unqueue(ctx, b, uid)
			case err != nil:
				return err
			case answer.BatchID != b.ID: // somebody else asked meanwhile
				return tx.putOff(ctx, now, b, uid)
			}
			return tx.unqueue(ctx, b, uid)
		})
		if err != nil {
			return begun, err
		}
		begun++
	}
	return begun, nil
}

// unqueue notes that a batch has done with integrations.
func (tx masterTx) unqueue(ctx context.Context, b credential.Batch, uids ...string) error {
	which, args := queuedOf(tx, uids, b.ID)
	if _, err := tx.Exec(ctx, `DELETE FROM rotation_queue WHERE batch_id = $1 AND `+which, args...); err != nil {
		return fmt.Errorf("unqueue integrations: %w", err)
	}
	return nil
}

// putOff has integrations looked at later.
func (tx masterTx) putOff(ctx context.Context, now time.Time, b credential.Batch, uids ...string) error {
	which, args := queuedOf(tx, uids, b.ID, sqldb.Micros(now.Add(batchLater)))
	if _, err := tx.Exec(ctx, `UPDATE rotation_queue SET next_time = $2 WHERE batch_id = $1 AND `+which, args...); err != nil {
		return fmt.Errorf("put off integrations: %w", err)
	}
	return nil
}

func queuedOf(tx masterTx, uids []string, args ...any) (condition string, all []any) {
	from, all := tx.Values(listed(uids), args...)
	return tx.In(`integration_uid`, `SELECT column1 FROM `+from+` v`), all
}

// batchNext is what is to be done in a shard for a batch.
type batchNext struct {
	// begin are the integrations to begin with, done those in which nothing is left to do for it, later those that have to wait for something.
	begin, done, later []string
	// over: nothing of it is left in any shard.
	over bool
}

// nextOfBatch finds what to do for a batch now.
func nextOfBatch(ctx context.Context, tx sqldb.Tx, shard int, now time.Time, b credential.Batch) (next batchNext, err error) {
	var waiting int
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM rotations r JOIN integrations i ON i.uid = r.integration_uid
		WHERE r.batch_id = $1 AND r.batch_id <> '' AND i.shard = $2 AND r.state = 'PENDING' AND r.state_reason = '' AND r.create_time > $3`,
		b.ID, shard, sqldb.Micros(now.Add(-batchStuck))).Scan(&waiting); err != nil {
		return batchNext{}, err
	}
	if waiting >= batchWindow {
		return batchNext{}, nil
	}
	// Not while another rotation is under way that would only be joined, nor while rotation is paused. Another that waits for consent may do so for
	// ever, and replaces all that a rotation by schedule would.
	const begun = `SELECT 1 FROM rotations r WHERE r.integration_uid = q.integration_uid AND r.state IN ('PENDING', 'PROPAGATING')`
	type queued struct{ uid, what string }
	due, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (q queued, err error) {
		err = row.Scan(&q.uid, &q.what)
		return q, err
	}, `SELECT q.integration_uid, CASE
			WHEN NOT EXISTS (SELECT 1 FROM integrations i JOIN credential_versions v ON v.integration_uid = i.uid
				WHERE i.uid = q.integration_uid AND i.deleting = 0 AND v.number <= q.up_to AND `+replaceable+`) THEN 'done'
			WHEN b.reason = 'SCHEDULED' AND EXISTS (`+begun+` AND r.state_reason = 'AwaitingConsent') THEN 'done'
			WHEN EXISTS (`+begun+` AND r.reason IN ('COMPROMISED', b.reason)) THEN 'later'
			WHEN b.reason = 'SCHEDULED' AND EXISTS (SELECT 1 FROM rotation_pauses p JOIN integrations i ON i.uid = q.integration_uid
				WHERE p.expire_time > $3 AND (p.scope IN ('accounts/-', i.name) OR i.name LIKE p.scope || '/%')) THEN 'later'
			ELSE 'begin' END
		FROM rotation_queue q JOIN rotation_batches b ON b.id = q.batch_id
		WHERE q.batch_id = $1 AND q.shard = $2 AND q.next_time <= $3 ORDER BY q.next_time LIMIT $4`,
		b.ID, shard, sqldb.Micros(now), batchWindow-waiting)
	if err != nil {
		return batchNext{}, err
	}
	for _, q := range due {
		switch q.what {
		case "done":
			next.done = append(next.done, q.uid)
		case "later":
			next.later = append(next.later, q.uid)
		default:
			next.begin = append(next.begin, q.uid)
		}
	}
	if len(due) > 0 || waiting > 0 {
		return next, nil
	}
	// What waits for nothing but the customer's consent keeps no batch open, except of a compromise: that is over when the secrets are gone.
	var left bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM rotation_queue WHERE batch_id = $1)
		OR EXISTS (SELECT 1 FROM rotations WHERE batch_id = $1 AND batch_id <> '' AND state IN ('PENDING', 'PROPAGATING', 'ACTIVATED')
			AND ($2 = 'COMPROMISED' OR state_reason <> 'AwaitingConsent'))`, b.ID, string(b.Reason)).Scan(&left)
	next.over = !left
	return next, err
}
