package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/store"
)

// TestStore_NoRevisionBeforeItsPredecessor holds up a write between its revision and its commit, by a row of the same key that is not committed: a write
// that comes later must not become visible first. SQLite's transactions take turns anyway.
func TestStore_NoRevisionBeforeItsPredecessor(t *testing.T) {
	db := sqldbtest.Postgres(t, store.Migrations())
	first, second := open(t, db), open(t, db) // two replicas
	makeProject(t, first, "before")

	waiting := func(ctx context.Context, want int, done <-chan error) {
		for have := 0; have < want; {
			select {
			case err := <-done:
				t.Fatalf("a write ended, with %v, while its predecessor was under way", err)
			default:
			}
			err := db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
				return tx.QueryRow(ctx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&have)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := func() {
		t.Helper()
		changes, head, err := second.Changes(t.Context(), at(second, 0), 10)
		if err != nil || head != 1 || len(changes) != 1 {
			t.Errorf("got %+v, head %d, %v", changes, head, err)
		}
	}
	create := func(s *store.Store, account string, all *sync.WaitGroup, done chan<- error) {
		all.Go(func() {
			_, err := s.CreateProject(t.Context(), start, project.Name{Account: account, ID: "p"}, project.Spec{Kind: project.Stack}, "")
			done <- err
		})
	}

	rollBack := errors.New("roll back")
	done := make(chan error, 2)
	var all sync.WaitGroup
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO changes (revision, kind, uid, deleted, change_time, payload) VALUES (2, '', '', FALSE, 0, '')`)
		if err != nil {
			return err
		}
		create(first, "first", &all, done)
		waiting(ctx, 1, done)
		seen()
		create(second, "second", &all, done)
		waiting(ctx, 2, done)
		seen()
		return rollBack
	})
	if !errors.Is(err, rollBack) {
		t.Fatal(err)
	}
	all.Wait()
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	changes := changesAfter(t, second, 1)
	if len(changes) != 2 || changes[0].Project.Name.Account != "first" || changes[1].Project.Name.Account != "second" {
		t.Fatalf("got %+v", changes)
	}
}
