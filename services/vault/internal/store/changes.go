package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
)

// keptChanges is how many changes are kept. A replica that fell further behind finds a gap, and looks at all its streams.
const keptChanges = 10_000

// Change says that something which streams depend on is different now: the versions or the entitlement of an integration,
// a grant, or an account. It is a reason to look, not a description.
type Change struct {
	Seq int64
	// IntegrationUID is set for a change of an integration, of its versions, of its attachments, or of a project for which it has
	// live grants.
	IntegrationUID string
	// GrantUID is set for a change of one grant or its leases.
	GrantUID string
	// Account is set for a change of a whole account.
	Account string
	Time    time.Time
}

// noteChange is noteChanges of one change. One of the two UIDs may be empty.
func noteChange(ctx context.Context, tx sqldb.Tx, now time.Time, integrationUID, grantUID string) error {
	return noteChanges(ctx, tx, now, []Change{{IntegrationUID: integrationUID, GrantUID: grantUID}})
}

// noteChanges is the last statement of every transaction that changes what a stream depends on; a change's number and time are given
// here. The counter's row stays locked until the commit, which makes the order of the numbers the order of the commits;
// what follows it in the transaction delays every other replica's.
func noteChanges(ctx context.Context, tx sqldb.Tx, now time.Time, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	var newest int64
	if err := tx.QueryRow(ctx, `UPDATE change_counter SET seq = seq + $1 WHERE id = 1 RETURNING seq`, len(changes)).Scan(&newest); err != nil {
		return fmt.Errorf("count change: %w", err)
	}
	rows, args := make([]string, len(changes)), []any{sqldb.Micros(now)}
	for i, c := range changes {
		n := len(args)
		rows[i] = fmt.Sprintf("($%d, $%d, $%d, $%d, $1)", n+1, n+2, n+3, n+4)
		args = append(args, newest-int64(len(changes)-1-i), c.IntegrationUID, c.GrantUID, c.Account)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO changes (seq, integration_uid, grant_uid, account, time) VALUES `+strings.Join(rows, ", "), args...); err != nil {
		return fmt.Errorf("note change: %w", err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM changes WHERE seq <= $1`, newest-keptChanges); err != nil {
		return fmt.Errorf("forget old changes: %w", err)
	}
	return nil
}

// Changes returns at most limit changes after the given number, in order, and the number of the newest change there is, 0
// before the first. Numbers have no gaps: a first one that is not the next means that older changes have been forgotten; a
// newest one below the given number, that the database was restored.
func (s *Store) Changes(ctx context.Context, after int64, limit int) (changes []Change, newest int64, err error) {
	err = s.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		changes = nil
		if err := tx.QueryRow(ctx, `SELECT seq FROM change_counter WHERE id = 1`).Scan(&newest); err != nil {
			return err
		}
		if newest <= after || limit <= 0 {
			return nil
		}
		changes, err = sqldb.Collect(ctx, tx, scanChange,
			`SELECT seq, integration_uid, grant_uid, account, time FROM changes WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read changes after %d: %w", after, err)
	}
	return changes, newest, nil
}

func scanChange(row sqldb.Row) (Change, error) {
	var c Change
	var at int64
	err := row.Scan(&c.Seq, &c.IntegrationUID, &c.GrantUID, &c.Account, &at)
	c.Time = sqldb.Time(at)
	return c, err
}
