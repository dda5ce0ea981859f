package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
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
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

const (
	account     = "accounts/acme"
	trustDomain = "spiffe://phasekey.dev/"
	redirectURI = "https://broker.example/consent/callback"
	// leasesPerGrant is as many as a grant may have.
	leasesPerGrant = 4
	grantLife      = 12 * time.Hour
	// onboardTime is what a first credential takes at most.
	onboardTime = 2 * time.Minute
)

// timing has a new version live some seconds after it was asked for.
var timing = map[string]any{
	"proofs": 2, "proof_spacing": "100ms", "settling": "1s", "retiring": "1s", "remove_delay": "500ms", "propagation_limit": "20s", "write_spacing": "100ms",
	"await_interval": "500ms", "probe_spacing": "500ms", "retry_min": "250ms", "retry_max": "3s", "hold_margin": "5s",
}

// world is what all suites stand on.
type world struct {
	dir string
	// ip is an address of the loopback network that nobody else uses: ports can be fixed.
	ip   string
	port int
	ca   *devca.Authority

	origin   string // of the simulator
	http     *http.Client
	home     string // the platform's tenant
	platform struct {
		ClientID     string `json:"clientId"`
		ClientSecret string `json:"clientSecret"`
	}
	redis    string
	postgres *sqldbtest.Server
	runner   *tls.Config // of all clients
}

// server is a process that runners call: a vault, or a floor.
type server struct {
	process
	runners string // address
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
	w := &world{dir: t.TempDir(), ip: fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(255), 1+rand.N(254)), port: 7000}
	var err error
	w.ca, err = devca.Open(filepath.Join(w.dir, "tls"), time.Now())
	must(t, err)
	w.runner = w.client(t, "runner").ClientConfig(trustDomain + "vault")
	w.postgres = sqldbtest.NewDurableServer(t)
	w.startSimulator(t)
	w.redis = w.at(t)
	_, port, err := net.SplitHostPort(w.redis)
	must(t, err)
	redis := &process{name: "redis-server", answers: []string{w.redis}, command: []string{
		"redis-server", "--bind", w.ip, "--port", port, "--save", "", "--appendonly", "no", "--dir", w.dir,
	}}
	redis.start(t)
	t.Cleanup(func() { redis.kill(t) })
	return w
}

// at is an address that nobody has yet.
func (w *world) at(t *testing.T) string {
	t.Helper()
	w.port++
	return net.JoinHostPort(w.ip, fmt.Sprint(w.port))
}

type files struct{ CertFile, KeyFile, CAFile string }

// certificate is a role's.
func (w *world) certificate(t *testing.T, role string) files {
	t.Helper()
	made, err := w.ca.Issue(time.Now(), role, devca.Leaf{ID: trustDomain + role, DNS: []string{"localhost"}, IPs: []net.IP{net.ParseIP(w.ip)}})
	must(t, err)
	return files{CertFile: made.Cert, KeyFile: made.Key, CAFile: w.ca.CAFile()}
}

func (f files) config() map[string]any {
	return map[string]any{"cert_file": f.CertFile, "key_file": f.KeyFile, "ca_file": f.CAFile}
}

// client is what a role shows who it is by.
func (w *world) client(t *testing.T, role string) *mtls.Source {
	t.Helper()
	c := w.certificate(t, role)
	source, err := mtls.Open(t.Context(), mtls.Config{CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile}, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, source.Close()) })
	return source
}

// dial connects the platform with a service.
func (w *world) dial(t *testing.T, address, id string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(grpcclient.Config{Target: address, TLS: w.client(t, "platform").ClientConfig(trustDomain + id)})
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	return conn
}

func (w *world) startSimulator(t *testing.T) {
	t.Helper()
	address := w.at(t)
	entra := &process{name: "entrasim", answers: []string{address}, command: []string{
		binary(t, "entrasim"), "-listen", address, "-tls", filepath.Join(w.dir, "entra"), "-lag", "0s",
	}}
	entra.start(t)
	t.Cleanup(func() { entra.kill(t) })
	w.origin = "https://" + address
	roots := x509.NewCertPool()
	await(t, startTimeout, func(context.Context) error { // it listens before it has made its CA
		pem, err := os.ReadFile(w.entraCA())
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate", w.entraCA())
		}
		return err
	})
	w.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}}
	t.Cleanup(w.http.CloseIdleConnections)
	w.home = w.tenant(t, map[string]any{"displayName": "Platform", "verified": true})
	must(t, w.admin(t.Context(), "platforms", map[string]any{"tenant": w.home}, &w.platform))
	must(t, os.WriteFile(w.secretFile(), []byte(w.platform.ClientSecret), 0o600))
}

