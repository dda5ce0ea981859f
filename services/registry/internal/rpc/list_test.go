package rpc_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/store"
)

// listed are the IDs of all pages of so many; each page but the last has so many.
func listed[R interface{ GetNextPageToken() string }, M interface{ GetName() string }](t *testing.T, size int, page func(token string) (R, error), items func(R) []M) []string {
	t.Helper()
	var all []string
	token := ""
	for {
		got, err := page(token)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range items(got) {
			all = append(all, item.GetName()[strings.LastIndex(item.GetName(), "/")+1:])
		}
		if token = got.GetNextPageToken(); token == "" {
			return all
		}
		if len(items(got)) != size {
			t.Fatalf("%d on a page of %d that is not the last", len(items(got)), size)
		}
	}
}

func (c clients) listIntegrations(t *testing.T, size int, filter, orderBy string) []string {
	t.Helper()
	return listed(t, size, func(token string) (*registryv1.ListIntegrationsResponse, error) {
		return c.integrations.ListIntegrations(t.Context(), &registryv1.ListIntegrationsRequest{
			Parent: "accounts/acme", PageSize: int32(size), PageToken: token, Filter: filter, OrderBy: orderBy,
		})
	}, (*registryv1.ListIntegrationsResponse).GetIntegrations)
}

func (c clients) listProjects(t *testing.T, size int, filter, orderBy string) []string {
	t.Helper()
	return listed(t, size, func(token string) (*registryv1.ListProjectsResponse, error) {
		return c.projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{
			Parent: "accounts/acme", PageSize: int32(size), PageToken: token, Filter: filter, OrderBy: orderBy,
		})
	}, (*registryv1.ListProjectsResponse).GetProjects)
}

func (c clients) listAttachments(t *testing.T, size int, filter, orderBy string) []string {
	t.Helper()
	return listed(t, size, func(token string) (*registryv1.ListAttachmentsResponse, error) {
		return c.attachments.ListAttachments(t.Context(), &registryv1.ListAttachmentsRequest{
			Parent: "accounts/acme/projects/-", PageSize: int32(size), PageToken: token, Filter: filter, OrderBy: orderBy,
		})
	}, (*registryv1.ListAttachmentsResponse).GetAttachments)
}

