package fence_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
)

// migrations are the fence's own, and a table for what masters write.
func migrations(t *testing.T) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
		text, err := os.ReadFile("../store/migrations/" + driver + "/0001_shards_and_keys.sql")
		if err != nil {
			t.Fatal(err)
		}
		files[driver+"/0001_shards_and_keys.sql"] = &fstest.MapFile{Data: text}
		files[driver+"/9001_works.sql"] = &fstest.MapFile{Data: []byte(
			`CREATE TABLE works (id BIGINT NOT NULL PRIMARY KEY, author TEXT NOT NULL, visits BIGINT NOT NULL)`)}
	}
	return files
}

const shard = 1

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// divided prepares a database with two shards and one work.
func divided(t *testing.T, db *sqldb.DB) {
	t.Helper()
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO works (id, author, visits) VALUES (1, 'nobody', 0)`); err != nil {
			return err
		}
		return fence.Configure(ctx, tx, 2)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func take(ctx context.Context, db *sqldb.DB, now time.Time) (m election.Mastership, err error) {
	err = db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, shard, now)
		return err
	})
	return m, err
}

func mustTake(t *testing.T, db *sqldb.DB) election.Mastership {
	t.Helper()
	m, err := take(t.Context(), db, now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// write is a master's statement.
type write func(ctx context.Context, tx sqldb.Tx, m election.Mastership) error

// guarded writes as masters must.
func guarded(ctx context.Context, tx sqldb.Tx, m election.Mastership) error {
	if err := fence.Guard(ctx, tx, m); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE works SET author = $1 WHERE id = 1`, m.Holder)
	return err
}

// naive looks whether the mastership is still the writer's in the statement that writes. This is how not to do it.
func naive(ctx context.Context, tx sqldb.Tx, m election.Mastership) error {
	_, err := tx.Exec(ctx, `UPDATE works SET author = $1 WHERE id = 1
		AND EXISTS (SELECT 1 FROM shards WHERE shard = $2 AND epoch = $3 AND holder = $4)`, m.Holder, m.Shard, m.Epoch, m.Holder)
	return err
}

func author(t *testing.T, db *sqldb.DB) (name string) {
	t.Helper()
	err := db.ReadTx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT author FROM works WHERE id = 1`).Scan(&name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// waiting returns when this many transactions of the database wait for a lock. PostgreSQL only.
func waiting(t *testing.T, db *sqldb.DB, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for got := -1; got != want; {
		err := db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&got)
		})
		if err != nil {
			t.Fatalf("%d transactions should wait, %d do: %v", want, got, err)
		}
	}
}

// background runs a transaction in a goroutine, as far as hold, and lets it commit when released.
func background(t *testing.T, db *sqldb.DB, fn func(ctx context.Context, tx sqldb.Tx) error) (reached <-chan struct{}, commit func() error) {
	t.Helper()
	there, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			err := fn(ctx, tx)
			close(there)
			<-release
			return err
		})
	}()
	return there, func() error {
		close(release)
		return <-done
	}
}

// judge runs an interleaving of a master's write with its replacement, and says whether the write became visible after the replacement was complete: a leak.
type judge func(t *testing.T, db *sqldb.DB, write write) (leaked bool)

// The first interleaving: the master's statement waits for a lock on the row it writes, which somebody else holds (a replica that serves a call, say).
// Meanwhile the shard is taken.
func statementWaitsForRow(t *testing.T, db *sqldb.DB, write write) bool {
	t.Helper()
	old := mustTake(t, db)
	visited, commitVisit := background(t, db, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE works SET visits = visits + 1 WHERE id = 1`)
		return err
	})
	<-visited
	written := make(chan error, 1)
	go func() {
		written <- db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return write(ctx, tx, old) })
	}()
	waiting(t, db, 1)
	return replaced(t, db, old, 1, func() {
		if err := commitVisit(); err != nil {
			t.Fatal(err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	})
}

// The second: the master's transaction has written and is still open. Meanwhile the shard is taken.
func transactionIsOpen(t *testing.T, db *sqldb.DB, write write) bool {
	t.Helper()
	old := mustTake(t, db)
	written, commit := background(t, db, func(ctx context.Context, tx sqldb.Tx) error { return write(ctx, tx, old) })
	<-written
	return replaced(t, db, old, 0, func() {
		if err := commit(); err != nil {
			t.Fatal(err)
		}
	})
}

// replaced takes the shard while others wait for a lock, then has the old master finish. A take-over that is complete before must not see the old master's write
// appear afterwards.
func replaced(t *testing.T, db *sqldb.DB, old election.Mastership, others int, finish func()) (leaked bool) {
	t.Helper()
	taken := make(chan error, 1)
	go func() {
		_, err := take(t.Context(), db, now)
		taken <- err
	}()
	// Either it goes through at once, or it comes to wait as well.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	blocked := make(chan struct{})
	go func() {
		for ctx.Err() == nil {
			var n int
			err := db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
				return tx.QueryRow(ctx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
			})
			if err == nil && n > others {
				close(blocked)
				return
			}
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			t.Fatal(err)
		}
		before := author(t, db)
		finish()
		return before != old.Holder && author(t, db) == old.Holder
	case <-blocked:
		finish()
		if err := <-taken; err != nil {
			t.Fatal(err)
		}
		if got := author(t, db); got != old.Holder {
			t.Fatalf("the take-over waited for a write of %q that did not happen: %q", old.Holder, got)
		}
		return false
	}
}

