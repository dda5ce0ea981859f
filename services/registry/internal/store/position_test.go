package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
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

// An etag speaks of a state that was seen. After a restore the same resource comes to other states by as many changes.
func TestRenew_VoidsEveryETag(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		s := open(t, db)
		display := func(name string) func(project.Project) (project.Spec, error) {
			return func(p project.Project) (project.Spec, error) {
				return project.Spec{Kind: p.Spec.Kind, DisplayName: name}, nil
			}
		}
		makeIntegration(t, s, "net")
		made := makeProject(t, s, "stack")
		lost, err := s.UpdateProject(ctx, later, made.Name, "", display("lost"), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			for _, statement := range []string{
				`UPDATE projects SET display_name = 'stack', generation = 1`, `DELETE FROM changes WHERE revision = 3`, `UPDATE registry SET revision = 2`,
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
		if _, _, err := store.Renew(ctx, db); err != nil {
			t.Fatal(err)
		}
		other, err := s.UpdateProject(ctx, later, made.Name, "", display("other"), nil)
		if err != nil || other.Generation != lost.Generation {
			t.Fatalf("got %+v, %v", other, err)
		}
		_, err = s.UpdateProject(ctx, later, made.Name, lost.ETag(), display("third"), nil)
		wantError(t, err, resource.ErrETagMismatch, "")
		wantError(t, s.DeleteProject(ctx, later, made.Name, lost.ETag(), false), resource.ErrETagMismatch, "")
		// What is read, listed and watched has the same etag.
		read, err := s.Project(ctx, made.Name)
		if err != nil || read.ETag() != other.ETag() {
			t.Errorf("read %+v, %v", read, err)
		}
		batch, err := s.BatchProjects(ctx, []project.Name{made.Name})
		if err != nil || batch[0].ETag() != other.ETag() {
			t.Errorf("read %+v, %v", batch, err)
		}
		listed, _, _, err := s.Projects(ctx, resource.Page{Parent: "accounts/acme", Size: 1}, nil)
		if err != nil || listed[0].ETag() != other.ETag() {
			t.Errorf("listed %+v, %v", listed, err)
		}
		if told := changesAfter(t, s, 2); len(told) != 1 || told[0].Project.ETag() != other.ETag() {
			t.Errorf("told %+v", told)
		}
		a := attach(t, s, "stack", "net")
		if read, err := s.Attachment(ctx, a.Name); err != nil || read.ETag() != a.ETag() {
			t.Errorf("read %+v, made %+v, %v", read, a, err)
		}
		if _, err := s.UpdateProject(ctx, later, made.Name, other.ETag(), display("third"), nil); err != nil {
			t.Error(err)
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
			id := fmt.Sprint("p", i)
			if _, err := writer.CreateProject(ctx, start, projectName(id), project.Spec{Kind: project.Stack, DisplayName: id}, strings.Replace(requestID, "3", fmt.Sprint(i+3), 1)); err != nil {
				t.Fatal(err)
			}
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
			"follow":             func() error { _, _, err := reader.Changes(ctx, old, 10); return err },
			"get":                func() error { _, err := reader.Project(ctx, projectName("p0")); return err },
			"get an integration": func() error { _, err := reader.Integration(ctx, integrationName("none")); return err },
			"get an attachment":  func() error { _, err := reader.Attachment(ctx, attachmentName("p0", "none")); return err },
			"batch":              func() error { _, err := reader.BatchProjects(ctx, []project.Name{projectName("p0")}); return err },
			"resolve":            func() error { _, _, err := reader.ResolveAccess(ctx, projectName("p0"), attachment.Read); return err },
			"a write that changes nothing": func() error {
				_, err := writer.UpdateProject(ctx, later, projectName("p0"), "", func(p project.Project) (project.Spec, error) { return p.Spec, nil }, nil)
				return err
			},
			"a write that is only tried": func() error {
				_, err := writer.Trial().CreateProject(ctx, start, projectName("p5"), project.Spec{Kind: project.Module}, "")
				return err
			},
			"a repeat of a request": func() error {
				_, err := writer.CreateProject(ctx, start, projectName("p0"), project.Spec{Kind: project.Stack, DisplayName: "p0"}, requestID)
				return err
			},
			"a report": func() error { return writer.Report(ctx, later, master, requestID, integration.Report{}) },
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
