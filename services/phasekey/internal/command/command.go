// Package command is the phasekey command line.
//
// It guarantees that a command's exit code is decided in one place (Main), that no secret is taken from an argument or
// from an environment value, and that what goes wrong is said in one line on standard error, with what to do about it.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/phasekey/internal/child"
	"phasekey.dev/services/phasekey/internal/operator"
)

// exitRefused is the exit code of commands that run no child.
const exitRefused = 1

// The exit codes for exec's own failures, as env(1) and timeout(1) have them. All others are the child's.
const (
	exitFailed     = 125
	exitNotRunning = 126
	exitNotFound   = 127
)

// envPrefix begins the environment variables that stand for flags: PHASEKEY_VAULT_ID for --vault-id.
const envPrefix = "PHASEKEY_"

// Process is what a command is run with.
type Process struct {
	Args   []string
	Env    []string
	Stdin  *os.File
	Stdout *os.File
	Stderr *os.File
}

// exitError is an error with an exit code of its own. Without an error inside, there is nothing to say.
type exitError struct {
	code int
	// signal is what ended the command; it is to end us too. Zero means none.
	signal syscall.Signal
	err    error
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

// Unwrap returns the error inside.
func (e *exitError) Unwrap() error { return e.err }

// Main runs one command and returns the exit code. It does not return if a signal ended what was run: that ends us too.
func Main(p Process) int {
	root := &cobra.Command{
		Use:           "phasekey",
		Short:         "Run commands with a grant's credentials, and look after what gives them",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(p.Args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	run := newExec(p)
	root.AddCommand(run, newConformance(p), newProbe(p), newVersion())
	root.AddCommand(operator.Commands(lookup(p.Env))...)

	begun := false
	onRun(root, func() { begun = true })
	c, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return 0
	}
	if !begun {
		err = misused(c, err)
	}
	code := exitRefused
	if c == run {
		code = exitFailed // for the command's own codes are the child's
	}
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		if exit.signal != 0 {
			child.Die(exit.signal)
		}
		if exit.err == nil {
			return code
		}
	}
	_, _ = fmt.Fprintln(p.Stderr, "phasekey: "+err.Error())
	return code
}

// onRun has each command begin with do.
func onRun(c *cobra.Command, do func()) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			do()
			return run(c, args)
		}
	}
	for _, below := range c.Commands() {
		onRun(below, do)
	}
}

// misused adds to what is wrong with a command line how the command is used.
func misused(c *cobra.Command, err error) error {
	what := strings.Join(strings.Fields(err.Error()), " ") // cobra proposes other commands on lines of their own
	if c.HasAvailableSubCommands() {
		return fmt.Errorf("%s; see `%s --help`", what, c.CommandPath())
	}
	return fmt.Errorf("%s; usage: %s; see `%s --help`", what, c.UseLine(), c.CommandPath())
}

// newVersion makes the command that says what this binary is.
func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b := obs.ReadBuild()
			_, err := fmt.Fprintf(c.OutOrStdout(), "phasekey %s (%s, %s)\n", b.Version, b.Revision, b.Go)
			return err
		},
	}
}

// lookup finds the variables of an environment.
func lookup(env []string) func(string) (string, bool) {
	values := map[string]string{}
	for _, entry := range env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			values[name] = value
		}
	}
	return func(name string) (string, bool) {
		value, ok := values[name]
		return value, ok
	}
}

// flagsFromEnv sets each flag that was not given from its environment variable, if there is one.
func flagsFromEnv(flags *pflag.FlagSet, env []string) error {
	value := lookup(env)
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := value(name)
		if !ok || f.Changed || f.Name == "help" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	})
	return errors.Join(errs...)
}
