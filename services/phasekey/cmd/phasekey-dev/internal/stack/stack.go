// Package stack runs the whole suite in one process on embedded defaults: the three services over real mTLS on loopback, on
// SQLite, with an embedded Redis-protocol server and a simulated Entra.
//
// It guarantees that everything it keeps is in one folder, and that a stack opened on the same folder again goes on where
// the last one stopped, at the same addresses unless somebody else has taken them. It is for development: the keys of
// its CA lie beside what they sign.
package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/devca"
	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/task"
	brokerapp "phasekey.dev/services/broker/app"
	registryapp "phasekey.dev/services/registry/app"
	vaultapp "phasekey.dev/services/vault/app"
)

const (
	// trustDomain is that of every SPIFFE ID in a stack.
	trustDomain = "phasekey.dev"
	loopback    = "127.0.0.1"
	// maxLag is how far the simulated Entra's replicas are behind.
	maxLag = 3 * time.Second
	drain  = time.Second
)

// Config is what a stack is opened with.
type Config struct {
	// Dir is where everything is kept; made when it does not exist.
	Dir string
	// Seed decides the simulated Entra's lags and identifiers.
	Seed uint64
	Log  *slog.Logger
}

// Stack is everything, opened. Run it once.
type Stack struct {
	config Config
	held   daemon.Held
	// pages and issuer keep the addresses of the consent pages and of the vault's issuer, which others are told before they are bound.
	pages     net.Listener
	issuer    net.Listener
	ca        *devca.Authority
	endpoints Endpoints
	world     World
	tasks     []task.Task
}

// ID is the SPIFFE ID of a role in a stack.
func ID(role string) string { return "spiffe://" + trustDomain + "/" + role }

// Open makes or finds everything in the folder and binds the addresses. It starts nothing. When it fails it leaves nothing
// open.
func Open(ctx context.Context, config Config) (_ *Stack, err error) {
	s := &Stack{config: config}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.held.Close())
		}
	}()
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := s.lock(); err != nil {
		return nil, err
	}
	before := readEndpoints(config.Dir)
	if s.ca, err = devca.Open(s.path("tls"), time.Now()); err != nil {
		return nil, err
	}
	if s.pages, err = s.held.Listen(ctx, "consent pages", reuse(before.BrokerHTTPS)); err != nil {
		return nil, err
	}
	s.endpoints.BrokerHTTPS = s.pages.Addr().String()
	if s.issuer, err = s.held.Listen(ctx, "issuer", reuse(before.Issuer)); err != nil {
		return nil, err
	}
	s.endpoints.Issuer = s.issuer.Addr().String()
	for _, open := range []func(context.Context, Endpoints) error{s.openSimulator, s.openRedis, s.openRegistry, s.openVault, s.openBroker} {
		if err := open(ctx, before); err != nil {
			return nil, err
		}
	}
	for _, role := range []string{"platform", "operator", "runner"} {
		if _, err := s.certificate(role); err != nil {
			return nil, err
		}
	}
	return s, s.endpoints.write(config.Dir)
}

// Endpoints are where everything listens.
func (s *Stack) Endpoints() Endpoints { return s.endpoints }

// World is what the simulated Entra was furnished with.
func (s *Stack) World() World { return s.world }

// Run serves until ctx ends, then stops everything in order, the services before what they stand on.
func (s *Stack) Run(ctx context.Context) error {
	return errors.Join(task.Run(ctx, s.config.Log, s.tasks...), s.held.Close())
}

func (s *Stack) path(elements ...string) string {
	return filepath.Join(append([]string{s.config.Dir}, elements...)...)
}

// lock has the folder to this process alone, before anything in it is looked at. The file stays behind: removing it would let
// two processes lock two files of one name.
func (s *Stack) lock() error {
	file, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.held.Own("lock", file.Close)
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another phasekey-dev", s.config.Dir)
	}
	return err
}

