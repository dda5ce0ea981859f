package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"phasekey.dev/pkg/internal/sqlfault"
)

const (
	maxAttempts = 6
	firstDelay  = 5 * time.Millisecond
	maxDelay    = 200 * time.Millisecond
	// commitTimeout bounds a COMMIT, with the last statements that go with it, or a ROLLBACK: the caller's context stops neither.
	commitTimeout = 10 * time.Second
	// answerGrace is what an answer may take on its way, beyond the times in which the server itself ends a transaction.
	answerGrace = 5 * time.Second
)

// Tx runs fn in a transaction that may write, and commits it when fn returns nil. On PostgreSQL it is READ COMMITTED, unless the database's own default is stricter: each statement sees what was committed
// when it began, and an UPDATE or DELETE waits for whoever holds its row, then judges the row anew.
//
// fn runs again, after a short random delay, up to six times in all, when the database undid the transaction in favour of another, when fn's error is an Again, or when a pooled connection turned out to be gone, or to be to
// a server that takes no writes any more; so it must not change
// anything outside the transaction that a second run would get wrong. Any other error rolls back and is returned, fn's own unchanged. ErrUnavailable and ErrUnknownOutcome say what they
// mean. When ctx ends before the commit nothing has happened, and its error is returned. A PostgreSQL server that is silent for longer than its own time limits allow, for it or the way to it
// is gone, is ErrUnavailable too, also where ctx has no deadline: fn must use the context it gets, which ends with the transaction.
func (db *DB) Tx(ctx context.Context, fn func(ctx context.Context, tx Tx) error) error {
	return db.run(ctx, sql.TxOptions{}, fn)
}

// Again is an error of a transaction's function that wraps err and says that another was first: that the function, run again, may find things otherwise.
func Again(err error) error { return &againError{err} }

type againError struct{ cause error }

func (e *againError) Error() string { return e.cause.Error() }

func (e *againError) Unwrap() error { return e.cause }

// ReadTx runs fn in a transaction in which every statement sees the same moment, and which must not write. Otherwise it is as Tx.
func (db *DB) ReadTx(ctx context.Context, fn func(ctx context.Context, tx Tx) error) error {
	options := sql.TxOptions{ReadOnly: true}
	if db.driver == DriverPostgres {
		options.Isolation = sql.LevelRepeatableRead // a snapshot; what only reads cannot lose a race in it
	}
	return db.run(ctx, options, fn)
}

func (db *DB) run(ctx context.Context, options sql.TxOptions, fn func(ctx context.Context, tx Tx) error) error {
	delay := firstDelay
	for attempt := 1; ; attempt++ {
		again, err := db.attempt(ctx, options, fn)
		if !again || attempt == maxAttempts {
			return err
		}
		wait := time.NewTimer(rand.N(delay)) //nolint:gosec // spreads contenders, guards nothing
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
		delay = min(2*delay, maxDelay)
	}
}

// attempt runs the transaction once. again says that the error means "nothing happened, another was first".
func (db *DB) attempt(ctx context.Context, options sql.TxOptions, fn func(ctx context.Context, tx Tx) error) (again bool, err error) {
	if err := sqlfault.Strike(ctx, sqlfault.Begin, options.ReadOnly); err != nil {
		return false, err
	}
	conn, err := db.pool.Conn(ctx)
	if err != nil {
		return false, classify(ctx, err)
	}
	defer func() { _ = conn.Close() }() // gives it back to the pool; fails only if it is gone already

	// database/sql rolls back when the context of BeginTx ends, whatever the transaction does at that moment. This one ends with the caller's, until the commit.
	txCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	release := context.AfterFunc(ctx, cancel)
	defer release()

	fnCtx, cancelFn := context.WithCancel(ctx)
	defer cancelFn()
	answers := db.expectAnswers(func() {
		cancelFn()
		cancel()
	})
	defer answers.stop() // after the rollback, which is answered or not like everything else

	tx, err := conn.BeginTx(txCtx, &options)
	if err != nil {
		if missed := answers.missed(err); missed != nil {
			return false, missed
		}
		// A pooled connection the server has closed meanwhile.
		return ctx.Err() == nil && lostConnection(err), classify(ctx, err)
	}
	// For errors and panics of fn; after a commit it does nothing.
	defer func() { _ = tx.Rollback() }()

	t := Tx{tx: tx, conn: conn, answers: answers, driver: db.driver, last: &Batch{}}
	err = fn(fnCtx, t)
	if err == nil && db.driver != DriverPostgres {
		err = t.Do(fnCtx, t.last)
	}
	if err != nil {
		if missed := answers.missed(err); missed != nil {
			return false, missed
		}
		if _, ok := errors.AsType[*notBegunError](err); ok {
			return ctx.Err() == nil && lostConnection(err), classify(ctx, err)
		}
		if !options.ReadOnly && readOnlyServer(err) {
			leave(t)
			return ctx.Err() == nil, classify(ctx, err)
		}
		_, again := errors.AsType[*againError](err)
		return ctx.Err() == nil && (again || lostRace(err)), classify(ctx, err)
	}
	if err := sqlfault.Strike(ctx, sqlfault.Commit, options.ReadOnly); err != nil {
		return false, err
	}
	if !release() {
		return false, ctx.Err()
	}
	answers.stop()
	if missed := answers.missed(nil); missed != nil {
		return false, missed
	}
	limit := time.AfterFunc(commitTimeout, cancel)
	defer limit.Stop()
	refused, err := t.commit(txCtx)
	switch {
	case err == nil:
		return false, sqlfault.Strike(ctx, sqlfault.Committed, options.ReadOnly)
	case lostRace(err):
		return true, classify(txCtx, err)
	case refused && !options.ReadOnly && readOnlyServer(err):
		leave(t)
		return true, classify(txCtx, err)
	case refused, refusedCommit(err):
		return false, classify(txCtx, err)
	}
	// Whatever state the connection is in, nobody else should inherit it.
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	return false, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrUnknownOutcome, err)
}

