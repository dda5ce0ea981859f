package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
)

const (
	// trailRows is how many rows of audit records are read at once. One record has fewer.
	trailRows = MaxFanOut + maxBatch
	// trailFanOuts is how many fan-outs are.
	trailFanOuts = 2
)

// AuditRecords returns records of a writer with numbers from after+1 to upTo, in order, a part of them at a time: none when there are no more. Those of
// before records were chained have no hash.
func (s *Store) AuditRecords(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error) {
	var out []audit.Record
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		rows, err := sqldb.Collect(ctx, tx, scanAuditRow, `SELECT `+auditColumns+` FROM audit_events
			WHERE writer = $1 AND seq > $2 AND seq <= $3 ORDER BY seq, place LIMIT $4`, writer, after, upTo, trailRows)
		if err != nil {
			return err
		}
		out = records(rows)
		whole := upTo
		if len(rows) == trailRows {
			if len(out) > 1 {
				out = out[:len(out)-1] // which may go on
			}
			whole = out[len(out)-1].Seq
		}
		wide, err := sqldb.Collect(ctx, tx, scanFanOut, `SELECT `+fanOutColumns+` FROM audit_fanouts
			WHERE writer = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4`, writer, after, whole, trailFanOuts)
		if err != nil || len(wide) == 0 {
			return err
		}
		if len(wide) == trailFanOuts {
			last := wide[trailFanOuts-1].Seq
			out = slices.DeleteFunc(out, func(r audit.Record) bool { return r.Seq > last })
		}
		out = append(out, wide...)
		slices.SortFunc(out, func(a, b audit.Record) int { return cmp.Compare(a.Seq, b.Seq) })
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read audit records of %s after %d: %w", writer, after, err)
	}
	return out, nil
}

// auditRow is one row of audit_events.
type auditRow struct {
	record audit.Record // without its entries
	place  int64
	entry  audit.Entry
}

func scanAuditRow(row sqldb.Row) (auditRow, error) {
	var (
		r         auditRow
		hash, mac string
		keyID     int64
	)
	e := &r.entry
	err := row.Scan(&r.record.Writer, &r.record.Seq, &r.place, &e.Time, &e.Kind, &e.Actor, &e.RequestID, &e.Account, &e.GrantUID, &e.Run, &e.LeaseUID,
		&e.InstanceID, &e.Generation, &e.Integration, &e.IntegrationUID, &e.Project, &e.ProjectUID, &e.VersionID, &e.Material, &e.Reason, &e.Audience,
		&e.ClientRequestID, &e.ExpireTime, &hash, &mac, &keyID)
	if err != nil {
		return auditRow{}, err
	}
	unseal(&r.record, hash, mac, keyID)
	return r, nil
}

// records puts rows together that have one number.
func records(rows []auditRow) []audit.Record {
	var out []audit.Record
	for _, r := range rows {
		if n := len(out); n == 0 || out[n-1].Writer != r.record.Writer || out[n-1].Seq != r.record.Seq {
			out = append(out, r.record)
		}
		last := &out[len(out)-1]
		last.Entries = append(last.Entries, r.entry)
	}
	return out
}

// AuditWriters returns at most limit writers of audit records after the given one, by name: those that have records, whether or not anything says so.
func (s *Store) AuditWriters(ctx context.Context, after string, limit int) ([]string, error) {
	var out []string
	err := s.readEvents(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		out = nil
		for len(out) < limit {
			// The next one each time, so that the records between are not read.
			var next string
			if err := tx.QueryRow(ctx, `SELECT COALESCE(MIN(writer), '') FROM audit_events WHERE writer > $1`, after).Scan(&next); err != nil || next == "" {
				return err
			}
			out = append(out, next)
			after = next
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list audit writers: %w", err)
	}
	return out, nil
}

// AuditGrowth returns the chains that have grown.
func (s *Store) AuditGrowth(ctx context.Context) ([]audit.Growth, error) {
	var out []audit.Growth
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (g audit.Growth, err error) {
			g.From, err = scanHead(row, &g.To)
			return g, err
		}, `SELECT w.writer, COALESCE(h.seq, 0), COALESCE(h.hash, ''), w.seq FROM audit_writers w LEFT JOIN audit_heads h ON h.writer = w.writer
			WHERE w.hash <> '' AND w.seq <> COALESCE(h.seq, 0) ORDER BY w.writer`)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read growth of the audit trail: %w", err)
	}
	return out, nil
}

