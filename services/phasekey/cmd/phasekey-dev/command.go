package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/story"
)

// options are the flags that both ways of starting have.
type options struct {
	dir   string
	seed  uint64
	level slog.Level
}

func root() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:           "phasekey-dev --dir DIR",
		Short:         "Run registry, broker, vault and a simulated Entra in one process, until interrupted",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.dir == "" {
				return errors.New("--dir is required: everything is kept there")
			}
			return serve(c.Context(), o)
		},
	}
	flags := command.PersistentFlags()
	flags.StringVar(&o.dir, "dir", "", "folder for all state; made when it does not exist")
	flags.Uint64Var(&o.seed, "seed", 1, "decides the simulated Entra's lags")
	flags.TextVar(&o.level, "log-level", slog.LevelWarn, "debug, info, warn or error")
	command.AddCommand(demo(&o), arm())
	return command
}

func serve(ctx context.Context, o options) error {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	s.Hints(os.Stdout)
	return s.Run(ctx)
}

func open(ctx context.Context, o options) (*stack.Stack, error) {
	log := obs.NewLogger(os.Stderr, o.level, obs.FormatText)
	redisconn.LogTo(log)
	return stack.Open(ctx, stack.Config{Dir: o.dir, Seed: o.seed, Log: log})
}

func demo(o *options) *cobra.Command {
	var phasekey string
	command := &cobra.Command{
		Use:   "demo",
		Short: "Play the life of two integrations once, and judge it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("log-level") {
				// The story has waits and refusals in it on purpose.
				o.level = slog.LevelError
			}
			return play(c.Context(), *o, phasekey)
		},
	}
	command.Flags().StringVar(&phasekey, "phasekey", "", "the phasekey command; beside this one when not given")
	return command
}

// play opens a stack, in a folder of its own unless one is named, plays the story on it, and stops it.
func play(ctx context.Context, o options, phasekey string) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if phasekey == "" {
		phasekey = filepath.Join(filepath.Dir(self), "phasekey")
	}
	if _, err := os.Stat(phasekey); err != nil {
		return fmt.Errorf("the phasekey command is needed (--phasekey): %w", err)
	}
	goesOn := "played again with this --dir, it goes on from here"
	if o.dir == "" {
		goesOn = "its folder is removed; with a --dir of your own, it would go on from here"
		if o.dir, err = os.MkdirTemp("", "phasekey-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	// The stack outlives the story, also one that is interrupted: its runners have a vault to close their leases at.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() {
		stopped <- s.Run(serving)
		cancel()
	}()
	told := story.Play(ctx, story.Config{
		Dir: o.dir, Endpoints: s.Endpoints(), World: s.World(), Phasekey: phasekey, Self: self, Out: os.Stdout,
	})
	stop()
	if errors.Is(told, story.ErrInterrupted) {
		told = fmt.Errorf("%w; %s", told, goesOn)
	}
	return errors.Join(told, <-stopped)
}

func arm() *cobra.Command {
	var (
		a     story.ARM
		watch bool
	)
	command := &cobra.Command{
		Use:   "arm METHOD PATH",
		Short: "Call Resource Manager with the identity that the environment names, as a program under phasekey exec does",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			a.Method, a.Path = args[0], args[1]
			if watch {
				return a.Watch(c.Context(), c.InOrStdin(), c.OutOrStdout())
			}
			return a.Once(c.Context(), c.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.StringVar(&a.ResourceManager, "resource-manager", "https://management.azure.com", "its URL")
	flags.StringVar(&a.Login, "login", "https://login.microsoftonline.com", "URL of the login service, where a client secret is shown")
	flags.StringVar(&a.CAFile, "ca", "", "file with the CA that their certificates are verified against")
	flags.IntVar(&a.Want, "want", 0, "the status that is waited for while roles replicate")
	flags.BoolVar(&watch, "watch", false, "call again and again, each time with a token that is asked for anew, until standard input ends")
	return command
}
