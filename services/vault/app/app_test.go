package app_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/redistest"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/app"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/keyring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	administrator = "admin@customer.example.com"
	integration   = "accounts/acme/integrations/read"
	project       = "accounts/acme/projects/network"

	integrationUID = "aaaaaaaa-0000-4000-8000-000000000001"
	projectUID     = "aaaaaaaa-0000-4000-8000-000000000002"
	attachmentUID  = "aaaaaaaa-0000-4000-8000-000000000003"
)

// patience is for a busy machine.
const patience = time.Minute

// fakeRegistry is at revision 3, for ever: an integration, a project, and what attaches them for reading.
type fakeRegistry struct {
	registryv1.UnimplementedIntegrationServiceServer
	registryv1.UnimplementedProjectServiceServer
	registryv1.UnimplementedAttachmentServiceServer
	registryv1.UnimplementedWatchServiceServer
	registryv1.UnimplementedStatusServiceServer

	tenant  string
	reports chan *registryv1.ReportConditionsRequest
}

func (r *fakeRegistry) ListIntegrations(context.Context, *registryv1.ListIntegrationsRequest) (*registryv1.ListIntegrationsResponse, error) {
	return &registryv1.ListIntegrationsResponse{Cursor: "c3", Revision: 3, Integrations: []*registryv1.Integration{
		{Name: integration, Uid: integrationUID, DisplayName: "Read", TenantId: r.tenant, Cloud: "public"}}}, nil
}

func (r *fakeRegistry) ListProjects(context.Context, *registryv1.ListProjectsRequest) (*registryv1.ListProjectsResponse, error) {
	return &registryv1.ListProjectsResponse{Cursor: "c3", Revision: 3, Projects: []*registryv1.Project{{Name: project, Uid: projectUID}}}, nil
}

func (r *fakeRegistry) ListAttachments(context.Context, *registryv1.ListAttachmentsRequest) (*registryv1.ListAttachmentsResponse, error) {
	return &registryv1.ListAttachmentsResponse{Cursor: "c3", Revision: 3, Attachments: []*registryv1.Attachment{{
		Name: project + "/attachments/a", Uid: attachmentUID, IntegrationUid: integrationUID, ProjectUid: projectUID,
		Accesses: []typev1.Access{typev1.Access_ACCESS_READ}}}}, nil
}

