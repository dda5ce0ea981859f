package fault

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
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
	"phasekey.dev/test/internal/rigtest"
)

const (
	account      = "accounts/acme"
	integrations = 6
	vaults       = 3
	shards       = 6
	// lockTTL is how long a vault that died keeps its shards.
	lockTTL = 5 * time.Second
	// lag is how far the simulated Entra's replicas are behind at most.
	lag = 2 * time.Second
	// period is a rotation's.
	period = 4 * time.Second
	// reconcileInterval lies between two looks at an application.
	reconcileInterval = 5 * time.Second
)

// timing is the development's, somewhat quicker, for less lag.
var timing = map[string]any{
	"proofs": 4, "proof_spacing": "250ms", "settling": "3s", "retiring": "2s", "remove_delay": "500ms", "propagation_limit": "20s", "write_spacing": "200ms",
	"consent_interval": "5s", "await_interval": "1s", "probe_spacing": "500ms", "consent_failures": 5, "consent_window": "5s", "refusal_limit": 3,
	"reconcile_interval": reconcileInterval.String(), "ensure_interval": "1m", "retry_min": "250ms", "retry_max": "3s", "longest_hold": "3m", "hold_margin": "5s",
}

// world is the suite, each part of it in a process of its own, and all it stands on.
type world struct {
	*rigtest.Rig
	release string           // the folder of the daemons
	kek     string           // the file of the key-encryption key
	nextCA  *devca.Authority // is to take the CA's place

	postgres     *sqldbtest.Server
	shards       *sql.DB  // the vaults' database
	databases    []string // libpq's words for the registry's and the vaults'
	redis        *rigtest.Process
	redisConfig  redisconn.Config
	registry     *grpc.ClientConn
	registryd    *rigtest.Process
	vaults       []*vault
	integrations []*integration
	judge        judge
}

// vault is one replica.
type vault struct {
	rigtest.Process
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
	return newWorldOf(t, filepath.Dir(rigtest.Binary(t, "vaultd")))
}

// newWorldOf has the daemons of a folder.
func newWorldOf(t *testing.T, release string) *world {
	t.Helper()
	w := &world{Rig: rigtest.New(t), release: release}
	// Tokens live for about as long as a fault lasts: who gets no new ones has none soon.
	w.StartSimulator(t, w.At(8443), "-lag", fmt.Sprintf("0s-%s,role=0s", lag), "-token-life", "60s-75s", "-issuer-ca", w.CA.CAFile())
	server := w.Certificate(t, "server")
	server.CAFile = filepath.Join(w.Dir, "server-ca.pem") // which stays when the services' CA is replaced
	copyFile(t, w.CA.CAFile(), server.CAFile)
	var err error
	w.nextCA, err = devca.Open(filepath.Join(w.Dir, "next"), time.Now())
	rigtest.Must(t, err)
	w.startIssuer(t, server)
	w.postgres = sqldbtest.NewTLSServer(t, w.IP, sqldbtest.Certificate(server))
	w.startRedis(t, server)
	w.startRegistry(t)
	w.startVaults(t)
	return w
}

func (w *world) startRedis(t *testing.T, server rigtest.Files) {
	t.Helper()
	address := w.At(6379)
	w.redis = &rigtest.Process{Name: "redis-server", Answers: []string{address}, Command: []string{
		"redis-server", "--bind", w.IP, "--port", "0", "--tls-port", "6379", "--save", "", "--appendonly", "no", "--dir", w.Dir,
		"--tls-cert-file", server.CertFile, "--tls-key-file", server.KeyFile, "--tls-ca-cert-file", server.CAFile, "--tls-auth-clients", "no",
	}}
	w.redis.Start(t)
	t.Cleanup(func() { w.redis.Kill(t) })
	w.redisConfig = redisconn.Config{Addrs: []string{address}, TLS: true, CAFile: server.CAFile, ServerName: "localhost"}
}

// flushRedis has Redis forget everything.
func (w *world) flushRedis(t *testing.T) {
	t.Helper()
	client, err := redisconn.Open(w.redisConfig)
	rigtest.Must(t, err)
	defer func() { _ = client.Close() }()
	rigtest.Must(t, client.FlushAll(t.Context()).Err())
}

func database(c sqldb.Config) map[string]any {
	return map[string]any{"driver": c.Driver, "dsn": c.DSN}
}

func (w *world) startRegistry(t *testing.T) {
	t.Helper()
	address := w.At(7441)
	db := w.postgres.Config(t)
	w.databases = append(w.databases, db.DSN)
	registry := &rigtest.Process{Name: "registryd", Answers: []string{address}, Command: []string{filepath.Join(w.release, "registryd"), "--config", w.Configure(t, "registry", map[string]any{
		"listen": address, "development": true, "drain": "1s", "home_tenants": []string{w.Home}, "database": database(db),
		"tls": w.Certificate(t, "registry").Config(), "identities": rigtest.Identities("platform", "vault", "broker"),
	})}}
	registry.Start(t)
	t.Cleanup(func() { registry.Stop(t) })
	w.registryd = registry
	w.registry = w.Dial(t, address, "registry")
}