func (s *Stack) openSimulator(ctx context.Context, before Endpoints) error {
	ln, err := s.held.Listen(ctx, "simulator", reuse(hostPort(before.Login)))
	if err != nil {
		return err
	}
	state := s.path("entra")
	if !furnished(s.config.Dir) {
		// The last stack was killed while it furnished the world, and nobody has seen any of it.
		if err := os.RemoveAll(state); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	origin := "https://" + ln.Addr().String()
	issuers, err := s.issuers()
	if err != nil {
		return err
	}
	sim, err := entrasim.New(entrasim.Config{
		Seed: s.config.Seed, StateDir: state, Lags: entrasim.Lag(0, maxLag), BaseURL: origin, Log: s.log("entrasim"),
		Issuers: issuers,
	})
	if err != nil {
		return fmt.Errorf("simulator: %w", err)
	}
	s.held.Own("simulator", sim.Close)
	if s.world, err = furnish(sim, s.config.Dir); err != nil {
		return fmt.Errorf("simulator: %w", err)
	}
	tlsConfig, err := s.serverTLS(ctx, "entra")
	if err != nil {
		return err
	}
	at := sim.Endpoints()
	s.endpoints.Login, s.endpoints.Graph, s.endpoints.ResourceManager = at.Login, at.Graph, at.ResourceManager
	s.endpoints.SimulatorAdmin, s.endpoints.HomeTenant = at.Admin, s.world.HomeTenant
	s.tasks = append(s.tasks, task.Task{Name: "simulator", Grace: 2 * drain, Run: func(ctx context.Context) error {
		return sim.Run(ctx, ln, tlsConfig.HTTPSConfig())
	}})
	return nil
}

// issuers is by what the simulated Entra reads the vault's signing keys.
func (s *Stack) issuers() (*http.Transport, error) {
	pem, err := os.ReadFile(s.ca.CAFile())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", s.ca.CAFile())
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, ForceAttemptHTTP2: true, MaxIdleConns: 4, IdleConnTimeout: time.Minute}
	s.held.Own("simulator's connections", func() error { t.CloseIdleConnections(); return nil })
	return t, nil
}

// openRedis starts the embedded server at once: it has no opening apart from starting.
func (s *Stack) openRedis(context.Context, Endpoints) error {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(loopback + ":0"); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	s.held.Own("redis", func() error { server.Close(); return nil })
	s.endpoints.redis = server.Addr()
	return nil
}

func (s *Stack) openRegistry(ctx context.Context, before Endpoints) error {
	files, err := s.certificate("registry")
	if err != nil {
		return err
	}
	cfg := registryapp.DefaultConfig()
	cfg.Listen, cfg.Development, cfg.Drain = reuse(before.Registry), true, drain
	cfg.HomeTenants, cfg.Clouds = []string{s.world.HomeTenant}, []string{"public"}
	cfg.Database = s.database("registry")
	cfg.TLS = files
	cfg.Identities = identities("platform", "operator", "vault", "broker")
	app, err := registryapp.New(ctx, cfg, s.log("registry"))
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	s.held.Own("registry", app.Close)
	s.endpoints.Registry = app.Addr().String()
	s.tasks = append(s.tasks, task.Task{Name: "registry", Run: app.Run, Grace: 2 * drain})
	return nil
}

func (s *Stack) openVault(ctx context.Context, before Endpoints) error {
	files, err := s.certificate("vault")
	if err != nil {
		return err
	}
	cfg := vaultapp.DefaultConfig()
	cfg.Listen, cfg.RunnersListen, cfg.Development, cfg.Drain = reuse(before.Vault), reuse(before.VaultRunners), true, drain
	cfg.DeploymentID = "dev"
	cfg.RedirectURI = s.publicURL() + brokerapp.RedirectPath
	key, err := filepath.Abs(s.path("vault.key"))
	if err != nil {
		return err
	}
	cfg.KEK = "file://" + key
	cfg.Database = s.database("vault")
	cfg.Redis = redisconn.Config{Addrs: []string{s.endpoints.redis}}
	cfg.TLS = files
	cfg.Identities = identities("platform", "operator", "broker", "runner")
	cfg.Registry = vaultapp.Upstream{Target: s.endpoints.Registry, ID: ID("registry")}
	cfg.Clouds = map[string]vaultapp.Cloud{"public": {
		LoginURL: s.endpoints.Login, GraphURL: s.endpoints.Graph, ResourceManagerURL: s.endpoints.ResourceManager,
		GraphAudience: "https://graph.microsoft.com", ResourceManagerAudience: "https://management.azure.com",
		HomeTenantID: s.world.HomeTenant, ClientID: s.world.PlatformClientID, Credential: vaultapp.CloudCredential{ClientSecretFile: secretFile(s.config.Dir)},
		CAFile: s.ca.CAFile(),
	}}
	cfg.Election.Shards, cfg.Election.LockTTL = 2, 3*time.Second
	cfg.Timing = vaultapp.DevelopmentTiming()
	cfg.Issuer = vaultapp.Issuer{URL: "https://" + s.endpoints.Issuer, Listen: s.endpoints.Issuer, Keys: vaultapp.DevelopmentKeys()}
	if _, err := os.Stat(key); errors.Is(err, os.ErrNotExist) {
		if err := vaultapp.Init(ctx, cfg); err != nil {
			return fmt.Errorf("vault: %w", err)
		}
	}
	if err := s.issuer.Close(); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	app, err := vaultapp.New(ctx, cfg, s.log("vault"))
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	s.held.Own("vault", app.Close)
	s.endpoints.Vault, s.endpoints.VaultRunners = app.Addr().String(), app.RunnersAddr().String()
	s.tasks = append(s.tasks, task.Task{Name: "vault", Run: app.Run, Grace: 2 * drain})
	return nil
}

