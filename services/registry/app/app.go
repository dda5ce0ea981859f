// Package app assembles the registry: what the command runs, and what phasekey-dev runs beside the other services.
//
// It guarantees that New fails on anything that would keep the registry from serving for ever (configuration, schema,
// certificates, addresses), and that a database which is away for a while makes it NOT_SERVING for as long, and no longer.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/task"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/rpc"
	"phasekey.dev/services/registry/internal/store"
	"phasekey.dev/services/registry/internal/watch"
)

const (
	// healthInterval is how often readiness is found out anew; a check that takes longer has failed.
	healthInterval = 2 * time.Second
	// forgetInterval is how often what is no longer needed is removed.
	forgetInterval = 10 * time.Minute
	// serverGrace is what the server may take beyond its drain to cut off what is left.
	serverGrace = 2 * time.Second
)

// App is a registry whose listeners are bound and whose database is open. Run it once, or Close it.
type App struct {
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	hub     *watch.Hub
	tls     *mtls.Source
	server  *grpcserver.Server
	metrics []task.Task

	metricsAddr net.Addr
	held        daemon.Held
}

// New opens the database and the certificates, binds the listeners, and starts nothing. When it fails it leaves nothing
// open.
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
	if a.tls, err = mtls.Open(ctx, cfg.TLS, log); err != nil {
		return nil, err
	}
	a.held.Own("tls", a.tls.Close)
	metrics := obs.NewRegistry("registry")
	a.hub, err = watch.New(watch.Config{
		Source: a.store, Log: log, Metrics: metrics, Poll: cfg.PollInterval, Bookmark: cfg.BookmarkInterval,
	})
	if err != nil {
		return nil, err
	}
	if err := a.listen(ctx, metrics); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *App) openStore(ctx context.Context) error {
	db, err := sqldb.Open(ctx, a.cfg.Database, store.Migrations())
	if err != nil {
		return err
	}
	a.held.Own("database", db.Close)
	for _, name := range db.NewerMigrations() {
		a.log.WarnContext(ctx, "the database has a migration of a newer release", slog.String("migration", name))
	}
	a.store, err = store.New(ctx, db, a.cfg.Quotas)
	return err
}

// listen binds the addresses and makes the servers.
func (a *App) listen(ctx context.Context, metrics *prometheus.Registry) error {
	ln, err := a.held.Listen(ctx, "listen", a.cfg.Listen)
	if err != nil {
		return err
	}
	a.server, err = grpcserver.New(grpcserver.Config{
		Name: "registry", Listener: ln, TLS: a.tls.ServerConfig(mtls.Required), Log: a.log, Metrics: metrics,
		Register:   rpc.Register(rpc.Config{Store: a.store, Trial: a.store.Trial(), Watcher: a.hub, Rules: rules(a.cfg)}),
		Policy:     grpcserver.OptionPolicy(optionsv1.E_Callers),
		Identities: a.cfg.Identities,
		Limits:     a.cfg.Limits,
		Reflection: true,
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

func rules(cfg Config) integration.Rules {
	r := integration.Rules{Development: cfg.Development, Clouds: cfg.Clouds}
	for _, tenant := range cfg.HomeTenants {
		r.HomeTenants = append(r.HomeTenants, strings.ToLower(tenant))
	}
	return r
}

// Addr is the bound address of the gRPC listener.
func (a *App) Addr() net.Addr { return a.server.Addr() }

// MetricsAddr is the bound address of the metrics listener, nil without one.
func (a *App) MetricsAddr() net.Addr { return a.metricsAddr }

// Run serves until ctx ends, then stops in order and closes everything. It returns the first failure.
func (a *App) Run(ctx context.Context) error {
	tasks := []task.Task{
		{Name: "tls", Run: a.tls.Run},
		{Name: "forget", Run: a.forget},
	}
	tasks = append(tasks, a.metrics...)
	tasks = append(tasks,
		task.Task{Name: "watch", Run: a.hub.Run},
		task.Task{Name: "server", Run: a.server.Run, Grace: a.cfg.Drain + serverGrace},
		task.Task{Name: "health", Run: func(ctx context.Context) error {
			return a.server.FollowHealth(ctx, healthInterval, a.store.Ping)
		}},
	)
	err := task.Run(ctx, a.log, tasks...)
	return errors.Join(err, a.held.Close())
}

// Close releases what New opened, the last first. Run does so itself.
func (a *App) Close() error { return a.held.Close() }

// forget removes old changes, and the results of old requests, from time to time.
func (a *App) forget(ctx context.Context) error {
	tick := time.NewTicker(forgetInterval)
	defer tick.Stop()
	for {
		now := time.Now()
		err := errors.Join(a.store.ForgetRequests(ctx, now), a.store.Compact(ctx, now.Add(-a.cfg.ChangeRetention)))
		if err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "old changes and requests cannot be removed", slog.Any(obs.KeyError, err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