// AuditState returns how long the chains are: all of them, or, while the newest checkpoint is the known one, those that it does not cover whole.
func (s *Store) AuditState(ctx context.Context, known int64) (audit.State, error) {
	var out audit.State
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out = audit.State{}
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(number), 0) FROM audit_checkpoints`).Scan(&out.Checkpoint.Number); err != nil {
			return err
		}
		which := ` AND w.seq <> COALESCE(h.seq, 0)`
		if out.Checkpoint.Number != known {
			which = ``
			if out.Checkpoint.Number > 0 {
				row := tx.QueryRow(ctx, `SELECT `+checkpointColumns+` FROM audit_checkpoints WHERE number = $1`, out.Checkpoint.Number)
				if out.Checkpoint, err = scanCheckpoint(row); err != nil {
					return err
				}
			}
		}
		out.Chains, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (e audit.Extent, err error) {
			err = row.Scan(&e.Writer, &e.Covered, &e.End)
			return e, err
		}, `SELECT w.writer, COALESCE(h.seq, 0), w.seq FROM audit_writers w LEFT JOIN audit_heads h ON h.writer = w.writer
			WHERE w.hash <> ''`+which+` ORDER BY w.writer`)
		return err
	})
	if err != nil {
		return audit.State{}, fmt.Errorf("read state of the audit trail: %w", err)
	}
	return out, nil
}

// AuditHeads returns what the last checkpoint that named it says of each chain.
func (s *Store) AuditHeads(ctx context.Context) ([]chain.Head, error) {
	var out []chain.Head
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (chain.Head, error) { return scanHead(row) },
			`SELECT writer, seq, hash FROM audit_heads ORDER BY writer`)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read heads of the audit trail: %w", err)
	}
	return out, nil
}

func scanHead(row sqldb.Row, more ...any) (chain.Head, error) {
	var h chain.Head
	var hash string
	if err := row.Scan(append([]any{&h.Writer, &h.Seq, &hash}, more...)...); err != nil {
		return chain.Head{}, err
	}
	if hash != "" {
		if err := h.Hash.UnmarshalText([]byte(hash)); err != nil {
			return chain.Head{}, fmt.Errorf("head of %s: %w", h.Writer, err)
		}
	}
	return h, nil
}

const checkpointColumns = `number, time, complete, key_id, next_id, payload, signature`

func scanCheckpoint(row sqldb.Row) (audit.Checkpoint, error) {
	var c audit.Checkpoint
	var full, key, next int64
	err := row.Scan(&c.Number, at{&c.Time}, &full, &key, &next, &c.Payload, &c.Signature)
	c.Full, c.KeyID, c.NextID = full == 1, uint32(key), uint32(next) //nolint:gosec // cut off they are no keys'
	return c, err
}

// AddCheckpoint stores a checkpoint, which follows the newest; ErrChanged when there is one of its number.
func (s *Store) AddCheckpoint(ctx context.Context, c audit.Checkpoint, heads []chain.Head) error {
	full := 0
	if c.Full {
		full = 1
	}
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO audit_checkpoints (`+checkpointColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (number) DO NOTHING`,
			c.Number, sqldb.Micros(c.Time), full, int64(c.KeyID), int64(c.NextID), c.Payload, c.Signature)
		if err == nil && n == 0 {
			err = ErrChanged
		}
		for _, h := range heads {
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO audit_heads (writer, seq, hash) VALUES ($1, $2, $3)
				ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq, hash = excluded.hash`, h.Writer, h.Seq, h.Hash.String())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store audit checkpoint %d: %w", c.Number, err)
	}
	return nil
}

