package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
)

// keptStatements is how many prepared statements a connection keeps. A service has some hundred; texts that are put together as needed come and go.
const keptStatements = 512

// keeping is a connector whose connections keep statements prepared: SQLite, which database/sql has prepare each statement anew, takes longer to do so than to carry
// most of ours out. (pgx keeps its own.)
type keeping struct{ driver.Connector }

// Connect opens a connection.
func (k keeping) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := k.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := made.(fullConn)
	if !ok {
		return nil, errors.Join(errors.New("driver's connection is not what it was"), made.Close())
	}
	return &keepingConn{fullConn: conn, kept: map[string]*keptStatement{}}, nil
}

// fullConn is everything that database/sql makes use of in the driver's connection, and would do without if it were hidden.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// keepingConn is a connection and its statements, by their texts. database/sql uses it, and what it returns, one call at a time.
type keepingConn struct {
	fullConn
	kept map[string]*keptStatement
}

type keptStatement struct {
	text string
	stmt fullStmt
	// reading is set while its rows are read: it has only one place.
	reading bool
}

type fullStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// ExecContext runs a statement.
func (c *keepingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s.reading {
		return c.fullConn.ExecContext(ctx, query, args)
	}
	result, err := s.stmt.ExecContext(ctx, args)
	if err != nil {
		return nil, c.drop(s, err)
	}
	return result, nil
}

// QueryContext runs a statement for its rows.
func (c *keepingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s.reading {
		return c.fullConn.QueryContext(ctx, query, args)
	}
	rows, err := s.stmt.QueryContext(ctx, args)
	if err != nil {
		return nil, c.drop(s, err)
	}
	s.reading = true
	return &keptRows{Rows: rows, conn: c, statement: s}, nil
}

// Close closes the statements and the connection.
func (c *keepingConn) Close() error {
	var problems []error
	for _, s := range c.kept {
		problems = append(problems, s.stmt.Close())
	}
	clear(c.kept)
	return errors.Join(append(problems, c.fullConn.Close())...)
}

// statement is the kept one with that text, prepared if there is none.
func (c *keepingConn) statement(ctx context.Context, text string) (*keptStatement, error) {
	if s := c.kept[text]; s != nil {
		return s, nil
	}
	made, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	stmt, ok := made.(fullStmt)
	if !ok {
		return nil, errors.Join(errors.New("driver's statement is not what it was"), made.Close())
	}
	if len(c.kept) >= keptStatements {
		for _, old := range c.kept { // whichever comes first: most are needed again soon, and which is not nobody knows
			if !old.reading {
				if err := c.drop(old, nil); err != nil {
					return nil, errors.Join(err, stmt.Close())
				}
				break
			}
		}
	}
	s := &keptStatement{text: text, stmt: stmt}
	c.kept[text] = s
	return s, nil
}

// drop closes a statement and keeps it no longer: one that failed might have been interrupted anywhere. It returns the cause.
func (c *keepingConn) drop(s *keptStatement, cause error) error {
	delete(c.kept, s.text)
	if err := s.stmt.Close(); cause == nil {
		return err
	}
	return cause
}

// keptRows are the rows of a kept statement, which can be used again after them.
type keptRows struct {
	driver.Rows
	conn      *keepingConn
	statement *keptStatement
}

// Close ends the reading.
func (r *keptRows) Close() error {
	r.statement.reading = false
	if err := r.Rows.Close(); err != nil {
		return r.conn.drop(r.statement, err)
	}
	return nil
}
