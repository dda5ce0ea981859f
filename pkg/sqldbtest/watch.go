package sqldbtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"testing"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"phasekey.dev/pkg/sqldb"
)

// Change is what a transaction did to a row: Old is nil when it was not there, New when it is not any more. Both have the columns that were asked for, as int64, string,
// []byte or nil.
type Change struct {
	Table    string
	Old, New []any
}

// Watch opens a database as SQLite does, and has told called with what each transaction has changed of these columns, by table. It is called at each commit, in their order, before the program
// knows of it; it must not use the database.
func Watch(t testing.TB, migrations fs.FS, columns map[string][]string, told func([]Change)) *sqldb.DB {
	t.Helper()
	template, err := templateFile(t, migrations)
	if err != nil {
		t.Fatal(err)
	}
	config := SQLiteConfig(t)
	if err := os.WriteFile(config.Path, template, 0o600); err != nil {
		t.Fatal(err)
	}
	hookOnce()
	watches.Store(config.Path, watch{columns, told})
	t.Cleanup(func() { watches.Delete(config.Path) })
	return open(t, config, migrations)
}

type watch struct {
	columns map[string][]string
	told    func([]Change)
}

// watches are by the paths of databases: the driver tells of the connections of all.
var (
	watches  sync.Map
	hookOnce = sync.OnceFunc(func() {
		sqlite.RegisterConnectionHook(func(conn sqlite.ExecQuerierContext, dsn string) error {
			at, err := url.Parse(dsn)
			if err != nil {
				return err
			}
			if w, ok := watches.Load(at.Path); ok {
				return w.(watch).on(conn) //nolint:forcetypeassert // nothing else is in there
			}
			return nil
		})
	})
)

// on follows a connection.
func (w watch) on(conn sqlite.ExecQuerierContext) error {
	hooks, ok := conn.(sqlite.HookRegisterer)
	if !ok {
		return errors.New("the driver has no hooks")
	}
	places := map[string][]int{}
	for table, columns := range w.columns {
		all, err := columnsOf(conn, table)
		if err != nil {
			return err
		}
		for _, c := range columns {
			n, ok := all[c]
			if !ok {
				return fmt.Errorf("table %s has no column %s", table, c)
			}
			places[table] = append(places[table], n)
		}
	}
	// Of the transaction that is open: what it has changed so far, and what went wrong in looking.
	var changes []Change
	var unseen error
	hooks.RegisterPreUpdateHook(func(d sqlite.SQLitePreUpdateData) {
		at, ok := places[d.TableName]
		if !ok {
			return
		}
		c := Change{Table: d.TableName}
		var before, after error
		if d.Op != sqlite3.SQLITE_INSERT {
			c.Old, before = pick(at, d.Count(), d.Old)
		}
		if d.Op != sqlite3.SQLITE_DELETE {
			c.New, after = pick(at, d.Count(), d.New)
		}
		unseen = errors.Join(unseen, before, after)
		changes = append(changes, c)
	})
	hooks.RegisterRollbackHook(func() { changes, unseen = nil, nil })
	hooks.RegisterCommitHook(func() int32 {
		if unseen != nil {
			return 1 // there is no commit that nobody was told of
		}
		if len(changes) > 0 {
			w.told(changes)
			changes = nil
		}
		return 0
	})
	return nil
}

// pick reads a row's columns at some places, of so many.
func pick(at []int, count int, read func(dest ...any) error) ([]any, error) {
	row := make([]any, count)
	if err := read(row...); err != nil {
		return nil, err
	}
	out := make([]any, len(at))
	for k, n := range at {
		out[k] = row[n]
	}
	return out, nil
}

// columnsOf are the places of a table's columns.
func columnsOf(conn sqlite.ExecQuerierContext, table string) (map[string]int, error) {
	rows, err := conn.QueryContext(context.Background(), `SELECT name FROM pragma_table_info(?) ORDER BY cid`, []driver.NamedValue{{Ordinal: 1, Value: table}})
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	name := make([]driver.Value, 1)
	for err = rows.Next(name); err == nil; err = rows.Next(name) {
		out[fmt.Sprint(name[0])] = len(out)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out, errors.Join(err, rows.Close())
}
