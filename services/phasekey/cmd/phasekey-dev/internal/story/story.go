// Package story plays the life of two integrations on a running stack, as a platform, a customer and a runner would, and
// judges whether everything went as it should.
//
// It guarantees that a story which was interrupted or killed goes on when it is played again on the same folder: what makes
// something is asked for under the same request ID in every life, and steps that are through are not played twice. What a
// killed one left running (children, grants) is ended first.
package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
)

const (
	account = "accounts/acme"
	project = account + "/projects/network"
	// limit bounds each step.
	limit = time.Minute
	// look is how often the story looks whether something has happened, refresh how often a person reloads a page.
	look    = 100 * time.Millisecond
	refresh = 500 * time.Millisecond
)

// Config is what a story is played with.
type Config struct {
	// Dir is the stack's folder.
	Dir       string
	Endpoints stack.Endpoints
	World     stack.World
	// Phasekey is the command's path; Self is this program's, whose `arm` command is what runs under it.
	Phasekey string
	Self     string
	// Out gets the story.
	Out io.Writer
}

// ErrMismatch means that something was not as expected; the table says what.
var ErrMismatch = errors.New("the demo did not go as it should")

// ErrInterrupted means that ctx ended before the story was through. Played on the same folder, it goes on from there.
var ErrInterrupted = errors.New("interrupted")

// Play plays the story on a stack that runs, or goes on with the one that was begun there.
func Play(ctx context.Context, config Config) (err error) {
	memory, err := remember(config.Dir)
	if err != nil {
		return err
	}
	transport, err := trusting(config.Dir + "/tls/ca.pem")
	if err != nil {
		return err
	}
	platform, err := dial(ctx, config.Dir, config.Endpoints)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, platform.close()) }()
	t := &teller{
		config: config, memory: memory, platform: platform, transport: transport, start: time.Now(), told: map[string]bool{},
		customer: newCustomer(transport, config.Endpoints, config.World),
		read:     &integration{id: "network-read", role: "Reader"},
		write:    &integration{id: "network-write", role: "Contributor"},
	}
	if err := t.tell(ctx); err != nil {
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		return err
	}
	return nil
}

// integration is one of the two, as the story knows it so far.
type integration struct {
	id, role  string
	clientID  string
	name      string
	principal string
	// blocks are the commands on the page that the administrator was led back to.
	blocks []string
}

func (i *integration) resource() string { return account + "/integrations/" + i.id }

// teller plays and tells.
type teller struct {
	config    Config
	memory    *memory
	platform  *platform
	customer  *customer
	transport *http.Transport
	// read is attached for READ, write for WRITE.
	read, write *integration
	start       time.Time
	// told is what has been told of credential versions.
	told map[string]bool

	mu sync.Mutex
}

func (t *teller) pair() []*integration { return []*integration{t.read, t.write} }

// step is a part of the story with what it should come to.
type step struct {
	name, expected string
	run            func(context.Context) (seen string, err error)
}

func (t *teller) steps() []step {
	return []step{
		{"two integrations become applications", "2 applications, 2 names", t.integrate},
		{"an administrator consents to each, in a browser", "declined once, 2 principals, 2 names", t.consent},
		{"the customer assigns roles", "Reader, Contributor", t.assign},
		{"both are attached to the stack network", "READ, WRITE", t.attach},
		{"planning reads, and cannot write", "GET 200, PUT 403", t.plan},
		{"applying writes", "PUT 201", t.apply},
		{"the secret rotates under a running child", "0 calls failed, 2 tokens, 1 secret left", t.rotate},
		{"a grant is revoked while its stream is open", "served, then GRANT_REVOKED", t.revoke},
		{"a client secret is held while its child lives", "0 calls failed, held, then removed", t.hold},
		{"both integrations are deleted, in order", "2 gone for good, 0 secrets left, 2 tombstones", t.remove},
	}
}