func (s *Stack) openBroker(ctx context.Context, before Endpoints) error {
	files, err := s.certificate("broker")
	if err != nil {
		return err
	}
	cfg := brokerapp.DefaultConfig()
	cfg.Listen, cfg.Development, cfg.Drain = reuse(before.Broker), true, drain
	cfg.HTTPSListen, cfg.PublicURL, cfg.PlatformName = s.endpoints.BrokerHTTPS, s.publicURL(), "Phasekey development"
	cfg.StateKeyFile = s.path("broker.key")
	cfg.Database = s.database("broker")
	cfg.TLS = files
	cfg.Identities = identities("platform", "operator")
	cfg.Registry = brokerapp.Upstream{Target: s.endpoints.Registry, ID: ID("registry")}
	cfg.Vault = brokerapp.Upstream{Target: s.endpoints.Vault, ID: ID("vault")}
	cfg.Clouds = map[string]brokerapp.Cloud{"public": {LoginURL: s.endpoints.Login, GraphURL: "https://graph.microsoft.com"}}
	cfg.ProbeInterval, cfg.PollInterval, cfg.WatchInterval = 500*time.Millisecond, 250*time.Millisecond, 100*time.Millisecond
	if err := s.pages.Close(); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	app, err := brokerapp.New(ctx, cfg, s.log("broker"))
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	s.held.Own("broker", app.Close)
	s.endpoints.Broker = app.Addr().String()
	s.tasks = append(s.tasks, task.Task{Name: "broker", Run: app.Run, Grace: 2 * drain})
	return nil
}

func (s *Stack) log(service string) *slog.Logger { return s.config.Log.With("service", service) }

func (s *Stack) database(service string) sqldb.Config {
	return sqldb.Config{Driver: sqldb.DriverSQLite, Path: s.path(service + ".db")}
}

// certificate is a role's, made or found.
func (s *Stack) certificate(role string) (mtls.Config, error) {
	files, err := s.ca.Issue(time.Now(), role, devca.Leaf{ID: ID(role), DNS: []string{"localhost"}, IPs: []net.IP{net.ParseIP(loopback)}})
	if err != nil {
		return mtls.Config{}, fmt.Errorf("certificate of %s: %w", role, err)
	}
	return mtls.Config{CertFile: files.Cert, KeyFile: files.Key, CAFile: s.ca.CAFile()}, nil
}

func (s *Stack) serverTLS(ctx context.Context, role string) (*mtls.Source, error) {
	files, err := s.certificate(role)
	if err != nil {
		return nil, err
	}
	source, err := mtls.Open(ctx, files, s.log(role))
	if err != nil {
		return nil, err
	}
	s.held.Own(role+" certificate", source.Close)
	return source, nil
}

func identities(roles ...string) []grpcserver.Identity {
	out := make([]grpcserver.Identity, len(roles))
	for i, role := range roles {
		out[i] = grpcserver.Identity{ID: ID(role), Role: role, Accounts: []string{grpcserver.AllAccounts}}
	}
	return out
}

// publicURL is where administrators' browsers reach the broker's pages, and where Entra ID sends them back to.
func (s *Stack) publicURL() string { return "https://" + s.endpoints.BrokerHTTPS }

// reuse is the address that was bound the last time, or any free one.
func reuse(address string) string {
	if address != "" {
		if ln, err := net.Listen("tcp", address); err == nil { //nolint:noctx // closed at once; nothing waits
			if ln.Close() == nil {
				return address
			}
		}
	}
	return loopback + ":0"
}
