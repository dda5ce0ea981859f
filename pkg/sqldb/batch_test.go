package sqldb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

type given struct {
	text    string
	number  int64
	content []byte
}

func scanGiven(row sqldb.Row) (g given, err error) {
	err = row.Scan(&g.text, &g.number, &g.content)
	return g, err
}

// What a statement is given it has, whatever it is and however much.
func TestValues_AreRows(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		rows := []given{
			{"a", 1, []byte{0, 1, 255}}, {"", 0, []byte{}}, {`"quoted", \ and {braced}`, -1, []byte("x")},
			{"<é&\n\t日本>", 1<<63 - 1, []byte("y")}, {"NULL", -1 << 63, []byte("z")},
		}
		for n := range 100 {
			rows = append(rows, given{fmt.Sprint("more", n), int64(n), fmt.Append(nil, n)})
		}
		for _, want := range [][]given{nil, rows[:1], rows} {
			values := sqldb.NewValues("tib")
			for _, r := range want {
				values.Add(r.text, r.number, r.content)
			}
			var got []given
			err := db.Read(t.Context(), func(tx sqldb.Tx, b *sqldb.Batch) {
				from, args := tx.Values(values, int64(7), "x")
				sqldb.Into(b, &got, scanGiven, `SELECT v.column1, v.column2, v.column3 FROM `+from+` v WHERE $1 = 7 AND $2 = 'x'`, args...)
			})
			same := func(a, b given) bool {
				return a.text == b.text && a.number == b.number && bytes.Equal(a.content, b.content)
			}
			if err != nil || !slices.EqualFunc(got, want, same) {
				t.Errorf("%d rows: %v, %v", len(want), got, err)
			}
		}
	})
}

func TestTx_ABatchIsDoneInItsOrderUpToAFailure(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		add := func(b *sqldb.Batch, id string) {
			b.Exec(`INSERT INTO accounts (id, region, name, balance) VALUES ($1, 'eu', $1, 1)`, id)
		}
		text := func(row sqldb.Row) (s string, err error) { return s, row.Scan(&s) }
		var first, second []string
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			for _, ids := range []struct {
				add   string
				found *[]string
			}{{"a", &first}, {"b", &second}} {
				var b sqldb.Batch
				add(&b, ids.add)
				sqldb.Into(&b, ids.found, text, `SELECT id FROM accounts ORDER BY id`)
				if err := tx.Do(ctx, &b); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, `UPDATE accounts SET balance = 2 WHERE id = 'a'`)
			return err
		})
		if err != nil || !slices.Equal(first, []string{"a"}) || !slices.Equal(second, []string{"a", "b"}) {
			t.Errorf("found %v, then %v: %v", first, second, err)
		}
		err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			var b sqldb.Batch
			add(&b, "c")
			add(&b, "a")
			add(&b, "d")
			return tx.Do(ctx, &b)
		})
		if !errors.Is(err, sqldb.ErrUnique) {
			t.Errorf("a row that is there: %v", err)
		}
		boom := errors.New("boom")
		err = db.Read(t.Context(), func(_ sqldb.Tx, b *sqldb.Batch) {
			sqldb.Into(b, &first, func(sqldb.Row) (string, error) { return "", boom }, `SELECT id FROM accounts ORDER BY id`)
			sqldb.Into(b, &second, text, `SELECT id FROM accounts WHERE id = 'a'`)
		})
		if !errors.Is(err, boom) {
			t.Errorf("a row that cannot be read: %v", err)
		}
		if got := balances(t, db); len(got) != 2 || got["a"] != 2 {
			t.Errorf("there is %v", got)
		}
	})
}

// Only PostgreSQL keeps what only reads from writing.
func TestRead_DoesNotWrite(t *testing.T) {
	db := sqldbtest.Postgres(t, schema)
	err := db.Read(t.Context(), func(_ sqldb.Tx, b *sqldb.Batch) {
		b.Exec(`INSERT INTO accounts (id, region, name, balance) VALUES ('a', 'eu', 'a', 1)`)
	})
	if err == nil {
		t.Error("it wrote")
	}
	if got := balances(t, db); len(got) != 0 {
		t.Errorf("there is %v", got)
	}
}

