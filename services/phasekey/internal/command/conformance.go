package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"phasekey.dev/services/phasekey/internal/conformance"
)

// probeCommand is the hidden command that a judged runner runs.
const probeCommand = "conformance-probe"

// newConformance makes the command that judges runners.
func newConformance(p Process) *cobra.Command {
	var (
		only     []string
		parallel int
		list     bool
		output   string
	)
	c := &cobra.Command{
		Use:   "conformance [flags] -- RUNNER [ARGUMENT...]",
		Short: "Judge a runner by playing the vault to it",
		Long: `Judge a runner, in whatever language, by playing the vault to it in a list of situations: real gRPC over TLS on loopback.

The runner is called once or twice in each situation, with what is added to its arguments:

  --vault 127.0.0.1:PORT --vault-id SPIFFE-ID --ca FILE --grant-fd 3 -- COMMAND [ARGUMENT...]

so 'phasekey conformance -- phasekey exec' judges phasekey exec. The command that it is to run asks for tokens as Azure's SDKs do
on App Service (IDENTITY_ENDPOINT, IDENTITY_HEADER). Where a situation is about another material, there is --material federated-token
or --material client-secret before the dashes; assertions are asked for by ARM_OIDC_REQUEST_URL and ARM_OIDC_REQUEST_TOKEN. docs/runner-protocol.md says what runners have to do.

The exit code is 0 if the runner got everything right, and 1 if not, or if it could not be judged.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return errors.New("--output is table or json")
			}
			if list {
				return tellResults(c, conformance.Names(), output, true)
			}
			if len(args) == 0 {
				return errors.New("no runner: put its command after --")
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			results, err := conformance.Run(ctx, conformance.Config{
				Runner: args, Probe: []string{self, probeCommand}, Env: p.Env, Only: only, Parallel: parallel,
				Played: func(r conformance.Result) {
					if output == "table" {
						_, _ = fmt.Fprintln(c.ErrOrStderr(), verdict(r), r.Situation)
					}
				},
			})
			if err != nil {
				return err
			}
			if err := tellResults(c, results, output, false); err != nil {
				return err
			}
			wrong := 0
			for _, r := range results {
				if r.Wrong != "" {
					wrong++
				}
			}
			if wrong > 0 {
				return fmt.Errorf("the runner got %d of %d situations wrong", wrong, len(results))
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.SetInterspersed(false)
	flags.StringSliceVar(&only, "only", nil, "situations to play, separated by commas (all)")
	flags.IntVar(&parallel, "parallel", 8, "how many situations to play at a time")
	flags.BoolVar(&list, "list", false, "list the situations, and play none")
	flags.StringVarP(&output, "output", "o", "table", "table for people, json for programs")
	return c
}

// verdict is a result in one word.
func verdict(r conformance.Result) string {
	if r.Wrong != "" {
		return "WRONG"
	}
	return "ok"
}

// tellResults prints results; a list is one of situations that were not played.
func tellResults(c *cobra.Command, results []conformance.Result, output string, list bool) error {
	if output == "json" {
		out := json.NewEncoder(c.OutOrStdout())
		out.SetIndent("", "  ")
		return out.Encode(map[string]any{"situations": results})
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	if list {
		_, _ = fmt.Fprintln(w, "SITUATION\tABOUT")
		for _, r := range results {
			_, _ = fmt.Fprintf(w, "%s\t%s\n", r.Situation, r.About)
		}
		return w.Flush()
	}
	_, _ = fmt.Fprintln(w, "SITUATION\tRESULT\tWHAT")
	for _, r := range results {
		what := r.About
		if r.Wrong != "" {
			what = r.Wrong
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", r.Situation, verdict(r), what)
	}
	return w.Flush()
}

// newProbe makes the command that a judged runner runs.
func newProbe(p Process) *cobra.Command {
	return &cobra.Command{
		Use:    probeCommand + " SOCKET",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			code, err := conformance.Probe(context.WithoutCancel(c.Context()), args[0], p.Env)
			if err != nil {
				return err
			}
			return &exitError{code: code}
		},
	}
}