// LastCheckpoint returns the newest checkpoint; its number is 0 when there is none.
func (s *Store) LastCheckpoint(ctx context.Context) (audit.Checkpoint, error) {
	return s.checkpoint(ctx, `ORDER BY number DESC LIMIT 1`)
}

// FullCheckpoint returns the newest full checkpoint of a time or before, or else the oldest that there is; its number is 0 when there is none.
func (s *Store) FullCheckpoint(ctx context.Context, before time.Time) (audit.Checkpoint, error) {
	c, err := s.checkpoint(ctx, `WHERE complete = 1 AND time <= $1 ORDER BY time DESC, number DESC LIMIT 1`, sqldb.Micros(before))
	if err != nil || c.Number > 0 {
		return c, err
	}
	return s.checkpoint(ctx, `WHERE complete = 1 ORDER BY time, number LIMIT 1`)
}

// CheckpointBase returns the newest full checkpoint of a number up to that one; its number is 0 when there is none.
func (s *Store) CheckpointBase(ctx context.Context, upTo int64) (audit.Checkpoint, error) {
	return s.checkpoint(ctx, `WHERE complete = 1 AND number <= $1 ORDER BY number DESC LIMIT 1`, upTo)
}

func (s *Store) checkpoint(ctx context.Context, which string, args ...any) (audit.Checkpoint, error) {
	var c audit.Checkpoint
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		c, err = scanCheckpoint(tx.QueryRow(ctx, `SELECT `+checkpointColumns+` FROM audit_checkpoints `+which, args...))
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return audit.Checkpoint{}, nil
	}
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("read audit checkpoint: %w", err)
	}
	return c, nil
}

// Checkpoints returns at most limit checkpoints after the one of that number, in order.
func (s *Store) Checkpoints(ctx context.Context, after int64, limit int) ([]audit.Checkpoint, error) {
	var out []audit.Checkpoint
	err := s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, scanCheckpoint, `SELECT `+checkpointColumns+` FROM audit_checkpoints WHERE number > $1 ORDER BY number LIMIT $2`, after, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read audit checkpoints: %w", err)
	}
	return out, nil
}

// ForgetCheckpoints deletes at most limit checkpoints before the one of that number, the oldest first, and returns how many.
func (s *Store) ForgetCheckpoints(ctx context.Context, before int64, limit int) (n int64, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err = tx.Exec(ctx, `DELETE FROM audit_checkpoints WHERE number IN (SELECT number FROM audit_checkpoints WHERE number < $1 ORDER BY number LIMIT $2)`, before, limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget audit checkpoints: %w", err)
	}
	return n, nil
}

// ForgetRecords deletes at most limit rows of a writer's records up to the number, the oldest first, and returns how many. Fan-outs that have not become such rows go with the first.
func (s *Store) ForgetRecords(ctx context.Context, writer string, upTo int64, limit int) (n int64, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		n, err = tx.Exec(ctx, `DELETE FROM audit_events WHERE writer = $1 AND seq IN
			(SELECT seq FROM audit_events WHERE writer = $1 AND seq <= $2 ORDER BY seq LIMIT $3)`, writer, upTo, limit)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM audit_fanouts WHERE writer = $1 AND seq <= $2`, writer, upTo)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget audit records of %s: %w", writer, err)
	}
	return n, nil
}

// ForgetUnchained deletes at most limit records of before records were chained, if they are older than before; it returns how many.
func (s *Store) ForgetUnchained(ctx context.Context, before time.Time, limit int) (n int64, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		var last int64
		n = 0
		rows, err := sqldb.Collect(ctx, tx, scanPlace, `SELECT writer, seq, place, time FROM audit_events WHERE time < $1 AND hash = '' AND place = 0
			ORDER BY time, writer, seq LIMIT $2`, sqldb.Micros(before), limit)
		if err != nil {
			return err
		}
		for _, r := range rows {
			last, err = tx.Exec(ctx, `DELETE FROM audit_events WHERE writer = $1 AND seq = $2 AND hash = ''`, r.Writer, r.Seq)
			if err != nil {
				return err
			}
			n += last
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("forget audit records without a chain: %w", err)
	}
	return n, nil
}
