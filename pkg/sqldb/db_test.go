package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

const accounts = `CREATE TABLE accounts (
	id      TEXT    NOT NULL PRIMARY KEY,
	region  TEXT    NOT NULL,
	name    TEXT    NOT NULL,
	balance BIGINT  NOT NULL,
	frozen  BOOLEAN NOT NULL DEFAULT FALSE,
	UNIQUE (region, name)
);
CREATE TABLE marks (account TEXT NOT NULL REFERENCES accounts (id));`

// files gives both engines the same migrations.
func files(texts map[string]string) fstest.MapFS {
	all := fstest.MapFS{}
	for name, text := range texts {
		for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
			all[driver+"/"+name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return all
}

var schema = files(map[string]string{"0001_accounts.sql": accounts})

func insert(id, region, name string, balance int64) func(context.Context, sqldb.Tx) error {
	return func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO accounts (id, region, name, balance) VALUES ($1, $2, $3, $4)`, id, region, name, balance)
		return err
	}
}

func balances(t *testing.T, db *sqldb.DB) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		clear(all)
		_, err := sqldb.Collect(ctx, tx, func(row sqldb.Row) (struct{}, error) {
			var id string
			var balance int64
			err := row.Scan(&id, &balance)
			all[id] = balance
			return struct{}{}, err
		}, `SELECT id, balance FROM accounts`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTx_IsAllOrNothing(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
			t.Fatal(err)
		}
		own := errors.New("the caller's own")
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			if err := insert("b", "eu", "second", 2)(ctx, tx); err != nil {
				return err
			}
			return own
		})
		if err != own { //nolint:errorlint // unchanged is what is promised
			t.Errorf("error of the function: %v, want it unchanged", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a panic did not come through")
				}
			}()
			_ = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				if err := insert("c", "eu", "third", 3)(ctx, tx); err != nil {
					return err
				}
				panic("in the middle") //nolint:forbidigo // what is tested
			})
		}()
		if diff := cmp.Diff(map[string]int64{"a": 1}, balances(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTx_EndsWithItsContext(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			if err := insert("a", "eu", "first", 1)(ctx, tx); err != nil {
				return err
			}
			cancel() // after the last statement, before the commit
			return nil
		})
		if !errors.Is(err, context.Canceled) || errors.Is(err, sqldb.ErrUnavailable) {
			t.Errorf("canceled before the commit: %v, want context.Canceled only", err)
		}
		if err := db.Tx(ctx, insert("b", "eu", "second", 2)); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled before the start: %v", err)
		}
		if got := balances(t, db); len(got) != 0 {
			t.Errorf("rows were left: %v", got)
		}
	})
}

func TestTx_RunsAgainAfterALostRace(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		if db.Driver() == sqldb.DriverPostgres {
			db = serializable(t)
		}
		if err := db.Tx(t.Context(), insert("a", "eu", "first", 0)); err != nil {
			t.Fatal(err)
		}
		const writers, each = 4, 5
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range each {
					if err := retried(t.Context(), db, func(ctx context.Context, tx sqldb.Tx) error {
						var balance int64
						if err := tx.QueryRow(ctx, `SELECT balance FROM accounts WHERE id = $1`, "a").Scan(&balance); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `UPDATE accounts SET balance = $1 WHERE id = $2`, balance+1, "a")
						return err
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if got := balances(t, db)["a"]; got != writers*each {
			t.Errorf("%d of %d increments were kept", got, writers*each)
		}
	})
}

// TestTx_RunsAgainAfterADeadlock has two transactions lock two rows crosswise, each called once: the server undoes one of them, which then finds the rows free.
func TestTx_RunsAgainWhenTold(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		own := errors.New("another was first")
		for _, tt := range []struct{ overtaken, runs int }{{0, 1}, {2, 3}, {100, 6}} {
			runs := 0
			err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				runs++
				if err := insert(fmt.Sprint("a", tt.overtaken), "eu", fmt.Sprint(tt.overtaken), 1)(ctx, tx); err != nil || runs > tt.overtaken {
					return err
				}
				return fmt.Errorf("insert: %w", sqldb.Again(own))
			})
			if runs != tt.runs || errors.Is(err, own) != (tt.overtaken >= tt.runs) || err != nil && !errors.Is(err, own) {
				t.Errorf("overtaken %d times: %d runs, %v", tt.overtaken, runs, err)
			}
		}
		if got := balances(t, db); len(got) != 2 {
			t.Errorf("stored are %v", got)
		}
	})
}

func TestTx_RunsAgainAfterADeadlock(t *testing.T) {
	db := sqldbtest.Postgres(t, schema) // on SQLite transactions take turns
	for _, id := range []string{"a", "b"} {
		if err := db.Tx(t.Context(), insert(id, "eu", id, 0)); err != nil {
			t.Fatal(err)
		}
	}
	var runs atomic.Int32
	var locked, all sync.WaitGroup
	locked.Add(2)
	crosswise := func(first, second string) {
		increment := func(ctx context.Context, tx sqldb.Tx, id string) error {
			_, err := tx.Exec(ctx, `UPDATE accounts SET balance = balance + 1 WHERE id = $1`, id)
			return err
		}
		met := false
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			runs.Add(1)
			if err := increment(ctx, tx, first); err != nil {
				return err
			}
			if !met {
				met = true
				locked.Done()
				locked.Wait()
			}
			return increment(ctx, tx, second)
		})
		if err != nil {
			t.Errorf("%s, then %s: %v", first, second, err)
		}
	}
	all.Go(func() { crosswise("a", "b") })
	all.Go(func() { crosswise("b", "a") })
	all.Wait()
	// Who was given up may be back before the other has woken, and they are in each other's way once more.
	if got := runs.Load(); got < 3 {
		t.Errorf("the functions ran %d times, want each once and one of them again", got)
	}
	if diff := cmp.Diff(map[string]int64{"a": 2, "b": 2}, balances(t, db)); diff != "" {
		t.Error(diff)
	}
}

// TestTx_RunsAgainAfterASerializationFailure has a transaction overtaken between its read and its write.
func TestTx_RunsAgainAfterASerializationFailure(t *testing.T) {
	db := serializable(t)
	if err := db.Tx(t.Context(), insert("a", "eu", "first", 0)); err != nil {
		t.Fatal(err)
	}
	runs := 0
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		runs++
		var balance int64
		if err := tx.QueryRow(ctx, `SELECT balance FROM accounts WHERE id = $1`, "a").Scan(&balance); err != nil {
			return err
		}
		if runs == 1 {
			if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE accounts SET balance = 10 WHERE id = $1`, "a")
				return err
			}); err != nil {
				t.Error(err)
			}
		}
		_, err := tx.Exec(ctx, `UPDATE accounts SET balance = $1 WHERE id = $2`, balance+1, "a")
		return err
	})
	if got := balances(t, db)["a"]; err != nil || runs != 2 || got != 11 {
		t.Errorf("%v after %d runs, balance %d, want 11 after two", err, runs, got)
	}
}