func (r *fakeRegistry) Watch(_ *registryv1.WatchRequest, stream grpc.ServerStreamingServer[registryv1.WatchResponse]) error {
	if err := stream.Send(&registryv1.WatchResponse{Cursor: "c3", Incarnation: "registry", Revision: 3}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}

func (r *fakeRegistry) ResolveAccess(context.Context, *registryv1.ResolveAccessRequest) (*registryv1.ResolveAccessResponse, error) {
	return &registryv1.ResolveAccessResponse{
		Access: typev1.Access_ACCESS_READ, Integration: integration, IntegrationUid: integrationUID, ProjectUid: projectUID,
		AttachmentUid: attachmentUID, TenantId: r.tenant, SubscriptionId: "aaaaaaaa-0000-4000-8000-000000000004", Incarnation: "registry", Revision: 3,
	}, nil
}

func (r *fakeRegistry) ReportConditions(ctx context.Context, in *registryv1.ReportConditionsRequest) (*registryv1.ReportConditionsResponse, error) {
	select {
	case r.reports <- in:
		return &registryv1.ReportConditionsResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// reported waits until a condition of the integration is true, and returns the report that said so.
func (r *fakeRegistry) reported(t *testing.T, want registryv1.Condition_Type) *registryv1.ReportConditionsRequest {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case report := <-r.reports:
			for _, c := range report.GetConditions() {
				if report.GetIntegrationUid() == integrationUID && c.GetType() == want && c.GetStatus() == registryv1.Condition_STATUS_TRUE {
					return report
				}
			}
		case <-late:
			t.Fatalf("%s was never reported to be true", want)
		}
	}
}

// place is where vaults run: certificates, an initialized database, and the addresses of what they need.
type place struct {
	ca     *devca.Authority
	config app.Config
	log    *logtest.Transcript
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	ca, err := devca.Open(filepath.Join(dir, "tls"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &place{ca: ca, config: complete(), log: &logtest.Transcript{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.log)
		}
	})
	p.config.Development, p.config.Timing = true, app.DevelopmentTiming()
	p.config.Timing.Proofs, p.config.Timing.ProofSpacing = 2, 50*time.Millisecond
	p.config.Election.Shards, p.config.Election.StaticMaster = 2, true
	p.config.Redis = redisconn.Config{}
	p.config.MetricsListen = "127.0.0.1:0"
	p.config.Drain = 2 * time.Second
	p.config.KEK = "file://" + filepath.Join(dir, "kek")
	p.config.Database = sqldb.Config{Driver: sqldb.DriverSQLite, Path: filepath.Join(dir, "vault.db"), Volatile: true}
	p.config.TLS = p.certificate(t, "vault")
	cloud := p.config.Clouds["public"]
	cloud.Credential.ClientSecretFile, cloud.CAFile = filepath.Join(dir, "secret"), ca.CAFile()
	p.config.Clouds["public"] = cloud
	p.write(t, cloud.Credential.ClientSecretFile, "the platform's secret")
	if err := app.Init(t.Context(), p.config); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) keyFile() string { return strings.TrimPrefix(p.config.KEK, "file://") }

func (p *place) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *place) certificate(t *testing.T, name string) mtls.Config {
	t.Helper()
	files, err := p.ca.Issue(time.Now(), name, devca.Leaf{ID: "spiffe://phasekey.dev/" + name, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Config{CertFile: files.Cert, KeyFile: files.Key, CAFile: p.ca.CAFile()}
}

// source is somebody's certificate; nobody's for an empty name.
func (p *place) source(t *testing.T, name string) *mtls.Source {
	t.Helper()
	cfg := mtls.Config{CAFile: p.ca.CAFile()}
	if name != "" {
		cfg = p.certificate(t, name)
	}
	s, err := mtls.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// withRegistry runs a registry until the test ends.
func (p *place) withRegistry(t *testing.T, tenant string) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{tenant: tenant, reports: make(chan *registryv1.ReportConditionsRequest)}
	ln := listen(t)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.source(t, "registry").ServerConfig(mtls.Required))))
	registryv1.RegisterIntegrationServiceServer(srv, r)
	registryv1.RegisterProjectServiceServer(srv, r)
	registryv1.RegisterAttachmentServiceServer(srv, r)
	registryv1.RegisterWatchServiceServer(srv, r)
	registryv1.RegisterStatusServiceServer(srv, r)
	background(t, func() error { return srv.Serve(ln) }, srv.Stop)
	p.config.Registry.Target = ln.Addr().String()
	return r
}

// withEntra runs a simulated Entra until the test ends, with the platform's tenant and one customer's, which is returned.
func (p *place) withEntra(t *testing.T) (sim *entrasim.Simulator, customer string) {
	t.Helper()
	ln := listen(t)
	sim, err := entrasim.New(entrasim.Config{Seed: 1, BaseURL: "https://" + ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	home, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Platform", Verified: true})
	if err != nil {
		t.Fatal(err)
	}
	platform, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID, DisplayName: "Platform"})
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Customer"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sim.CreatePerson(entrasim.Person{Tenant: tenant.ID, UserName: administrator, Admin: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	https := p.source(t, "entra").HTTPSConfig()
	background(t, func() error { return errors.Join(sim.Run(ctx, ln, https), sim.Close()) }, cancel)
	cloud := p.config.Clouds["public"]
	at := sim.Endpoints()
	cloud.LoginURL, cloud.GraphURL, cloud.ResourceManagerURL = at.Login, at.Graph, at.ResourceManager
	cloud.GraphAudience, cloud.ResourceManagerAudience = "https://graph.microsoft.com", "https://management.azure.com"
	cloud.HomeTenantID, cloud.ClientID = platform.Tenant, platform.ClientID
	p.config.Clouds["public"] = cloud
	p.write(t, cloud.Credential.ClientSecretFile, platform.ClientSecret+"\n")
	return sim, tenant.ID
}

