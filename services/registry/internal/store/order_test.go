package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

// unhurried is a PostgreSQL in which whoever holds locks, and waits for them, may do so for as long as a busy machine takes to have another come and wait.
func unhurried(t *testing.T) *sqldb.DB {
	t.Helper()
	config := sqldbtest.MigratedPostgresConfig(t, store.Migrations())
	config.LockTimeout, config.IdleInTransactionTimeout = time.Minute, time.Minute
	db, err := sqldb.Open(t.Context(), config, store.Migrations())
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

// waitForLocks waits until so many transactions wait for others, and none of those that say so when they are done has ended.
func waitForLocks(ctx context.Context, t *testing.T, db *sqldb.DB, want int, done <-chan error) {
	t.Helper()
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

// TestStore_NoRevisionBeforeItsPredecessor holds up a write between its revision and its commit, by a row of the same key that is not committed: a write
// that comes later must not become visible first. SQLite's transactions take turns anyway.
func TestStore_NoRevisionBeforeItsPredecessor(t *testing.T) {
	db := unhurried(t)
	first, second := open(t, db), open(t, db) // two replicas
	makeProject(t, first, "before")

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
		waitForLocks(ctx, t, db, 1, done)
		seen()
		create(second, "second", &all, done)
		waitForLocks(ctx, t, db, 2, done)
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

// TestStore_DeletionWaitsForWhoAttaches holds up the one between what it has done and its commit, as above: the other must not decide by what it cannot see
// yet, or there would be an attachment of what is being deleted, or to what is gone.
func TestStore_DeletionWaitsForWhoAttaches(t *testing.T) {
	attaches := func(ctx context.Context, s *store.Store) error {
		_, err := s.CreateAttachment(ctx, later, attachmentName("stack", "net"), attachment.Spec{}, "")
		return err
	}
	deletesIntegration := func(ctx context.Context, s *store.Store) error {
		_, err := s.DeleteIntegration(ctx, later, integrationName("net"), "", false)
		return err
	}
	deletesProject := func(ctx context.Context, s *store.Store) error {
		return s.DeleteProject(ctx, later, projectName("stack"), "", false)
	}
	for _, tt := range []struct {
		name          string
		first, second func(context.Context, *store.Store) error
		// want is how the second ends.
		want error
	}{
		{"an integration is deleted while it is attached", attaches, deletesIntegration, integration.ErrAttached},
		{"a project is deleted while it is attached to", attaches, deletesProject, project.ErrAttached},
		{"an integration is attached while it is deleted", deletesIntegration, attaches, integration.ErrDeleting},
		{"a project is attached to while it is deleted", deletesProject, attaches, resource.ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db := unhurried(t) // SQLite's transactions take turns anyway
			one, other := open(t, db), open(t, db)
			makeProject(t, one, "stack")
			makeIntegration(t, one, "net")
			first, second := make(chan error, 1), make(chan error, 1)
			var all sync.WaitGroup
			rollBack := errors.New("roll back")
			err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO changes (revision, kind, uid, deleted, change_time, payload) VALUES (3, '', '', FALSE, 0, '')`)
				if err != nil {
					return err
				}
				all.Go(func() { first <- tt.first(t.Context(), one) })
				waitForLocks(ctx, t, db, 1, first)
				all.Go(func() { second <- tt.second(t.Context(), other) })
				waitForLocks(ctx, t, db, 2, second)
				return rollBack
			})
			if !errors.Is(err, rollBack) {
				t.Fatal(err)
			}
			all.Wait()
			if err := <-first; err != nil {
				t.Errorf("the first: %v", err)
			}
			if err := <-second; !errors.Is(err, tt.want) {
				t.Errorf("the second: %v, want %v", err, tt.want)
			}
			changesAfter(t, other, 0) // have no gap
		})
	}
}