// These two come first, for they are why the fence is as it is.
func TestGuard_HoldsWhereLookingDoesNot(t *testing.T) {
	for _, test := range []struct {
		name  string
		judge judge
	}{
		{"a statement that waited for a row", statementWaitsForRow},
		{"a transaction open during the take-over", transactionIsOpen},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, way := range []struct {
				name  string
				write write
				leaks bool
			}{
				{"writing the fence first holds", guarded, false},
				{"looking at the fence leaks", naive, true}, // else the interleaving is not the one that matters, and the test worth nothing
			} {
				t.Run(way.name, func(t *testing.T) {
					db := sqldbtest.Postgres(t, migrations(t)) // SQLite's transactions take turns
					divided(t, db)
					if leaked := test.judge(t, db, way.write); leaked != way.leaks {
						t.Errorf("leaked: %v, want %v", leaked, way.leaks)
					}
				})
			}
		})
	}
}

func TestGuard_RefusesFormerMasters(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		divided(t, db)
		refused := 0
		as := func(m election.Mastership) error {
			noted := election.WithFenced(t.Context(), func() { refused++ })
			return db.Tx(noted, func(ctx context.Context, tx sqldb.Tx) error { return guarded(ctx, tx, m) })
		}
		first := mustTake(t, db)
		if err := as(first); err != nil {
			t.Fatal(err)
		}
		second := mustTake(t, db)
		if err := as(second); err != nil {
			t.Fatal(err)
		}
		imposter := second
		imposter.Holder = first.Holder // a database that failed over gave one epoch out twice
		other := second
		other.Shard = 0
		for name, m := range map[string]election.Mastership{"former": first, "same epoch": imposter, "another shard": other, "nobody": {}} {
			if err := as(m); !errors.Is(err, election.ErrFenced) {
				t.Errorf("%s: %v, want ErrFenced", name, err)
			}
		}
		if refused != 3 {
			t.Errorf("%d refusals were noted, want 3: nobody has never been a master", refused)
		}
		if got := author(t, db); got != second.Holder {
			t.Errorf("written by %q, want the last master", got)
		}
	})
}

