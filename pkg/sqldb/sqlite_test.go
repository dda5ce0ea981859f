package sqldb

import (
	"database/sql"
	"path/filepath"
	"testing"
	"testing/fstest"

	"modernc.org/sqlite"
)

// TestOpen_WaitsForTheDisk: what is committed has been written, unless the configuration gives that up.
func TestOpen_WaitsForTheDisk(t *testing.T) {
	schema := fstest.MapFS{DriverSQLite + "/0001_none.sql": &fstest.MapFile{Data: []byte(`CREATE TABLE none (id TEXT)`)}}
	for _, tt := range []struct {
		name     string
		volatile bool
		want     int
	}{
		{"durable", false, 2},
		{"volatile", true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db, err := Open(t.Context(), Config{Driver: DriverSQLite, Path: filepath.Join(t.TempDir(), "test.db"), Volatile: tt.volatile}, schema)
			if err != nil {
				t.Fatal(err)
			}
			var got int
			if err := db.pool.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&got); err != nil || got != tt.want {
				t.Errorf("synchronous %d, %v, want %d", got, err, tt.want)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCheckSQLite_RefusesNotToWaitForTheDisk has the connection opened otherwise than the configuration says.
func TestCheckSQLite_RefusesNotToWaitForTheDisk(t *testing.T) {
	connector, err := sqlite.NewConnector(sqliteDSN(filepath.Join(t.TempDir(), "test.db"), true))
	if err != nil {
		t.Fatal(err)
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(1)
	defer func() { _ = pool.Close() }()
	if err := checkSQLite(t.Context(), pool, false); err == nil {
		t.Error("a connection that does not wait for the disk was taken for a durable one")
	}
	if err := checkSQLite(t.Context(), pool, true); err != nil {
		t.Error(err)
	}
}
