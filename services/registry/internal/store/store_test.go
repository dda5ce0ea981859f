package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

var (
	start  = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	later  = start.Add(time.Minute)
	master = integration.Mastership{Shard: 0, Epoch: 10, Holder: "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a001"}
)

const (
	tenant       = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	subscription = "0b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
	requestID    = "9a2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0003"
)

// suite runs a case on a fresh database of each engine.
func suite(t *testing.T, test func(t *testing.T, s *store.Store)) {
	t.Helper()
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) { test(t, open(t, db)) })
}

func open(t *testing.T, db *sqldb.DB) *store.Store {
	t.Helper()
	s, err := store.New(t.Context(), db, quota.Default())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func integrationName(id string) integration.Name { return integration.Name{Account: "acme", ID: id} }
func projectName(id string) project.Name         { return project.Name{Account: "acme", ID: id} }
func attachmentName(p, i string) attachment.Name {
	return attachment.Name{Account: "acme", Project: p, ID: i}
}

func spec(display string) integration.Spec {
	return integration.Spec{
		DisplayName: display, TenantID: tenant, DefaultSubscriptionID: subscription, AllowedAudiences: []string{"https://b.example", "https://a.example"},
		DeliveryMaterials: []integration.Material{integration.MaterialClientSecret, integration.MaterialAccessToken},
	}
}

func makeIntegration(t *testing.T, s *store.Store, id string) integration.Integration {
	t.Helper()
	i, err := s.CreateIntegration(t.Context(), start, integrationName(id), spec(id), "")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func makeProject(t *testing.T, s *store.Store, id string) project.Project {
	t.Helper()
	p, err := s.CreateProject(t.Context(), start, projectName(id), project.Spec{Kind: project.Stack, DisplayName: id}, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func attach(t *testing.T, s *store.Store, p, i string, accesses ...attachment.Access) attachment.Attachment {
	t.Helper()
	a, err := s.CreateAttachment(t.Context(), start, attachmentName(p, i), attachment.Spec{Accesses: accesses}, "")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// changesAfter gives all changes after a revision.
func changesAfter(t *testing.T, s *store.Store, after int64) []change.Change {
	t.Helper()
	changes, head, err := s.Changes(t.Context(), at(s, after), 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if want := after + int64(len(changes)); head != want {
		t.Fatalf("head is %d, with %d changes after %d", head, len(changes), after)
	}
	return changes
}

func head(t *testing.T, s *store.Store) int64 {
	t.Helper()
	h, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h.Revision
}

// at is a position in the store's database.
func at(s *store.Store, revision int64) resource.Position {
	return resource.Position{Incarnation: s.Incarnation(), Revision: revision}
}

// wantError checks the reason and one entry of the metadata, "key=value" or empty.
func wantError(t *testing.T, err, reason error, metadata string) {
	t.Helper()
	if !errors.Is(err, reason) {
		t.Fatalf("got error %v, want %v", err, reason)
	}
	if metadata == "" {
		return
	}
	key, value, _ := strings.Cut(metadata, "=")
	var refusal *resource.Error
	if !errors.As(err, &refusal) || refusal.Metadata[key] != value {
		t.Fatalf("got error %#v, want metadata %s", err, metadata)
	}
}

func TestStore_KeepsIncarnation(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		first, second := open(t, db), open(t, db)
		if first.Incarnation() == "" || first.Incarnation() != second.Incarnation() {
			t.Fatalf("incarnations %q and %q", first.Incarnation(), second.Incarnation())
		}
	})
}

func TestStore_IntegrationComesBackAsCreated(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		created := makeIntegration(t, s, "net")
		want := integration.New(start, integrationName("net"), created.UID, spec("net"))
		want.Incarnation = s.Incarnation()
		if diff := cmp.Diff(want, created); diff != "" {
			t.Fatalf("created (-want +got):\n%s", diff)
		}
		found, err := s.Integration(t.Context(), created.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(created, found); diff != "" {
			t.Fatalf("found (-want +got):\n%s", diff)
		}
		changes := changesAfter(t, s, 0)
		if diff := cmp.Diff([]change.Change{{Revision: 1, Integration: &created}}, changes); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		_, err = s.CreateIntegration(t.Context(), later, created.Name, spec("other"), "")
		wantError(t, err, resource.ErrExists, "name=accounts/acme/integrations/net")
		_, err = s.Integration(t.Context(), integrationName("none"))
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/integrations/none")
	})
}

// What was stored before there were materials to choose from allows none but access tokens.
func TestStore_OldIntegrationsNameNoMaterials(t *testing.T) {
	for engine, config := range map[string]sqldb.Config{"sqlite": sqldbtest.SQLiteConfig(t), "postgres": sqldbtest.PostgresConfig(t)} {
		t.Run(engine, func(t *testing.T) {
			ctx := t.Context()
			first := fstest.MapFS{}
			for _, folder := range []string{"sqlite", "postgres"} {
				name := folder + "/0001_registry.sql"
				text, err := fs.ReadFile(store.Migrations(), name)
				if err != nil {
					t.Fatal(err)
				}
				first[name] = &fstest.MapFile{Data: text}
			}
			old, err := sqldb.Open(ctx, config, first)
			if err != nil {
				t.Fatal(err)
			}
			err = old.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO integrations (uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind,
					allowed_audiences, rotation_period, application_display_name, client_id, service_principal_object_id, conditions,
					ever_active, generation, writes, create_time, update_time, delete_time)
					VALUES ('u', $1, 'old', $2, 'public', '', 'CLIENT_SECRET', 'null', 86400000000, '', '', '', '[]', $3, 1, 1, 1, 1, 0)`,
					integrationName("old").String(), tenant, false)
				return err
			})
			if err := errors.Join(err, old.Close()); err != nil {
				t.Fatal(err)
			}
			db, err := sqldb.Open(ctx, config, store.Migrations())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			found, err := open(t, db).Integration(ctx, integrationName("old"))
			if err != nil || found.Spec.DisplayName != "old" || found.Spec.DeliveryMaterials != nil {
				t.Fatalf("found %+v, %v", found, err)
			}
		})
	}
}

func TestStore_RequestIDIsRememberedForADay(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		first, err := s.CreateIntegration(ctx, start, integrationName("net"), spec("net"), requestID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.UpdateIntegration(ctx, start, first.Name, "", wantDisplayName("changed"), nil); err != nil {
			t.Fatal(err)
		}
		before := head(t, s)
		again, err := s.CreateIntegration(ctx, start.Add(23*time.Hour+59*time.Minute), integrationName("net"), spec("net"), requestID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Fatalf("repeat (-first +again):\n%s", diff)
		}
		_, err = s.CreateIntegration(ctx, later, integrationName("net"), spec("other"), requestID)
		wantError(t, err, resource.ErrRequestIDReused, "request_id="+requestID)
		_, err = s.CreateIntegration(ctx, later, integrationName("other"), spec("net"), requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
		if head(t, s) != before {
			t.Fatal("a repeat made a revision")
		}
		// Another account's request of the same ID, and another method's, are other requests.
		if _, err := s.CreateIntegration(ctx, later, integration.Name{Account: "umbrella", ID: "net"}, spec("net"), requestID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateProject(ctx, later, projectName("net"), project.Spec{Kind: project.Stack}, requestID); err != nil {
			t.Fatal(err)
		}
		// After a day the ID is free, whether or not it has been swept.
		_, err = s.CreateIntegration(ctx, start.Add(24*time.Hour+time.Minute), integrationName("net"), spec("net"), requestID)
		wantError(t, err, resource.ErrExists, "")
		if _, err := s.CreateIntegration(ctx, start.Add(24*time.Hour+time.Minute), integrationName("third"), spec("net"), requestID); err != nil {
			t.Fatal(err)
		}
		if err := s.ForgetRequests(ctx, start.Add(50*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateIntegration(ctx, start.Add(26*time.Hour), integrationName("fourth"), spec("net"), requestID); err != nil {
			t.Fatalf("after forgetting: %v", err)
		}
	})
}

func TestStore_RequestIDCoversProjectsAndAttachments(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		makeIntegration(t, s, "net")
		p, err := s.CreateProject(ctx, start, projectName("stack"), project.Spec{Kind: project.Stack}, requestID)
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.CreateAttachment(ctx, start, attachmentName("stack", "net"), attachment.Spec{}, requestID)
		if err != nil {
			t.Fatal(err)
		}
		p2, err := s.CreateProject(ctx, later, p.Name, project.Spec{Kind: project.Stack}, requestID)
		if diff := cmp.Diff(p, p2); err != nil || diff != "" {
			t.Fatalf("repeat: %v\n%s", err, diff)
		}
		// Both accesses said is the same as none said.
		a2, err := s.CreateAttachment(ctx, later, a.Name, attachment.Spec{Accesses: []attachment.Access{attachment.Write, attachment.Read}}, requestID)
		if diff := cmp.Diff(a, a2); err != nil || diff != "" {
			t.Fatalf("repeat: %v\n%s", err, diff)
		}
		_, err = s.CreateProject(ctx, later, p.Name, project.Spec{Kind: project.Module}, requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
		_, err = s.CreateAttachment(ctx, later, a.Name, attachment.Spec{SubscriptionID: subscription}, requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
	})
}

func wantDisplayName(name string) func(integration.Integration) (integration.Spec, error) {
	return func(i integration.Integration) (integration.Spec, error) {
		next := i.Spec
		next.DisplayName = name
		return next, nil
	}
}

func TestStore_UpdateIntegration(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		created := makeIntegration(t, s, "net")
		same, err := s.UpdateIntegration(ctx, later, created.Name, created.ETag(), wantDisplayName("net"), nil)
		if diff := cmp.Diff(created, same); err != nil || diff != "" {
			t.Fatalf("a change of nothing: %v\n%s", err, diff)
		}
		if head(t, s) != 1 {
			t.Fatal("a change of nothing made a revision")
		}
		updated, err := s.UpdateIntegration(ctx, later, created.Name, created.ETag(), wantDisplayName("renamed"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if updated.Spec.DisplayName != "renamed" || updated.ETag() == created.ETag() || !updated.UpdateTime.Equal(later) || updated.UID != created.UID {
			t.Fatalf("updated to %+v", updated)
		}
		if diff := cmp.Diff([]change.Change{{Revision: 2, Integration: &updated}}, changesAfter(t, s, 1)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		_, err = s.UpdateIntegration(ctx, later, created.Name, created.ETag(), wantDisplayName("again"), nil)
		wantError(t, err, resource.ErrETagMismatch, "")
		tokensOnly, err := s.UpdateIntegration(ctx, later, created.Name, "", func(i integration.Integration) (integration.Spec, error) {
			i.Spec.DeliveryMaterials = nil
			return i.Spec, nil
		}, nil)
		if err != nil || tokensOnly.Spec.DeliveryMaterials != nil || tokensOnly.ETag() == updated.ETag() {
			t.Fatalf("without materials: %+v, %v", tokensOnly, err)
		}
		found, err := s.Integration(ctx, created.Name)
		if diff := cmp.Diff(tokensOnly, found); err != nil || diff != "" {
			t.Fatalf("found without materials: %v\n%s", err, diff)
		}
		if diff := cmp.Diff([]change.Change{{Revision: 3, Integration: &tokensOnly}}, changesAfter(t, s, 2)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		mine := errors.New("refused by the caller")
		_, err = s.UpdateIntegration(ctx, later, created.Name, "", func(integration.Integration) (integration.Spec, error) { return integration.Spec{}, mine }, nil)
		wantError(t, err, mine, "")
		_, err = s.UpdateIntegration(ctx, later, integrationName("none"), "", wantDisplayName("x"), nil)
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/integrations/none")
		if head(t, s) != 3 {
			t.Fatal("a refusal made a revision")
		}
	})
}

func removable(integration.Integration) error { return nil }

func TestStore_IntegrationIsDeletedInTwoSteps(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		created := makeIntegration(t, s, "net")
		makeProject(t, s, "one")
		makeProject(t, s, "two")
		first := attach(t, s, "one", "net")
		second := attach(t, s, "two", "net")

		_, err := s.DeleteIntegration(ctx, later, created.Name, "", false)
		wantError(t, err, integration.ErrAttached, "attachments=2")
		_, err = s.DeleteIntegration(ctx, later, created.Name, "stale", true)
		wantError(t, err, resource.ErrETagMismatch, "")
		before := head(t, s)
		deleting, err := s.DeleteIntegration(ctx, later, created.Name, created.ETag(), true)
		if err != nil {
			t.Fatal(err)
		}
		if deleting.State() != integration.Deleting || !deleting.DeleteTime.Equal(later) || deleting.ETag() == created.ETag() {
			t.Fatalf("deleting: %+v", deleting)
		}
		want := []change.Change{
			{Revision: before + 1, Deleted: true, Attachment: &first},
			{Revision: before + 2, Deleted: true, Attachment: &second},
			{Revision: before + 3, Integration: &deleting},
		}
		if diff := cmp.Diff(want, changesAfter(t, s, before)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}

		again, err := s.DeleteIntegration(ctx, later.Add(time.Hour), created.Name, created.ETag(), false)
		if diff := cmp.Diff(deleting, again); err != nil || diff != "" {
			t.Fatalf("repeat: %v\n%s", err, diff)
		}
		_, err = s.UpdateIntegration(ctx, later, created.Name, "", wantDisplayName("x"), nil)
		wantError(t, err, integration.ErrDeleting, "")
		_, err = s.CreateAttachment(ctx, later, attachmentName("one", "net"), attachment.Spec{}, "")
		wantError(t, err, integration.ErrDeleting, "name=accounts/acme/integrations/net")
		_, err = s.CreateIntegration(ctx, later, created.Name, spec("net"), "")
		wantError(t, err, resource.ErrExists, "")
		if found, _, _, err := s.Integrations(ctx, resource.Page{Parent: "accounts/acme", Size: 10}, nil); err != nil || len(found) != 1 {
			t.Fatalf("while it is deleted the list has %d, %v", len(found), err)
		}

		before = head(t, s)
		for range 2 { // a repeat does nothing
			if err := s.RemoveIntegration(ctx, later, master, created.UID, removable); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]change.Change{{Revision: before + 1, Deleted: true, Integration: &deleting}}, changesAfter(t, s, before)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		_, err = s.Integration(ctx, created.Name)
		wantError(t, err, resource.ErrNotFound, "")
		_, err = s.DeleteIntegration(ctx, later, created.Name, "", false)
		wantError(t, err, resource.ErrNotFound, "")
		if next := makeIntegration(t, s, "net"); next.UID == created.UID {
			t.Fatal("the UID was used again")
		}
	})
}

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

func TestStore_Attachment(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		_, err := s.CreateAttachment(ctx, start, attachmentName("stack", "reader"), attachment.Spec{}, "")
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/projects/stack")
		p := makeProject(t, s, "stack")
		_, err = s.CreateAttachment(ctx, start, attachmentName("stack", "reader"), attachment.Spec{}, "")
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/integrations/reader")
		reader, writer := makeIntegration(t, s, "reader"), makeIntegration(t, s, "writer")

		reads := attach(t, s, "stack", "reader", attachment.Read)
		if reads.ProjectUID != p.UID || reads.IntegrationUID != reader.UID {
			t.Fatalf("attached %+v", reads)
		}
		found, err := s.Attachment(ctx, reads.Name)
		if diff := cmp.Diff(reads, found); err != nil || diff != "" {
			t.Fatalf("found: %v\n%s", err, diff)
		}
		_, err = s.CreateAttachment(ctx, start, reads.Name, attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
		wantError(t, err, resource.ErrExists, "name="+reads.Name.String())
		before := head(t, s)
		_, err = s.CreateAttachment(ctx, start, attachmentName("stack", "writer"), attachment.Spec{}, "")
		wantError(t, err, attachment.ErrAccessTaken, "attachment="+reads.Name.String())
		writes := attach(t, s, "stack", "writer", attachment.Write)
		if writes.IntegrationUID != writer.UID || head(t, s) != before+1 {
			t.Fatalf("attached %+v at %d", writes, head(t, s))
		}

		want := func(spec attachment.Spec) func(attachment.Attachment) (attachment.Spec, error) {
			return func(attachment.Attachment) (attachment.Spec, error) { return spec, nil }
		}
		both := attachment.Spec{Accesses: []attachment.Access{attachment.Write, attachment.Read}}
		_, err = s.UpdateAttachment(ctx, later, reads.Name, "", want(both), nil)
		wantError(t, err, attachment.ErrAccessTaken, "attachment="+writes.Name.String())
		if same, err := s.UpdateAttachment(ctx, later, writes.Name, "", want(writes.Spec), nil); err != nil || !cmp.Equal(same, writes) || head(t, s) != before+1 {
			t.Fatalf("a change of nothing: %+v, %v", same, err)
		}
		wantError(t, s.DeleteAttachment(ctx, later, writes.Name, "stale"), resource.ErrETagMismatch, "")
		if err := s.DeleteAttachment(ctx, later, writes.Name, writes.ETag()); err != nil {
			t.Fatal(err)
		}
		wantError(t, s.DeleteAttachment(ctx, later, writes.Name, ""), resource.ErrNotFound, "")
		updated, err := s.UpdateAttachment(ctx, later, reads.Name, reads.ETag(), want(both), nil)
		if err != nil || !slices.Equal(updated.Spec.Accesses, []attachment.Access{attachment.Read, attachment.Write}) {
			t.Fatalf("updated to %+v, %v", updated, err)
		}
		_, err = s.UpdateAttachment(ctx, later, reads.Name, reads.ETag(), want(reads.Spec), nil)
		wantError(t, err, resource.ErrETagMismatch, "")
		wantChanges := []change.Change{
			{Revision: before + 2, Deleted: true, Attachment: &writes},
			{Revision: before + 3, Attachment: &updated},
		}
		if diff := cmp.Diff(wantChanges, changesAfter(t, s, before+1)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
	})
}

func TestStore_ListsByNameInPages(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		// acme-b sorts, as a string, before acme/…, which must not confuse pages of acme.
		for _, account := range []string{"acme", "acme-b", "b"} {
			for _, id := range []string{"a", "a-1", "a1", "b"} {
				if _, err := s.CreateIntegration(ctx, start, integration.Name{Account: account, ID: id}, spec(id), ""); err != nil {
					t.Fatal(err)
				}
				if _, err := s.CreateProject(ctx, start, project.Name{Account: account, ID: id}, project.Spec{Kind: project.Stack}, ""); err != nil {
					t.Fatal(err)
				}
			}
			for _, p := range []string{"a", "a1"} {
				if _, err := s.CreateAttachment(ctx, start, attachment.Name{Account: account, Project: p, ID: "b"}, attachment.Spec{}, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		lists := map[string]func(page resource.Page) ([]string, resource.Position, error){
			"integrations": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Integrations(ctx, page, nil)
				return names(found, func(i integration.Integration) string { return i.Name.String() }), at, err
			},
			"projects": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Projects(ctx, page, nil)
				return names(found, func(p project.Project) string { return p.Name.String() }), at, err
			},
			"attachments": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Attachments(ctx, page, nil)
				return names(found, func(a attachment.Attachment) string { return a.Name.String() }), at, err
			},
		}
		for _, tt := range []struct {
			list, parent string
			want         []string
		}{
			{"integrations", "accounts/acme", below("accounts/acme/integrations/", "a", "a-1", "a1", "b")},
			{"integrations", "accounts/none", nil},
			{"projects", "accounts/acme-b", below("accounts/acme-b/projects/", "a", "a-1", "a1", "b")},
			{
				"projects", "accounts/-",
				slices.Concat(below("accounts/acme-b/projects/", "a", "a-1", "a1", "b"), below("accounts/acme/projects/", "a", "a-1", "a1", "b"), below("accounts/b/projects/", "a", "a-1", "a1", "b")),
			},
			{"attachments", "accounts/acme/projects/a", below("accounts/acme/projects/", "a/attachments/b")},
			{"attachments", "accounts/acme/projects/-", below("accounts/acme/projects/", "a/attachments/b", "a1/attachments/b")},
			{"attachments", "accounts/-/projects/a1", below("accounts/", "acme-b/projects/a1/attachments/b", "acme/projects/a1/attachments/b", "b/projects/a1/attachments/b")},
			{
				"attachments", "accounts/-/projects/-",
				below("accounts/", "acme-b/projects/a/attachments/b", "acme-b/projects/a1/attachments/b", "acme/projects/a/attachments/b", "acme/projects/a1/attachments/b", "b/projects/a/attachments/b", "b/projects/a1/attachments/b"),
			},
		} {
			for _, size := range []int{1, 3, 100} {
				t.Run(fmt.Sprintf("%s of %s by %d", tt.list, strings.ReplaceAll(tt.parent, "/", "_"), size), func(t *testing.T) {
					var all []string
					page := resource.Page{Parent: tt.parent, Size: size}
					for {
						found, at, err := lists[tt.list](page)
						if err != nil {
							t.Fatal(err)
						}
						if at.Revision != 30 {
							t.Fatalf("at revision %d", at.Revision)
						}
						if len(found) <= size {
							all = append(all, found...)
							break
						}
						all = append(all, found[:size]...)
						page.After = resource.Place{found[size-1]}
					}
					if diff := cmp.Diff(tt.want, all); diff != "" {
						t.Fatalf("(-want +got):\n%s", diff)
					}
				})
			}
		}
	})
}

func names[T any](found []T, name func(T) string) []string {
	var all []string
	for _, one := range found {
		all = append(all, name(one))
	}
	return all
}

func below(prefix string, rest ...string) []string {
	var all []string
	for _, r := range rest {
		all = append(all, prefix+r)
	}
	return all
}

func TestStore_Report(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		created := makeIntegration(t, s, "net")
		ready := integration.Report{
			Conditions:             []integration.Condition{{Type: integration.ApplicationReady, Status: integration.True, Reason: "Proven"}},
			ApplicationDisplayName: "phasekey net", ClientID: "7B2F7A3E-52A5-4C1B-9D3D-0A8C1F4F0009",
		}
		if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		found, err := s.Integration(ctx, created.Name)
		if err != nil {
			t.Fatal(err)
		}
		if found.State() != integration.AwaitingConsent || found.ClientID != strings.ToLower(ready.ClientID) || !found.Conditions[0].LastTransition.Equal(later) {
			t.Fatalf("reported %+v", found)
		}
		if found.ETag() != created.ETag() || !found.UpdateTime.Equal(created.UpdateTime) {
			t.Fatal("a report changed the wanted state")
		}
		if diff := cmp.Diff([]change.Change{{Revision: 2, Integration: &found}}, changesAfter(t, s, 1)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
		if err := s.Report(ctx, later.Add(time.Hour), master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		if head(t, s) != 2 {
			t.Fatal("the same report made a revision")
		}
		// What is said in other words is kept, and told with the next change.
		for _, message := range []string{"one", "two", "one"} {
			ready.Conditions[0].Message = message
			if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
				t.Fatal(err)
			}
			if found, err = s.Integration(ctx, created.Name); err != nil || found.Conditions[0].Message != message || head(t, s) != 2 {
				t.Fatalf("reported %+v, %v; head %d", found, err, head(t, s))
			}
		}
		ready.Conditions[0].Reason = "Seen"
		if err := s.Report(ctx, later, master, created.UID, ready); err != nil {
			t.Fatal(err)
		}
		if told := changesAfter(t, s, 2); len(told) != 1 || told[0].Integration.Conditions[0].Message != "one" || told[0].Integration.Conditions[0].Reason != "Seen" {
			t.Fatalf("told %+v", told)
		}
		wantError(t, s.Report(ctx, later, master, "7b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0010", ready), resource.ErrNotFound, "")
		mine := errors.New("not deleting")
		wantError(t, s.RemoveIntegration(ctx, later, master, created.UID, func(integration.Integration) error { return mine }), mine, "")
		if err := s.RemoveIntegration(ctx, later, master, "7b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0010", removable); !errors.Is(err, resource.ErrNotFound) {
			t.Fatalf("removed what never was: %v", err)
		}
	})
}

func TestStore_ReportIsFenced(t *testing.T) {
	other := "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"
	for _, tt := range []struct {
		name    string
		by      integration.Mastership
		refused bool
	}{
		{"the same again", master, false},
		{"an older epoch", integration.Mastership{Epoch: 9, Holder: master.Holder}, true},
		{"an older epoch of another holder", integration.Mastership{Epoch: 9, Holder: other}, true},
		{"the same epoch of another holder", integration.Mastership{Epoch: 10, Holder: other}, true},
		{"a newer epoch", integration.Mastership{Epoch: 11, Holder: other}, false},
		// The number of shards has changed, and with it the shard that the integration belongs to.
		{"an older epoch of another shard", integration.Mastership{Shard: 3, Epoch: 9, Holder: other}, true},
		{"the same epoch of another shard", integration.Mastership{Shard: 3, Epoch: 10, Holder: other}, true},
		{"a newer epoch of another shard", integration.Mastership{Shard: 3, Epoch: 11, Holder: other}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				ctx := t.Context()
				i := makeIntegration(t, s, "net")
				if err := s.Report(ctx, later, master, i.UID, integration.Report{ApplicationDisplayName: "first"}); err != nil {
					t.Fatal(err)
				}
				err := s.Report(ctx, later, tt.by, i.UID, integration.Report{ApplicationDisplayName: "second"})
				if !tt.refused {
					if err != nil || head(t, s) != 3 {
						t.Fatalf("got %v, head %d", err, head(t, s))
					}
					return
				}
				wantError(t, err, resource.ErrFenced, "")
				wantError(t, s.RemoveIntegration(ctx, later, tt.by, i.UID, removable), resource.ErrFenced, "")
				if head(t, s) != 2 {
					t.Fatal("a fenced report was stored")
				}
				if err := s.Report(ctx, later, master, i.UID, integration.Report{ApplicationDisplayName: "third"}); err != nil {
					t.Fatalf("a refusal moved the fence: %v", err)
				}
			})
		})
	}
}

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

func TestStore_SaysThatItCommitted(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		makeProject(t, s, "one")
		makeProject(t, s, "two")
		<-s.Committed()
		if _, err := s.UpdateProject(t.Context(), later, projectName("one"), "", func(p project.Project) (project.Spec, error) { return p.Spec, nil }, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Committed():
			t.Fatal("a write without a change was told")
		default:
		}
	})
}

// together runs n calls at once and gives their errors.
func together(n int, call func(i int) error) []error {
	found := make([]error, n)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-begin
			found[i] = call(i)
		})
	}
	close(begin)
	all.Wait()
	return found
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

func TestStore_RacesHaveOneWinner(t *testing.T) {
	const racers = 6
	for _, tt := range []struct {
		name   string
		set    func(t *testing.T, s *store.Store)
		call   func(t *testing.T, s *store.Store, i int) error
		losers error
	}{
		{
			name: "one access, several integrations",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				for i := range racers {
					makeIntegration(t, s, fmt.Sprint("i", i))
				}
			},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", fmt.Sprint("i", i)), attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
				return err
			},
			losers: attachment.ErrAccessTaken,
		},
		{
			name: "one access, several updates",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				makeIntegration(t, s, "i0")
				makeIntegration(t, s, "i1")
				attach(t, s, "stack", "i0", attachment.Read)
			},
			// The first racer widens the one attachment to WRITE, the others attach for WRITE, under one name.
			call: func(t *testing.T, s *store.Store, i int) error {
				if i == 0 {
					_, err := s.UpdateAttachment(t.Context(), start, attachmentName("stack", "i0"), "", func(attachment.Attachment) (attachment.Spec, error) {
						return attachment.Spec{}, nil
					}, nil)
					return err
				}
				_, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", "i1"), attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
				if errors.Is(err, resource.ErrExists) {
					return attachment.ErrAccessTaken // another creator won
				}
				return err
			},
			losers: attachment.ErrAccessTaken,
		},
		{
			name: "one name",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateIntegration(t.Context(), start, integrationName("net"), spec(fmt.Sprint(i)), "")
				return err
			},
			losers: resource.ErrExists,
		},
		{
			name: "one integration by several updates, and one creation",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				created := false
				var err error
				if i == 0 {
					_, err = s.CreateIntegration(t.Context(), start, integrationName("net"), spec("net"), "")
					created = err == nil
				} else {
					_, err = s.UpdateIntegration(t.Context(), start, integrationName("net"), "",
						func(current integration.Integration) (integration.Spec, error) {
							created = false // an attempt before may have been undone
							return current.Spec, nil
						},
						func() (integration.Spec, error) {
							created = true
							return spec("net"), nil
						})
				}
				switch {
				case err != nil && !errors.Is(err, resource.ErrExists):
					return err
				case created:
					return nil
				}
				return resource.ErrConflict // agreed on: not the creator
			},
			losers: resource.ErrConflict,
		},
		{
			name: "one attachment by several updates, and one creation",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				makeIntegration(t, s, "net")
			},
			call: func(t *testing.T, s *store.Store, i int) error {
				created := false
				var err error
				if i == 0 {
					_, err = s.CreateAttachment(t.Context(), start, attachmentName("stack", "net"), attachment.Spec{}, "")
					created = err == nil
				} else {
					_, err = s.UpdateAttachment(t.Context(), start, attachmentName("stack", "net"), "",
						func(current attachment.Attachment) (attachment.Spec, error) {
							created = false
							return current.Spec, nil
						},
						func() (attachment.Spec, error) {
							created = true
							return attachment.Spec{}, nil
						})
				}
				switch {
				case err != nil && !errors.Is(err, resource.ErrExists):
					return err
				case created:
					return nil
				}
				return resource.ErrConflict // agreed on: not the creator
			},
			losers: resource.ErrConflict,
		},
		{
			name: "one request ID with different contents",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateIntegration(t.Context(), start, integrationName(fmt.Sprint("i", i)), spec("x"), requestID)
				return err
			},
			losers: resource.ErrRequestIDReused,
		},
		{
			name: "one etag",
			set:  func(t *testing.T, s *store.Store) { makeIntegration(t, s, "net") },
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.UpdateIntegration(t.Context(), later, integrationName("net"), "", func(current integration.Integration) (integration.Spec, error) {
					if current.Generation != 1 {
						return integration.Spec{}, resource.ErrETagMismatch
					}
					return wantDisplayName(fmt.Sprint("name ", i))(current)
				}, nil)
				return err
			},
			losers: resource.ErrETagMismatch,
		},
		{
			name: "attaching and deleting",
			set: func(t *testing.T, s *store.Store) {
				makeIntegration(t, s, "net")
				for i := range racers {
					makeProject(t, s, fmt.Sprint("p", i))
				}
			},
			// Either everybody attaches, and deleting is refused; or deleting wins, and those who come later are refused. What must not be is
			// an attachment of an integration that is being deleted, which the last racer looks for.
			call: func(t *testing.T, s *store.Store, i int) error {
				if i%2 == 0 {
					_, err := s.CreateAttachment(t.Context(), start, attachmentName(fmt.Sprint("p", i), "net"), attachment.Spec{}, "")
					if err != nil && !errors.Is(err, integration.ErrDeleting) {
						return err
					}
				} else if _, err := s.DeleteIntegration(t.Context(), later, integrationName("net"), "", false); err != nil && !errors.Is(err, integration.ErrAttached) {
					return err
				}
				net, err := s.Integration(t.Context(), integrationName("net"))
				if err != nil {
					return err
				}
				attached, _, _, err := s.Attachments(t.Context(), resource.Page{Parent: "accounts/-/projects/-", Size: 100}, nil)
				if err != nil {
					return err
				}
				if net.Deleting() && len(attached) > 0 {
					return fmt.Errorf("%d attachments of an integration that is being deleted", len(attached))
				}
				if i == 0 {
					return nil
				}
				return resource.ErrConflict // agreed on: not the winner
			},
			losers: resource.ErrConflict,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				tt.set(t, s)
				won := 0
				for i, err := range together(racers, func(i int) error { return tt.call(t, s, i) }) {
					switch {
					case err == nil:
						won++
					case !errors.Is(err, tt.losers):
						t.Errorf("racer %d: %v, want %v", i, err, tt.losers)
					}
				}
				if won != 1 {
					t.Errorf("%d won", won)
				}
			})
		})
	}
}

func TestStore_OneRequestAtOnceHasOneResult(t *testing.T) {
	for _, tt := range []struct {
		name   string
		create func(t *testing.T, s *store.Store) (uid string, err error)
	}{
		{"integration", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateIntegration(t.Context(), start, integrationName("new"), spec("net"), requestID)
			return created.UID, err
		}},
		{"project", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateProject(t.Context(), start, projectName("new"), project.Spec{Kind: project.Stack}, requestID)
			return created.UID, err
		}},
		{"attachment", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", "net"), attachment.Spec{}, requestID)
			return created.UID, err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				makeIntegration(t, s, "net")
				makeProject(t, s, "stack")
				const racers = 6
				var uids [racers]string
				for _, err := range together(racers, func(i int) (err error) {
					uids[i], err = tt.create(t, s)
					return err
				}) {
					if err != nil {
						t.Error(err)
					}
				}
				for _, uid := range uids {
					if uid != uids[0] {
						t.Fatalf("got %v", uids)
					}
				}
				if head(t, s) != 3 {
					t.Fatalf("%d revisions", head(t, s))
				}
			})
		})
	}
}

// A report of an impossible epoch, which would shut the shard's vaults out, leaves the fence where it was.
func TestStore_ReportOfAnImpossibleEpoch(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		i := makeIntegration(t, s, "net")
		for _, tt := range []struct {
			name  string
			epoch int64
			ok    bool
		}{
			{"for ever", 1<<63 - 1, false},
			{"in two days", later.Add(48 * time.Hour).UnixMicro(), false},
			{"just too far", later.Add(24*time.Hour).UnixMicro() + 1, false},
			{"now", later.UnixMicro(), true},
			{"as far as clocks may differ", later.Add(24 * time.Hour).UnixMicro(), true},
		} {
			by := integration.Mastership{Epoch: tt.epoch, Holder: master.Holder}
			err := s.Report(ctx, later, by, i.UID, integration.Report{ApplicationDisplayName: tt.name})
			if tt.ok && err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if !tt.ok {
				wantError(t, err, resource.ErrInvalid, "")
				wantError(t, s.RemoveIntegration(ctx, later, by, i.UID, removable), resource.ErrInvalid, "")
			}
		}
	})
}

// TestStore_OlderReportNeverLandsLast has two masterships report at once, many times: once the newer one has been taken in, nothing of the older may change
// the integration.
func TestStore_OlderReportNeverLandsLast(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		i := makeIntegration(t, s, "net")
		newer := integration.Mastership{Epoch: master.Epoch + 1, Holder: "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"}
		results := together(2, func(who int) error {
			by, name := master, "old"
			if who == 1 {
				by, name = newer, "new"
			}
			for n := range 25 {
				err := s.Report(t.Context(), later, by, i.UID, integration.Report{ApplicationDisplayName: fmt.Sprint(name, n)})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if results[1] != nil {
			t.Fatal(results[1])
		}
		if results[0] != nil && !errors.Is(results[0], resource.ErrFenced) {
			t.Fatal(results[0])
		}
		seenNew := false
		for _, c := range changesAfter(t, s, 1) {
			isNew := strings.HasPrefix(c.Integration.ApplicationDisplayName, "new")
			if seenNew && !isNew {
				t.Fatalf("revision %d is of the older mastership", c.Revision)
			}
			seenNew = seenNew || isNew
		}
	})
}