// TestLists goes through filters and orders over the real chain, on both engines, in pages of every size.
func TestLists(t *testing.T) {
	for engine, open := range map[string]func(t *testing.T) *sqldb.DB{
		"sqlite":   func(t *testing.T) *sqldb.DB { return sqldbtest.SQLite(t, store.Migrations()) },
		"postgres": func(t *testing.T) *sqldb.DB { return sqldbtest.Postgres(t, store.Migrations()) },
	} {
		t.Run(engine, func(t *testing.T) {
			w := newWorldOn(t, open(t), quota.Default())
			ctx := t.Context()
			// Made in this order; the store takes the time, so that it is known.
			day := func(n int) time.Time { return time.Date(2024, 1, n, 0, 0, 0, 0, time.UTC) }
			for n, i := range []struct {
				id   string
				spec integration.Spec
			}{
				{"d", integration.Spec{DisplayName: "zebra", Labels: []string{"autoattach:production", "net"}, AutoAttach: true, DefaultSubscriptionID: subscription}},
				{"b", integration.Spec{DisplayName: "Zebra", Labels: []string{"net"}, Cloud: "china"}},
				{"c", integration.Spec{DisplayName: "Äpfel", Labels: []string{"autoattach:production"}}},
				{"a", integration.Spec{DisplayName: "Zebra"}},
				{"e", integration.Spec{DisplayName: "a_z%"}},
			} {
				i.spec.TenantID = tenant
				if _, err := w.store.CreateIntegration(ctx, day(n+1), integration.Name{Account: "acme", ID: i.id}, i.spec, ""); err != nil {
					t.Fatal(err)
				}
			}
			w.integration(t, "umbrella", "x")
			for n, id := range []string{"two", "one", "three"} {
				spec := project.Spec{Kind: project.Stack, DisplayName: strings.ToUpper(id), Labels: []string{"production"}}
				if id == "one" {
					spec = project.Spec{Kind: project.Module}
				}
				if _, err := w.store.CreateProject(ctx, day(n+1), project.Name{Account: "acme", ID: id}, spec, ""); err != nil {
					t.Fatal(err)
				}
			}
			w.attachment(t, "accounts/acme/projects/one", "accounts/acme/integrations/a", typev1.Access_ACCESS_READ)
			w.attachment(t, "accounts/acme/projects/one", "accounts/acme/integrations/b", typev1.Access_ACCESS_WRITE)
			w.attachment(t, "accounts/acme/projects/two", "accounts/acme/integrations/c")
			if _, err := w.platform.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: "accounts/acme/integrations/e"}); err != nil {
				t.Fatal(err)
			}

			for _, tt := range []struct {
				list            func(t *testing.T, size int, filter, orderBy string) []string
				filter, orderBy string
				want            string
			}{
				{w.limited.listIntegrations, "", "", "a b c d e"},
				{w.limited.listIntegrations, "", "name desc", "e d c b a"},
				{w.limited.listIntegrations, "", "create_time", "d b c a e"},
				{w.limited.listIntegrations, "", "create_time desc", "e a c b d"},
				{w.limited.listIntegrations, "", "update_time desc", "e a c b d"},
				// By bytes: capitals first, and all that is not ASCII last.
				{w.limited.listIntegrations, "", "display_name", "a b e d c"},
				{w.limited.listIntegrations, "", " display_name ,  create_time desc ", "a b e d c"},
				{w.limited.listIntegrations, "", "display_name,create_time", "b a e d c"},
				{w.limited.listIntegrations, "", "display_name desc,name desc", "c d e b a"},
				{w.limited.listIntegrations, "", "display_name desc", "c d e a b"},
				{w.limited.listIntegrations, "", "name,create_time desc", "a b c d e"},
				{w.limited.listIntegrations, `labels:"autoattach:production" AND auto_attach = true`, "create_time desc", "d"},
				{w.limited.listIntegrations, `labels:net`, "create_time desc", "b d"},
				{w.limited.listIntegrations, `NOT labels:net`, "", "a c e"},
				{w.limited.listIntegrations, `labels:"autoattach"`, "", ""},
				{w.limited.listIntegrations, `state = DELETING`, "", "e"},
				{w.limited.listIntegrations, `state != STATE_DELETING AND display_name = Zebra`, "", "a b"},
				{w.limited.listIntegrations, `display_name:"%"`, "", "e"},
				{w.limited.listIntegrations, `cloud = china OR cloud = "germany"`, "", "b"},
				{w.limited.listIntegrations, `tenant_id = "` + tenant + `"`, "", "a b c d e"},
				{w.limited.listIntegrations, `credential_kind = CLIENT_SECRET AND client_id = ""`, "", "a b c d e"},
				{w.limited.listIntegrations, `default_subscription_id:*`, "", "d"},
				{w.limited.listIntegrations, `name = "accounts/acme/integrations/c"`, "", "c"},
				{w.limited.listIntegrations, `create_time > "2024-01-02T00:00:00Z" AND create_time < "2024-01-05T01:00:00+01:00"`, "name desc", "c a"},
				{w.limited.listIntegrations, `update_time > "2024-02-01T00:00:00Z"`, "", "e"},
				{w.limited.listProjects, "kind = STACK", "", "three two"},
				{w.limited.listProjects, "kind != KIND_STACK OR labels:production", "create_time", "two one three"},
				{w.limited.listProjects, `labels:"production" AND display_name:T`, "display_name desc", "two three"},
				{w.limited.listProjects, `-display_name:*`, "", "one"},
				{w.limited.listProjects, `update_time = "2024-01-03T00:00:00Z"`, "", "three"},
				{w.limited.listAttachments, "accesses:WRITE", "", "b c"},
				{w.limited.listAttachments, `accesses:WRITE AND integration = "accounts/acme/integrations/c"`, "", "c"},
				{w.limited.listAttachments, `accesses:ACCESS_READ`, "create_time desc", "c a"},
				{w.limited.listAttachments, `name:"/one/"`, "name desc", "b a"},
				{w.limited.listAttachments, `subscription_id = "" AND integration_uid:* AND project_uid:* AND uid:*`, "", "a b c"},
				{w.limited.listAttachments, `create_time > "2024-01-01T00:00:00Z"`, "update_time desc", "c b a"},
			} {
				for _, size := range []int{1, 2, 100} {
					t.Run(fmt.Sprintf("%s by %s, %d", tt.filter, tt.orderBy, size), func(t *testing.T) {
						if diff := cmp.Diff(tt.want, strings.Join(tt.list(t, size, tt.filter, tt.orderBy), " ")); diff != "" {
							t.Fatalf("(-want +got):\n%s", diff)
						}
					})
				}
			}
		})
	}
}

