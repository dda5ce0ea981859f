package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

func openSQLite(ctx context.Context, config Config, steps []migration) (_ *DB, err error) {
	file, err := filepath.Abs(config.Path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(file + ".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := private(file); err != nil {
		return nil, err
	}
	connector, err := sqlite.NewConnector(sqliteDSN(file, config.Volatile))
	if err != nil {
		return nil, err
	}
	pool := sql.OpenDB(keeping{connector})
	defer func() {
		if err != nil {
			_ = pool.Close()
		}
	}()
	// A second connection would only wait for the first: SQLite has one writer. The connection stays, for with it goes the exclusive lock.
	pool.SetMaxOpenConns(1)
	pool.SetMaxIdleConns(1)
	if err := checkSQLite(ctx, pool, config.Volatile); err != nil {
		return nil, err
	}
	newer, err := migrate(ctx, pool, migrating{}, steps) // every transaction begins IMMEDIATE, and the file is ours alone
	if err != nil {
		return nil, err
	}
	return &DB{pool: pool, driver: DriverSQLite, lock: lock, newer: newer}, nil
}

// lockFile takes the lock that says "this process has the database". It is a file of its own because closing any descriptor of the database
// file would drop the POSIX locks SQLite holds on it. The file stays behind: removing it would let two processes lock two files of one name.
func lockFile(name string) (*os.File, error) {
	lock, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the file that the configuration names
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", name, ErrInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return lock, nil
}

// private makes the file, if it is not there, and closes it to everyone else. SQLite gives the files it keeps beside it the same mode.
func private(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the folder of the database
	if err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func sqliteDSN(file string, volatile bool) string {
	synchronous := "FULL"
	if volatile {
		synchronous = "OFF"
	}
	query := url.Values{
		"_txlock": {"immediate"}, // else a transaction that reads first fails at once when it comes to write
		"_pragma": {
			"busy_timeout(1000)",      // only a foreign program can hold the file, and only at the start
			"locking_mode(EXCLUSIVE)", // before the journal mode: then no shared memory is needed
			"journal_mode(WAL)",
			"synchronous(" + synchronous + ")",
			"foreign_keys(ON)",
		},
	}
	return (&url.URL{Scheme: "file", Path: file, RawQuery: query.Encode()}).String()
}

// synchronousFull is what PRAGMA synchronous answers when each commit waits for the disk.
const synchronousFull = 2

// checkSQLite opens the connection, and believes no pragma that it has not seen work.
func checkSQLite(ctx context.Context, pool *sql.DB, volatile bool) error {
	var journal, locking string
	var foreignKeys, synchronous int
	err := errors.Join(
		pool.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&journal),
		pool.QueryRowContext(ctx, `PRAGMA locking_mode`).Scan(&locking),
		pool.QueryRowContext(ctx, `PRAGMA foreign_keys`).Scan(&foreignKeys),
		pool.QueryRowContext(ctx, `PRAGMA synchronous`).Scan(&synchronous),
	)
	if lite, ok := errors.AsType[*sqlite.Error](err); ok && lite.Code()&0xff == sqlite3.SQLITE_BUSY {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return classify(ctx, err)
	}
	if synchronous != synchronousFull && !volatile {
		return fmt.Errorf("SQLite does not wait for the disk: synchronous %d", synchronous)
	}
	if journal != "wal" || locking != "exclusive" || foreignKeys != 1 {
		return fmt.Errorf("file system refuses what is needed: journal mode %s, locking mode %s, foreign keys %d", journal, locking, foreignKeys)
	}
	return nil
}
