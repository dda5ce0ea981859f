package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

const (
	account      = "accounts/acme"
	trustDomain  = "spiffe://phasekey.dev/"
	redirectURI  = "https://broker.example/consent/callback"
	integrations = 6
	vaults       = 3
	shards       = 6
	// lockTTL is how long a vault that died keeps its shards.
	lockTTL = 5 * time.Second
	// lag is how far the simulated Entra's replicas are behind at most.
	lag = 2 * time.Second
	// period is a rotation's.
	period = 4 * time.Second
)

// timing is the development's, somewhat quicker, for less lag.
var timing = map[string]any{
	"proofs": 4, "proof_spacing": "250ms", "settling": "3s", "retiring": "2s", "remove_delay": "500ms", "propagation_limit": "20s", "write_spacing": "200ms",
	"consent_interval": "5s", "await_interval": "1s", "probe_spacing": "500ms", "consent_failures": 5, "consent_window": "5s", "refusal_limit": 3,
	"reconcile_interval": "5s", "ensure_interval": "1m", "retry_min": "250ms", "retry_max": "3s", "longest_hold": "3m", "hold_margin": "5s",
}

// world is the suite, each part of it in a process of its own, and all it stands on.
type world struct {
	dir string
	// ip is an address of the loopback network that nobody else uses: ports can be fixed.
	ip string
	ca *devca.Authority

	origin   string // of the simulator
	http     *http.Client
	home     string // the platform's tenant
	platform struct {
		ClientID     string `json:"clientId"`
		ClientSecret string `json:"clientSecret"`
	}

	postgres     *sqldbtest.Server
	shards       *sql.DB  // the vaults' database
	databases    []string // libpq's words for the registry's and the vaults'
	redis        *process
	redisConfig  redisconn.Config
	registry     *grpc.ClientConn
	registryd    *process
	vaults       []*vault
	integrations []*integration
	judge        judge
}

// vault is one replica.
type vault struct {
	process
	services, runners, issuer string
	redis                     *proxy
	grants                    vaultv1.GrantServiceClient
	rotation                  vaultv1.RotationServiceClient
	leases                    vaultv1.LeaseServiceClient
	audit                     vaultv1.AuditServiceClient
}

// integration is one customer's.
type integration struct {
	name, project                  string
	tenant, subscription, clientID string
	federated                      bool
}

// newWorld starts everything, and stops it after the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), ip: fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(255), 1+rand.N(254))}
	var err error
	w.ca, err = devca.Open(filepath.Join(w.dir, "tls"), time.Now())
	must(t, err)
	w.startSimulator(t)
	server := w.certificate(t, "server")
	w.startIssuer(t, server)
	w.postgres = sqldbtest.NewTLSServer(t, w.ip, sqldbtest.Certificate(server))
	w.startRedis(t, server)
	w.startRegistry(t)
	w.startVaults(t)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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

func (w *world) at(port int) string { return net.JoinHostPort(w.ip, fmt.Sprint(port)) }

func (w *world) startSimulator(t *testing.T) {
	t.Helper()
	address := w.at(8443)
	// Tokens live for about as long as a fault lasts: who gets no new ones has none soon.
	entra := &process{name: "entrasim", answers: []string{address}, command: []string{
		binary(t, "entrasim"), "-listen", address, "-tls", filepath.Join(w.dir, "entra"), "-lag", fmt.Sprintf("0s-%s,role=0s", lag), "-token-life", "60s-75s",
		"-issuer-ca", w.ca.CAFile(),
	}}
	entra.start(t)
	t.Cleanup(func() { entra.stop(t) })
	w.origin = "https://" + address
	roots := x509.NewCertPool()
	await(t, startTimeout, func(context.Context) error { // it listens before it has made its CA
		pem, err := os.ReadFile(w.entraCA())
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			return notYet("%s has no certificate", w.entraCA())
		}
		return err
	})
	w.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, MaxIdleConnsPerHost: 32,
	}}
	t.Cleanup(w.http.CloseIdleConnections)
	var home struct {
		ID string `json:"id"`
	}
	must(t, w.admin(t.Context(), http.MethodPost, "tenants", map[string]any{"displayName": "Platform", "verified": true}, &home))
	w.home = home.ID
	must(t, w.admin(t.Context(), http.MethodPost, "platforms", map[string]any{"tenant": w.home}, &w.platform))
	must(t, os.WriteFile(w.secretFile(), []byte(w.platform.ClientSecret), 0o600))
}

