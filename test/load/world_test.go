package load

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/test/internal/rigtest"
)

const (
	account = "accounts/acme"
	// leasesPerGrant is as many as a grant may have.
	leasesPerGrant = 4
	// leastGrants keeps the fastest callers within what calls a grant allows, where there are few streams.
	leastGrants = 100
	grantLife   = 12 * time.Hour
	// onboardTime is what a first credential takes at most.
	onboardTime = 2 * time.Minute
)

// timing has a new version live some seconds after it was asked for.
var timing = map[string]any{
	"proofs": 2, "proof_spacing": "100ms", "settling": "1s", "retiring": "10s", "remove_delay": "500ms", "propagation_limit": "20s", "write_spacing": "100ms",
	"await_interval": "500ms", "probe_spacing": "500ms", "retry_min": "250ms", "retry_max": "3s", "hold_margin": "5s",
}

// world is what all suites stand on.
type world struct {
	*rigtest.Rig
	port     int
	redis    string
	postgres *sqldbtest.Server
	runner   *tls.Config // of all clients
}

// server is a process that runners call: a vault, or a floor.
type server struct {
	rigtest.Process
	runners  string // address
	profiles string // address; empty with a floor
}

// suite is a registry and vaults on one database, with one integration that has a credential.
type suite struct {
	name     string
	database sqldb.Config
	// admin is PostgreSQL's database; nil with SQLite, whose work is the vault's own.
	admin                *sql.DB
	vaults               []*server
	grants               vaultv1.GrantServiceClient
	rotation             vaultv1.RotationServiceClient
	integration, project string
	// holders are who may ask for a credential: leasesPerGrant of each grant.
	holders []holder
}

// holder is one runner instance.
type holder struct{ token, instance string }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Rig: rigtest.New(t), port: 7000}
	w.runner = w.Client(t, "runner").ClientConfig(rigtest.TrustDomain + "vault")
	w.postgres = sqldbtest.NewDurableServer(t)
	w.StartSimulator(t, w.at(t), "-lag", "0s")
	w.redis = w.at(t)
	_, port, err := net.SplitHostPort(w.redis)
	rigtest.Must(t, err)
	redis := &rigtest.Process{Name: "redis-server", Answers: []string{w.redis}, Command: []string{
		"redis-server", "--bind", w.IP, "--port", port, "--save", "", "--appendonly", "no", "--dir", w.Dir,
	}}
	redis.Start(t)
	t.Cleanup(func() { redis.Kill(t) })
	return w
}

// at is an address that nobody has yet.
func (w *world) at(t *testing.T) string {
	t.Helper()
	w.port++
	return w.At(w.port)
}

// databaseKeys are a database's configuration.
func databaseKeys(c sqldb.Config) map[string]any {
	if c.Driver == sqldb.DriverSQLite {
		return map[string]any{"driver": c.Driver, "path": c.Path}
	}
	return map[string]any{"driver": c.Driver, "dsn": c.DSN}
}

// newDatabase makes a durable one.
func (w *world) newDatabase(t *testing.T, driver, name string) sqldb.Config {
	t.Helper()
	if driver == sqldb.DriverPostgres {
		return w.postgres.Config(t)
	}
	return sqldb.Config{Driver: driver, Path: filepath.Join(w.Dir, name+".db")}
}

