// Package sqldbtest gives tests fresh databases of both engines.
//
// SQLite's is a file in the test's own folder, and lives inside a testing/synctest bubble too. PostgreSQL's is a database of a private server, started by
// the first test of the process that needs one and stopped when the process ends, however it ends. That server stays outside bubbles: waiting for it is
// not waiting for fake time. A machine without PostgreSQL fails the test and is told what to install.
package sqldbtest

import (
	"context"
	"database/sql"
	"io/fs"
	"path/filepath"
	"testing"

	"phasekey.dev/pkg/sqldb"
)

// Run runs the test once on each engine, as subtests "sqlite" and "postgres", on a fresh, migrated database that is closed afterwards.
func Run(t *testing.T, migrations fs.FS, test func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	t.Run(sqldb.DriverSQLite, func(t *testing.T) { test(t, SQLite(t, migrations)) })
	t.Run(sqldb.DriverPostgres, func(t *testing.T) { test(t, Postgres(t, migrations)) })
}

// SQLite opens a fresh, migrated SQLite database, closed when the test ends.
func SQLite(t testing.TB, migrations fs.FS) *sqldb.DB {
	t.Helper()
	return open(t, SQLiteConfig(t), migrations)
}

// SQLiteConfig names a SQLite file that does not exist yet.
func SQLiteConfig(t testing.TB) sqldb.Config {
	t.Helper()
	return sqldb.Config{Driver: sqldb.DriverSQLite, Path: filepath.Join(t.TempDir(), "test.db"), Volatile: true}
}

// Postgres opens a fresh, migrated PostgreSQL database, closed and dropped when the test ends.
func Postgres(t testing.TB, migrations fs.FS) *sqldb.DB {
	t.Helper()
	return open(t, MigratedPostgresConfig(t, migrations), migrations)
}

func open(t testing.TB, config sqldb.Config, migrations fs.FS) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// ExecPostgres runs statements in a database of the private server, past sqldb: for what only tests do to a database.
func ExecPostgres(t testing.TB, config sqldb.Config, statements string) {
	t.Helper()
	db, err := sql.Open("pgx", config.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(context.WithoutCancel(t.Context()), statements); err != nil {
		t.Fatal(err)
	}
}
