// Package daemon is the frame of a process that serves: from its command line to its exit code, and what it holds open on
// the way.
//
// It guarantees that a process which cannot start says why and exits 1, that SIGINT and SIGTERM stop it in order, that a
// second signal stops it at once, and that what was opened is released the last first, also when opening stopped halfway.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/loopback"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/task"
)

// Service is opened and ready to run, once.
type Service interface {
	// Run serves until ctx ends, and has released everything when it returns.
	Run(ctx context.Context) error
}

// Command is something else that the binary does with the same configuration: `named init --config FILE`.
type Command[C confload.Config] struct {
	// Name is the first argument.
	Name string
	// Flags are short names for flags of the configuration, of use with this command: "shards" for "election.shards".
	Flags map[string]string
	// Run does it. What it has to tell it prints itself.
	Run func(ctx context.Context, config C, log *slog.Logger) error
}

// Program is a daemon's binary.
type Program[C confload.Config] struct {
	// Name is the binary's, for usage and log.
	Name string
	// Config points to the defaults, and is filled from file, environment and flags.
	Config C
	// Logging is the part of the configuration that is about the log.
	Logging func(C) obs.LogConfig
	// Open opens what Run serves with; it starts nothing.
	Open func(ctx context.Context, config C, log *slog.Logger) (Service, error)
	// Commands are what the binary can do besides serving.
	Commands []Command[C]
}

// Main does what the process's arguments say, and returns its exit code.
func (p Program[C]) Main() int {
	collectLater()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// From the first signal on the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	if err := p.Run(ctx, os.Args[1:], os.Environ(), os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		return 1
	}
	return 0
}

// Run does what the arguments say, and serves until ctx ends. Args are without the program's name, env is as of os.Environ.
func (p Program[C]) Run(ctx context.Context, args, env []string, out io.Writer) error {
	var command *Command[C]
	if len(args) > 0 {
		if i := slices.IndexFunc(p.Commands, func(c Command[C]) bool { return c.Name == args[0] }); i >= 0 {
			command = &p.Commands[i]
			args = command.expand(args[1:])
		}
	}
	action, err := confload.Load(p.Name, args, env, out, p.Config)
	if err != nil || action == confload.Exit {
		return err
	}
	logging := p.Logging(p.Config)
	log := obs.NewLogger(os.Stderr, logging.Level, logging.Format).With(slog.String(obs.KeyService, p.Name))
	if command != nil {
		return command.Run(ctx, p.Config, log)
	}
	log.InfoContext(ctx, "starting", slog.String(obs.KeyConfig, confload.Dump(p.Config)))
	service, err := p.Open(ctx, p.Config, log)
	if err != nil {
		return err
	}
	return service.Run(ctx)
}

// expand writes short names of flags out.
func (c Command[C]) expand(args []string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		word, value, given := strings.Cut(arg, "=")
		for short, name := range c.Flags {
			if word == "--"+short {
				out[i] = "--" + name
				if given {
					out[i] += "=" + value
				}
			}
		}
	}
	return out
}

// Held is what a service has opened. The zero value holds nothing. It is not safe for concurrent use.
type Held struct {
	closers []closer
}

type closer struct {
	name  string
	close func() error
}

// Own has Close release something; its name stands in the error.
func (h *Held) Own(name string, release func() error) {
	h.closers = append(h.closers, closer{name, release})
}

// Listen binds a TCP address and owns the listener. Key is the configuration's, for the error. That somebody else has closed
// the listener by then is no error.
func (h *Held) Listen(ctx context.Context, key, address string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	h.Own(key, func() error {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return ln, nil
}

// ListenMetrics binds the address for metrics and liveness, and returns the task that serves them: over HTTPS beyond
// loopback. An empty address is no task and no error.
func (h *Held) ListenMetrics(ctx context.Context, key, address string, https *tls.Config, g prometheus.Gatherer, log *slog.Logger) ([]task.Task, net.Addr, error) {
	if address == "" {
		return nil, nil, nil
	}
	ln, err := h.Listen(ctx, key, address)
	if err != nil {
		return nil, nil, err
	}
	if loopback.Address(ln.Addr().String()) {
		https = nil
	}
	serve, err := obs.MetricsTask(ln, https, g, log)
	if err != nil {
		return nil, nil, err
	}
	return []task.Task{serve}, ln.Addr(), nil
}

// ListenProfiles binds the address for Go's profiles of the process, which must be on loopback, and returns the task that serves them. An empty address
// is no task and no error.
func (h *Held) ListenProfiles(ctx context.Context, key, address string, log *slog.Logger) ([]task.Task, error) {
	if address == "" {
		return nil, nil
	}
	ln, err := h.Listen(ctx, key, address)
	if err != nil {
		return nil, err
	}
	serve, err := obs.ProfileTask(ln, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return []task.Task{serve}, nil
}

// Close releases everything, the last first, and returns all that went wrong. Afterwards nothing is held.
func (h *Held) Close() error {
	var problems []error
	for len(h.closers) > 0 {
		last := h.closers[len(h.closers)-1]
		h.closers = h.closers[:len(h.closers)-1]
		if err := last.close(); err != nil {
			problems = append(problems, fmt.Errorf("close %s: %w", last.name, err))
		}
	}
	return errors.Join(problems...)
}