// newSuite starts a suite, and waits until its integration has a credential.
func (w *world) newSuite(t *testing.T, driver string, vaults, holders int) *suite {
	t.Helper()
	s := &suite{name: driver, database: w.newDatabase(t, driver, "vault"), integration: account + "/integrations/azure", project: account + "/projects/shop"}
	if driver == sqldb.DriverPostgres {
		var err error
		s.admin, err = sql.Open("pgx", s.database.DSN)
		rigtest.Must(t, err)
		t.Cleanup(func() { rigtest.Must(t, s.admin.Close()) })
	}
	registry := &rigtest.Process{Name: "registryd of " + s.name, Answers: []string{w.at(t)}}
	registry.Command = []string{rigtest.Binary(t, "registryd"), "--config", w.Configure(t, s.name+"-registry", map[string]any{
		"listen": registry.Answers[0], "development": true, "home_tenants": []string{w.Home},
		"database": databaseKeys(w.newDatabase(t, sqldb.DriverSQLite, s.name+"-registry")),
		"tls":      w.Certificate(t, "registry").Config(), "identities": rigtest.Identities("platform", "vault"),
	})}
	registry.Start(t)
	t.Cleanup(func() { registry.Kill(t) })
	key := w.Certificate(t, "vault")
	config := map[string]any{
		"development": true, "drain": "40s", "deployment_id": s.name, "redirect_uri": rigtest.RedirectURI,
		"kek": "file://" + filepath.Join(w.Dir, s.name+".key"), "database": databaseKeys(s.database), "timing": timing, "log": map[string]any{"level": "warn"},
		"tls": key.Config(), "identities": rigtest.Identities("platform"), "redis": map[string]any{"addrs": []string{w.redis}},
		"election": map[string]any{"shards": 1, "lock_ttl": "5s"},
		"registry": map[string]any{"target": registry.Answers[0], "id": rigtest.TrustDomain + "registry"},
		// All runners come from one address.
		"limits": map[string]any{"anonymous": map[string]any{"per_second": -1}, "anonymous_calls": -1, "anonymous_connections": -1},
		"clouds": w.Clouds(),
	}
	var addresses []string
	for i := range vaults {
		services := w.at(t)
		v := &server{runners: w.at(t), profiles: w.at(t)}
		config["listen"], config["runners_listen"], config["profile_listen"] = services, v.runners, v.profiles
		name := fmt.Sprintf("%s-vault-%d", s.name, i+1)
		file := w.Configure(t, name, config)
		if i == 0 {
			first := &rigtest.Process{Name: "vaultd init", Command: []string{rigtest.Binary(t, "vaultd"), "init", "--config", file}}
			first.Start(t)
			first.Finish(t)
		}
		v.Process = rigtest.Process{Name: name, Answers: []string{services, v.runners, v.profiles}, Command: []string{rigtest.Binary(t, "vaultd"), "--config", file}}
		v.Start(t)
		t.Cleanup(func() { v.Kill(t) })
		s.vaults = append(s.vaults, v)
		addresses = append(addresses, services)
	}
	// The last one, which is never killed.
	conn := w.Dial(t, addresses[len(addresses)-1], "vault")
	s.grants, s.rotation = vaultv1.NewGrantServiceClient(conn), vaultv1.NewRotationServiceClient(conn)
	w.onboard(t, w.Dial(t, registry.Answers[0], "registry"), s)
	s.admit(t, holders)
	return s
}

// onboard makes a customer with an integration that has a credential.
func (w *world) onboard(t *testing.T, registry *grpc.ClientConn, s *suite) {
	t.Helper()
	ctx := t.Context()
	tenant := w.Tenant(t, map[string]any{"displayName": "Customer"})
	administrator := s.name + "@customer.example"
	rigtest.Must(t, w.Admin(ctx, http.MethodPost, "people", map[string]any{"tenant": tenant, "userName": administrator, "admin": true}, nil))
	made := registryv1.NewIntegrationServiceClient(registry)
	_, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: account, IntegrationId: "azure", Integration: &registryv1.Integration{
		DisplayName: "Azure", TenantId: tenant, DefaultSubscriptionId: "11111111-2222-4333-8444-555555555555", RotationPeriod: durationpb.New(24 * time.Hour),
		DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_CLIENT_SECRET},
	}})
	rigtest.Must(t, err)
	_, err = registryv1.NewProjectServiceClient(registry).CreateProject(ctx, &registryv1.CreateProjectRequest{
		Parent: account, ProjectId: "shop", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
	})
	rigtest.Must(t, err)
	_, err = registryv1.NewAttachmentServiceClient(registry).CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
		Parent: s.project, Attachment: &registryv1.Attachment{Integration: s.integration},
	})
	rigtest.Must(t, err)
	var clientID string
	rigtest.Await(t, onboardTime, func(ctx context.Context) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: s.integration})
		if err != nil {
			return err
		}
		if clientID = got.GetClientId(); clientID == "" {
			return errors.New("the integration has no application")
		}
		return w.Admin(ctx, http.MethodPost, "consents", map[string]any{"tenant": tenant, "clientId": clientID, "redirectUri": rigtest.RedirectURI, "userName": administrator}, nil)
	})
	rigtest.Await(t, onboardTime, func(ctx context.Context) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: s.integration})
		if err == nil && got.GetState() != registryv1.Integration_STATE_ACTIVE {
			err = fmt.Errorf("the integration is %s: %v", got.GetState(), got.GetConditions())
		}
		return err
	})
}

