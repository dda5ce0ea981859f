// Package app assembles the broker: what the command runs, and what phasekey-dev runs beside the other services.
//
// It guarantees that New fails on anything that would keep the broker from serving for ever (configuration, key, schema,
// addresses), and that whatever may come back by itself (the registry, the vault, a database that restarts) makes it
// NOT_SERVING for as long as it is away, and no longer.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/task"
	"phasekey.dev/pkg/webcert"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
	"phasekey.dev/services/broker/internal/keyfile"
	"phasekey.dev/services/broker/internal/prover"
	"phasekey.dev/services/broker/internal/roles"
	"phasekey.dev/services/broker/internal/rpc"
	"phasekey.dev/services/broker/internal/standing"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/upstream"
	"phasekey.dev/services/broker/internal/web"
)

const (
	// healthInterval is how often readiness is found out anew; a check that takes longer has failed.
	healthInterval = 2 * time.Second
	// purgeInterval is how often what is no longer needed is forgotten.
	purgeInterval = 10 * time.Minute
	// upstreamTimeout bounds a single call to the registry or the vault that brings no deadline of its own.
	upstreamTimeout = 15 * time.Second
	maxBackoff      = 2 * time.Minute
)

// App is a broker whose listeners are bound and whose stores are open. Run it once, or Close it.
type App struct {
	cfg      Config
	log      *slog.Logger
	db       *sqldb.DB
	store    *store.Store
	tls      *mtls.Source
	registry *grpc.ClientConn
	vault    *grpc.ClientConn
	prover   *prover.Prover
	server   *grpcserver.Server
	webCert  *webcert.Source // nil: the pages have the service's own certificate
	pages    task.Task
	follow   *follow.Hub
	metrics  []task.Task

	httpsAddr   net.Addr
	metricsAddr net.Addr
	held        daemon.Held
}

// New opens the database, the key and the certificates, binds the listeners, and starts nothing. When it fails it leaves
// nothing open.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *App, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	a := &App{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.held.Close())
		}
	}()
	if err := a.openStore(ctx); err != nil {
		return nil, err
	}
	key, err := keyfile.Open(ctx, cfg.StateKeyFile, a.store)
	if err != nil {
		return nil, err
	}
	if a.tls, err = mtls.Open(ctx, cfg.TLS, log); err != nil {
		return nil, err
	}
	a.held.Own("tls", a.tls.Close)
	if err := a.dial(); err != nil {
		return nil, err
	}
	metrics := obs.NewRegistry("broker")
	registry, vault := upstream.NewRegistry(a.registry), upstream.NewVault(a.vault)
	a.prover, err = prover.New(prover.Config{
		Store: a.store, Registry: registry, Vault: vault, Log: log, Metrics: metrics,
		Pace: consent.Pace{Probe: cfg.ProbeInterval, Poll: cfg.PollInterval, MaxBackoff: max(maxBackoff, cfg.ProbeInterval)},
	})
	if err != nil {
		return nil, err
	}
	a.follow = follow.New(follow.Config{Store: a.store, Interval: cfg.WatchInterval, Log: log})
	links := consent.Links{Key: key, Clouds: clouds(cfg.Clouds), PublicURL: cfg.PublicURL}
	service := rpc.New(rpc.Config{
		Store: a.store, Registry: registry, Vault: vault, Log: log, MaxOpen: cfg.MaxOpenSessions, Follow: a.follow,
		Links: links, Origins: cfg.ReturnOrigins,
	})
	if err := a.listen(ctx, service, metrics); err != nil {
		return nil, err
	}
	if err := a.listenPages(ctx, links, roles.New(a.store, vault, log), standing.New(standing.Config{
		Store: a.store, Registry: registry, Vault: vault, Interval: cfg.ProbeInterval, Log: log,
	}), metrics); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *App) openStore(ctx context.Context) error {
	db, err := sqldb.Open(ctx, a.cfg.Database, store.Migrations())
	if err != nil {
		return err
	}
	a.db, a.store = db, store.New(db)
	a.held.Own("database", db.Close)
	for _, name := range db.NewerMigrations() {
		a.log.WarnContext(ctx, "the database has a migration of a newer release", slog.String("migration", name))
	}
	return nil
}

