package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"phasekey.dev/pkg/internal/sqlfault"
)

// Batch is statements of which none waits for what another returns: PostgreSQL gets all of them at once, carries them out in their order, and nothing after one that fails.
type Batch struct{ statements []statement }

type statement struct {
	query string
	args  []any
	read  func(cursor) error
}

// cursor is rows of either library.
type cursor interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
}

// Exec adds a statement that returns nothing.
func (b *Batch) Exec(query string, args ...any) {
	b.statements = append(b.statements, statement{query, args, func(cursor) error { return nil }})
}

// Into adds a statement whose rows are wanted, each read by scan. They are in to when the batch is done, in place of what was there; who knows how many there may be makes room for them.
func Into[T any](b *Batch, to *[]T, scan func(Row) (T, error), query string, args ...any) {
	b.statements = append(b.statements, statement{query, args, func(rows cursor) error {
		*to = (*to)[:0]
		for rows.Next() {
			one, err := scan(rows)
			if err != nil {
				return err
			}
			*to = append(*to, one)
		}
		return nil
	}})
}

// ByIndex adds to a batch what has PostgreSQL carry out the transaction's further statements by indexes, as planned the first time that a connection has each: for statements that look a few
// rows up by their keys, and are carried out so often that planning them anew for the values of each time takes longer. Without it, what a table's statistics say, or the lack of them, could have it
// read the whole table.
func (t Tx) ByIndex(b *Batch) {
	if t.driver == DriverPostgres {
		b.Exec(`SELECT set_config('plan_cache_mode', 'force_generic_plan', TRUE), set_config('enable_seqscan', 'off', TRUE),
			set_config('enable_hashjoin', 'off', TRUE), set_config('enable_mergejoin', 'off', TRUE)`)
	}
}

// In is the condition that a column is among what a query returns, which refers to nothing outside of itself. PostgreSQL carries it out first, and looks each of its results up by the column's index. Written as IN it is a
// join, and whether that reads the whole table is decided by how large the table was when the statement was planned.
func (t Tx) In(column, query string) string {
	if t.driver == DriverPostgres {
		return column + ` = ANY (ARRAY(` + query + `))`
	}
	return column + ` IN (` + query + `)`
}

// Do runs the statements of a batch. An error may be any statement's.
func (t Tx) Do(ctx context.Context, b *Batch) error { return t.send(ctx, b, false) }

// Last has a batch be the transaction's last statements, once its function has returned without an error: PostgreSQL gets them and what commits in one message. Their rows are nobody's, and their errors are
// the transaction's. A second one takes the place of the first.
func (t Tx) Last(b *Batch) { *t.last = *b }

// Read runs a batch that only reads in a transaction of its own, in which every statement sees the same moment: what ReadTx does, in one message and its answer. Fn makes
// the batch; it may run again, as a transaction's.
func (db *DB) Read(ctx context.Context, fn func(tx Tx, b *Batch)) error {
	return db.ReadTx(ctx, func(ctx context.Context, tx Tx) error {
		var b Batch
		fn(tx, &b)
		return tx.send(ctx, &b, true)
	})
}

// send runs the statements, and after the last one commits, if that is wanted and the database has a message for both.
func (t Tx) send(ctx context.Context, b *Batch, commit bool) error {
	t.answers.statement()
	for _, s := range b.statements {
		sqlfault.Count(ctx, s.query)
	}
	if t.driver == DriverPostgres {
		_, err := t.pipe(ctx, b, commit)
		return classify(ctx, err)
	}
	for _, s := range b.statements {
		rows, err := t.tx.QueryContext(ctx, s.query, s.args...)
		if err != nil {
			return classify(ctx, err)
		}
		err = errors.Join(s.read(rows), rows.Close(), rows.Err())
		if err != nil {
			return classify(ctx, err)
		}
	}
	return nil
}

// pipe sends the statements to PostgreSQL, and what commits. Refused says that the server refused one of the statements, and so did nothing after it.
func (t Tx) pipe(ctx context.Context, b *Batch, commit bool) (refused bool, err error) {
	err = t.conn.Raw(func(conn any) error {
		c, ok := conn.(*pipelinedConn)
		if !ok {
			return errors.New("driver's connection is not what it was")
		}
		refused, err = c.send(ctx, b.statements, commit)
		return err
	})
	return refused, err
}

// pipelined is a connector to PostgreSQL whose connections send what begins a transaction together with the first batch of it.
type pipelined struct{ driver.Connector }