// background runs something until the test ends, when stop stops it.
func background(t *testing.T, run func() error, stop func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- run() }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// open makes a vault that does not run.
func (p *place) open(t *testing.T) (*app.App, error) {
	t.Helper()
	return app.New(t.Context(), p.config, obs.NewLogger(p.log, slog.LevelDebug, obs.FormatText))
}

// start runs a vault; the returned function stops it as SIGTERM would. The test's end does too.
func (p *place) start(t *testing.T) (vault *app.App, stop func()) {
	t.Helper()
	vault, err := p.open(t)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- vault.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the vault ended with: %v", err)
		}
	})
	t.Cleanup(stop)
	return vault, stop
}

// dial connects to one of a vault's listeners, as somebody or nobody.
func (p *place) dial(t *testing.T, addr net.Addr, name string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(grpcclient.Config{Target: addr.String(), TLS: p.source(t, name).ClientConfig("spiffe://phasekey.dev/vault")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func awaitHealth(t *testing.T, conn *grpc.ClientConn, service string) {
	t.Helper()
	grpctest.AwaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING, patience)
}

// consent has the customer consent to an application.
func (p *place) consent(t *testing.T, sim *entrasim.Simulator, customer, clientID string) {
	t.Helper()
	_, err := sim.Consent(t.Context(), entrasim.Consent{Tenant: customer, ClientID: clientID, RedirectURI: p.config.RedirectURI, UserName: administrator})
	if err != nil {
		t.Fatal(err)
	}
}

// grant has the platform make a grant.
func (p *place) grant(t *testing.T, vault *app.App, run string) *vaultv1.Grant {
	t.Helper()
	grant, err := vaultv1.NewGrantServiceClient(p.dial(t, vault.Addr(), "platform")).CreateGrant(t.Context(), &vaultv1.CreateGrantRequest{
		Parent: "accounts/acme", Grant: &vaultv1.Grant{Project: project, Phase: typev1.Phase_PHASE_PLANNING, Run: run}})
	if err != nil {
		t.Fatal(err)
	}
	return grant
}

// From what the registry wants to a runner's token, and through a stop and a start.
func TestApp_FromTheRegistryToTheRunner(t *testing.T) {
	p := newPlace(t)
	sim, customer := p.withEntra(t)
	registry := p.withRegistry(t, customer)
	p.config.Redis, p.config.Election.StaticMaster = redistest.Server(t).Config(), false
	vault, stop := p.start(t)

	ready := registry.reported(t, registryv1.Condition_TYPE_APPLICATION_READY)
	if !strings.HasPrefix(ready.GetApplicationDisplayName(), "Phasekey Read ") || ready.GetMastership().GetHolder() == "" {
		t.Errorf("reported %v", ready)
	}
	p.consent(t, sim, customer, ready.GetClientId())
	probe, err := vaultv1.NewAccessServiceClient(p.dial(t, vault.Addr(), "broker")).ProbeConsent(t.Context(), &vaultv1.ProbeConsentRequest{Integration: integration})
	if err != nil {
		t.Errorf("the broker's question: %v, error %v", probe, err)
	}
	registry.reported(t, registryv1.Condition_TYPE_CREDENTIAL_READY)

	grant := p.grant(t, vault, "run-1")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+grant.GetToken())
	stream, err := vaultv1.NewCredentialServiceClient(p.dial(t, vault.RunnersAddr(), "")).StreamCredentials(ctx, &vaultv1.StreamCredentialsRequest{InstanceId: "instance-1"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	credential := first.GetCredential()
	token := credential.GetAccessToken()
	if token.GetToken() == "" || token.GetAudience() != "https://management.azure.com" || credential.GetClientId() != ready.GetClientId() || credential.GetTenantId() != customer {
		t.Errorf("the runner got a token of %d bytes for %q, of %s in %s", len(token.GetToken()), token.GetAudience(), credential.GetClientId(), credential.GetTenantId())
	}

	began := time.Now()
	stop()
	if took := time.Since(began); took > p.config.Drain+time.Second {
		t.Errorf("stopping took %s", took)
	}
	if asked, err := stream.Recv(); err != nil || asked.GetCredential() != nil || asked.GetLeaveWindow().AsDuration() <= 0 {
		t.Errorf("it was not asked to leave: %v", err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || rpcerr.Reason(err) != "DRAINING" {
		t.Errorf("the stream ended with %v", err)
	}

	vault, _ = p.start(t)
	again, err := vaultv1.NewCredentialServiceClient(p.dial(t, vault.RunnersAddr(), "")).FetchCredential(ctx, &vaultv1.FetchCredentialRequest{InstanceId: "instance-1"})
	if err != nil || again.GetCredential().GetLease() != credential.GetLease() || again.GetCredential().GetGeneration() <= credential.GetGeneration() {
		t.Errorf("after a restart: lease %s, generation %d, error %v; before: %s, %d",
			again.GetCredential().GetLease(), again.GetCredential().GetGeneration(), err, credential.GetLease(), credential.GetGeneration())
	}
	secret, err := os.ReadFile(p.config.Clouds["public"].Credential.ClientSecretFile)
	if err != nil {
		t.Fatal(err)
	}
	database, err := os.ReadFile(p.config.Database.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, canary := range map[string]string{"the platform's secret": strings.TrimSpace(string(secret)), "the grant": grant.GetToken(), "the token": token.GetToken()} {
		if strings.Contains(p.log.String(), canary) {
			t.Errorf("%s is in the log", name)
		}
		if bytes.Contains(database, []byte(canary)) {
			t.Errorf("%s is in the database", name)
		}
	}
}

func TestApp_StaticMasterNeedsNoRedis(t *testing.T) {
	p := newPlace(t)
	_, customer := p.withEntra(t)
	registry := p.withRegistry(t, customer)
	p.start(t)
	registry.reported(t, registryv1.Condition_TYPE_APPLICATION_READY)
}

// A cloud that is taken out of the configuration while there are integrations in it.
func TestApp_SaysThatACloudIsNotConfigured(t *testing.T) {
	p := newPlace(t)
	_, customer := p.withEntra(t)
	registry := p.withRegistry(t, customer)
	_, stop := p.start(t)
	registry.reported(t, registryv1.Condition_TYPE_APPLICATION_READY)
	stop()
	const says = "integrations are in a cloud that the configuration does not name"
	if strings.Contains(p.log.String(), says) {
		t.Error("the log has it although the cloud is configured")
	}
	p.config.Clouds = map[string]app.Cloud{"other": p.config.Clouds["public"]}
	p.start(t)
	for late := time.After(patience); ; {
		select {
		case report := <-registry.reports:
			if c := report.GetConditions(); len(c) < 3 || c[2].GetReason() != "CloudUnknown" {
				continue
			}
		case <-late:
			t.Error("that was never reported")
		}
		break
	}
	for _, want := range []string{says, "cloud=public", "integrations=1"} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

// Neither the registry, nor Redis, nor Entra need be there for the vault to start, to be healthy, and to stop.
func TestApp_StartsWithoutWhatMayComeBack(t *testing.T) {
	p := newPlace(t)
	p.config.Redis, p.config.Election.StaticMaster = redisconn.Config{Addrs: []string{filepath.Join(t.TempDir(), "socket")}}, false
	vault, stop := p.start(t)
	awaitHealth(t, p.dial(t, vault.Addr(), "platform"), "phasekey.vault.v1.GrantService")
	began := time.Now()
	stop()
	if took := time.Since(began); took > p.config.Drain+time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// A replica by whose clock a grant may have ended that is live, and the other way round, says that others should be asked.
func TestApp_IsNotServingWhileClocksDiffer(t *testing.T) {
	p := newPlace(t)
	p.config.Database = sqldbtest.NewServer(t).Config(t)
	sqldbtest.ClockBehind(t, p.config.Database, 0)
	vault, _ := p.start(t)
	const service = "phasekey.vault.v1.CredentialService"
	platform, runner := p.dial(t, vault.Addr(), "platform"), p.dial(t, vault.RunnersAddr(), "")
	for _, step := range []struct {
		behind time.Duration
		want   grpc_health_v1.HealthCheckResponse_ServingStatus
	}{
		{2 * time.Minute, grpc_health_v1.HealthCheckResponse_SERVING},
		{3 * time.Minute, grpc_health_v1.HealthCheckResponse_NOT_SERVING},
		{0, grpc_health_v1.HealthCheckResponse_SERVING},
		{-3 * time.Minute, grpc_health_v1.HealthCheckResponse_NOT_SERVING},
	} {
		sqldbtest.ClockBehind(t, p.config.Database, step.behind)
		grpctest.AwaitHealth(t, platform, service, step.want, patience)
		grpctest.AwaitHealth(t, runner, service, step.want, patience)
	}
}

func TestApp_ListensForServicesAndForRunners(t *testing.T) {
	p := newPlace(t)
	vault, _ := p.start(t)
	platform, runner := p.dial(t, vault.Addr(), "platform"), p.dial(t, vault.RunnersAddr(), "")
	for _, service := range []string{"", "phasekey.vault.v1.GrantService", "phasekey.vault.v1.AccessService", "phasekey.vault.v1.CredentialService"} {
		awaitHealth(t, platform, service)
	}
	awaitHealth(t, runner, "phasekey.vault.v1.CredentialService")

	fetch := func(conn *grpc.ClientConn) error {
		_, err := vaultv1.NewCredentialServiceClient(conn).FetchCredential(t.Context(), &vaultv1.FetchCredentialRequest{InstanceId: "instance-1"})
		return err
	}
	get := func(conn *grpc.ClientConn) error {
		_, err := vaultv1.NewGrantServiceClient(conn).GetGrant(t.Context(), &vaultv1.GetGrantRequest{Name: "accounts/acme/grants/aaaaaaaa-0000-4000-8000-000000000009"})
		return err
	}
	reflect := func(conn *grpc.ClientConn) error {
		return conn.Invoke(t.Context(), "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
	}
	for _, tc := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
	}{
		{"a runner without a grant", fetch(runner), codes.Unauthenticated, "GRANT_UNKNOWN"},
		{"a runner with a certificate and no grant", fetch(p.dial(t, vault.RunnersAddr(), "runner")), codes.Unauthenticated, "GRANT_UNKNOWN"},
		{"grants are not for runners", get(runner), codes.Unimplemented, ""},
		{"nor for the platform there", get(p.dial(t, vault.RunnersAddr(), "platform")), codes.Unimplemented, ""},
		{"nor is reflection", reflect(runner), codes.Unimplemented, ""},
		{"a service without a certificate", get(p.dial(t, vault.Addr(), "")), codes.Unavailable, ""},
		{"a service with an unknown certificate", get(p.dial(t, vault.Addr(), "stranger")), codes.Unauthenticated, "IDENTITY_UNKNOWN"},
		{"a service with the wrong role", get(p.dial(t, vault.Addr(), "broker")), codes.PermissionDenied, "CALLER_NOT_ALLOWED"},
		{"the platform", get(platform), codes.NotFound, "RESOURCE_NOT_FOUND"},
	} {
		if status.Code(tc.err) != tc.code || tc.reason != "" && rpcerr.Reason(tc.err) != tc.reason {
			t.Errorf("%s: %v, want %s %s", tc.name, tc.err, tc.code, tc.reason)
		}
	}
}

func TestNew_FailsClosedAndLeavesNothingOpen(t *testing.T) {
	p := newPlace(t)
	good := p.config
	vault, err := p.open(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		p.write(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	cloud := func(c *app.Config, change func(*app.Cloud)) {
		one := good.Clouds["public"]
		change(&one)
		c.Clouds = map[string]app.Cloud{"public": one}
	}
	taken := listen(t)
	defer func() { _ = taken.Close() }()
	for _, tc := range []struct {
		name   string
		change func(c *app.Config)
		want   error  // in the error, if set
		text   string // stands in it
	}{
		{"a bad configuration", func(c *app.Config) { c.Drain = 0 }, nil, "drain: "},
		{"the key is missing", func(c *app.Config) { c.KEK = "file://" + filepath.Join(dir, "nothing") }, keyring.ErrKeyMissing, "nothing"},
		{"the key is too short", func(c *app.Config) { c.KEK = "file://" + file("short", "short") }, keyring.ErrKeyFile, "short"},
		{"the key is another's", func(c *app.Config) { c.KEK = "file://" + file("other", strings.Repeat("k", 32)) }, keyring.ErrUnwrap, ""},
		{"another number of shards", func(c *app.Config) { c.Election.Shards = 3 }, fence.ErrShardCount, "3"},
		{"no certificate", func(c *app.Config) { c.TLS.CertFile = filepath.Join(dir, "no.pem") }, fs.ErrNotExist, "no.pem"},
		{"no authority for a cloud", func(c *app.Config) {
			cloud(c, func(one *app.Cloud) { one.CAFile = filepath.Join(dir, "no-ca.pem") })
		}, fs.ErrNotExist, "clouds.public: ca_file: "},
		{"a cloud's authority is none", func(c *app.Config) {
			cloud(c, func(one *app.Cloud) { one.CAFile = file("bad-ca.pem", "not PEM") })
		}, nil, "bad-ca.pem has no certificate"},
		{"a cloud's secret is missing", func(c *app.Config) {
			cloud(c, func(one *app.Cloud) { one.Credential.ClientSecretFile = filepath.Join(dir, "no-secret") })
		}, fs.ErrNotExist, "client secret: "},
		{"a cloud's secret is empty", func(c *app.Config) {
			cloud(c, func(one *app.Cloud) { one.Credential.ClientSecretFile = file("empty", "\n") })
		}, nil, "clouds.public: "},
		{"the password of Redis is missing", func(c *app.Config) {
			c.Redis = redisconn.Config{Addrs: []string{"/run/redis"}, PasswordFile: filepath.Join(dir, "no-password")}
		}, fs.ErrNotExist, "redis"},
		{"the services' address is taken", func(c *app.Config) { c.Listen = taken.Addr().String() }, nil, "listen: "},
		{"the runners' address is taken", func(c *app.Config) { c.RunnersListen = taken.Addr().String() }, nil, "runners_listen: "},
		{"the metrics' address is taken", func(c *app.Config) { c.MetricsListen = taken.Addr().String() }, nil, "metrics_listen: "},
		{"profiles beyond this machine", func(c *app.Config) { c.ProfileListen = "0.0.0.0:0" }, obs.ErrExposed, "profile_listen: "},
	} {
		p.config = good
		tc.change(&p.config)
		if _, err := p.open(t); err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v, want %v with %q", tc.name, err, tc.want, tc.text)
		}
	}
	// The database is locked while it is open: each time it was let go.
	p.config = good
	if vault, err = p.open(t); err != nil {
		t.Fatal(err)
	}
	if err := vault.Close(); err != nil {
		t.Error(err)
	}
}

func TestInit_MakesTheKeyOnceAndNeverBesideData(t *testing.T) {
	p := newPlace(t)
	info, err := os.Stat(p.keyFile())
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != 32 || info.Mode() != 0o600 {
		t.Errorf("the key has %d bytes and mode %v", info.Size(), info.Mode())
	}
	if err := app.Init(t.Context(), p.config); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: error %v", err)
	}
	vault, err := p.open(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.keyFile()); err != nil {
		t.Fatal(err)
	}
	if err := app.Init(t.Context(), p.config); !errors.Is(err, keyring.ErrKeyMissing) {
		t.Errorf("beside data: error %v", err)
	}
	if _, err := os.Stat(p.keyFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside data a key was made, or looking failed: %v", err)
	}
	p.config.Drain = 0
	if err := app.Init(t.Context(), p.config); err == nil || !strings.Contains(err.Error(), "drain: ") {
		t.Errorf("with a bad configuration: error %v", err)
	}
}