// admit makes grants for so many runner instances at least.
func (s *suite) admit(t *testing.T, holders int) {
	t.Helper()
	grants := s.grant(t, max((holders+leasesPerGrant-1)/leasesPerGrant, leastGrants))
	for instance := range leasesPerGrant {
		for _, g := range grants {
			s.holders = append(s.holders, holder{g.GetToken(), fmt.Sprint("runner-", instance)})
		}
	}
}

// grant makes n grants.
func (s *suite) grant(t *testing.T, n int) []*vaultv1.Grant {
	t.Helper()
	grants := make([]*vaultv1.Grant, n)
	var makers sync.WaitGroup
	var failure error
	var failed sync.Once
	const atOnce = 8
	for maker := range atOnce {
		makers.Go(func() {
			for i := maker; i < len(grants); i += atOnce {
				made, err := s.grants.CreateGrant(t.Context(), &vaultv1.CreateGrantRequest{Parent: account, Grant: &vaultv1.Grant{
					Project: s.project, Phase: typev1.Phase_PHASE_APPLYING, Run: fmt.Sprint("run-", i), ExpireTime: timestamppb.New(time.Now().Add(grantLife)),
				}})
				if err != nil {
					failed.Do(func() { failure = err })
					return
				}
				grants[i] = made
			}
		})
	}
	makers.Wait()
	rigtest.Must(t, failure)
	return grants
}

// rotate has the integration rotated, and returns when the new version was activated, once it is.
func (s *suite) rotate(t *testing.T) time.Time {
	t.Helper()
	before := s.active(t.Context(), t).GetName()
	_, err := s.rotation.RotateIntegration(t.Context(), &vaultv1.RotateIntegrationRequest{Name: s.integration, Reason: vaultv1.Rotation_REASON_SCHEDULED})
	rigtest.Must(t, err)
	var now *vaultv1.CredentialVersion
	rigtest.Await(t, onboardTime, func(ctx context.Context) error {
		if now = s.active(ctx, t); now == nil || now.GetName() == before {
			return errors.New("the integration has not rotated")
		}
		return nil
	})
	return now.GetActivateTime().AsTime()
}

// active is the integration's ACTIVE version; nil when there is none.
func (s *suite) active(ctx context.Context, t *testing.T) *vaultv1.CredentialVersion {
	t.Helper()
	answer, err := s.rotation.ListCredentialVersions(ctx, &vaultv1.ListCredentialVersionsRequest{Parent: s.integration, PageSize: 1000})
	rigtest.Must(t, err)
	for _, v := range answer.GetCredentialVersions() {
		if v.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE {
			return v
		}
	}
	return nil
}

// databaseTime is what the database's own processes have had of the processors.
func (s *suite) databaseTime(t *testing.T) time.Duration {
	t.Helper()
	if s.admin == nil {
		return 0
	}
	rows, err := s.admin.QueryContext(t.Context(), `SELECT pid FROM pg_stat_activity`)
	rigtest.Must(t, err)
	defer func() { rigtest.Must(t, rows.Close()) }()
	var pids []int
	for rows.Next() {
		var pid int
		rigtest.Must(t, rows.Scan(&pid))
		pids = append(pids, pid)
	}
	rigtest.Must(t, rows.Err())
	return processorTime(t, pids...)
}