// Connect opens a connection.
func (p pipelined) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := made.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(errors.New("driver's connection is not what it was"), made.Close())
	}
	return &pipelinedConn{Conn: conn}, nil
}

// pipelinedConn is a connection. database/sql uses it one call at a time.
type pipelinedConn struct {
	*stdlib.Conn
	// begin is what begins the transaction, as long as it has not been sent.
	begin string
	// over is set when the transaction was committed with its last statements, or ended.
	over bool
}

// Close lets go of the connection. Whether its server, which may be gone, hears the goodbye is no matter, as with libpq's PQfinish: nothing that was committed hangs on it.
func (c *pipelinedConn) Close() error {
	_ = c.Conn.Close()
	return nil
}

// BeginTx notes that a transaction has begun.
func (c *pipelinedConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	c.begin, c.over = "begin", false
	switch sql.IsolationLevel(options.Isolation) {
	case sql.LevelDefault:
	case sql.LevelRepeatableRead:
		c.begin += " isolation level repeatable read"
	default:
		return nil, fmt.Errorf("isolation %v is not provided for", sql.IsolationLevel(options.Isolation))
	}
	if options.ReadOnly {
		c.begin += " read only"
	}
	return pipelinedTx{ctx, c}, nil
}

// start sends what begins the transaction, unless that was done.
func (c *pipelinedConn) start(ctx context.Context) error {
	if c.begin == "" {
		return nil
	}
	begin := c.begin
	c.begin = ""
	if _, err := c.Conn.Conn().Exec(ctx, begin); err != nil {
		return &notBegunError{err}
	}
	return nil
}

// notBegunError means that the transaction did not begin: the connection may have been lost long ago.
type notBegunError struct{ cause error }

func (e *notBegunError) Error() string { return e.cause.Error() }

func (e *notBegunError) Unwrap() error { return e.cause }

// ExecContext runs a statement.
func (c *pipelinedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	return c.Conn.ExecContext(ctx, query, args)
}

// QueryContext runs a statement for its rows.
func (c *pipelinedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	return c.Conn.QueryContext(ctx, query, args)
}

// PrepareContext prepares a statement.
func (c *pipelinedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	return c.Conn.PrepareContext(ctx, query)
}

func (c *pipelinedConn) send(ctx context.Context, statements []statement, commit bool) (refused bool, err error) {
	if c.over {
		return false, sql.ErrTxDone // by its context: what is sent now would be done without one
	}
	var all pgx.Batch
	begun := c.begin == ""
	if !begun {
		all.Queue(c.begin).Exec(func(pgconn.CommandTag) error {
			begun = true
			return nil
		})
		c.begin = ""
	}
	done := 0
	for _, s := range statements {
		all.Queue(s.query, s.args...).Query(func(rows pgx.Rows) error {
			err := s.read(rows)
			rows.Close()
			if err = cmp.Or(err, rows.Err()); err == nil {
				done++
			}
			return err
		})
	}
	if commit {
		all.Queue("commit")
	}
	err = c.Conn.Conn().SendBatch(ctx, &all).Close()
	c.over = commit && err == nil
	if err != nil && !begun {
		return false, &notBegunError{err}
	}
	_, answered := errors.AsType[*pgconn.PgError](err)
	return answered && done < len(statements), err
}

type pipelinedTx struct {
	ctx  context.Context //nolint:containedctx // the transaction's, as database/sql has it
	conn *pipelinedConn
}

// Commit commits what was sent.
func (t pipelinedTx) Commit() error {
	if t.done() {
		return nil
	}
	conn := t.conn.Conn.Conn()
	tag, err := conn.Exec(t.ctx, "commit")
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return pgx.ErrTxCommitRollback
	case err != nil && conn.PgConn().TxStatus() != 'I':
		_ = conn.Close(t.ctx)
	}
	return err
}

// Rollback undoes what was sent.
func (t pipelinedTx) Rollback() error {
	if t.done() {
		return nil
	}
	conn := t.conn.Conn.Conn()
	_, err := conn.Exec(t.ctx, "rollback")
	if err != nil {
		_ = conn.Close(t.ctx) // whatever state it is in
	}
	return err
}

// done reports whether the server has no transaction: it was never begun, or is over.
func (t pipelinedTx) done() bool {
	none := t.conn.begin != "" || t.conn.over
	t.conn.begin, t.conn.over = "", true
	return none
}
