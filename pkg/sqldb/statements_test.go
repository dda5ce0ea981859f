package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"modernc.org/sqlite"
)

// counting counts what is prepared on its connections, and what of that is closed.
type counting struct {
	driver.Connector
	prepared map[string]int
	closed   int
}

// Connect opens a connection that is counted.
func (c *counting) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return countingConn{made.(fullConn), c}, nil
}

type countingConn struct {
	fullConn
	counts *counting
}

// PrepareContext counts.
func (c countingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.counts.prepared[query]++
	made, err := c.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return countingStmt{made.(fullStmt), c.counts}, nil
}

type countingStmt struct {
	fullStmt
	counts *counting
}

// Close counts.
func (s countingStmt) Close() error {
	s.counts.closed++
	return s.fullStmt.Close()
}

// open opens a database of one connection, with a table of the numbers from 1 to 3.
func open(t *testing.T) (*sql.DB, *counting) {
	t.Helper()
	base, err := sqlite.NewConnector(sqliteDSN(filepath.Join(t.TempDir(), "test.db"), true))
	if err != nil {
		t.Fatal(err)
	}
	counts := &counting{Connector: base, prepared: map[string]int{}}
	db := sql.OpenDB(keeping{counts})
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE numbers (n BIGINT PRIMARY KEY, word TEXT); INSERT INTO numbers (n) VALUES (1), (2), (3)`); err != nil {
		t.Fatal(err)
	}
	return db, counts
}

func TestKeeping_PreparesOnceAndClosesAll(t *testing.T) {
	db, counts := open(t)
	for n := range 10 {
		for _, text := range []string{`SELECT n FROM numbers WHERE n = $1`, `UPDATE numbers SET word = 'x' WHERE n = $1 RETURNING n`} {
			var got int
			err := db.QueryRowContext(t.Context(), text, n).Scan(&got)
			if has := n >= 1 && n <= 3; has && (err != nil || got != n) || !has && !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("%s of %d: %d, %v", text, n, got, err)
			}
		}
		if _, err := db.ExecContext(t.Context(), `INSERT INTO numbers (n) VALUES ($1)`, 100+n); err != nil {
			t.Error(err)
		}
	}
	prepared := 0
	for text, n := range counts.prepared {
		prepared += n
		if n != 1 {
			t.Errorf("%s was prepared %d times", text, n)
		}
	}
	if prepared != 4 {
		t.Errorf("%v were prepared, which is not all", counts.prepared)
	}
	if err := db.Close(); err != nil || counts.closed != prepared {
		t.Errorf("%d of %d statements were closed: %v", counts.closed, prepared, err)
	}
}

func TestKeeping_AStatementThatIsBeingRead(t *testing.T) {
	db, _ := open(t)
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	const text = `SELECT n FROM numbers ORDER BY n`
	outer, err := tx.QueryContext(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for outer.Next() {
		var n, first int
		if err := errors.Join(outer.Scan(&n), tx.QueryRowContext(t.Context(), text).Scan(&first)); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, fmt.Sprint(n, first))
	}
	if err := errors.Join(outer.Err(), outer.Close()); err != nil || fmt.Sprint(seen) != "[1 1 2 1 3 1]" {
		t.Errorf("read %v: %v", seen, err)
	}
	// Rows of which not all were read leave nothing behind that the next would see.
	for range 2 {
		var n int
		if err := tx.QueryRowContext(t.Context(), text).Scan(&n); err != nil || n != 1 {
			t.Errorf("read %d: %v", n, err)
		}
	}
}

func TestKeeping_AfterFailuresAndChangesOfTheSchema(t *testing.T) {
	db, counts := open(t)
	defer func() { _ = db.Close() }()
	insert := func(ctx context.Context, n int) error {
		_, err := db.ExecContext(ctx, `INSERT INTO numbers (n) VALUES ($1)`, n)
		return err
	}
	for range 3 {
		if err := insert(t.Context(), 1); lostRace(err) || err == nil {
			t.Errorf("a number that is there: %v", err)
		}
	}
	if err := insert(t.Context(), 4); err != nil {
		t.Errorf("after it: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	const endless = `WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT COUNT(*) FROM c WHERE i > $1 LIMIT 1`
	failed := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(ended, endless, 0)
		failed <- err
	}()
	end()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	read := func() (n int, err error) {
		err = db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM numbers`).Scan(&n)
		return n, err
	}
	if _, err := read(); err != nil {
		t.Errorf("after an interruption: %v", err)
	}
	for _, change := range []string{`ALTER TABLE numbers ADD COLUMN more TEXT`, `CREATE INDEX words ON numbers (word)`, `DROP INDEX words`} {
		if _, err := db.ExecContext(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if n, err := read(); err != nil || n != 4 {
			t.Errorf("after %s: %d, %v", change, n, err)
		}
	}
	if n := counts.prepared[`INSERT INTO numbers (n) VALUES ($1)`]; n < 3 {
		t.Errorf("what failed was kept: it was prepared %d times", n)
	}
}

func TestKeeping_KeepsSoMany(t *testing.T) {
	db, counts := open(t)
	for n := range 2 * keptStatements {
		var got int
		if err := db.QueryRowContext(t.Context(), fmt.Sprintf(`SELECT %d`, n)).Scan(&got); err != nil || got != n {
			t.Fatalf("%d: %d, %v", n, got, err)
		}
	}
	if kept := len(counts.prepared) - counts.closed; kept != keptStatements {
		t.Errorf("%d are kept, not %d", kept, keptStatements)
	}
	if err := db.Close(); err != nil || counts.closed != len(counts.prepared) {
		t.Errorf("%d of %d statements were closed: %v", counts.closed, len(counts.prepared), err)
	}
}
