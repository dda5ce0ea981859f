package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// DB is an open database, its schema current. It is safe for concurrent use.
type DB struct {
	pool   *sql.DB
	driver string
	lock   *os.File // SQLite's lock file
	newer  []string
	// answersWithin is how long a server may be silent; zero is for ever.
	answersWithin time.Duration
}

// Open opens the database and applies the migrations it lacks; nothing is left running or locked when it fails.
//
// migrations holds sqlite/NNNN_name.sql and postgres/NNNN_name.sql. Each runs in a transaction of its own, once, in order, under a lock: replicas may start together. On PostgreSQL it waits for
// other locks no longer than LockTimeout at a time, so that nobody has to wait long behind it, and gives up after ten times (ErrBlocked).
// One that was applied must not change afterwards (ErrSchema). Those that a newer release applied are left alone, so that releases can be rolled out one replica at a time; see
// NewerMigrations.
func Open(ctx context.Context, config Config, migrations fs.FS) (*DB, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("database configuration: %w", err)
	}
	config = config.withDefaults()
	open := openPostgres
	if config.Driver == DriverSQLite {
		open = openSQLite
	}
	steps, err := readMigrations(migrations, config.Driver)
	if err != nil {
		return nil, err
	}
	db, err := open(ctx, config, steps)
	if err != nil {
		return nil, fmt.Errorf("open %s database: %w", config.Driver, err)
	}
	return db, nil
}

// NewerMigrations names the migrations in the database that this code does not know: a newer release has been here. Worth a line in the log.
func (db *DB) NewerMigrations() []string { return db.newer }

// Driver is DriverSQLite or DriverPostgres. Production code does not need to know.
func (db *DB) Driver() string { return db.driver }

// Ping tells whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	return classify(ctx, db.pool.PingContext(ctx))
}

// Now is the time by the database server's clock. SQLite has none of its own: then it is now, by the caller's.
func (db *DB) Now(ctx context.Context, now time.Time) (time.Time, error) {
	if db.driver != DriverPostgres {
		return now, nil
	}
	var micros int64
	err := db.pool.QueryRowContext(ctx, `SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)`).Scan(&micros)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the database server for the time: %w", classify(ctx, err))
	}
	return Time(micros), nil
}

// HasTimeline tells whether Timeline may be asked: PostgreSQL has one, SQLite none.
func (db *DB) HasTimeline() bool { return db.driver == DriverPostgres }

// Timeline is which timeline of its history the database of tx writes. It is another one once a standby was promoted, or a backup restored up to some point: what was
// committed last before that may be lost. Any role may ask.
func Timeline(ctx context.Context, tx Tx) (string, error) {
	var timeline string
	// The name of the file that is written; the last checkpoint may be of before.
	err := tx.QueryRow(ctx, `SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`).Scan(&timeline)
	if err != nil {
		return "", fmt.Errorf("ask for the timeline: %w", err)
	}
	return timeline, nil
}

// Close waits for transactions to end and releases the database. Not to be called twice.
func (db *DB) Close() error {
	err := db.pool.Close()
	if db.lock != nil {
		// The lock goes with its file descriptor, and only after SQLite has let go of the database.
		if closeErr := db.lock.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return fmt.Errorf("close %s database: %w", db.driver, err)
	}
	return nil
}

// Micros is how a time is stored: microseconds since 1970, the rest cut off. The zero time is 0.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is what Micros stored, in UTC. 0 is the zero time.
func Time(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