func TestLists_Refuse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, id := range []string{"a", "b", "c"} {
		w.integration(t, "acme", id)
	}
	req := func(change func(*registryv1.ListIntegrationsRequest)) *registryv1.ListIntegrationsRequest {
		r := &registryv1.ListIntegrationsRequest{Parent: "accounts/acme", PageSize: 1, Filter: "state = PROVISIONING", OrderBy: "create_time desc"}
		change(r)
		return r
	}
	first, err := w.platform.integrations.ListIntegrations(ctx, req(func(*registryv1.ListIntegrationsRequest) {}))
	if err != nil {
		t.Fatal(err)
	}
	token := first.GetNextPageToken()
	for _, tt := range []struct {
		name   string
		change func(*registryv1.ListIntegrationsRequest)
		want   refusal
	}{
		{"unknown field", func(r *registryv1.ListIntegrationsRequest) { r.Filter = "etag = x" }, invalidFields("filter")},
		{"not for filters", func(r *registryv1.ListIntegrationsRequest) { r.Filter = "conditions:*" }, invalidFields("filter")},
		{"broken", func(r *registryv1.ListIntegrationsRequest) { r.Filter = `labels:"net` }, invalidFields("filter")},
		{"other list's field", func(r *registryv1.ListIntegrationsRequest) { r.Filter = "kind = STACK" }, invalidFields("filter")},
		{"too long", func(r *registryv1.ListIntegrationsRequest) { r.Filter = strings.Repeat(" ", 2001) }, invalidFields("filter")},
		{"too long in bytes", func(r *registryv1.ListIntegrationsRequest) { r.Filter = `labels:"` + strings.Repeat("é", 1000) + `"` }, invalidFields("filter")},
		{"unknown order", func(r *registryv1.ListIntegrationsRequest) { r.OrderBy = "uid" }, invalidFields("order_by")},
		{"order and injection", func(r *registryv1.ListIntegrationsRequest) { r.OrderBy = "name; DROP TABLE integrations" }, invalidFields("order_by")},
		{"order of neither direction", func(r *registryv1.ListIntegrationsRequest) { r.OrderBy = "name descending" }, invalidFields("order_by")},
		{"nothing between commas", func(r *registryv1.ListIntegrationsRequest) { r.OrderBy = "name,,create_time" }, invalidFields("order_by")},
		{"order twice", func(r *registryv1.ListIntegrationsRequest) { r.OrderBy = "create_time,create_time desc" }, invalidFields("order_by")},
		{"token of another filter", func(r *registryv1.ListIntegrationsRequest) { r.PageToken, r.Filter = token, "" }, badPageToken},
		{"token of another order", func(r *registryv1.ListIntegrationsRequest) { r.PageToken, r.OrderBy = token, "create_time" }, badPageToken},
		{"token of another parent", func(r *registryv1.ListIntegrationsRequest) { r.PageToken, r.Parent = token, "accounts/-" }, badPageToken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.platform.integrations.ListIntegrations(ctx, req(tt.change))
			tt.want.check(t, err)
		})
	}
	second, err := w.platform.integrations.ListIntegrations(ctx, req(func(r *registryv1.ListIntegrationsRequest) { r.PageToken, r.PageSize = token, 2 }))
	if err != nil || len(second.GetIntegrations()) != 2 {
		t.Fatalf("the size may change: %v, %v", second, err)
	}
	_, err = w.platform.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: "accounts/acme/projects/-", OrderBy: "display_name"})
	invalidFields("order_by").check(t, err)
	_, err = w.limited.integrations.ListIntegrations(ctx, req(func(r *registryv1.ListIntegrationsRequest) { r.Parent, r.Filter = "accounts/umbrella", "?" }))
	otherAccount.check(t, err)
}