// leave undoes the transaction, and has its connection be nobody's any more: it is to a server that takes no writes.
func leave(t Tx) {
	_ = t.tx.Rollback()
	_ = t.conn.Raw(func(any) error { return driver.ErrBadConn })
}

// commit commits, by one message with the last statements where there are such. Refused says that it was one of these that failed, so that nothing was committed.
func (t Tx) commit(ctx context.Context) (refused bool, err error) {
	if t.driver != DriverPostgres || len(t.last.statements) == 0 {
		return false, t.tx.Commit()
	}
	for _, s := range t.last.statements {
		sqlfault.Count(ctx, s.query)
	}
	if refused, err = t.pipe(ctx, t.last, true); err != nil {
		return refused, err
	}
	_ = t.tx.Commit() // of which nothing is left but to let go of the connection
	return false, nil
}

// answers tells a server that is silent from one that is slow. The limits that the server itself keeps (statement_timeout and the others) end every wait, unless
// the server or the way to it is gone without a word; then only TCP would give up, after a quarter of an hour. Nil waits for ever.
type answers struct {
	within time.Duration
	timer  *time.Timer
	late   atomic.Bool
}

// expectAnswers calls giveUp, once, when no statement begins, and stop is not called, within the time in which the server answers or ends the transaction.
func (db *DB) expectAnswers(giveUp func()) *answers {
	if db.answersWithin == 0 {
		return nil
	}
	a := &answers{within: db.answersWithin}
	a.timer = time.AfterFunc(a.within, func() {
		a.late.Store(true)
		giveUp()
	})
	return a
}

// statement begins the wait anew.
func (a *answers) statement() {
	if a != nil && !a.late.Load() {
		a.timer.Reset(a.within)
	}
}

func (a *answers) stop() {
	if a != nil {
		a.timer.Stop()
	}
}

// missed is the error of a transaction that was given up, nil when it was not. It does not wrap what that led to, which is a canceled context that nobody canceled.
func (a *answers) missed(consequence error) error {
	if a == nil || !a.late.Load() {
		return nil
	}
	return fmt.Errorf("%w: no answer within %s (%v)", ErrUnavailable, a.within, consequence) //nolint:errorlint // see above
}

// Tx is a running transaction. It is valid inside the function it was given to, for one goroutine.
type Tx struct {
	tx      *sql.Tx
	conn    *sql.Conn
	answers *answers
	driver  string
	last    *Batch
}

// Exec runs a statement and says how many rows it inserted, changed or deleted.
func (t Tx) Exec(ctx context.Context, query string, args ...any) (affected int64, err error) {
	t.answers.statement()
	sqlfault.Count(ctx, query)
	result, err := t.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, classify(ctx, err)
	}
	affected, err = result.RowsAffected()
	return affected, classify(ctx, err)
}

// QueryRow runs a statement whose first row is wanted; Scan reports its errors, ErrNoRows among them.
func (t Tx) QueryRow(ctx context.Context, query string, args ...any) Row {
	t.answers.statement()
	sqlfault.Count(ctx, query)
	return row{ctx: ctx, row: t.tx.QueryRowContext(ctx, query, args...)}
}

// Query runs a statement for its rows. They must be closed before the next statement of the transaction; Collect does.
func (t Tx) Query(ctx context.Context, query string, args ...any) (*Rows, error) {
	t.answers.statement()
	sqlfault.Count(ctx, query)
	rows, err := t.tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, classify(ctx, err)
	}
	return &Rows{ctx: ctx, rows: rows}, nil
}

// Row is one row of a result.
type Row interface {
	// Scan copies the row's columns into the values pointed at.
	Scan(dest ...any) error
}

type row struct {
	ctx context.Context //nolint:containedctx // classifies the error of the statement it was given to
	row *sql.Row
}

// Scan copies the row's columns.
func (r row) Scan(dest ...any) error { return classify(r.ctx, r.row.Scan(dest...)) }

// Rows is the result of Query: Next before each Scan, Err after the last, Close always.
type Rows struct {
	ctx  context.Context //nolint:containedctx // classifies the errors of the statement it was given to
	rows *sql.Rows
}

// Next goes to the next row, if there is one and no error.
func (r *Rows) Next() bool { return r.rows.Next() }

// Scan copies the current row's columns into the values pointed at.
func (r *Rows) Scan(dest ...any) error { return classify(r.ctx, r.rows.Scan(dest...)) }

// Err is the error that ended Next early.
func (r *Rows) Err() error { return classify(r.ctx, r.rows.Err()) }

// Close releases the result. It may be called twice.
func (r *Rows) Close() error { return classify(r.ctx, r.rows.Close()) }

// Collect runs a query and gives all its rows, each read by scan.
func Collect[T any](ctx context.Context, tx Tx, scan func(Row) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
