package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_ChangesHaveBounds(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		for i := range 5 {
			if _, err := s.CreateProject(ctx, start.Add(time.Duration(i)*time.Hour), projectName(fmt.Sprint("p", i)), project.Spec{Kind: project.Stack}, ""); err != nil {
				t.Fatal(err)
			}
		}
		page, newest, err := s.Changes(ctx, at(s, 1), 2)
		if err != nil || newest != 5 || len(page) != 2 || page[0].Revision != 2 || page[1].Revision != 3 {
			t.Fatalf("got %+v, %d, %v", page, newest, err)
		}
		for _, outside := range []int64{6, -1} {
			_, _, err := s.Changes(ctx, at(s, outside), 2)
			wantError(t, err, resource.ErrCursor, "")
		}
		if err := s.Compact(ctx, start.Add(2*time.Hour)); err != nil { // the first two
			t.Fatal(err)
		}
		_, _, err = s.Changes(ctx, at(s, 1), 2)
		wantError(t, err, resource.ErrCursor, "")
		if page, _, err := s.Changes(ctx, at(s, 2), 2); err != nil || len(page) != 2 {
			t.Fatalf("got %+v, %v", page, err)
		}
		if err := s.Compact(ctx, start.Add(time.Hour*24)); err != nil {
			t.Fatal(err)
		}
		_, _, err = s.Changes(ctx, at(s, 4), 2)
		wantError(t, err, resource.ErrCursor, "")
		if page, newest, err := s.Changes(ctx, at(s, 5), 2); err != nil || len(page) != 0 || newest != 5 {
			t.Fatalf("got %+v, %d, %v", page, newest, err)
		}
	})
}

// TestStore_CompactsInBatches needs more changes than one transaction removes.
func TestStore_CompactsInBatches(t *testing.T) {
	s := open(t, sqldbtest.SQLite(t, store.Migrations()))
	for i := range 1100 {
		if _, err := s.UpdateProject(t.Context(), start, projectName("p"), "",
			func(p project.Project) (project.Spec, error) {
				return project.Spec{Kind: p.Spec.Kind, DisplayName: fmt.Sprint(i)}, nil
			},
			func() (project.Spec, error) { return project.Spec{Kind: project.Stack}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Compact(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Changes(t.Context(), at(s, 1099), 1)
	wantError(t, err, resource.ErrCursor, "")
}

// TestStore_RevisionsAreInCommitOrder reads changes while many write. A revision that became visible after a higher one would be a gap, which
// Changes refuses as compacted, or be missing from what the reader has put together.
func TestStore_RevisionsAreInCommitOrder(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		const writers, each = 6, 20
		done := make(chan []error)
		go func() {
			done <- together(writers, func(w int) error {
				for i := range each {
					name := integration.Name{Account: "acme", ID: fmt.Sprintf("w%d-%d", w, i)}
					if _, err := s.CreateIntegration(t.Context(), start, name, spec("x"), ""); err != nil {
						return err
					}
				}
				return nil
			})
		}()
		seen := map[string]bool{}
		var last int64
		var result []error
		for last < writers*each {
			select {
			case result = <-done:
				if err := errors.Join(result...); err != nil {
					t.Fatal(err)
				}
			default:
			}
			changes, _, err := s.Changes(t.Context(), at(s, last), 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				if c.Revision != last+1 {
					t.Fatalf("revision %d follows %d", c.Revision, last)
				}
				last = c.Revision
				seen[c.Integration.UID] = true
			}
		}
		if result == nil {
			result = <-done
		}
		if err := errors.Join(result...); err != nil {
			t.Fatal(err)
		}
		if len(seen) != writers*each || head(t, s) != writers*each {
			t.Fatalf("saw %d integrations, head %d", len(seen), head(t, s))
		}
	})
}
