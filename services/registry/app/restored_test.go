package app_test

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/app"
)

// backup copies a private database, which nobody may be using, and gives a function that puts the copy into its place, whoever uses it then.
func backup(t *testing.T, database sqldb.Config) (restore func()) {
	t.Helper()
	name := database.DSN[strings.Index(database.DSN, "dbname=")+len("dbname="):]
	admin := database
	admin.DSN = strings.Replace(database.DSN, "dbname="+name, "dbname=postgres", 1)
	sqldbtest.ExecPostgres(t, admin, `CREATE DATABASE `+name+`_backup TEMPLATE `+name)
	return func() {
		sqldbtest.ExecPostgres(t, admin, `DROP DATABASE `+name+` WITH (FORCE)`)
		sqldbtest.ExecPostgres(t, admin, `ALTER DATABASE `+name+`_backup RENAME TO `+name)
	}
}

func TestRestored_UnderARunningReplica(t *testing.T) {
	database := sqldbtest.PostgresConfig(t)
	f := newFixture(t, database)
	const vaultID = "spiffe://phasekey.dev/vault"
	f.cfg.Identities = append(f.cfg.Identities, grpcserver.Identity{ID: vaultID, Role: "vault", Accounts: []string{grpcserver.AllAccounts}})
	_, stop := f.run(t)
	stop()
	restore := backup(t, database)

	a, _ := f.run(t)
	conn := f.dial(t, a.Addr().String(), platformID)
	const service = "phasekey.registry.v1.ProjectService"
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
	projects := registryv1.NewProjectServiceClient(conn)
	create := func(id string) error {
		_, err := projects.CreateProject(t.Context(), &registryv1.CreateProjectRequest{
			Parent: "accounts/acme", ProjectId: id, Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
		})
		return err
	}
	for _, id := range []string{"lost", "gone"} {
		if err := create(id); err != nil {
			t.Fatal(err)
		}
	}
	list, err := projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: "accounts/acme"})
	if err != nil || list.GetRevision() != 2 {
		t.Fatalf("got %v, %v", list, err)
	}
	watches := registryv1.NewWatchServiceClient(f.dial(t, a.Addr().String(), vaultID))
	watch := func(cursor string) (*registryv1.WatchResponse, error) {
		stream, err := watches.Watch(t.Context(), &registryv1.WatchRequest{Cursor: cursor})
		if err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	stream, err := watches.Watch(t.Context(), &registryv1.WatchRequest{Cursor: list.GetCursor()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	// The database is an older one, and nobody has said so: nothing is served, or changed.
	restore()
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if err := create("new"); status.Code(err) != codes.Unavailable {
		t.Fatalf("a write into a database that went back: %v", err)
	}

	var told bytes.Buffer
	if err := app.Restored(t.Context(), f.cfg, &told); err != nil {
		t.Fatal(err)
	}
	if said := told.String(); !strings.Contains(said, "at revision 0") {
		t.Errorf("it told %q", said)
	}
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
	// Revisions come again, of other changes: nobody may take them for those that were lost.
	for _, id := range []string{"new", "other", "third"} {
		if err := create(id); err != nil {
			t.Fatal(err)
		}
	}
	for {
		got, err := stream.Recv()
		if err == nil && len(got.GetEvents()) == 0 {
			continue // a bookmark from before
		}
		if rpcerr.Reason(err) != "CURSOR_OUT_OF_RANGE" && rpcerr.Reason(err) != "DEPENDENCY_UNAVAILABLE" {
			t.Fatalf("the watch goes on: %v, %v", got, err)
		}
		break
	}
	if got, err := watch(list.GetCursor()); rpcerr.Reason(err) != "CURSOR_OUT_OF_RANGE" {
		t.Fatalf("the old cursor: %v, %v", got, err)
	}
	again, err := projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: "accounts/acme"})
	if err != nil || len(again.GetProjects()) != 3 || again.GetRevision() != 3 {
		t.Fatalf("got %v, %v", again, err)
	}
	if got, err := watch(again.GetCursor()); err != nil || got.GetRevision() != 3 {
		t.Fatalf("the new cursor: %v, %v", got, err)
	}
}

func TestRestored_WantsTheFileForItself(t *testing.T) {
	f := newFixture(t, sqldbtest.SQLiteConfig(t))
	_, stop := f.run(t)
	var told bytes.Buffer
	if err := app.Restored(t.Context(), f.cfg, &told); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("while the registry runs: %v", err)
	}
	stop()
	if err := app.Restored(t.Context(), f.cfg, &told); err != nil || !strings.Contains(told.String(), "is now incarnation") {
		t.Fatalf("got %v, %q", err, &told)
	}
}