// dial makes the connections to the registry and the vault. Neither needs to be up.
func (a *App) dial() (err error) {
	a.registry, err = grpcclient.Dial(grpcclient.Config{
		Target: a.cfg.Registry.Target, TLS: a.tls.ClientConfig(a.cfg.Registry.ID), Timeout: upstreamTimeout,
		Services: []protoreflect.ServiceDescriptor{registryv1.File_phasekey_registry_v1_integration_service_proto.Services().ByName("IntegrationService")},
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	a.held.Own("registry", a.registry.Close)
	a.vault, err = grpcclient.Dial(grpcclient.Config{
		Target: a.cfg.Vault.Target, TLS: a.tls.ClientConfig(a.cfg.Vault.ID), Timeout: upstreamTimeout,
		Services: []protoreflect.ServiceDescriptor{vaultv1.File_phasekey_vault_v1_access_service_proto.Services().ByName("AccessService")},
	})
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	a.held.Own("vault", a.vault.Close)
	return nil
}

// listen binds the addresses and makes the servers.
func (a *App) listen(ctx context.Context, service *rpc.Service, metrics *prometheus.Registry) error {
	ln, err := a.held.Listen(ctx, "listen", a.cfg.Listen)
	if err != nil {
		return err
	}
	a.server, err = grpcserver.New(grpcserver.Config{
		Name: "broker", Listener: ln, TLS: a.tls.ServerConfig(mtls.Required), Log: a.log, Metrics: metrics,
		Register:   func(r grpc.ServiceRegistrar) { brokerv1.RegisterConsentServiceServer(r, service) },
		Policy:     grpcserver.OptionPolicy(optionsv1.E_Callers),
		Identities: a.cfg.Identities,
		Limits:     a.cfg.Limits,
		Reflection: true,
		// A watched session may well not change for a day. It ends by its own deadline, and keepalive finds the dead.
		StreamIdle: -1,
		Drain:      a.cfg.Drain,
	})
	if err != nil {
		return err
	}
	if a.metrics, a.metricsAddr, err = a.held.ListenMetrics(ctx, "metrics_listen", a.cfg.MetricsListen, a.tls.HTTPSConfig(), metrics, a.log); err != nil {
		return err
	}
	profiles, err := a.held.ListenProfiles(ctx, "profile_listen", a.cfg.ProfileListen, a.log)
	a.metrics = append(a.metrics, profiles...)
	return err
}

// listenPages binds the address of the pages.
func (a *App) listenPages(ctx context.Context, links consent.Links, look *roles.Looker, stand *standing.Looker, metrics *prometheus.Registry) error {
	config := a.tls.HTTPSConfig()
	if a.cfg.HTTPSCertFile != "" {
		var err error
		if a.webCert, err = webcert.Open(webcert.Config{CertFile: a.cfg.HTTPSCertFile, KeyFile: a.cfg.HTTPSKeyFile}, a.log); err != nil {
			return err
		}
		config = a.webCert.TLSConfig()
	}
	site, err := web.New(web.Config{
		Store: a.store, Follow: a.follow, Roles: look, Standing: stand, Proxies: proxies(a.cfg.TrustedProxies), Links: links, Origins: a.cfg.ReturnOrigins, Platform: a.cfg.PlatformName, Brand: a.cfg.Pages, AttemptLife: a.cfg.AttemptLife,
		Log: a.log, Metrics: metrics,
	})
	if err != nil {
		return err
	}
	ln, err := a.held.Listen(ctx, "https_listen", a.cfg.HTTPSListen)
	if err != nil {
		return err
	}
	a.httpsAddr, a.pages = ln.Addr(), site.Task(ln, config, a.cfg.Drain)
	return nil
}

// proxies are the configured networks, which were validated.
func proxies(configured []string) web.Proxies {
	out := make(web.Proxies, 0, len(configured))
	for _, text := range configured {
		if network, err := parseNetwork(text); err == nil {
			out = append(out, network)
		}
	}
	return out
}

func clouds(configured map[string]Cloud) map[string]consent.Cloud {
	out := make(map[string]consent.Cloud, len(configured))
	for name, c := range configured {
		out[name] = consent.Cloud{LoginURL: c.LoginURL, GraphURL: c.GraphURL}
	}
	return out
}

// Addr is the bound address of the gRPC listener.
func (a *App) Addr() net.Addr { return a.server.Addr() }

// HTTPSAddr is the bound address of the consent pages.
func (a *App) HTTPSAddr() net.Addr { return a.httpsAddr }

// MetricsAddr is the bound address of the metrics listener, nil without one.
func (a *App) MetricsAddr() net.Addr { return a.metricsAddr }

// Run serves until ctx ends, then stops in order and closes everything. It returns the first failure.
func (a *App) Run(ctx context.Context) error {
	tasks := []task.Task{
		{Name: "tls", Run: a.tls.Run},
		{Name: "purge", Run: a.purge},
	}
	if a.webCert != nil {
		tasks = append(tasks, task.Task{Name: "web certificate", Run: a.webCert.Run})
	}
	tasks = append(tasks, a.metrics...)
	tasks = append(tasks,
		task.Task{Name: "prover", Run: a.prover.Run},
		task.Task{Name: "follow", Run: a.follow.Run},
		a.pages,
		task.Task{Name: "server", Run: a.server.Run, Grace: a.cfg.Drain + 2*time.Second},
		task.Task{Name: "health", Run: func(ctx context.Context) error {
			return a.server.FollowHealth(ctx, healthInterval, a.ready)
		}},
	)
	err := task.Run(ctx, a.log, tasks...)
	return errors.Join(err, a.held.Close())
}

// Close releases what New opened, the last first. Run does so itself.
func (a *App) Close() error { return a.held.Close() }

// ready says what is missing for the broker to do its work. The three are asked at the same time, for they share a deadline.
func (a *App) ready(ctx context.Context) error {
	checks := []func(context.Context) error{
		a.store.Ping,
		func(ctx context.Context) error { return upstream.Connected(ctx, a.registry) },
		func(ctx context.Context) error { return upstream.Connected(ctx, a.vault) },
	}
	found := make([]error, len(checks))
	var asked sync.WaitGroup
	for i, check := range checks {
		asked.Go(func() { found[i] = check(ctx) })
	}
	asked.Wait()
	return errors.Join(found...)
}

// purge forgets what is no longer needed, from time to time.
func (a *App) purge(ctx context.Context) error {
	tick := time.NewTicker(purgeInterval)
	defer tick.Stop()
	for {
		now := time.Now()
		if err := a.store.Purge(ctx, now, now.Add(-a.cfg.Retention)); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "old sessions cannot be purged", slog.Any(obs.KeyError, err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
