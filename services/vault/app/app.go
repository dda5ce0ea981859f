// Package app assembles the vault: what the command runs, and what phasekey-dev runs beside the other services.
//
// It guarantees that New fails on anything that would keep the vault from serving for ever (configuration, key, schema,
// number of shards, addresses), and that whatever may come back by itself (the registry, Redis, Entra, a database that
// restarts) only keeps it from what needs it, and for as long as it is away.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/task"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/election/redislock"
	"phasekey.dev/services/vault/internal/election/static"
	"phasekey.dev/services/vault/internal/election/tally"
	"phasekey.dev/services/vault/internal/entra"
	"phasekey.dev/services/vault/internal/feed"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/hint"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/notary"
	"phasekey.dev/services/vault/internal/rolecheck"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/rpc"
	"phasekey.dev/services/vault/internal/store"
	"phasekey.dev/services/vault/internal/tail"
)

const (
	// healthInterval is how often readiness is found out anew; a check that takes longer has failed.
	healthInterval = 2 * time.Second
	// registryTimeout bounds a single call to the registry that brings no deadline of its own.
	registryTimeout = 15 * time.Second
	// maxEntraTimeout bounds one request to Entra or Graph; a lock's life may allow less.
	maxEntraTimeout = 8 * time.Second
)

// App is a vault whose listeners are bound and whose stores are open. Run it once, or Close it.
type App struct {
	cfg       Config
	log       *slog.Logger
	metrics   *prometheus.Registry
	held      daemon.Held
	db        *sqldb.DB
	store     *store.Store
	keyring   *keyring.Keyring
	tls       *mtls.Source
	registry  *grpc.ClientConn
	hints     *hint.Hints // nil without Redis
	hub       *delivery.Hub
	releaser  *delivery.Releaser
	forgetter *delivery.Forgetter
	notary    *notary.Notary
	tails     *tail.Hub
	meter     *delivery.Meter
	server    *grpcserver.Server
	runners   *grpcserver.Server
	elector   election.Elector
	fence     *fence.Fence
	clock     prometheus.Gauge
	worker    *rotation.Worker
	prober    *rotation.Prober
	tokens    *issuer.Issuer
	checker   *rolecheck.Checker
	feed      *feed.Feed
	watch     *entra.Watch
	issuer    *openID // nil without one

	serveMetrics []task.Task
}

// New opens the database, the keys, the certificates and the clouds, binds the listeners, and starts nothing. When it fails
// it leaves nothing open.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *App, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	a := &App{cfg: cfg, log: log, metrics: obs.NewRegistry("vault"), clock: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "phasekey_vault_clock_ahead_seconds",
		Help: "How far this replica's clock is ahead of the database server's; 0 with SQLite. Beyond 150 either way the replica is not serving, and takes no shards.",
	})}
	a.metrics.MustRegister(a.clock)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.held.Close())
		}
	}()
	if err := a.openStore(ctx); err != nil {
		return nil, err
	}
	if err := a.openKeys(ctx); err != nil {
		return nil, err
	}
	a.store = store.New(a.db, a.keyring)
	if a.tls, err = mtls.Open(ctx, cfg.TLS, log); err != nil {
		return nil, err
	}
	a.held.Own("tls", a.tls.Close)
	if err := a.dial(); err != nil {
		return nil, err
	}
	if err := a.warnOfClouds(ctx); err != nil {
		return nil, err
	}
	clouds := make(entra.Clouds, len(cfg.Clouds))
	for name, cloud := range cfg.Clouds {
		if clouds[name], err = cloud.open(); err != nil {
			return nil, fmt.Errorf("clouds.%s: %w", name, err)
		}
	}
	var client redis.UniversalClient
	if len(cfg.Redis.Addrs) > 0 {
		if client, err = redisconn.Open(cfg.Redis); err != nil {
			return nil, err
		}
		a.held.Own("redis", func() error {
			_ = client.Close() // whether Redis, which may be gone, hears the goodbye is no matter
			return nil
		})
		a.hints = hint.New(client, cfg.DeploymentID, log)
	}
	if a.watch, err = entra.NewWatch(clouds, log, a.metrics); err != nil {
		return nil, err
	}
	if err := a.openIssuer(ctx); err != nil {
		return nil, err
	}
	a.deliver(clouds)
	a.notary = notary.New(notary.Config{
		Store: a.store, Keys: a.keyring, Taken: store.ErrChanged, Retention: cfg.Audit.Retention, File: cfg.Audit.CheckpointFile,
		Log: log, Metrics: a.metrics,
	})
	a.tails = tail.New(tail.Config{Source: a.store, Log: a.log, Metrics: a.metrics})
	if err := a.work(clouds, client); err != nil {
		return nil, err
	}
	if err := a.look(); err != nil {
		return nil, err
	}
	return a, a.listen(ctx)
}