// serializable is a database in which increments of one row lose races instead of waiting for each other and going wrong.
func serializable(t *testing.T) *sqldb.DB {
	t.Helper()
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	config.DSN += " default_transaction_isolation=serializable"
	db, err := sqldb.Open(t.Context(), config, schema)
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

// retried is a caller that comes back when the database gives up: with four writers on one row even six attempts may not do.
func retried(ctx context.Context, db *sqldb.DB, fn func(context.Context, sqldb.Tx) error) error {
	for {
		err := db.Tx(ctx, fn)
		if !errors.Is(err, sqldb.ErrUnavailable) {
			return err
		}
	}
}

func TestReadTx_SeesOneMoment(t *testing.T) {
	db := sqldbtest.Postgres(t, schema) // on SQLite nobody can write meanwhile
	err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		count := func() (n int64) {
			if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM accounts`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := count()
		if err := db.Tx(ctx, insert("a", "eu", "first", 1)); err != nil {
			return err
		}
		if after := count(); after != before {
			t.Errorf("saw %d rows, then %d", before, after)
		}
		_, err := tx.Exec(ctx, `DELETE FROM accounts`)
		return err
	})
	if !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("a write in a read transaction: %v, want a refusal", err)
	}
}

func TestUniqueOn_NamesTheColumns(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name       string
			id, region string
			columns    []string
		}{
			{"primary key", "a", "us", []string{"id"}},
			{"several columns", "b", "eu", []string{"region", "name"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				err := db.Tx(t.Context(), insert(test.id, test.region, "first", 1))
				if !errors.Is(err, sqldb.ErrUnique) || !sqldb.UniqueOn(err, "accounts", test.columns...) {
					t.Errorf("got %v, want unique on accounts%v", err, test.columns)
				}
				if sqldb.UniqueOn(err, "accounts", "balance") || sqldb.UniqueOn(err, "marks", test.columns...) {
					t.Errorf("%v counts as another key's refusal too", err)
				}
			})
		}
	})
}

func TestTx_OtherAnswers(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			var id string
			return tx.QueryRow(ctx, `SELECT id FROM accounts WHERE id = $1`, "nobody").Scan(&id)
		})
		if !errors.Is(err, sqldb.ErrNoRows) {
			t.Errorf("no row: %v", err)
		}
		err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO marks (account) VALUES ($1)`, "nobody")
			return err
		})
		if err == nil || errors.Is(err, sqldb.ErrUnique) || errors.Is(err, sqldb.ErrUnavailable) {
			t.Errorf("a reference to nothing: %v, want an error of no other class", err)
		}
		if err := db.Ping(t.Context()); err != nil {
			t.Errorf("ping: %v", err)
		}
	})
}

