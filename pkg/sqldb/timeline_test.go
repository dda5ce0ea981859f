package sqldb_test

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

// Any role may ask for the timeline, and it is another one as soon as another server has taken over.
func TestTimeline_ChangesWhenAnotherServerTakesOver(t *testing.T) {
	t.Parallel()
	server := sqldbtest.NewServer(t)
	config := server.Config(t)
	sqldbtest.ExecPostgres(t, config, `CREATE ROLE ordinary LOGIN; GRANT ALL ON SCHEMA public TO ordinary`)
	config.DSN = strings.Replace(config.DSN, "user=postgres", "user=ordinary", 1)
	ask := func() (timeline string) {
		t.Helper()
		db, err := sqldb.Open(t.Context(), config, fstest.MapFS{"postgres/0001_x.sql": {Data: []byte("CREATE TABLE x (id BIGINT)")}})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			timeline, err = sqldb.Timeline(ctx, tx)
			return err
		})
		if err != nil || !db.HasTimeline() {
			t.Errorf("%v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		return timeline
	}
	first := ask()
	takeOver := server.Standby(t)
	if again := ask(); again != first {
		t.Errorf("a restart makes %q of %q", again, first)
	}
	takeOver()
	if next := ask(); next == first || len(next) != 8 {
		t.Errorf("another server is on %q, after %q", next, first)
	}
}
