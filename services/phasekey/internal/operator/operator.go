// Package operator is the part of the phasekey command line with which people look at a deployment and change it.
//
// It guarantees that an error is one sentence that says what to do next; that nothing is deleted, revoked or declared compromised
// without a yes; that a secret appears only where it was asked for; and that `-o json` prints what the API says, in its own names, so
// that programs need not read tables. It knows nothing that the APIs do not say.
//
// A command is a verb of a noun. What a noun's messages look like in a table stands in one view; fetching, watching and printing
// are the same for all.
package operator

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"phasekey.dev/services/phasekey/internal/contexts"
)

// options are the flags that all commands have.
type options struct {
	context  string
	file     string
	account  string
	output   string
	interval time.Duration
	watching bool
	limit    uint32
	yes      bool
}

const (
	outputTable = "table"
	outputJSON  = "json"
)

const (
	contextVariable = "PHASEKEY_CONTEXT"
	fileVariable    = "PHASEKEY_CONTEXTS"
	defaultLimit    = 500
)

// Commands makes the commands. lookup finds environment variables.
func Commands(lookup func(string) (string, bool)) []*cobra.Command {
	var commands []*cobra.Command
	for _, make := range []func(*options) *cobra.Command{
		contextCommand, integrations, projects, attachments, consent, grants, leases, rotations, signingKeys, accounts, audit,
	} {
		o := &options{}
		o.context, _ = lookup(contextVariable)
		o.file, _ = lookup(fileVariable)
		c := make(o)
		flags := c.PersistentFlags()
		flags.StringVar(&o.context, "context", o.context, "which deployment, and who to be there ($"+contextVariable+"); the current context otherwise")
		flags.StringVar(&o.file, "contexts-file", o.file, "where contexts are kept ($"+fileVariable+")")
		_ = c.RegisterFlagCompletionFunc("context", o.completeContexts)
		if c.Name() != "context" {
			flags.StringVarP(&o.account, "account", "a", "", "the account of what is named by its ID alone; the context's otherwise")
			flags.StringVarP(&o.output, "output", "o", outputTable, "table for people, json for programs")
			_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp))
		}
		commands = append(commands, c)
	}
	return commands
}

// noun makes the command that verbs belong to.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(verbs...)
	return c
}

// verb makes a command that calls a deployment. Its arguments are completed as what use calls them.
func (o *options) verb(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: o.completing(use), RunE: func(c *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		s, err := o.open(ctx, c)
		if err != nil {
			return err
		}
		err = run(ctx, s, args)
		if o.watching && ctx.Err() != nil {
			err = nil // a watch ends when the person who watches has seen enough
		}
		return errors.Join(explain(err), s.close())
	}}
}

// watchable gives a verb --watch.
func (o *options) watchable(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&o.watching, "watch", "w", false, "go on, and print what changes until interrupted")
	lifeFlag(c, &o.interval, "interval", 2*time.Second, "how often --watch looks")
	return c
}

// long gives a verb that lists --limit.
func (o *options) long(c *cobra.Command) *cobra.Command {
	c.Flags().Uint32Var(&o.limit, "limit", defaultLimit, "at most so many; 0 for all")
	return c
}

// careful gives a verb that cannot be undone --yes.
func (o *options) careful(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return c
}

func (o *options) path() (string, error) {
	if o.file != "" {
		return o.file, nil
	}
	return contexts.DefaultPath()
}

func (o *options) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	path, err := o.path()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	file, err := contexts.Load(path)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return file.Names(), cobra.ShellCompDirectiveNoFileComp
}

// in makes a resource name of what a person gives: the name itself, or the last segments of one in the account.
func (s *session) in(collection, given string) (string, error) {
	if strings.HasPrefix(given, "accounts/") {
		return given, nil
	}
	parent, err := s.parent()
	if err != nil {
		return "", err
	}
	return parent + "/" + collection + "/" + given, nil
}

// parent is the account that is meant.
func (s *session) parent() (string, error) {
	if s.account == "" {
		return "", errors.New("which account? Give --account, or the whole name (accounts/…), or set the context's account")
	}
	return "accounts/" + strings.TrimPrefix(s.account, "accounts/"), nil
}

// split parts a name into its parent and its ID: accounts/a/integrations/i into accounts/a and i.
func split(name string) (parent, last string) {
	segments := strings.Split(name, "/")
	if len(segments) < 3 {
		return "", name
	}
	return strings.Join(segments[:len(segments)-2], "/"), segments[len(segments)-1]
}