func (w *world) entraCA() string    { return filepath.Join(w.dir, "entra", "ca.pem") }
func (w *world) secretFile() string { return filepath.Join(w.dir, "platform.secret") }

func (w *world) tenant(t *testing.T, what map[string]any) (id string) {
	t.Helper()
	var made struct {
		ID string `json:"id"`
	}
	must(t, w.admin(t.Context(), "tenants", what, &made))
	return made.ID
}

// admin calls the simulator's admin API.
func (w *world) admin(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.origin+"/admin/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := w.http.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, response.Status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// configure writes a configuration file. JSON is YAML.
func (w *world) configure(t *testing.T, name string, config map[string]any) (file string) {
	t.Helper()
	text, err := json.MarshalIndent(config, "", "  ")
	must(t, err)
	file = filepath.Join(w.dir, name+".yaml")
	must(t, os.WriteFile(file, text, 0o600))
	return file
}

func identities(roles ...string) (out []map[string]any) {
	for _, role := range roles {
		out = append(out, map[string]any{"id": trustDomain + role, "role": role, "accounts": []string{"*"}})
	}
	return out
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
	return sqldb.Config{Driver: driver, Path: filepath.Join(w.dir, name+".db")}
}

// newSuite starts a suite, and waits until its integration has a credential.
func (w *world) newSuite(t *testing.T, driver string, vaults, holders int) *suite {
	t.Helper()
	s := &suite{name: driver, database: w.newDatabase(t, driver, "vault"), integration: account + "/integrations/azure", project: account + "/projects/shop"}
	if driver == sqldb.DriverPostgres {
		var err error
		s.admin, err = sql.Open("pgx", s.database.DSN)
		must(t, err)
		t.Cleanup(func() { must(t, s.admin.Close()) })
	}
	registry := &process{name: "registryd of " + s.name, answers: []string{w.at(t)}}
	registry.command = []string{binary(t, "registryd"), "--config", w.configure(t, s.name+"-registry", map[string]any{
		"listen": registry.answers[0], "development": true, "home_tenants": []string{w.home},
		"database": databaseKeys(w.newDatabase(t, sqldb.DriverSQLite, s.name+"-registry")),
		"tls":      w.certificate(t, "registry").config(), "identities": identities("platform", "vault"),
	})}
	registry.start(t)
	t.Cleanup(func() { registry.kill(t) })
	key := w.certificate(t, "vault")
	config := map[string]any{
		"development": true, "deployment_id": s.name, "redirect_uri": redirectURI,
		"kek": "file://" + filepath.Join(w.dir, s.name+".key"), "database": databaseKeys(s.database), "timing": timing, "log": map[string]any{"level": "warn"},
		"tls": key.config(), "identities": identities("platform"), "redis": map[string]any{"addrs": []string{w.redis}},
		"election": map[string]any{"shards": 1, "lock_ttl": "5s"},
		"registry": map[string]any{"target": registry.answers[0], "id": trustDomain + "registry"},
		// All runners come from one address.
		"limits": map[string]any{"anonymous": map[string]any{"per_second": -1}, "anonymous_calls": -1, "anonymous_connections": -1},
		"clouds": map[string]any{"public": map[string]any{
			"login_url": w.origin, "graph_url": w.origin, "resource_manager_url": w.origin, "graph_audience": "https://graph.microsoft.com",
			"resource_manager_audience": "https://management.azure.com", "home_tenant_id": w.home, "client_id": w.platform.ClientID,
			"credential": map[string]any{"client_secret_file": w.secretFile()}, "ca_file": w.entraCA(),
		}},
	}
	var addresses []string
	for i := range vaults {
		services := w.at(t)
		v := &server{runners: w.at(t)}
		config["listen"], config["runners_listen"] = services, v.runners
		name := fmt.Sprintf("%s-vault-%d", s.name, i+1)
		file := w.configure(t, name, config)
		if i == 0 {
			first := &process{name: "vaultd init", command: []string{binary(t, "vaultd"), "init", "--config", file}}
			first.start(t)
			first.finish(t)
		}
		v.process = process{name: name, answers: []string{services, v.runners}, command: []string{binary(t, "vaultd"), "--config", file}}
		v.start(t)
		t.Cleanup(func() { v.kill(t) })
		s.vaults = append(s.vaults, v)
		addresses = append(addresses, services)
	}
	// The last one, which is never killed.
	conn := w.dial(t, addresses[len(addresses)-1], "vault")
	s.grants, s.rotation = vaultv1.NewGrantServiceClient(conn), vaultv1.NewRotationServiceClient(conn)
	w.onboard(t, w.dial(t, registry.answers[0], "registry"), s)
	s.admit(t, holders)
	return s
}

// onboard makes a customer with an integration that has a credential.
func (w *world) onboard(t *testing.T, registry *grpc.ClientConn, s *suite) {
	t.Helper()
	ctx := t.Context()
	tenant := w.tenant(t, map[string]any{"displayName": "Customer"})
	administrator := s.name + "@customer.example"
	must(t, w.admin(ctx, "people", map[string]any{"tenant": tenant, "userName": administrator, "admin": true}, nil))
	made := registryv1.NewIntegrationServiceClient(registry)
	_, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: account, IntegrationId: "azure", Integration: &registryv1.Integration{
		DisplayName: "Azure", TenantId: tenant, DefaultSubscriptionId: "11111111-2222-4333-8444-555555555555", RotationPeriod: durationpb.New(24 * time.Hour),
		DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_CLIENT_SECRET},
	}})
	must(t, err)
	_, err = registryv1.NewProjectServiceClient(registry).CreateProject(ctx, &registryv1.CreateProjectRequest{
		Parent: account, ProjectId: "shop", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
	})
	must(t, err)
	_, err = registryv1.NewAttachmentServiceClient(registry).CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
		Parent: s.project, Attachment: &registryv1.Attachment{Integration: s.integration},
	})
	must(t, err)
	var clientID string
	await(t, onboardTime, func(ctx context.Context) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: s.integration})
		if err != nil {
			return err
		}
		if clientID = got.GetClientId(); clientID == "" {
			return errors.New("the integration has no application")
		}
		return w.admin(ctx, "consents", map[string]any{"tenant": tenant, "clientId": clientID, "redirectUri": redirectURI, "userName": administrator}, nil)
	})
	await(t, onboardTime, func(ctx context.Context) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: s.integration})
		if err == nil && got.GetState() != registryv1.Integration_STATE_ACTIVE {
			err = fmt.Errorf("the integration is %s: %v", got.GetState(), got.GetConditions())
		}
		return err
	})
}

