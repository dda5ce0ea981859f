package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestRenew_VoidsEveryCursor(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		if _, _, err := store.Renew(ctx, db); !errors.Is(err, store.ErrUnused) {
			t.Fatalf("of a database without a registry: %v", err)
		}
		s := open(t, db)
		for i := range 3 {
			makeProject(t, s, fmt.Sprint("p", i))
		}
		old := at(s, 3)
		before, after, err := store.Renew(ctx, db)
		if err != nil {
			t.Fatal(err)
		}
		if before != old || after.Revision != 3 || after.Incarnation == old.Incarnation || after.Incarnation == "" {
			t.Fatalf("from %+v to %+v", before, after)
		}
		// The store was open all the time.
		for _, revision := range []int64{0, 2, 3, 4} {
			_, _, err := s.Changes(ctx, resource.Position{Incarnation: old.Incarnation, Revision: revision}, 10)
			wantError(t, err, resource.ErrCursor, "")
		}
		if _, _, now, err := s.Projects(ctx, resource.Page{Parent: "accounts/acme", Size: 10}, nil); err != nil || now != after || s.Incarnation() != after.Incarnation {
			t.Fatalf("a list at %+v, %v; incarnation %s", now, err, s.Incarnation())
		}
		if changes, _, err := s.Changes(ctx, resource.Position{Incarnation: after.Incarnation, Revision: 2}, 10); err != nil || len(changes) != 1 {
			t.Fatalf("got %+v, %v", changes, err)
		}
		makeProject(t, s, "next")
		if head(t, s) != 4 {
			t.Fatalf("head is %d", head(t, s))
		}
	})
}

// A database that is suddenly older than it was is not served from, and not written to, until somebody says that it was restored: the next
// revisions would be taken for those that were lost.
func TestStore_RefusesADatabaseThatWentBack(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		reader, writer := open(t, db), open(t, db)
		for i := range 5 {
			makeProject(t, writer, fmt.Sprint("p", i))
		}
		if head(t, reader) != 5 {
			t.Fatal("not five")
		}
		old := at(reader, 5)
		err := db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			for _, statement := range []string{
				`DELETE FROM projects WHERE name = 'accounts/acme/projects/p4'`, `DELETE FROM changes WHERE revision = 5`, `UPDATE registry SET revision = 4`,
			} {
				if _, err := tx.Exec(ctx, statement); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for name, try := range map[string]func() error{
			"ping": func() error { return reader.Ping(ctx) },
			"list": func() error {
				_, _, _, err := reader.Projects(ctx, resource.Page{Parent: "accounts/acme", Size: 10}, nil)
				return err
			},
			"follow": func() error { _, _, err := reader.Changes(ctx, old, 10); return err },
			"write": func() error {
				_, err := writer.CreateProject(ctx, start, projectName("p4"), project.Spec{Kind: project.Module}, "")
				return err
			},
		} {
			if err := try(); !errors.Is(err, resource.ErrUnavailable) {
				t.Errorf("%s: %v, want unavailable", name, err)
			}
		}
		if _, after, err := store.Renew(ctx, db); err != nil || after.Revision != 4 {
			t.Fatalf("renewed at %+v, %v", after, err)
		}
		for _, s := range []*store.Store{reader, writer} {
			if err := s.Ping(ctx); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			_, _, err := s.Changes(ctx, old, 10)
			wantError(t, err, resource.ErrCursor, "")
		}
		// A writer may be the first to see it.
		makeProject(t, writer, "p4")
		if head(t, reader) != 5 {
			t.Fatalf("head is %d", head(t, reader))
		}
	})
}

// Transactions overlap: one that began before another's commit, and ends after it, has not seen the database go back.
func TestStore_OverlappingReadsAreNotATripBack(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		s, err := store.New(t.Context(), db, quota.Default())
		if err != nil {
			t.Fatal(err)
		}
		const writers, readers, each = 3, 3, 30
		for _, err := range together(writers+readers, func(i int) error {
			for n := range each {
				if i < writers {
					_, err := s.CreateProject(t.Context(), start, projectName(fmt.Sprintf("p%d-%d", i, n)), project.Spec{Kind: project.Stack}, "")
					if err != nil {
						return err
					}
				} else if err := s.Ping(t.Context()); err != nil {
					return err
				}
			}
			return nil
		}) {
			if err != nil {
				t.Error(err)
			}
		}
	})
}
