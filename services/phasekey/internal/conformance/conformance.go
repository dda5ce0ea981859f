// Package conformance judges runners: it plays the vault to a runner's process, by a list of scripted situations, and says
// which of them the runner got wrong.
//
// It guarantees that each situation has a vault, a certificate authority and a process of its own; that the vault is real gRPC over
// real TLS on loopback; and that what is judged is what can be seen from outside: the calls that reach the vault, and what the command below
// the runner gets. It does not see how a runner does it, and a runner that is right by luck passes.
//
// The one tricky idea: the command that the runner is told to run is ours (Probe). It asks the runner's endpoint whatever the situation wants to
// know, so a runner is judged by what a program below it would meet.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// limit is how long one situation may take.
const limit = 3 * time.Minute

// Config is what to judge.
type Config struct {
	// Runner is the command that is judged. It is given `--vault ADDRESS --vault-id ID --ca FILE --grant-fd 3 -- COMMAND…`, where a
	// situation is about another material with `--material federated-token` or `--material client-secret` before the dashes.
	Runner []string
	// Probe is the command that calls Probe with the argument that is added.
	Probe []string
	// Env is the environment of both, less what is called PHASEKEY_*.
	Env []string
	// Only names the situations to play; empty means all.
	Only []string
	// Parallel is how many are played at a time; at least one.
	Parallel int
	// Played is told of each result as it comes; nil is not.
	Played func(Result)
}

// Result is how a runner did in one situation.
type Result struct {
	Situation string `json:"situation"`
	About     string `json:"about"`
	// Wrong is what it got wrong, empty if nothing.
	Wrong string `json:"wrong,omitempty"`
}

// Names are the situations there are, in order, with what each is about.
func Names() []Result {
	var all []Result
	for _, s := range situations() {
		all = append(all, Result{Situation: s.name, About: s.about})
	}
	return all
}

// Run plays the situations and returns their results in order. Its error is about what kept it from judging.
func Run(ctx context.Context, config Config) ([]Result, error) {
	all := situations()
	for _, name := range config.Only {
		if !slices.ContainsFunc(all, func(s situation) bool { return s.name == name }) {
			return nil, fmt.Errorf("there is no situation %q", name)
		}
	}
	if len(config.Only) > 0 {
		all = slices.DeleteFunc(all, func(s situation) bool { return !slices.Contains(config.Only, s.name) })
	}
	var (
		results = make([]Result, len(all))
		errs    = make([]error, len(all))
		places  = make(chan struct{}, max(1, config.Parallel))
		telling sync.Mutex
		playing sync.WaitGroup
	)
	for i, s := range all {
		playing.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			results[i], errs[i] = s.judge(ctx, config)
			if config.Played != nil && errs[i] == nil {
				telling.Lock()
				defer telling.Unlock()
				config.Played(results[i])
			}
		})
	}
	playing.Wait()
	return results, errors.Join(errs...)
}

// judge plays one situation.
func (sit situation) judge(ctx context.Context, config Config) (Result, error) {
	result := Result{Situation: sit.name, About: sit.about}
	if err := ctx.Err(); err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s", limit))
	defer cancel()
	s, err := open(ctx, config, time.Now, sit)
	if err != nil {
		return result, fmt.Errorf("prepare %s: %w", sit.name, err)
	}
	sit.play(s)
	if err := s.close(); err != nil {
		return result, fmt.Errorf("clear %s away: %w", sit.name, err)
	}
	s.silent()
	if s.err != nil {
		result.Wrong = s.err.Error()
	}
	return result, nil
}

// afterError says after what something was wrong.
type afterError struct{ after, err error }

// Error implements error.
func (e *afterError) Error() string { return fmt.Sprintf("after %q: %s", e.after, e.err) }

// Unwrap returns what was wrong.
func (e *afterError) Unwrap() error { return e.err }
