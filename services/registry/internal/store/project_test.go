package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_Project(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		rename := func(to string) func(project.Project) (project.Spec, error) {
			return func(p project.Project) (project.Spec, error) {
				return project.Spec{Kind: p.Spec.Kind, DisplayName: to}, nil
			}
		}
		created := makeProject(t, s, "stack")
		found, err := s.Project(ctx, created.Name)
		if diff := cmp.Diff(created, found); err != nil || diff != "" {
			t.Fatalf("found: %v\n%s", err, diff)
		}
		_, err = s.CreateProject(ctx, later, created.Name, created.Spec, "")
		wantError(t, err, resource.ErrExists, "name=accounts/acme/projects/stack")
		if same, err := s.UpdateProject(ctx, later, created.Name, "", rename("stack"), nil); err != nil || !cmp.Equal(same, created) || head(t, s) != 1 {
			t.Fatalf("a change of nothing: %+v, %v, head %d", same, err, head(t, s))
		}
		updated, err := s.UpdateProject(ctx, later, created.Name, created.ETag(), rename("new"), nil)
		if err != nil || updated.Spec.DisplayName != "new" || updated.ETag() == created.ETag() {
			t.Fatalf("updated to %+v, %v", updated, err)
		}
		_, err = s.UpdateProject(ctx, later, created.Name, created.ETag(), rename("newer"), nil)
		wantError(t, err, resource.ErrETagMismatch, "")

		_, err = s.UpdateProject(ctx, later, projectName("other"), "", rename("x"), nil)
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/projects/other")
		missing := func() (project.Spec, error) { return project.Spec{Kind: project.Module}, nil }
		_, err = s.UpdateProject(ctx, later, projectName("other"), "some", rename("x"), missing)
		wantError(t, err, resource.ErrETagMismatch, "")
		made, err := s.UpdateProject(ctx, later, projectName("other"), "", rename("x"), missing)
		if err != nil || made.Spec.Kind != project.Module || made.UID == "" {
			t.Fatalf("made %+v, %v", made, err)
		}

		makeIntegration(t, s, "net")
		a := attach(t, s, "stack", "net")
		wantError(t, s.DeleteProject(ctx, later, created.Name, "", false), project.ErrAttached, "attachments=1")
		wantError(t, s.DeleteProject(ctx, later, created.Name, "stale", true), resource.ErrETagMismatch, "")
		before := head(t, s)
		if err := s.DeleteProject(ctx, later, created.Name, updated.ETag(), true); err != nil {
			t.Fatal(err)
		}
		want := []change.Change{
			{Revision: before + 1, Deleted: true, Attachment: &a},
			{Revision: before + 2, Deleted: true, Project: &updated},
		}
		if diff := cmp.Diff(want, changesAfter(t, s, before)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		wantError(t, s.DeleteProject(ctx, later, created.Name, "", false), resource.ErrNotFound, "")
		if next := makeProject(t, s, "stack"); next.UID == created.UID {
			t.Fatal("the UID was used again")
		}
	})
}
