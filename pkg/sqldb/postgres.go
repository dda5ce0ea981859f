package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"phasekey.dev/pkg/secret"
)

const (
	connectTimeout  = 5 * time.Second
	maxConnLifetime = 30 * time.Minute // so that a new address, or a fail-over's, is found in time; and up to a fifth more
	maxConnIdleTime = 5 * time.Minute
)

// migrationLock is PostgreSQL's advisory lock for migrations; it ends with the transaction. The number is arbitrary, and the same in every release.
const migrationLock = `SELECT pg_advisory_xact_lock(7312656014551273)`

func openPostgres(ctx context.Context, config Config, steps []migration) (*DB, error) {
	parsed, err := pgx.ParseConfig(config.DSN)
	if err != nil {
		return nil, err
	}
	parsed.Password = "" // not from PGPASSWORD or a .pgpass: the configuration says where it is
	if parsed.ConnectTimeout == 0 {
		parsed.ConnectTimeout = connectTimeout
	}
	if parsed.ValidateConnect == nil {
		// Of several hosts the one that takes writes, whichever that is; a standby alone is no database.
		parsed.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if parsed.RuntimeParams["application_name"] == "" {
		parsed.RuntimeParams["application_name"] = "phasekey"
	}

	// Migrations may take as long as they need, so they have a connection of their own.
	first := connectPostgres(parsed, config)
	first.SetMaxOpenConns(1)
	newer, err := prepare(ctx, first, config.LockTimeout, steps)
	if closeErr := first.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}

	limited := parsed.Copy()
	limited.RuntimeParams["lock_timeout"] = milliseconds(config.LockTimeout)
	limited.RuntimeParams["idle_in_transaction_session_timeout"] = milliseconds(config.IdleInTransactionTimeout)
	limited.RuntimeParams["statement_timeout"] = milliseconds(config.StatementTimeout)
	// Compiling a statement takes longer than any of ours.
	limited.RuntimeParams["jit"] = "off"
	pool := connectPostgres(limited, config)
	pool.SetMaxOpenConns(config.MaxConns)
	pool.SetMaxIdleConns(config.MaxConns)
	// Replicas that started together do not all connect anew at once.
	pool.SetConnMaxLifetime(maxConnLifetime + rand.N(maxConnLifetime/5)) //nolint:gosec // spreads load, guards nothing
	pool.SetConnMaxIdleTime(maxConnIdleTime)
	return &DB{
		pool: pool, driver: DriverPostgres, newer: newer,
		answersWithin: config.StatementTimeout + config.IdleInTransactionTimeout + answerGrace,
	}, nil
}

func connectPostgres(parsed *pgx.ConnConfig, config Config) *sql.DB {
	return sql.OpenDB(pipelined{stdlib.GetConnector(*parsed, stdlib.OptionBeforeConnect(func(_ context.Context, connect *pgx.ConnConfig) error {
		if config.PasswordFile == "" {
			return nil
		}
		password, err := secret.ReadFile(config.PasswordFile)
		if err != nil {
			return fmt.Errorf("read password: %w", err)
		}
		connect.Password = password.Expose()
		return nil
	}), stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		if config.Volatile {
			return nil
		}
		return checkDurable(ctx, conn)
	}))})
}

// checkDurable refuses a session whose commits are acknowledged before they are on a disk, as the server, the database or the role may have it.
func checkDurable(ctx context.Context, conn *pgx.Conn) error {
	var synchronous, fsync string
	err := conn.QueryRow(ctx, `SELECT current_setting('synchronous_commit'), current_setting('fsync')`).Scan(&synchronous, &fsync)
	if err != nil {
		return err
	}
	if synchronous == "off" || fsync == "off" {
		return fmt.Errorf("%w: %w: synchronous_commit is %s, fsync is %s", ErrUnavailable, ErrVolatile, synchronous, fsync)
	}
	return nil
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(max(d.Milliseconds(), 1), 10) // 0 would mean "for ever"
}

// prepare checks the database and migrates it.
func prepare(ctx context.Context, pool *sql.DB, lockTimeout time.Duration, steps []migration) (newer []string, err error) {
	var collation, encoding string
	var byBytes bool
	// With an ICU provider datcollate says C and means nothing, so the comparison itself is tried too.
	err = pool.QueryRowContext(ctx, `SELECT datcollate, pg_encoding_to_char(encoding), 'B' < 'a' AND 'a-c' < 'ab'
		FROM pg_database WHERE datname = current_database()`).Scan(&collation, &encoding, &byBytes)
	if err != nil {
		return nil, classify(ctx, err)
	}
	if (collation != "C" && collation != "POSIX") || !byBytes || encoding != "UTF8" {
		return nil, fmt.Errorf("%w: it has encoding %s, collation %s", ErrCollation, encoding, collation)
	}
	// Whoever waits for a table's lock has all others wait behind, who come after: so a migration waits for no longer than they would, and comes back.
	return migrate(ctx, pool, migrating{
		begin: []string{migrationLock, `SET LOCAL lock_timeout = ` + milliseconds(lockTimeout)}, pause: lockTimeout,
	}, steps)
}
