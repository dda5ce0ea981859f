// Command brokerd runs the consent broker.
package main

import (
	"context"
	"log/slog"
	"os"

	"phasekey.dev/pkg/daemon"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/app"
)

func main() { os.Exit(program().Main()) }

func program() daemon.Program[*app.Config] {
	cfg := app.DefaultConfig()
	return daemon.Program[*app.Config]{
		Name:    "brokerd",
		Config:  &cfg,
		Logging: func(c *app.Config) obs.LogConfig { return c.Log },
		Open: func(ctx context.Context, c *app.Config, log *slog.Logger) (daemon.Service, error) {
			return app.New(ctx, *c, log)
		},
	}
}
