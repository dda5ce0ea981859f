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
	"phasekey.dev/services/vault/internal/grant"
)

// batchRest selects the integrations that a batch has yet to begin with: $1 is its ID. Of a rotation by schedule only those have
// something to replace that have an ACTIVE version; of a compromise, those that have any password.
const batchRest = ` FROM rotation_batches b JOIN integrations i ON i.deleting = 0
		AND (b.scope = 'accounts/-' OR i.name LIKE b.scope || '/%') AND b.tenant_id IN ('', i.tenant_id) AND b.cloud IN ('', i.cloud)
	WHERE b.id = $1 AND EXISTS (SELECT 1 FROM credential_versions v WHERE v.integration_uid = i.uid AND v.intend_time <= b.create_time
			AND (v.state = 'ACTIVE' OR b.reason = 'COMPROMISED' AND v.state IN ('STAGED', 'PROPAGATING', 'RETIRING')))
		AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.batch_id = b.id AND r.integration_uid = i.uid)`

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
		if _, err := tx.Exec(ctx, `DELETE FROM rotation_batches WHERE end_time > 0 AND end_time < $1`, sqldb.Micros(now.Add(-keepEnded))); err != nil {
			return fmt.Errorf("forget old batches: %w", err)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO rotation_batches (id, scope, reason, tenant_id, cloud, creator, total, create_time, end_time)
			VALUES ($1, $2, $3, $4, $5, $6, 0, $7, 0)`,
			id.String(), r.Scope, string(r.Reason), r.TenantID, r.Cloud, caller.Identity, sqldb.Micros(now)); err != nil {
			return fmt.Errorf("insert batch: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE rotation_batches SET total = (SELECT COUNT(*)`+batchRest+`) WHERE id = $1`, id.String()); err != nil {
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

func scanBatch(row sqldb.Row) (credential.Batch, error) {
	var b credential.Batch
	err := row.Scan(&b.ID, &b.Scope, &b.Reason, &b.TenantID, &b.Cloud, &b.Creator, &b.Total, at{&b.CreateTime}, at{&b.EndTime})
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
	if err := tx.QueryRow(ctx, `SELECT COALESCE(SUM(CASE WHEN end_time = 0 THEN 1 ELSE 0 END), 0),
			COALESCE(SUM(CASE WHEN state = 'COMPLETED' THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN state = 'ABANDONED' THEN 1 ELSE 0 END), 0)
		FROM rotations WHERE batch_id = $1 AND batch_id <> ''`, b.ID).Scan(&b.Running, &b.Completed, &b.Abandoned); err != nil {
		return fmt.Errorf("count rotations of batch: %w", err)
	}
	if !b.EndTime.IsZero() {
		return nil
	}
	if err := tx.QueryRow(ctx, `SELECT COUNT(*)`+batchRest, b.ID).Scan(&b.Waiting); err != nil {
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
)

// AdvanceBatches begins with more integrations of the shard's in each batch that is under way, as far as earlier ones have their new
// secrets, and ends those batches of which nothing is left in any shard. It returns how many it began with. It costs a look through the
// scopes of the batches: for every few seconds.
func (s *Store) AdvanceBatches(ctx context.Context, m election.Mastership, now time.Time) (begun int, err error) {
	var batches []credential.Batch
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		batches, err = sqldb.Collect(ctx, tx, scanBatch, `SELECT `+batchColumns+` FROM rotation_batches WHERE end_time = 0 ORDER BY id`)
		return err
	})
	for _, b := range batches {
		if err != nil {
			break
		}
		var n int
		n, err = s.advanceBatch(ctx, m, now, b)
		begun += n
	}
	if err != nil {
		return begun, fmt.Errorf("advance batches in shard %d: %w", m.Shard, err)
	}
	return begun, nil
}

func (s *Store) advanceBatch(ctx context.Context, m election.Mastership, now time.Time, b credential.Batch) (begun int, err error) {
	var next []Integration
	var over bool
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		next, over, err = nextOfBatch(ctx, tx, m.Shard, now, b)
		return err
	})
	if err != nil {
		return 0, err
	}
	if over {
		return 0, s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
			_, err := tx.Exec(ctx, `UPDATE rotation_batches SET end_time = $2 WHERE id = $1 AND end_time = 0`, b.ID, sqldb.Micros(now))
			return err
		})
	}
	asked := credential.Rotation{Reason: b.Reason, BatchID: b.ID}
	for _, i := range next {
		id, err := uuid.NewV7()
		if err != nil {
			return begun, fmt.Errorf("name rotation: %w", err)
		}
		// One at a time: whoever has an application's row and then an audit writer's must not want another application's.
		err = s.asMaster(ctx, m, func(ctx context.Context, tx masterTx) error {
			_, err := s.askRotation(ctx, tx.Tx, now, id.String(), i, asked, grant.Caller{Identity: b.Creator})
			return err
		})
		if err != nil && !errors.Is(err, credential.ErrNotAdopted) {
			return begun, err
		}
		begun++
	}
	return begun, nil
}

// nextOfBatch finds with which integrations of the shard a batch is to begin now; over, that nothing of it is left in any.
func nextOfBatch(ctx context.Context, tx sqldb.Tx, shard int, now time.Time, b credential.Batch) (next []Integration, over bool, err error) {
	var waiting int
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM rotations r JOIN integrations i ON i.uid = r.integration_uid
		WHERE r.batch_id = $1 AND r.batch_id <> '' AND i.shard = $2 AND r.state = 'PENDING' AND r.state_reason = '' AND r.create_time > $3`,
		b.ID, shard, sqldb.Micros(now.Add(-batchStuck))).Scan(&waiting); err != nil {
		return nil, false, err
	}
	if waiting >= batchWindow {
		return nil, false, nil
	}
	// Not while another rotation is under way that would only be joined, nor while rotation is paused.
	next, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (Integration, error) { return scanIntegration(row) },
		`SELECT `+integrationColumns+` FROM integrations WHERE shard = $2 AND uid IN (SELECT i.uid`+batchRest+`
			AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.integration_uid = i.uid AND r.state IN ('PENDING', 'PROPAGATING')
				AND r.reason IN ('COMPROMISED', b.reason))
			AND (b.reason = 'COMPROMISED' OR NOT EXISTS (SELECT 1 FROM rotation_pauses p WHERE p.expire_time > $3
				AND (p.scope IN ('accounts/-', i.name) OR i.name LIKE p.scope || '/%')))
			AND EXISTS (SELECT 1 FROM applications a WHERE a.integration_uid = i.uid AND a.forget_time = 0))
		ORDER BY uid LIMIT $4`, b.ID, shard, sqldb.Micros(now), batchWindow-waiting)
	if err != nil || len(next) > 0 || waiting > 0 {
		return next, false, err
	}
	var left bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM rotations WHERE batch_id = $1 AND batch_id <> '' AND end_time = 0)
		OR EXISTS (SELECT 1`+batchRest+`)`, b.ID).Scan(&left)
	return nil, !left, err
}