func (a *App) openStore(ctx context.Context) error {
	migrations, err := store.Migrations()
	if err != nil {
		return err
	}
	if a.db, err = sqldb.Open(ctx, a.cfg.database(), migrations); err != nil {
		return err
	}
	a.held.Own("database", a.db.Close)
	for _, name := range a.db.NewerMigrations() {
		a.log.WarnContext(ctx, "the database has a migration of a newer release", slog.String("migration", name))
	}
	return a.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return fence.Configure(ctx, tx, a.cfg.Election.Shards)
	})
}

// warnOfClouds says which integrations there are that nothing can be done about, for the configuration does not name their cloud.
func (a *App) warnOfClouds(ctx context.Context) error {
	counts, err := a.store.Clouds(ctx)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if _, ok := a.cfg.Clouds[name]; !ok {
			a.log.ErrorContext(ctx, "integrations are in a cloud that the configuration does not name: nothing is delivered from them, and nothing of them is rotated",
				slog.String("cloud", name), slog.Int("integrations", counts[name]))
		}
	}
	return nil
}

// dial makes the connection to the registry, which need not be up.
func (a *App) dial() (err error) {
	var services []protoreflect.ServiceDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		registryv1.File_phasekey_registry_v1_integration_service_proto,
		registryv1.File_phasekey_registry_v1_project_service_proto,
		registryv1.File_phasekey_registry_v1_attachment_service_proto,
	} {
		services = append(services, file.Services().Get(0))
	}
	a.registry, err = grpcclient.Dial(grpcclient.Config{
		Target: a.cfg.Registry.Target, TLS: a.tls.ClientConfig(a.cfg.Registry.ID), Timeout: registryTimeout, Services: services,
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	a.held.Own("registry", a.registry.Close)
	return nil
}

// deliver makes what serves runners.
func (a *App) deliver(clouds entra.Clouds) {
	known := make(map[string]delivery.Cloud, len(clouds))
	for name, cloud := range clouds {
		known[name] = delivery.Cloud{ResourceManager: cloud.ResourceManager(), Environment: azurermEnvironment(name)}
	}
	a.tokens = issuer.New(issuer.Config{Minter: clouds, Keyring: a.keyring, Signer: a.signer(), Prober: a.store, Log: a.log, Metrics: a.metrics})
	a.meter = delivery.NewMeter(a.store, a.log)
	cfg := delivery.Config{
		Meter:   a.meter,
		Store:   a.store,
		Issuer:  a.tokens,
		Keyring: a.keyring, Signer: a.signer(), HoldMargin: a.cfg.Timing.HoldMargin, LongestHold: a.cfg.Timing.LongestHold,
		Clouds: known, Log: a.log, Metrics: a.metrics,
	}
	if a.hints != nil {
		cfg.Hints = a.hints.Heard()
	}
	a.hub = delivery.New(cfg)
	a.releaser = delivery.NewReleaser(a.store, a.cfg.Timing.HoldMargin, a.log)
	a.forgetter = delivery.NewForgetter(a.store, a.cfg.Grants.Retention, a.log)
}

// azurermEnvironment is what the Terraform provider calls a cloud; empty for one that it does not know.
func azurermEnvironment(cloud string) string {
	switch cloud {
	case "public", "usgovernment", "china":
		return cloud
	default:
		return ""
	}
}

// work makes what makes Entra agree with the registry.
func (a *App) work(clouds entra.Clouds, client redis.UniversalClient) error {
	directories := make(rotation.Clouds, len(clouds))
	for name, cloud := range clouds {
		directories[name] = cloud
	}
	timeout := min(maxEntraTimeout, a.cfg.Election.LockTTL/2)
	a.prober = rotation.NewProber(rotation.ProberConfig{
		Store: a.store, Clouds: directories, Keyring: a.keyring, Signer: a.signer(), Timing: a.cfg.Timing, Timeout: timeout,
	})
	permits, err := budget.New(budget.Config{
		Limits: a.cfg.Graph, Client: client, Prefix: "phasekey:" + a.cfg.DeploymentID, Log: a.log, Metrics: a.metrics,
	})
	if err != nil {
		return err
	}
	a.worker, err = rotation.New(rotation.Config{
		Store: a.store, Clouds: directories, Keyring: a.keyring, Signer: a.signer(),
		Reporter:     rotation.NewRegistry(registryv1.NewStatusServiceClient(a.registry)),
		Budget:       permits,
		Timing:       a.cfg.Timing,
		DeploymentID: a.cfg.DeploymentID, NamePrefix: a.cfg.ApplicationPrefix, RedirectURI: a.cfg.RedirectURI,
		Notify: func(string) { a.changed() },
		Log:    a.log, Metrics: a.metrics,
		Timeout: timeout,
	})
	if err != nil {
		return err
	}
	a.feed = feed.New(feed.Config{
		Registry: feed.Registry{
			Integrations: registryv1.NewIntegrationServiceClient(a.registry),
			Projects:     registryv1.NewProjectServiceClient(a.registry),
			Attachments:  registryv1.NewAttachmentServiceClient(a.registry),
			Watch:        registryv1.NewWatchServiceClient(a.registry),
		},
		Store: a.store, Changed: a.changed, Log: a.log,
	})
	elector, err := a.elect(client)
	if err != nil {
		return err
	}
	a.elector, err = tally.New(elector, a.metrics)
	return err
}

// look makes what looks at Azure roles.
func (a *App) look() (err error) {
	clouds := make(map[string]rolecheck.Cloud, len(a.cfg.Clouds))
	for name, cloud := range a.cfg.Clouds {
		if clouds[name], err = cloud.roles(); err != nil {
			return fmt.Errorf("clouds.%s: %w", name, err)
		}
	}
	a.checker, err = rolecheck.New(rolecheck.Config{Store: a.store, Issuer: a.tokens, Clouds: clouds, Log: a.log, Metrics: a.metrics})
	return err
}

// elect makes what decides which shards this replica works on.
func (a *App) elect(client redis.UniversalClient) (election.Elector, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	shards, ttl := a.cfg.Election.Shards, a.cfg.Election.LockTTL
	a.fence = fence.New(a.db, shards)
	if a.cfg.Election.StaticMaster {
		return static.New(static.Config{
			Replica: host, Master: host, Shards: shards, Backoff: ttl, Fence: a.fence, Log: a.log,
		})
	}
	return redislock.New(redislock.Config{
		Client: client, Prefix: "phasekey:" + a.cfg.DeploymentID, Replica: host, Shards: shards, TTL: ttl,
		Fence: a.fence, Log: a.log,
	})
}

// changed has streams hear of a change: this replica's at once, the others' by a hint.
func (a *App) changed() {
	a.hub.Nudge()
	if a.hints != nil {
		a.hints.Notify()
	}
}

// listen binds the addresses and makes the servers.
func (a *App) listen(ctx context.Context) error {
	pageKey, err := a.store.PageKey(ctx)
	if err != nil {
		return err
	}
	services := rpc.Config{
		PageKey: pageKey,
		Grants:  a.store, Leases: a.store, Accounts: a.store, Versions: a.store, Rotations: a.store, Pauses: a.store, SigningKeys: a.store, SigningTiming: a.cfg.Issuer.Keys, Hub: a.hub, Changed: a.changed, Prober: a.prober, Checker: a.checker,
		Resolver: registryv1.NewAttachmentServiceClient(a.registry), Trail: a.store, Keys: a.keyring, Tails: a.tails,
	}
	policy := grpcserver.OptionPolicy(optionsv1.E_Callers)
	ln, err := a.held.Listen(ctx, "listen", a.cfg.Listen)
	if err != nil {
		return err
	}
	a.server, err = grpcserver.New(grpcserver.Config{
		Name: "vault", Listener: ln, TLS: a.tls.ServerConfig(mtls.Required), Log: a.log, Metrics: a.metrics,
		Register: rpc.Register(services), Policy: policy, Identities: a.cfg.Identities, Limits: a.cfg.Limits,
		Reflection: true, StreamIdle: streamIdle, OnDrain: a.hub.Drain, Drain: a.cfg.Drain,
	})
	if err != nil {
		return err
	}
	if ln, err = a.held.Listen(ctx, "runners_listen", a.cfg.RunnersListen); err != nil {
		return err
	}
	a.runners, err = grpcserver.New(grpcserver.Config{
		Name: "vault-runners", Listener: ln, TLS: a.tls.ServerConfig(mtls.Optional), Log: a.log, Metrics: a.metrics,
		Register: rpc.RegisterRunners(services), Policy: policy, Identities: a.cfg.Identities, Limits: a.cfg.Limits,
		AnonymousOK: true, StreamIdle: streamIdle, OnDrain: a.hub.Drain, Drain: a.cfg.Drain,
	})
	if err != nil {
		return err
	}
	if a.serveMetrics, _, err = a.held.ListenMetrics(ctx, "metrics_listen", a.cfg.MetricsListen, a.tls.HTTPSConfig(), a.metrics, a.log); err != nil {
		return err
	}
	profiles, err := a.held.ListenProfiles(ctx, "profile_listen", a.cfg.ProfileListen, a.log)
	a.serveMetrics = append(a.serveMetrics, profiles...)
	return err
}

// streamIdle is off: a stream of credentials says something only when they change, and ends with its grant.
const streamIdle = -1

// Addr is the bound address of the services' listener.
func (a *App) Addr() net.Addr { return a.server.Addr() }

// RunnersAddr is the bound address of the runners' listener.
func (a *App) RunnersAddr() net.Addr { return a.runners.Addr() }

// Run serves until ctx ends, then stops in order and closes everything: streams are told to go elsewhere, then masterships
// are resigned, then stores are closed. It returns the first failure.
func (a *App) Run(ctx context.Context) error {
	tasks := append([]task.Task{{Name: "tls", Run: a.tls.Run}}, a.serveMetrics...)
	if a.hints != nil {
		tasks = append(tasks, task.Task{Name: "hints", Run: a.hints.Run})
	}
	if a.issuer != nil {
		tasks = append(tasks, a.issuer.tasks...)
	}
	grace := a.cfg.Drain + 2*time.Second
	tasks = append(tasks,
		task.Task{Name: "feed", Run: a.feed.Run},
		task.Task{Name: "election", Grace: grace, Run: func(ctx context.Context) error {
			return a.elector.Run(ctx, a.serve)
		}},
		task.Task{Name: "keyring", Run: func(ctx context.Context) error { return a.keyring.Run(ctx, a.log) }},
		task.Task{Name: "own credentials", Run: a.watch.Run},
		task.Task{Name: "notary", Run: a.notary.Run},
		task.Task{Name: "audit tails", Run: a.tails.Run},
		task.Task{Name: "hub", Run: a.hub.Run},
		task.Task{Name: "permissions", Run: a.checker.Run},
		task.Task{Name: "releaser", Run: a.releaser.Run},
		task.Task{Name: "forgetter", Run: a.forgetter.Run},
		task.Task{Name: "meter", Run: a.meter.Run},
		task.Task{Name: "server", Run: a.server.Run, Grace: grace},
		task.Task{Name: "runners", Run: a.runners.Run, Grace: grace},
		task.Task{Name: "health", Run: func(ctx context.Context) error {
			return a.server.FollowHealth(ctx, healthInterval, a.ready)
		}},
		task.Task{Name: "runners health", Run: func(ctx context.Context) error {
			return a.runners.FollowHealth(ctx, healthInterval, a.ready)
		}},
	)
	return errors.Join(task.Run(ctx, a.log, tasks...), a.held.Close())
}

// ready fails while the database does not answer, and while clocks differ so much that grants could be taken for ended, or for live, that are not.
func (a *App) ready(ctx context.Context) error {
	if err := a.db.Ping(ctx); err != nil {
		return err
	}
	ahead, err := a.fence.Ahead(ctx, time.Now())
	if err == nil || errors.Is(err, fence.ErrClock) {
		a.clock.Set(ahead.Seconds())
	}
	return err
}

// Close releases what New opened, the last first. Run does so itself.
func (a *App) Close() error { return a.held.Close() }
