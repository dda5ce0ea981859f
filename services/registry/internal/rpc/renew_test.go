package rpc_test

import (
	"fmt"
	"log/slog"
	"testing"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/rpc"
	"phasekey.dev/services/registry/internal/store"
)

// newReplica is a registry that has no watch, and so hears of nothing that others do with the database.
func newReplica(t *testing.T, db *sqldb.DB) clients {
	t.Helper()
	s, err := store.New(t.Context(), db, quota.Default())
	if err != nil {
		t.Fatal(err)
	}
	server := grpctest.Start(t, grpctest.Config{
		Register:   rpc.Register(rpc.Config{Store: s, Trial: s.Trial(), Rules: rules}),
		Policy:     grpcserver.OptionPolicy(optionsv1.E_Callers),
		Log:        slog.New(slog.DiscardHandler),
		Identities: []grpcserver.Identity{{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: []string{grpcserver.AllAccounts}}},
	})
	return clientsOf(server.Dial(t, "spiffe://phasekey.dev/platform"))
}

// A page token of a database that was restored since is refused by a replica that has not heard of it, and one of the database as it is now is taken by
// a replica that has not heard of it either.
func TestPageTokens_AreOfTheDatabaseThatIsRead(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		first := newReplica(t, db)
		for n := range 3 {
			if _, err := first.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
				Parent: "accounts/acme", IntegrationId: fmt.Sprint("i", n), Integration: &registryv1.Integration{
					DisplayName: "Net", TenantId: tenant, DefaultSubscriptionId: subscription, Labels: []string{resource.AutoAttachPrefix + "prod"}, AutoAttach: true,
				},
			}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := first.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{
			Parent: "accounts/acme", ProjectId: "stack", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, Labels: []string{"prod"}},
		}); err != nil {
			t.Fatal(err)
		}
		for name, list := range map[string]func(c clients, token string) (next string, err error){
			"integrations": func(c clients, token string) (string, error) {
				got, err := c.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/acme", PageSize: 1, PageToken: token})
				return got.GetNextPageToken(), err
			},
			"effective attachments": func(c clients, token string) (string, error) {
				got, err := c.attachments.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: "accounts/acme/projects/stack", PageSize: 1, PageToken: token})
				return got.GetNextPageToken(), err
			},
		} {
			t.Run(name, func(t *testing.T) {
				old, former, fresh := newReplica(t, db), newReplica(t, db), newReplica(t, db)
				token, err := list(old, "")
				if err != nil || token == "" {
					t.Fatalf("token %q, %v", token, err)
				}
				if _, _, err := store.Renew(ctx, db); err != nil {
					t.Fatal(err)
				}
				_, err = list(former, token)
				badPageToken.check(t, err)
				_, err = list(former, token) // which has heard of it now
				badPageToken.check(t, err)
				token, err = list(old, "")
				if err != nil {
					t.Fatal(err)
				}
				if next, err := list(fresh, token); err != nil || next == "" {
					t.Errorf("the next page: token %q, %v", next, err)
				}
			})
		}
	})
}