// The same bytes come back in the same order from both engines.
func TestDB_ComparesByBytes(t *testing.T) {
	words := []string{"ä", "a", "B", "b", "A", "a-c", "ab", "Z", "_"}
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		for _, word := range words {
			if err := db.Tx(t.Context(), insert(word, "eu", word, 0)); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
			got, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (id string, err error) { return id, row.Scan(&id) },
				`SELECT id FROM accounts WHERE frozen = FALSE ORDER BY id`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"A", "B", "Z", "_", "a", "a-c", "ab", "b", "ä"}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestOpen_Migrations(t *testing.T) {
	second := map[string]string{"0001_accounts.sql": accounts, "0002_more.sql": `CREATE TABLE more (id TEXT); INSERT INTO more VALUES ('x');`}
	for _, test := range []struct {
		name      string
		first     map[string]string
		then      map[string]string
		wantNewer []string
		wantErr   error
		wantTable string
	}{
		{name: "nothing new", first: second, then: second, wantTable: "more"},
		{name: "one more", first: map[string]string{"0001_accounts.sql": accounts}, then: second, wantTable: "more"},
		{name: "an older release comes back", first: second, then: map[string]string{"0001_accounts.sql": accounts}, wantNewer: []string{"0002_more"}, wantTable: "more"},
		{name: "changed afterwards", first: map[string]string{"0001_accounts.sql": accounts}, then: map[string]string{"0001_accounts.sql": accounts + " "}, wantErr: sqldb.ErrSchema},
		{name: "slipped in before an applied one", first: map[string]string{"0002_accounts.sql": accounts}, then: map[string]string{"0001_more.sql": `CREATE TABLE more (id TEXT)`, "0002_accounts.sql": accounts}, wantErr: sqldb.ErrSchema},
		{name: "another program's", first: map[string]string{"0001_accounts.sql": accounts}, then: map[string]string{"0002_more.sql": `CREATE TABLE more (id TEXT)`}, wantErr: sqldb.ErrSchema},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, config := range []sqldb.Config{sqldbtest.SQLiteConfig(t), sqldbtest.PostgresConfig(t)} {
				db, err := sqldb.Open(t.Context(), config, files(test.first))
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db, err = sqldb.Open(t.Context(), config, files(test.then))
				if !errors.Is(err, test.wantErr) {
					t.Fatalf("%s: %v, want %v", config.Driver, err, test.wantErr)
				}
				if err != nil {
					continue
				}
				if diff := cmp.Diff(test.wantNewer, db.NewerMigrations()); diff != "" {
					t.Error(diff)
				}
				err = db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
					var n int
					return tx.QueryRow(ctx, `SELECT COUNT(*) FROM `+test.wantTable).Scan(&n)
				})
				if err != nil {
					t.Error(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A migration that fails half-way leaves nothing of itself, and everything before it.
func TestOpen_FailedMigrationLeavesNothing(t *testing.T) {
	for _, config := range []sqldb.Config{sqldbtest.SQLiteConfig(t), sqldbtest.PostgresConfig(t)} {
		broken := files(map[string]string{"0001_accounts.sql": accounts, "0002_more.sql": `CREATE TABLE more (id TEXT); CREATE TABLE accounts (id TEXT);`})
		if _, err := sqldb.Open(t.Context(), config, broken); err == nil || !strings.Contains(err.Error(), "0002_more") {
			t.Fatalf("%s: %v, want an error naming 0002_more", config.Driver, err)
		}
		fixed := files(map[string]string{"0001_accounts.sql": accounts, "0002_more.sql": `CREATE TABLE more (id TEXT);`})
		db, err := sqldb.Open(t.Context(), config, fixed)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpen_ReplicasStartTogether(t *testing.T) {
	config := sqldbtest.PostgresConfig(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			db, err := sqldb.Open(t.Context(), config, schema)
			if err != nil {
				t.Error(err)
				return
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestOpen_BadMigrationFiles(t *testing.T) {
	for _, test := range []struct {
		name  string
		files fstest.MapFS
	}{
		{"none for the engine", fstest.MapFS{}},
		{"a name without a number", files(map[string]string{"accounts.sql": accounts})},
		{"a number twice", files(map[string]string{"0001_a.sql": accounts, "0001_b.sql": accounts})},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := sqldbtest.SQLiteConfig(t)
			if db, err := sqldb.Open(t.Context(), config, test.files); err == nil {
				_ = db.Close()
				t.Error("opened")
			}
			if _, err := os.Stat(config.Path); err == nil {
				t.Error("the database was made nevertheless")
			}
		})
	}
}

func TestOpen_SQLiteFileIsExclusiveAndPrivate(t *testing.T) {
	config := sqldbtest.SQLiteConfig(t)
	config.Path = filepath.Join(filepath.Dir(config.Path), "new folder?", "50%#.db")
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(t.Context(), config, schema); !errors.Is(err, sqldb.ErrInUse) {
		t.Errorf("second open: %v, want ErrInUse", err)
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(config.Path), "*"))
	if err != nil || len(names) < 2 {
		t.Fatalf("files: %v, %v", names, err)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600", name, info.Mode(), err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatalf("open after close: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpen_RefusesAnotherCollation(t *testing.T) {
	config := sqldbtest.PostgresConfig(t)
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	sqldbtest.ExecPostgres(t, config, `CREATE DATABASE other TEMPLATE template0 LC_COLLATE 'C.UTF-8'`)
	t.Cleanup(func() { sqldbtest.ExecPostgres(t, config, `DROP DATABASE other`) })
	other := config
	other.DSN += " dbname=other"
	if _, err := sqldb.Open(t.Context(), other, schema); !errors.Is(err, sqldb.ErrCollation) {
		t.Errorf("got %v, want ErrCollation", err)
	}
}

// TestOpen_AMigrationLetsOthersPass: what waits for a migration that waits for a lock gets through before that lock is free, and then the migration does.
func TestOpen_AMigrationLetsOthersPass(t *testing.T) {
	config := sqldbtest.PostgresConfig(t)
	db := open(t, config, schema)
	release := hold(t, config)
	next := files(map[string]string{"0001_accounts.sql": accounts, "0002_note.sql": `ALTER TABLE accounts ADD COLUMN note TEXT`})
	waiting := config
	waiting.LockTimeout = 100 * time.Millisecond
	opened := make(chan error, 1)
	go func() {
		migrated, err := sqldb.Open(t.Context(), waiting, next)
		if err == nil {
			err = migrated.Close()
		}
		opened <- err
	}()
	for range 3 {
		for waits := false; !waits; {
			if err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				return tx.QueryRow(ctx, `SELECT COUNT(*) > 0 FROM pg_locks WHERE NOT granted`).Scan(&waits)
			}); err != nil {
				t.Fatal(err)
			}
		}
		balances(t, db)
	}
	select {
	case err := <-opened:
		t.Fatalf("the migration did not wait: %v", err)
	default:
	}
	release()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestOpen_GivesUpAMigrationThatIsHeldUp(t *testing.T) {
	config := sqldbtest.PostgresConfig(t)
	open(t, config, schema)
	defer hold(t, config)()
	config.LockTimeout = 10 * time.Millisecond
	_, err := sqldb.Open(t.Context(), config, files(map[string]string{"0001_accounts.sql": accounts, "0002_note.sql": `ALTER TABLE accounts ADD COLUMN note TEXT`}))
	if !errors.Is(err, sqldb.ErrBlocked) || !strings.Contains(fmt.Sprint(err), "0002_note") {
		t.Errorf("got %v", err)
	}
}

func open(t *testing.T, config sqldb.Config, migrations fstest.MapFS) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// hold begins a transaction that has read the accounts, as a backup does, and does not end before it is released.
func hold(t *testing.T, config sqldb.Config) (release func()) {
	t.Helper()
	pool, err := sql.Open("pgx", config.DSN)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `SELECT * FROM accounts`); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = tx.Rollback()
		_ = pool.Close()
	}
}

// TestOpen_RefusesAServerThatDoesNotWaitForItsDisk: whether the server has it so, or the role, at the start or later.
func TestOpen_RefusesAServerThatDoesNotWaitForItsDisk(t *testing.T) {
	careless := sqldbtest.PostgresConfig(t)
	open(t, careless, schema)
	careless.Volatile = false
	if _, err := sqldb.Open(t.Context(), careless, schema); !errors.Is(err, sqldb.ErrVolatile) {
		t.Errorf("without fsync: %v", err)
	}

	config := sqldbtest.NewServer(t).Config(t)
	config.MaxConns = 2
	db := open(t, config, schema)
	if err := db.Tx(t.Context(), insert("a", "eu", "first", 1)); err != nil {
		t.Fatal(err)
	}
	sqldbtest.ExecPostgres(t, config, `ALTER ROLE postgres SET synchronous_commit = off`)
	if _, err := sqldb.Open(t.Context(), config, schema); !errors.Is(err, sqldb.ErrVolatile) {
		t.Errorf("with a role that does not wait: %v", err)
	}
	// The second connection is a new one.
	err := db.Tx(t.Context(), func(ctx context.Context, _ sqldb.Tx) error { return db.Tx(ctx, insert("b", "eu", "second", 2)) })
	if !errors.Is(err, sqldb.ErrUnavailable) || !errors.Is(err, sqldb.ErrVolatile) {
		t.Errorf("a connection made since: %v", err)
	}
	careless = config
	careless.Volatile = true
	open(t, careless, schema)
}

func TestDB_LivesInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := sqldbtest.SQLite(t, schema)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
					<-time.After(10 * time.Minute) // fake time passes although a transaction is open and two wait for it
					return insert(fmt.Sprint(i), "eu", fmt.Sprint(i), 0)(ctx, tx)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		began := time.Now()
		all.Wait()
		if got := time.Since(began); got != 30*time.Minute {
			t.Errorf("three transactions of ten minutes took %v of fake time", got)
		}
	})
}

func TestMicros_AndBack(t *testing.T) {
	moment := time.Date(2026, 2, 3, 4, 5, 6, 789_012_345, time.FixedZone("east", 3600))
	if got, want := sqldb.Time(sqldb.Micros(moment)), moment.UTC().Truncate(time.Microsecond); !got.Equal(want) || got.Location() != time.UTC {
		t.Errorf("got %v, want %v", got, want)
	}
	if !sqldb.Time(sqldb.Micros(time.Time{})).IsZero() || sqldb.Micros(time.Time{}) != 0 {
		t.Error("the zero time does not come back")
	}
}

// PostgreSQL would compile a statement that it thinks is expensive, for longer than any of ours takes.
func TestOpen_HasPostgresCompileNothing(t *testing.T) {
	var jit string
	err := sqldbtest.Postgres(t, schema).ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT current_setting('jit')`).Scan(&jit)
	})
	if err != nil || jit != "off" {
		t.Errorf("jit is %q, %v", jit, err)
	}
}
