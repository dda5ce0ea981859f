package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// The errors callers tell apart, with errors.Is. The driver's own error stays wrapped inside, for logs.
var (
	// ErrNoRows is QueryRow's answer when no row matched.
	ErrNoRows = errors.New("no rows")
	// ErrUnique means a row was refused because another has the same key. UniqueOn tells which key.
	ErrUnique = errors.New("already exists")
	// ErrUnavailable means the database cannot work now: unreachable, restarting, out of connections, a lock held too long. Unless it comes
	// together with ErrUnknownOutcome, nothing has happened, and trying again later is right.
	ErrUnavailable = errors.New("database unavailable")
	// ErrUnknownOutcome means the commit was sent and its reply never came: the transaction may have happened, or not, or may yet happen within
	// moments. Every such error is an ErrUnavailable too. Only looking into the database tells; repeating is right only where it does no harm.
	ErrUnknownOutcome = errors.New("outcome of the commit is unknown")
	// ErrInUse is Open's answer when another process has the SQLite file.
	ErrInUse = errors.New("database file is in use by another process")
	// ErrSchema means the database's migrations are not a past or a future of this code's: one was changed, left out, or is another program's.
	ErrSchema = errors.New("schema does not match the migrations")
	// ErrVolatile means that PostgreSQL acknowledges commits that a power cut loses, and the configuration does not say that this is as it should be.
	ErrVolatile = errors.New("database must wait for its disk before it acknowledges a commit")
	// ErrBlocked is Open's answer when others held, all the while, locks that a migration needs.
	ErrBlocked = errors.New("locks that the migration needs are held: end the transactions and backups that hold them (pg_locks, pg_stat_activity), and start again")
	// ErrCollation means PostgreSQL's database does not compare text by bytes, or is not UTF-8.
	ErrCollation = errors.New("database must be UTF-8 with collation C")
)

// UniqueError is an ErrUnique that says which columns were to be unique.
type UniqueError struct {
	// Table is the table of the refused row.
	Table string
	// Columns are the columns whose values another row has, in the order of the index.
	Columns []string

	cause error
}

func (e *UniqueError) Error() string {
	return fmt.Sprintf("%s(%s) %s: %v", e.Table, strings.Join(e.Columns, ", "), ErrUnique, e.cause)
}

// Is makes every UniqueError an ErrUnique.
func (e *UniqueError) Is(target error) bool { return target == ErrUnique }

// Unwrap gives the driver's error.
func (e *UniqueError) Unwrap() error { return e.cause }

// UniqueOn tells whether err is the refusal of a row whose values in these columns of the table, in the index's order, another row has.
func UniqueOn(err error, table string, columns ...string) bool {
	var unique *UniqueError
	return errors.As(err, &unique) && unique.Table == table && slices.Equal(unique.Columns, columns)
}

// SQLSTATEs that are told apart. See PostgreSQL's appendix of error codes.
const (
	pgUniqueViolation      = "23505"
	pgSerializationFailure = "40001"
	pgDeadlockDetected     = "40P01"
	pgFeatureNotSupported  = "0A000"
	pgLockNotAvailable     = "55P03"
	pgQueryCanceled        = "57014"
	pgReadOnlyTransaction  = "25006"
	pgIdleInTransaction    = "25P03"
)

// Classes of SQLSTATEs: their first two characters.
const (
	pgClassConnection   = "08"
	pgClassConstraint   = "23"
	pgClassResources    = "53"
	pgClassIntervention = "57"
	pgClassSystem       = "58"
)

// pgShutdown begins the SQLSTATEs of a server that shuts down, has crashed or is starting: 57P01 to 57P03.
const pgShutdown = "57P0"

// classify gives a driver's error its meaning; an error that has one, or is none of the driver's, is returned as it is.
func classify(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, ErrUnique) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoRows) {
		return err
	}
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNoRows
	}
	// Once the caller has given up, whatever the driver says is a consequence.
	if cause := ctx.Err(); cause != nil {
		if errors.Is(err, cause) {
			return err
		}
		return fmt.Errorf("%w: %w", cause, err)
	}
	// Whatever a server says instead of letting us in, we have no database: it may be closed for new connections (55000), or be gone (3D000).
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return classifyPostgres(pg, err)
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return classifySQLite(lite, err)
	}
	if lostConnection(err) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

func classifyPostgres(pg *pgconn.PgError, err error) error {
	if pg.Code == pgUniqueViolation {
		return &UniqueError{Table: pg.TableName, Columns: columnsOfDetail(pg.Detail), cause: err}
	}
	switch pg.Code {
	case pgLockNotAvailable, pgReadOnlyTransaction, pgIdleInTransaction, pgSerializationFailure, pgDeadlockDetected:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case pgClassConnection, pgClassResources, pgClassIntervention, pgClassSystem:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// detailColumns finds the columns in "Key (account, name)=(acme, x) already exists.": this part of the detail is the same in every language.
var detailColumns = regexp.MustCompile(`\((.*?)\)=\(`)

func columnsOfDetail(detail string) []string {
	match := detailColumns.FindStringSubmatch(detail)
	if match == nil {
		return nil
	}
	return strings.Split(match[1], ", ")
}

func classifySQLite(lite *sqlite.Error, err error) error {
	switch lite.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		table, columns := columnsOfMessage(lite.Error())
		return &UniqueError{Table: table, Columns: columns, cause: err}
	}
	switch lite.Code() & 0xff { // the low byte is the primary code, the rest details it
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// messageColumns finds the columns in "… UNIQUE constraint failed: integrations.account, integrations.name (2067)".
var messageColumns = regexp.MustCompile(`UNIQUE constraint failed: (\w+\.\w+(?:, \w+\.\w+)*)`)

func columnsOfMessage(message string) (table string, columns []string) {
	match := messageColumns.FindStringSubmatch(message)
	if match == nil {
		return "", nil
	}
	for _, qualified := range strings.Split(match[1], ", ") {
		var column string
		table, column, _ = strings.Cut(qualified, ".")
		columns = append(columns, column)
	}
	return table, columns
}

// lostConnection tells that the database's process, or the way to it, went away, as against an answer from it. A last word that it goes is none.
func lostConnection(err error) bool {
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed) || pgconn.Timeout(err) {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pg.Code, pgShutdown)
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// lockHeld tells that a statement was refused because another session held a lock for longer than it may wait.
func lockHeld(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == pgLockNotAvailable
}

// readOnlyServer tells that a write was refused because the server takes none: it was the primary once, and is a standby now.
func readOnlyServer(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == pgReadOnlyTransaction
}

// lostRace tells that the database undid the transaction in favour of another: run again, it may pass.
func lostRace(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == pgSerializationFailure || pg.Code == pgDeadlockDetected ||
			// A statement prepared before another replica's migration; the driver prepares it anew.
			pg.Code == pgFeatureNotSupported && pg.Routine == "RevalidateCachedQuery"
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return lite.Code()&0xff == sqlite3.SQLITE_BUSY
	}
	return false
}

// refusedCommit tells that the database answered a COMMIT with the certain news that nothing was committed. Some answers do not say so: a server that
// shuts down while it waits for its standby has already committed.
func refusedCommit(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) || lostRace(err) {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pg.Code, pgClassConstraint)
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return lite.Code()&0xff == sqlite3.SQLITE_CONSTRAINT
	}
	return false
}
