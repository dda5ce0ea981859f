// Command registryd runs the integration registry.
package main

import (
	"context"
	"log/slog"
	"os"

	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/registry/app"
)

func main() { os.Exit(program().Main()) }

func program() daemon.Program[*app.Config] {
	cfg := app.DefaultConfig()
	return daemon.Program[*app.Config]{
		Name:    "registryd",
		Config:  &cfg,
		Logging: func(c *app.Config) obs.LogConfig { return c.Log },
		Open: func(ctx context.Context, c *app.Config, log *slog.Logger) (daemon.Service, error) {
			return app.New(ctx, *c, log)
		},
		Commands: []daemon.Command[*app.Config]{
			// To be run after the database was restored from a backup.
			{Name: "restored", Run: func(ctx context.Context, c *app.Config, _ *slog.Logger) error {
				return app.Restored(ctx, *c, os.Stdout)
			}},
		},
	}
}
