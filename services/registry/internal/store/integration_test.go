package store_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

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
			i.Spec.DeliveryMaterials, i.Spec.CredentialKind = nil, integration.Federated
			return i.Spec, nil
		}, nil)
		if err != nil || tokensOnly.Spec.DeliveryMaterials != nil || tokensOnly.Spec.CredentialKind != integration.Federated || tokensOnly.ETag() == updated.ETag() {
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

		for _, etag := range []string{"", deleting.ETag()} {
			again, err := s.DeleteIntegration(ctx, later.Add(time.Hour), created.Name, etag, false)
			if diff := cmp.Diff(deleting, again); err != nil || diff != "" {
				t.Fatalf("repeat, with the etag %q: %v\n%s", etag, err, diff)
			}
		}
		// Who has seen it before it was deleted is told so.
		_, err = s.DeleteIntegration(ctx, later, created.Name, created.ETag(), true)
		wantError(t, err, resource.ErrETagMismatch, "")
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