func (w *world) startVaults(t *testing.T) {
	t.Helper()
	db := w.postgres.Config(t)
	w.databases = append(w.databases, db.DSN)
	key := w.Certificate(t, "vault")
	w.kek = filepath.Join(w.Dir, "vault.key")
	config := map[string]any{
		"development": true, "drain": "16s", "deployment_id": "fault", "redirect_uri": rigtest.RedirectURI,
		"kek": "file://" + w.kek, "database": database(db), "timing": timing, "log": map[string]any{"level": "debug"},
		"tls": key.Config(), "identities": rigtest.Identities("platform", "operator", "broker"),
		"election": map[string]any{"shards": shards, "lock_ttl": lockTTL.String()},
		"registry": map[string]any{"target": w.At(7441), "id": rigtest.TrustDomain + "registry"},
		"clouds":   w.Clouds(),
	}
	for i := range vaults {
		v := &vault{services: w.At(7451 + 10*i), runners: w.At(7452 + 10*i), issuer: w.At(7453 + 10*i), redis: newProxy(t, w.redisConfig.Addrs[0])}
		config["listen"], config["runners_listen"] = v.services, v.runners
		config["issuer"] = map[string]any{
			"url": w.issuerURL(), "listen": v.issuer, "keys": map[string]any{"period": keyPeriod.String(), "publish": "5s", "keep": "10s"},
		}
		config["redis"] = map[string]any{"addrs": []string{v.redis.address}, "tls": true, "ca_file": w.redisConfig.CAFile, "server_name": "localhost"}
		name := fmt.Sprintf("vault-%d", i+1)
		file := w.Configure(t, name, config)
		program := filepath.Join(w.release, "vaultd")
		if i == 0 {
			first := &rigtest.Process{Name: "vaultd init", Command: []string{program, "init", "--config", file}}
			first.Start(t)
			first.Finish(t)
		}
		v.Process = rigtest.Process{Name: name, Answers: []string{v.services, v.runners, v.issuer}, Command: []string{program, "--config", file}}
		v.Start(t)
		t.Cleanup(func() { v.Stop(t) })
		conn := w.Dial(t, v.services, "vault")
		v.grants, v.rotation, v.leases = vaultv1.NewGrantServiceClient(conn), vaultv1.NewRotationServiceClient(conn), vaultv1.NewLeaseServiceClient(conn)
		v.audit = vaultv1.NewAuditServiceClient(conn)
		w.vaults = append(w.vaults, v)
	}
	var err error
	w.shards, err = sql.Open("pgx", db.DSN)
	rigtest.Must(t, err)
	t.Cleanup(func() { _ = w.shards.Close() }) // PostgreSQL may be gone
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
	return w.runnersAt(t, all.Scheme()+":///")
}

// balanced makes a runner's connection by one address, behind which all vaults are.
func (w *world) balanced(t *testing.T) *grpc.ClientConn {
	t.Helper()
	var next atomic.Int64
	return w.runnersAt(t, listenProxy(t, func() (conn net.Conn, err error) {
		for range w.vaults {
			to := w.vaults[int(next.Add(1))%len(w.vaults)]
			if conn, err = net.Dial("tcp", to.runners); err == nil {
				break
			}
		}
		return conn, err
	}).address)
}

func (w *world) runnersAt(t *testing.T, target string) *grpc.ClientConn {
	t.Helper()
	source := rigtest.Follow(t, mtls.Config{CAFile: w.CA.CAFile()})
	return rigtest.Dial(t, grpcclient.Config{Target: target, OneServer: true, TLS: source.ClientConfig(rigtest.TrustDomain + "vault")})
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
		rigtest.Must(t, w.Admin(ctx, http.MethodPost, "tenants", map[string]any{"displayName": "Customer"}, &tenant))
		rigtest.Must(t, w.Admin(ctx, http.MethodPost, "people", map[string]any{"tenant": tenant.ID, "userName": fmt.Sprintf("admin%d@customer.example", n), "admin": true}, nil))
		rigtest.Must(t, w.Admin(ctx, http.MethodPost, "subscriptions", map[string]any{"tenant": tenant.ID, "displayName": "Production"}, &subscription))
		i.tenant, i.subscription = tenant.ID, subscription.ID
		_, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: account, IntegrationId: fmt.Sprintf("i%d", n),
			Integration: &registryv1.Integration{
				DisplayName: fmt.Sprintf("Integration %d", n), TenantId: i.tenant, DefaultSubscriptionId: i.subscription, RotationPeriod: durationpb.New(period),
				CredentialKind: kind, DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, material},
			},
		})
		rigtest.Must(t, err)
		_, err = registryv1.NewProjectServiceClient(w.registry).CreateProject(ctx, &registryv1.CreateProjectRequest{
			Parent: account, ProjectId: fmt.Sprintf("p%d", n), Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
		})
		rigtest.Must(t, err)
		_, err = registryv1.NewAttachmentServiceClient(w.registry).CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: i.project, Attachment: &registryv1.Attachment{Integration: i.name},
		})
		rigtest.Must(t, err)
	}
	for n, i := range w.integrations {
		rigtest.Await(t, time.Minute, func(ctx context.Context) error {
			got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.name})
			if err != nil {
				return err
			}
			i.clientID = got.GetClientId()
			if i.clientID == "" {
				return notYet("%s has no application", i.name)
			}
			return w.Admin(ctx, http.MethodPost, "consents", map[string]any{
				"tenant": i.tenant, "clientId": i.clientID, "redirectUri": rigtest.RedirectURI, "userName": fmt.Sprintf("admin%d@customer.example", n),
			}, nil)
		})
		var principal struct {
			ID string `json:"id"`
		}
		rigtest.Must(t, w.Admin(ctx, http.MethodGet, "principals?"+url.Values{"tenant": {i.tenant}, "clientId": {i.clientID}}.Encode(), nil, &principal))
		rigtest.Must(t, w.Admin(ctx, http.MethodPost, "roleAssignments", map[string]any{
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
		rigtest.Await(t, limit, func(ctx context.Context) error {
			versions, err := w.versions(ctx, i)
			before[i.name] = active(versions)
			return err
		})
	}
	for _, i := range w.integrations {
		rigtest.Await(t, limit, func(ctx context.Context) error {
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
