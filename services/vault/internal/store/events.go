package store

import (
	"context"
	"fmt"
	"math"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
)

func scanPlace(row sqldb.Row) (p audit.Place, err error) {
	err = row.Scan(&p.Writer, &p.Seq, &p.Place, at{&p.Time})
	return p, err
}

// AuditEvents returns events, the newest first. Those of one moment are in the order of their places.
func (s *Store) AuditEvents(ctx context.Context, q audit.Query) ([]AuditEvent, error) {
	where, args := `time >= $1 AND time < $2`, []any{sqldb.Micros(q.From), int64(math.MaxInt64)}
	if !q.Until.IsZero() {
		args[1] = sqldb.Micros(q.Until)
	}
	add := func(condition string, arg any) {
		args = append(args, arg)
		where += fmt.Sprintf(condition, len(args))
	}
	if q.Account != "" {
		add(` AND account = $%d`, q.Account)
	}
	if q.GrantUID != "" {
		add(` AND grant_uid = $%d`, q.GrantUID)
	}
	if q.Before != (audit.Place{}) {
		n := len(args)
		args = append(args, sqldb.Micros(q.Before.Time), q.Before.Writer, q.Before.Seq, q.Before.Place)
		where += fmt.Sprintf(` AND (time, writer, seq, place) < (CAST($%d AS BIGINT), CAST($%d AS TEXT), CAST($%d AS BIGINT), CAST($%d AS BIGINT))`, n+1, n+2, n+3, n+4)
	}
	args = append(args, q.Limit)
	var out []AuditEvent
	err := s.readEvents(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, scanAuditEvent, `SELECT `+auditColumns+` FROM audit_events WHERE `+where+
			fmt.Sprintf(` ORDER BY time DESC, writer DESC, seq DESC, place DESC LIMIT $%d`, len(args)), args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read audit events: %w", err)
	}
	return out, nil
}

func scanAuditEvent(row sqldb.Row) (AuditEvent, error) {
	r, err := scanAuditRow(row)
	return r.record.EventAt(r.place, r.entry), err
}
