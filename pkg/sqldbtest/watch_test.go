package sqldbtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

// Whoever watches is told what each commit changed, of the columns that it asked for, and nothing of what was undone.
func TestWatch(t *testing.T) {
	t.Parallel()
	migrations := fstest.MapFS{
		"sqlite/0001_things.sql": {Data: []byte(`CREATE TABLE things (id TEXT PRIMARY KEY, n BIGINT NOT NULL, sealed BLOB); CREATE TABLE others (id TEXT PRIMARY KEY);`)},
	}
	var told [][]sqldbtest.Change
	db := sqldbtest.Watch(t, migrations, map[string][]string{"things": {"n", "id"}}, func(changes []sqldbtest.Change) { told = append(told, changes) })
	undone := errors.New("undone")
	run := func(want error, statements ...string) {
		t.Helper()
		err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			for _, s := range statements {
				if _, err := tx.Exec(ctx, s); err != nil {
					return err
				}
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Fatal(err)
		}
	}
	run(nil, `INSERT INTO things (id, n, sealed) VALUES ('a', 1, 'x'), ('b', 2, NULL)`, `INSERT INTO others (id) VALUES ('c')`)
	run(undone, `UPDATE things SET n = 3`)
	run(nil, `INSERT INTO others (id) VALUES ('d')`)
	run(nil, `UPDATE things SET n = n + 10 WHERE id = 'a'`, `DELETE FROM things WHERE id = 'b'`)
	want := [][]sqldbtest.Change{
		{{Table: "things", New: []any{int64(1), "a"}}, {Table: "things", New: []any{int64(2), "b"}}},
		{{Table: "things", Old: []any{int64(1), "a"}, New: []any{int64(11), "a"}}, {Table: "things", Old: []any{int64(2), "b"}}},
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
}