// A former master that comes while the shard is being taken waits, and is refused.
func TestGuard_WaitsForATakeOver(t *testing.T) {
	db := sqldbtest.Postgres(t, migrations(t))
	divided(t, db)
	old := mustTake(t, db)
	taken, commit := background(t, db, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := fence.Take(ctx, tx, shard, now)
		return err
	})
	<-taken
	written := make(chan error, 1)
	go func() {
		written <- db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return guarded(ctx, tx, old) })
	}()
	waiting(t, db, 1)
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-written; !errors.Is(err, election.ErrFenced) {
		t.Errorf("got %v, want ErrFenced", err)
	}
}

func TestTake_Epochs(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		divided(t, db)
		last := election.Mastership{}
		for _, step := range []struct {
			name string
			now  time.Time
			want func(last int64) int64
		}{
			{"the clock", now, func(int64) int64 { return sqldb.Micros(now) }},
			{"the same moment", now, func(last int64) int64 { return last + 1 }},
			{"a clock that was set back", now.Add(-time.Hour), func(last int64) int64 { return last + 1 }},
			{"a later moment", now.Add(time.Hour), func(int64) int64 { return sqldb.Micros(now.Add(time.Hour)) }},
		} {
			m, err := take(t.Context(), db, step.now)
			if err != nil {
				t.Fatal(err)
			}
			if want := step.want(last.Epoch); m.Epoch != want || m.Shard != shard || m.Holder == last.Holder || m.Holder == "" {
				t.Errorf("%s: %+v after %+v, want epoch %d", step.name, m, last, want)
			}
			last = m
		}
	})
}

func TestTake_GivesNoEpochTwice(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		divided(t, db)
		const takers = 8
		masterships := make([]election.Mastership, takers)
		var all sync.WaitGroup
		for i := range takers {
			all.Go(func() {
				var err error
				if masterships[i], err = take(t.Context(), db, now); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		epochs := map[int64]bool{}
		for _, m := range masterships {
			epochs[m.Epoch] = true
		}
		if len(epochs) != takers {
			t.Errorf("%d masterships have %d epochs", takers, len(epochs))
		}
		// The one with the greatest epoch is master, and only that.
		slices.SortFunc(masterships, func(a, b election.Mastership) int { return int(b.Epoch - a.Epoch) })
		for i, m := range masterships {
			err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Guard(ctx, tx, m) })
			if (err == nil) != (i == 0) {
				t.Errorf("mastership %d of %d: %v", i, takers, err)
			}
		}
	})
}

func TestReady_RefusesAClockThatIsOff(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		divided(t, db)
		f := fence.New(db, 2)
		for off, wrong := range map[time.Duration]bool{0: false, 2 * time.Minute: false, -2 * time.Minute: false, 3 * time.Minute: true, -3 * time.Minute: true} {
			err := f.Ready(t.Context(), time.Now().Add(off))
			// SQLite's server is this process.
			if wrong = wrong && db.Driver() == sqldb.DriverPostgres; errors.Is(err, fence.ErrClock) != wrong || err != nil && !wrong {
				t.Errorf("%s off: %v", off, err)
			}
		}
	})
}

func TestConfigure_DividesOnce(t *testing.T) {
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) {
		configure := func(shards int) error {
			return db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, shards) })
		}
		if err := configure(0); !errors.Is(err, fence.ErrShardCount) {
			t.Errorf("no shards: %v", err)
		}
		if _, err := take(t.Context(), db, now); !errors.Is(err, fence.ErrNoShard) {
			t.Errorf("taking a shard before there are any: %v", err)
		}
		var all sync.WaitGroup
		for range 4 { // replicas that start together
			all.Go(func() {
				if err := configure(3); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		m := mustTake(t, db)
		for shards, want := range map[int]error{3: nil, 2: fence.ErrShardCount, 4: fence.ErrShardCount} {
			if err := configure(shards); !errors.Is(err, want) {
				t.Errorf("%d shards: %v, want %v", shards, err, want)
			}
		}
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Guard(ctx, tx, m) })
		if err != nil {
			t.Errorf("a replica that started fenced the master: %v", err)
		}
	})
}