func (w *world) entraCA() string    { return filepath.Join(w.dir, "entra", "ca.pem") }
func (w *world) secretFile() string { return filepath.Join(w.dir, "platform.secret") }

// admin calls the simulator's admin API.
func (w *world) admin(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, w.origin+"/admin/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	status, answer, err := w.do(request)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s %s: %d: %s", method, path, status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

func (w *world) do(request *http.Request) (status int, body []byte, err error) {
	response, err := w.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

func (w *world) startRedis(t *testing.T, server files) {
	t.Helper()
	address := w.at(6379)
	w.redis = &process{name: "redis-server", answers: []string{address}, command: []string{
		"redis-server", "--bind", w.ip, "--port", "0", "--tls-port", "6379", "--save", "", "--appendonly", "no", "--dir", w.dir,
		"--tls-cert-file", server.CertFile, "--tls-key-file", server.KeyFile, "--tls-ca-cert-file", server.CAFile, "--tls-auth-clients", "no",
	}}
	w.redis.start(t)
	t.Cleanup(func() { w.redis.kill(t) })
	w.redisConfig = redisconn.Config{Addrs: []string{address}, TLS: true, CAFile: server.CAFile, ServerName: "localhost"}
}

// flushRedis has Redis forget everything.
func (w *world) flushRedis(t *testing.T) {
	t.Helper()
	client, err := redisconn.Open(w.redisConfig)
	must(t, err)
	defer func() { _ = client.Close() }()
	must(t, client.FlushAll(t.Context()).Err())
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

func database(c sqldb.Config) map[string]any {
	return map[string]any{"driver": c.Driver, "dsn": c.DSN}
}

func (w *world) startRegistry(t *testing.T) {
	t.Helper()
	address := w.at(7441)
	db := w.postgres.Config(t)
	w.databases = append(w.databases, db.DSN)
	registry := &process{name: "registryd", answers: []string{address}, command: []string{binary(t, "registryd"), "--config", w.configure(t, "registry", map[string]any{
		"listen": address, "development": true, "drain": "1s", "home_tenants": []string{w.home}, "database": database(db),
		"tls": w.certificate(t, "registry").config(), "identities": identities("platform", "vault"),
	})}}
	registry.start(t)
	t.Cleanup(func() { registry.stop(t) })
	w.registryd = registry
	w.registry = w.dial(t, grpcclient.Config{Target: address, TLS: w.client(t, "platform").ClientConfig(trustDomain + "registry")})
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

func (w *world) dial(t *testing.T, config grpcclient.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.Dial(config)
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	return conn
}

func (w *world) startVaults(t *testing.T) {
	t.Helper()
	db := w.postgres.Config(t)
	w.databases = append(w.databases, db.DSN)
	key := w.certificate(t, "vault")
	config := map[string]any{
		"development": true, "drain": "1s", "deployment_id": "fault", "redirect_uri": redirectURI,
		"kek": "file://" + filepath.Join(w.dir, "vault.key"), "database": database(db), "timing": timing, "log": map[string]any{"level": "debug"},
		"tls": key.config(), "identities": identities("platform"),
		"election": map[string]any{"shards": shards, "lock_ttl": lockTTL.String()},
		"registry": map[string]any{"target": w.at(7441), "id": trustDomain + "registry"},
		"clouds": map[string]any{"public": map[string]any{
			"login_url": w.origin, "graph_url": w.origin, "resource_manager_url": w.origin, "graph_audience": "https://graph.microsoft.com",
			"resource_manager_audience": "https://management.azure.com", "home_tenant_id": w.home, "client_id": w.platform.ClientID,
			"credential": map[string]any{"client_secret_file": w.secretFile()}, "ca_file": w.entraCA(),
		}},
	}
	for i := range vaults {
		v := &vault{services: w.at(7451 + 10*i), runners: w.at(7452 + 10*i), issuer: w.at(7453 + 10*i), redis: newProxy(t, w.redisConfig.Addrs[0])}
		config["listen"], config["runners_listen"] = v.services, v.runners
		config["issuer"] = map[string]any{
			"url": w.issuerURL(), "listen": v.issuer, "keys": map[string]any{"period": keyPeriod.String(), "publish": "5s", "keep": "10s"},
		}
		config["redis"] = map[string]any{"addrs": []string{v.redis.address}, "tls": true, "ca_file": key.CAFile, "server_name": "localhost"}
		name := fmt.Sprintf("vault-%d", i+1)
		file := w.configure(t, name, config)
		program := binary(t, "vaultd")
		if i == 0 {
			first := &process{name: "vaultd init", command: []string{program, "init", "--config", file}}
			first.start(t)
			if err := <-first.ended; err != nil {
				t.Fatalf("vaultd init: %v\n%s", err, first.output.tail())
			}
		}
		v.process = process{name: name, answers: []string{v.services, v.runners, v.issuer}, command: []string{program, "--config", file}}
		v.start(t)
		t.Cleanup(func() { v.stop(t) })
		conn := w.dial(t, grpcclient.Config{Target: v.services, TLS: w.client(t, "platform").ClientConfig(trustDomain + "vault")})
		v.grants, v.rotation, v.leases = vaultv1.NewGrantServiceClient(conn), vaultv1.NewRotationServiceClient(conn), vaultv1.NewLeaseServiceClient(conn)
		v.audit = vaultv1.NewAuditServiceClient(conn)
		w.vaults = append(w.vaults, v)
	}
	var err error
	w.shards, err = sql.Open("pgx", db.DSN)
	must(t, err)
	t.Cleanup(func() { must(t, w.shards.Close()) })
}

// runners makes a runner's connection, which goes to one of the vaults as long as that answers.
func (w *world) runners(t *testing.T) *grpc.ClientConn {
	t.Helper()
	all := manual.NewBuilderWithScheme(fmt.Sprintf("vaults%d", rand.N(1<<30)))
	resolver.Register(all)
	var addresses []resolver.Address
	for _, v := range w.vaults {
		addresses = append(addresses, resolver.Address{Addr: v.runners})
	}
	all.InitialState(resolver.State{Addresses: addresses})
	source, err := mtls.Open(t.Context(), mtls.Config{CAFile: w.ca.CAFile()}, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, source.Close()) })
	return w.dial(t, grpcclient.Config{Target: all.Scheme() + ":///", OneServer: true, TLS: source.ClientConfig(trustDomain + "vault")})
}

// onboard makes the customers, with an integration each that has a Reader's role, and waits until all have a version that is settled.
func (w *world) onboard(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	made := registryv1.NewIntegrationServiceClient(w.registry)
	for n := range integrations {
		kind, material := typev1.CredentialKind_CREDENTIAL_KIND_CLIENT_SECRET, typev1.Material_MATERIAL_CLIENT_SECRET
		if federated(n) {
			kind, material = typev1.CredentialKind_CREDENTIAL_KIND_FEDERATED, typev1.Material_MATERIAL_FEDERATED_TOKEN
		}
		i := &integration{federated: federated(n), name: fmt.Sprintf("%s/integrations/i%d", account, n), project: fmt.Sprintf("%s/projects/p%d", account, n)}
		w.integrations = append(w.integrations, i)
		var tenant, subscription struct {
			ID string `json:"id"`
		}
		must(t, w.admin(ctx, http.MethodPost, "tenants", map[string]any{"displayName": "Customer"}, &tenant))
		must(t, w.admin(ctx, http.MethodPost, "people", map[string]any{"tenant": tenant.ID, "userName": fmt.Sprintf("admin%d@customer.example", n), "admin": true}, nil))
		must(t, w.admin(ctx, http.MethodPost, "subscriptions", map[string]any{"tenant": tenant.ID, "displayName": "Production"}, &subscription))
		i.tenant, i.subscription = tenant.ID, subscription.ID
		_, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: account, IntegrationId: fmt.Sprintf("i%d", n),
			Integration: &registryv1.Integration{
				DisplayName: fmt.Sprintf("Integration %d", n), TenantId: i.tenant, DefaultSubscriptionId: i.subscription, RotationPeriod: durationpb.New(period),
				CredentialKind: kind, DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, material},
			},
		})
		must(t, err)
		_, err = registryv1.NewProjectServiceClient(w.registry).CreateProject(ctx, &registryv1.CreateProjectRequest{
			Parent: account, ProjectId: fmt.Sprintf("p%d", n), Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
		})
		must(t, err)
		_, err = registryv1.NewAttachmentServiceClient(w.registry).CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: i.project, Attachment: &registryv1.Attachment{Integration: i.name},
		})
		must(t, err)
	}
	for n, i := range w.integrations {
		await(t, time.Minute, func(ctx context.Context) error {
			got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.name})
			if err != nil {
				return err
			}
			i.clientID = got.GetClientId()
			if i.clientID == "" {
				return notYet("%s has no application", i.name)
			}
			return w.admin(ctx, http.MethodPost, "consents", map[string]any{
				"tenant": i.tenant, "clientId": i.clientID, "redirectUri": redirectURI, "userName": fmt.Sprintf("admin%d@customer.example", n),
			}, nil)
		})
		var principal struct {
			ID string `json:"id"`
		}
		must(t, w.admin(ctx, http.MethodGet, "principals?"+url.Values{"tenant": {i.tenant}, "clientId": {i.clientID}}.Encode(), nil, &principal))
		must(t, w.admin(ctx, http.MethodPost, "roleAssignments", map[string]any{
			"scope": "/subscriptions/" + i.subscription, "principalId": principal.ID, "role": "Reader",
		}, nil))
	}
	// The first version may be handed out before all of Entra knows it; the second may not.
	w.rotated(t, time.Minute)
	w.rotated(t, time.Minute)
}