// A batch with which the connection breaks has not happened, and is not repeated; one that finds it broken is nobody's trouble.
func TestTx_LostConnectionOfABatch(t *testing.T) {
	p, db := outage(t)
	statement := "insert into accounts"
	p.loseStatement.Store(&statement)
	once := func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE accounts SET balance = 1`); err != nil {
			return err
		}
		var b sqldb.Batch
		b.Exec(`insert into accounts (id, region, name, balance) VALUES ('a', 'eu', 'a', 1)`)
		return tx.Do(ctx, &b)
	}
	if err := db.Tx(t.Context(), once); !errors.Is(err, sqldb.ErrUnavailable) || errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("got %v, want unavailable, of known outcome", err)
	}
	runs := 0
	p.loseStatement.Store(&statement)
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		runs++
		var b sqldb.Batch
		b.Exec(`insert into accounts (id, region, name, balance) VALUES ('b', 'eu', 'b', 1)`)
		return tx.Do(ctx, &b)
	})
	if err != nil || runs != 2 {
		t.Errorf("a batch that begins a transaction: %d runs, %v", runs, err)
	}
	if got := balances(t, db); len(got) != 1 {
		t.Errorf("there is %v", got)
	}
}

// How a transaction is carried out is no other's concern that comes over the same connection.
func TestTx_GoesByIndexAlone(t *testing.T) {
	config := sqldbtest.MigratedPostgresConfig(t, schema)
	config.MaxConns = 1
	db, err := sqldb.Open(t.Context(), config, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for _, want := range []string{"force_generic_plan off", "auto on"} {
		var got []string
		err := db.Read(t.Context(), func(tx sqldb.Tx, b *sqldb.Batch) {
			if want != "auto on" {
				tx.ByIndex(b)
			}
			sqldb.Into(b, &got, func(row sqldb.Row) (s string, err error) { return s, row.Scan(&s) },
				`SELECT current_setting('plan_cache_mode') || ' ' || current_setting('enable_seqscan')`)
		})
		if err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

// What is sent after the end of its transaction is not done without one.
func TestTx_ABatchAfterTheEndOfItsTransaction(t *testing.T) {
	db := sqldbtest.Postgres(t, schema)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			cancel()
			for range 1000 {
				runtime.Gosched() // by now it may have been undone, before it was begun
			}
			var b sqldb.Batch
			b.Exec(`INSERT INTO accounts (id, region, name, balance) VALUES ('a', 'eu', 'a', 1)`)
			_ = tx.Do(context.WithoutCancel(ctx), &b) // done and undone, or not at all
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		if got := balances(t, db); len(got) != 0 {
			t.Fatalf("there is %v", got)
		}
	}
}

// adding is a transaction whose last statement adds an account.
func adding(id string, balance int) func(ctx context.Context, tx sqldb.Tx) error {
	return func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE accounts SET balance = balance + 1`); err != nil {
			return err
		}
		var b sqldb.Batch
		b.Exec(`INSERT INTO accounts (id, region, name, balance) VALUES ($1, 'eu', $1, $2)`, id, balance)
		b.Exec(`UPDATE accounts SET balance = balance * 10 WHERE id = $1`, id)
		tx.Last(&b)
		return nil
	}
}

func TestTx_LastStatementsAreCommittedOrNothingIs(t *testing.T) {
	sqldbtest.Run(t, schema, func(t *testing.T, db *sqldb.DB) {
		if err := db.Tx(t.Context(), adding("a", 1)); err != nil {
			t.Fatal(err)
		}
		if err := db.Tx(t.Context(), adding("a", 2)); !errors.Is(err, sqldb.ErrUnique) || errors.Is(err, sqldb.ErrUnknownOutcome) {
			t.Errorf("the same once more: %v", err)
		}
		no := errors.New("no")
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return errors.Join(adding("b", 1)(ctx, tx), no) })
		if !errors.Is(err, no) {
			t.Errorf("of a transaction that failed: %v", err)
		}
		ctx := sqldbtest.WithHook(t.Context(), func(_ context.Context, at sqldbtest.Point, _ bool) error {
			if at == sqldbtest.Commit {
				return no
			}
			return nil
		})
		if err := db.Tx(ctx, adding("b", 1)); !errors.Is(err, no) {
			t.Errorf("of one that is not to be committed: %v", err)
		}
		if got := balances(t, db); len(got) != 1 || got["a"] != 10 {
			t.Errorf("there is %v", got)
		}
	})
}

// What is lost with the answer to the last statements may have been done.
func TestTx_LostReplyToTheLastStatements(t *testing.T) {
	p, db := outage(t)
	id := "lost"
	p.loseReply.Store(&id)
	if err := db.Tx(t.Context(), adding(id, 1)); !errors.Is(err, sqldb.ErrUnknownOutcome) || !errors.Is(err, sqldb.ErrUnavailable) {
		t.Errorf("got %v, want unavailable, of unknown outcome", err)
	}
	if err := db.Tx(t.Context(), adding("b", 1)); err != nil {
		t.Error(err)
	}
	if got := balances(t, db); len(got) != 2 || got["lost"] != 11 || got["b"] != 10 {
		t.Errorf("there is %v", got)
	}
}

// last is a transaction of nothing but its last statement, behind one that reads.
func last(statement string) func(ctx context.Context, tx sqldb.Tx) error {
	return func(ctx context.Context, tx sqldb.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT 1`).Scan(&n); err != nil {
			return err
		}
		var b sqldb.Batch
		b.Exec(statement)
		tx.Last(&b)
		return nil
	}
}

// What the server says of a last statement is certain; what it says of the commit may come too late.
func TestTx_WhetherTheLastStatementsWereCommitted(t *testing.T) {
	db := sqldbtest.Postgres(t, schema)
	if err := db.Tx(t.Context(), last(`SELECT 1/0`)); err == nil || errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("a statement that fails: %v", err)
	}
	for _, statement := range []string{
		`CREATE FUNCTION shut_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'down' USING ERRCODE = '57P01'; END $$`,
		`CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION shut_down()`,
	} {
		if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			_, err := tx.Exec(ctx, statement)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Tx(t.Context(), adding("a", 1)); !errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("a server that shuts down while it commits: %v", err)
	}
}

// A server that takes no writes any more is left by whoever hears of it with the last statements, too.
func TestTx_LastStatementsAtAServerThatTakesNoWrites(t *testing.T) {
	db := sqldbtest.Postgres(t, schema)
	runs := 0
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if runs++; runs == 1 {
			if _, err := tx.Exec(ctx, `SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY`); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `SET TRANSACTION READ ONLY`); err != nil {
				return err
			}
		}
		return last(`INSERT INTO accounts (id, region, name, balance) VALUES ('a', 'eu', 'a', 1)`)(ctx, tx)
	})
	if err != nil || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
}