// tell plays the steps that are not through, and shows the table.
func (t *teller) tell(ctx context.Context) error {
	m := t.memory
	steps := t.steps()
	if m.Lives == 1 {
		t.sayf("a platform, its customer's administrator and runners, played in %d steps on a simulated Entra ID that replicates slowly", len(steps))
	} else {
		t.sayf("going on where life %d ended, at step %d", m.Lives-1, len(m.Outcomes)+1)
	}
	if err := t.recall(ctx); err != nil {
		return err
	}
	outcomes := m.Outcomes
	for n := len(outcomes); n < len(steps); n++ {
		step := steps[n]
		t.sayf("%d. %s", n+1, step.name)
		if m.StepTime.IsZero() {
			if err := m.change(func() { m.StepTime = time.Now() }); err != nil {
				return err
			}
		}
		stepCtx, cancel := context.WithTimeout(ctx, limit)
		seen, err := step.run(stepCtx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			seen = "error: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		outcomes = append(outcomes, outcome{Step: step.name, Expected: step.expected, Seen: seen, Took: time.Since(m.StepTime)})
		if err != nil {
			break
		}
		if err := m.change(func() {
			m.Outcomes, m.StepTime, m.Done = outcomes, time.Time{}, len(outcomes) == len(steps)
		}); err != nil {
			return err
		}
	}
	ok, err := report(t.config.Out, outcomes)
	if err == nil && (!ok || len(outcomes) < len(steps)) {
		return ErrMismatch
	}
	return err
}

// recall makes up for what an earlier life knew, checks that nothing of it was lost, and ends what that left running.
func (t *teller) recall(ctx context.Context) error {
	for _, i := range t.pair() {
		known := t.memory.known(i.id)
		if known.UID == "" {
			continue
		}
		i.clientID, i.principal = known.ClientID, known.PrincipalID
		got, err := t.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.resource()})
		if absent(err) && t.memory.Cursor != "" {
			continue // its deletion was asked for
		}
		if err != nil {
			return err
		}
		i.name = got.GetApplicationDisplayName()
		if err := t.know(i, got); err != nil {
			return err
		}
	}
	for page := ""; ; {
		list, err := t.platform.grants.ListGrants(ctx, &vaultv1.ListGrantsRequest{Parent: account, PageToken: page})
		if err != nil {
			return err
		}
		for _, grant := range list.GetGrants() {
			if grant.GetState() != vaultv1.Grant_STATE_ACTIVE {
				continue
			}
			t.sayf("   grant %s was left by an earlier life or story, and is revoked", grant.GetName())
			if _, err := t.platform.grants.RevokeGrant(ctx, &vaultv1.RevokeGrantRequest{Name: grant.GetName()}); err != nil {
				return err
			}
		}
		if page = list.GetNextPageToken(); page == "" {
			return nil
		}
	}
}

// know remembers what identifies an integration. What was known once must stay.
func (t *teller) know(i *integration, got *registryv1.Integration) error {
	was := t.memory.known(i.id)
	is := known{UID: got.GetUid(), ClientID: got.GetClientId(), PrincipalID: got.GetServicePrincipalObjectId()}
	for _, pair := range [][2]string{{was.UID, is.UID}, {was.ClientID, is.ClientID}, {was.PrincipalID, is.PrincipalID}} {
		if pair[0] != "" && pair[0] != pair[1] {
			return fmt.Errorf("integration %s was %+v, and is %+v now", i.id, was, is)
		}
	}
	if was == is {
		return nil
	}
	return t.memory.change(func() { t.memory.Integrations[i.id] = is })
}

func (t *teller) sayf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The story is shown as it goes; that nobody reads it does not stop it.
	_, _ = fmt.Fprintf(t.config.Out, "%6.1fs  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// until looks again and again whether something is so.
func until(ctx context.Context, every time.Duration, what string, is func(context.Context) (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		so, err := is(ctx)
		if err != nil || so {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
