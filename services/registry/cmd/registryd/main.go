// Command registryd runs the integration registry.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/registry/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run does what the command line says, and serves until ctx ends.
func run(ctx context.Context, args, env []string, out io.Writer) error {
	cfg := app.DefaultConfig()
	action, err := confload.Load("registryd", args, env, out, &cfg)
	if err != nil || action == confload.Exit {
		return err
	}
	log := obs.NewLogger(os.Stderr, cfg.Log.Level, cfg.Log.Format).With(slog.String(obs.KeyService, "registry"))
	log.InfoContext(ctx, "starting", slog.String(obs.KeyConfig, confload.Dump(cfg)))
	registry, err := app.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	return registry.Run(ctx)
}
