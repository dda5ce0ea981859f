package app_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/app"
)

const (
	serverID   = "spiffe://phasekey.dev/registry"
	platformID = "spiffe://phasekey.dev/platform"
)

func TestConfig_TellsAllProblemsAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registry.yaml")
	if err := os.WriteFile(file, []byte(`
listen: ""
home_tenants: [not-a-uuid]
clouds: [public, "US Government"]
database: {driver: sqlite}
poll_interval: 1ms
bookmark_interval: 1h
change_retention: 1m
drain: 0s
limits: {write: {burst: -1}}
quotas: {projects: 0, accounts: {acme: {integrations: -1}}}
identities:
  - {id: nobody, role: platform, accounts: [acme]}
unheard_of: 1
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := app.DefaultConfig()
	action, err := confload.Load("registryd", []string{"--config", file}, nil, io.Discard, &cfg)
	if err == nil || action != confload.Exit {
		t.Fatalf("got %v, %v", action, err)
	}
	for _, problem := range []string{
		"listen: required", "home_tenants[0]: must be a UUID", "clouds[1]: must be 1 to 30", "database: path", "tls: ca_file", "tls.cert_file: required", "identities[0]: id",
		"poll_interval: ", "bookmark_interval: ", "change_retention: ", "drain: ", "limits: write.burst",
		"quotas: projects: ", "quotas: accounts.acme.integrations: ", "unheard_of",
	} {
		if !strings.Contains(err.Error(), problem) {
			t.Errorf("does not tell %q:\n%v", problem, err)
		}
	}
}

func TestConfig_NeedsCallersAndHomeTenants(t *testing.T) {
	err := app.DefaultConfig().Validate()
	for _, problem := range []string{"identities: required", "home_tenants: required", "database: driver"} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("does not tell %q:\n%v", problem, err)
		}
	}
}

// fixture is a configuration that works, and a client's certificates.
type fixture struct {
	cfg app.Config
	ca  *devca.Authority
	dir string
}

func newFixture(t *testing.T, database sqldb.Config) *fixture {
	t.Helper()
	dir := t.TempDir()
	ca, err := devca.Open(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{ca: ca, dir: dir, cfg: app.DefaultConfig()}
	files := f.issue(t, "registry", serverID)
	f.cfg.Listen, f.cfg.MetricsListen = "127.0.0.1:0", "127.0.0.1:0"
	f.cfg.HomeTenants = []string{"6F1F7A3E-52A5-4C1B-9D3D-0A8C1F4F000F"}
	f.cfg.Database = database
	f.cfg.TLS = mtls.Config{CertFile: files.Cert, KeyFile: files.Key, CAFile: ca.CAFile()}
	f.cfg.Identities = []grpcserver.Identity{{ID: platformID, Role: "platform", Accounts: []string{"acme"}}}
	return f
}

func (f *fixture) issue(t *testing.T, name, id string) devca.Files {
	t.Helper()
	files, err := f.ca.Issue(time.Now(), name, devca.Leaf{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// dial connects with a certificate of this ID; without one, with none.
func (f *fixture) dial(t *testing.T, addr, id string) *grpc.ClientConn {
	t.Helper()
	cfg := mtls.Config{CAFile: f.ca.CAFile()}
	if id != "" {
		files := f.issue(t, "client", id)
		cfg.CertFile, cfg.KeyFile = files.Cert, files.Key
	}
	source, err := mtls.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpcclient.Dial(grpcclient.Config{Target: addr, TLS: source.ClientConfig(serverID)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// run starts the registry; stop ends it and must find no error.
func (f *fixture) run(t *testing.T) (a *app.App, stop func()) {
	t.Helper()
	a, err := app.New(t.Context(), f.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return a, stop
}

func awaitHealth(t *testing.T, conn *grpc.ClientConn, service string, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	grpctest.AwaitHealth(t, conn, service, want, 30*time.Second)
}

func TestApp_ServesAndKeeps(t *testing.T) {
	f := newFixture(t, sqldbtest.SQLiteConfig(t))
	a, stop := f.run(t)
	conn := f.dial(t, a.Addr().String(), platformID)
	for _, service := range []string{
		"", "phasekey.registry.v1.IntegrationService", "phasekey.registry.v1.ProjectService", "phasekey.registry.v1.AttachmentService",
		"phasekey.registry.v1.StatusService", "phasekey.registry.v1.WatchService",
	} {
		awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	project := &registryv1.CreateProjectRequest{Parent: "accounts/acme", ProjectId: "net", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK}}
	created, err := registryv1.NewProjectServiceClient(conn).CreateProject(t.Context(), project)
	if err != nil {
		t.Fatal(err)
	}
	home := &registryv1.CreateIntegrationRequest{
		Parent: "accounts/acme", IntegrationId: "net",
		Integration: &registryv1.Integration{DisplayName: "Net", TenantId: strings.ToLower(f.cfg.HomeTenants[0])},
	}
	if _, err := registryv1.NewIntegrationServiceClient(conn).CreateIntegration(t.Context(), home); rpcerr.Reason(err) != "HOME_TENANT" {
		t.Fatalf("got %v", err)
	}

	resp, err := http.Get("http://" + a.MetricsAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(page), "phasekey_registry_revision ") || !strings.Contains(string(page), "phasekey_registry_watchers ") {
		t.Fatalf("metrics: %v\n%s", err, page)
	}

	// Nobody comes in without a certificate of a known identity.
	_, err = registryv1.NewProjectServiceClient(f.dial(t, a.Addr().String(), "")).GetProject(t.Context(), &registryv1.GetProjectRequest{Name: created.GetName()})
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("without a certificate: %v", err)
	}
	stop()

	// What was stored is there after a restart.
	again, _ := f.run(t)
	conn = f.dial(t, again.Addr().String(), platformID)
	got, err := registryv1.NewProjectServiceClient(conn).GetProject(t.Context(), &registryv1.GetProjectRequest{Name: created.GetName()})
	if err != nil || got.GetUid() != created.GetUid() {
		t.Fatalf("after a restart: %v, %v", got, err)
	}
}

// TestApp_ReadinessFollowsTheDatabase shuts the database's door, and opens it again.
func TestApp_ReadinessFollowsTheDatabase(t *testing.T) {
	database := sqldbtest.PostgresConfig(t)
	f := newFixture(t, database)
	a, _ := f.run(t)
	conn := f.dial(t, a.Addr().String(), platformID)
	const service = "phasekey.registry.v1.IntegrationService"
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)

	name := database.DSN[strings.Index(database.DSN, "dbname=")+len("dbname="):]
	admin := database
	admin.DSN = strings.Replace(database.DSN, "dbname="+name, "dbname=postgres", 1)
	sqldbtest.ExecPostgres(t, admin, `ALTER DATABASE `+name+` ALLOW_CONNECTIONS false`)
	sqldbtest.ExecPostgres(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+name+`'`)
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	_, err := registryv1.NewIntegrationServiceClient(conn).GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: "accounts/acme/integrations/net"})
	if status.Code(err) != codes.Unavailable || rpcerr.Reason(err) != "DEPENDENCY_UNAVAILABLE" || strings.Contains(err.Error(), "postgres") {
		t.Fatalf("while the database is away: %v", err)
	}

	sqldbtest.ExecPostgres(t, admin, `ALTER DATABASE `+name+` ALLOW_CONNECTIONS true`)
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
}

func TestNew_LeavesNothingOpenWhenItFails(t *testing.T) {
	f := newFixture(t, sqldbtest.SQLiteConfig(t))
	good := f.cfg
	for _, tt := range []struct {
		name  string
		spoil func(*app.Config)
		want  string
	}{
		{"configuration", func(c *app.Config) { c.Listen = "" }, "listen: required"},
		{"certificate", func(c *app.Config) { c.TLS.CertFile = filepath.Join(f.dir, "none.pem") }, "none.pem"},
		{"address", func(c *app.Config) { c.Listen = "127.0.0.1:none" }, "listen: "},
		{"metrics address", func(c *app.Config) { c.MetricsListen = "127.0.0.1:none" }, "metrics_listen: "},
		{"profiles beyond this machine", func(c *app.Config) { c.ProfileListen = "0.0.0.0:0" }, "profile_listen: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.spoil(&cfg)
			if _, err := app.New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			// The database file would still be locked if it had been left open.
			a, err := app.New(t.Context(), good, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
