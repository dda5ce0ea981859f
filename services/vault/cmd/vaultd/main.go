// Command vaultd runs the credential vault.
package main

import (
	"context"
	"log/slog"
	"os"

	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/services/vault/app"
)

func main() { os.Exit(program().Main()) }

func program() daemon.Program[*app.Config] {
	cfg := app.DefaultConfig()
	return daemon.Program[*app.Config]{
		Name:    "vaultd",
		Config:  &cfg,
		Logging: func(c *app.Config) obs.LogConfig { return c.Log },
		Open: func(ctx context.Context, c *app.Config, log *slog.Logger) (daemon.Service, error) {
			redisconn.LogTo(log)
			return app.New(ctx, *c, log)
		},
		Commands: []daemon.Command[*app.Config]{
			// Makes the file of the key-encryption key, once.
			{Name: "init", Run: func(ctx context.Context, c *app.Config, _ *slog.Logger) error { return app.Init(ctx, *c) }},
			// Divides the database into another number of shards: `vaultd reshard --config FILE --shards N`.
			{Name: "reshard", Flags: map[string]string{"shards": "election.shards"}, Run: func(ctx context.Context, c *app.Config, log *slog.Logger) error {
				return app.Reshard(ctx, *c, log)
			}},
			// Replaces the key-encryption key: `vaultd rewrap --config FILE --to URL`.
			{Name: "rewrap", Flags: map[string]string{"to": "next_kek"}, Run: func(ctx context.Context, c *app.Config, log *slog.Logger) error {
				return app.Rewrap(ctx, *c, log)
			}},
			// Adds a data key, and has it seal everything.
			{Name: "rekey", Run: func(ctx context.Context, c *app.Config, log *slog.Logger) error { return app.Rekey(ctx, *c, log) }},
			// After the database was restored from a backup; and how far that is.
			{Name: "recover", Run: func(ctx context.Context, c *app.Config, log *slog.Logger) error { return app.Recover(ctx, *c, log) }},
			{Name: "recover-status", Run: func(ctx context.Context, c *app.Config, log *slog.Logger) error {
				return app.RecoverStatus(ctx, *c, log)
			}},
		},
	}
}