// admit makes grants for so many runner instances.
func (s *suite) admit(t *testing.T, holders int) {
	t.Helper()
	grants := make([]*vaultv1.Grant, (holders+leasesPerGrant-1)/leasesPerGrant)
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
	must(t, failure)
	for instance := range leasesPerGrant {
		for _, g := range grants {
			s.holders = append(s.holders, holder{g.GetToken(), fmt.Sprint("runner-", instance)})
		}
	}
	s.holders = s.holders[:holders]
}

// rotate has the integration rotated, and returns when the new version was activated, once it is.
func (s *suite) rotate(t *testing.T) time.Time {
	t.Helper()
	before := s.active(t.Context(), t).GetName()
	_, err := s.rotation.RotateIntegration(t.Context(), &vaultv1.RotateIntegrationRequest{Name: s.integration, Reason: vaultv1.Rotation_REASON_SCHEDULED})
	must(t, err)
	var now *vaultv1.CredentialVersion
	await(t, onboardTime, func(ctx context.Context) error {
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
	must(t, err)
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
	must(t, err)
	defer func() { must(t, rows.Close()) }()
	var pids []int
	for rows.Next() {
		var pid int
		must(t, rows.Scan(&pid))
		pids = append(pids, pid)
	}
	must(t, rows.Err())
	return processorTime(t, pids...)
}