// versions are an integration's, as a vault lists them.
func (w *world) versions(ctx context.Context, i *integration) ([]*vaultv1.CredentialVersion, error) {
	var (
		answer *vaultv1.ListCredentialVersionsResponse
		err    error
	)
	for _, n := range rand.Perm(len(w.vaults)) {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		answer, err = w.vaults[n].rotation.ListCredentialVersions(try, &vaultv1.ListCredentialVersionsRequest{Parent: i.name, PageSize: 1000})
		cancel()
		if err == nil {
			break
		}
	}
	return answer.GetCredentialVersions(), err
}

// active is the number of an integration's ACTIVE version; zero when there is none.
func active(versions []*vaultv1.CredentialVersion) (number int) {
	for _, v := range versions {
		if v.GetState() == vaultv1.CredentialVersion_STATE_ACTIVE {
			_, _ = fmt.Sscan(v.GetName()[strings.LastIndexByte(v.GetName(), '/')+1:], &number)
		}
	}
	return number
}

// rotated waits until every integration has a newer ACTIVE version.
func (w *world) rotated(t *testing.T, limit time.Duration) {
	t.Helper()
	before := map[string]int{}
	for _, i := range w.integrations {
		await(t, limit, func(ctx context.Context) error {
			versions, err := w.versions(ctx, i)
			before[i.name] = active(versions)
			return err
		})
	}
	for _, i := range w.integrations {
		await(t, limit, func(ctx context.Context) error {
			versions, err := w.versions(ctx, i)
			if err != nil {
				return err
			}
			if now := active(versions); now <= before[i.name] {
				return notYet("%s has version %d, as before: %v", i.name, now, versions)
			}
			return nil
		})
	}
}

// grant makes a grant for a job on an integration's project, at any vault that answers.
func (w *world) grant(ctx context.Context, i *integration, run string, life time.Duration) (*vaultv1.Grant, error) {
	for {
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		made, err := w.vaults[rand.N(len(w.vaults))].grants.CreateGrant(try, &vaultv1.CreateGrantRequest{Parent: account, Grant: &vaultv1.Grant{
			Project: i.project, Phase: typev1.Phase_PHASE_APPLYING, Run: run, ExpireTime: timestamppb.New(time.Now().Add(life)),
		}})
		cancel()
		if err == nil {
			return made, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}
