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
	"os"
	"path/filepath"
	"sync"
	"testing"

	"phasekey.dev/pkg/sqldb"
)

// Run runs the test once on each engine, as subtests "sqlite" and "postgres", on a fresh, migrated database that is closed afterwards.
func Run(t *testing.T, migrations fs.FS, test func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	t.Run(sqldb.DriverSQLite, func(t *testing.T) { test(t, SQLite(t, migrations)) })
	t.Run(sqldb.DriverPostgres, func(t *testing.T) { test(t, Postgres(t, migrations)) })
}

// SQLite opens a fresh, migrated SQLite database, closed when the test ends. It is copied from a template made once, which is cheaper than migrating each time.
func SQLite(t testing.TB, migrations fs.FS) *sqldb.DB {
	t.Helper()
	config := SQLiteConfig(t)
	template, err := templateFile(t, migrations)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config.Path, template, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, config, migrations)
}

// templateFiles are SQLite databases in which migrations have run, by the digests of those.
var templateFiles struct {
	mu     sync.Mutex
	digest map[string][]byte
}

func templateFile(t testing.TB, migrations fs.FS) ([]byte, error) {
	digest, err := digestOf(migrations, sqldb.DriverSQLite)
	if err != nil {
		return nil, err
	}
	templateFiles.mu.Lock()
	defer templateFiles.mu.Unlock()
	if file, ok := templateFiles.digest[digest]; ok {
		return file, nil
	}
	config := SQLiteConfig(t)
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		return nil, err
	}
	// With it goes the journal: then the file alone has everything.
	if err := db.Close(); err != nil {
		return nil, err
	}
	file, err := os.ReadFile(config.Path)
	if err != nil {
		return nil, err
	}
	if templateFiles.digest == nil {
		templateFiles.digest = map[string][]byte{}
	}
	templateFiles.digest[digest] = file
	return file, nil
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
