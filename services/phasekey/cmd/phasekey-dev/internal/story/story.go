// Package story plays the life of two integrations on a running stack, as a platform, a customer and a runner would, and
// judges whether everything went as it should.
package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
)

const (
	account = "accounts/acme"
	project = account + "/projects/network"
	// limit bounds each step.
	limit = 45 * time.Second
	// retryPage is how soon an administrator tries again whom Entra's page turned away.
	retryPage = 500 * time.Millisecond
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
	// Out gets the story; Err what the child processes complain of.
	Out io.Writer
	Err io.Writer
}

// ErrMismatch means that something was not as expected; the table says what.
var ErrMismatch = errors.New("the demo did not go as it should")

// Play plays the story once, on a stack that runs and has not played it before.
func Play(ctx context.Context, config Config) error {
	platform, err := dial(ctx, config.Dir, config.Endpoints)
	if err != nil {
		return err
	}
	customer, err := newCustomer(config.Dir, config.Endpoints, config.World)
	if err != nil {
		return errors.Join(err, platform.close())
	}
	t := &teller{config: config, platform: platform, customer: customer, start: time.Now()}
	read, write := &integration{id: "network-read", role: "Reader"}, &integration{id: "network-write", role: "Contributor"}
	pair := []*integration{read, write}
	steps := []struct {
		name, expected string
		run            func(context.Context) (string, error)
	}{
		{"two integrations become applications", "2 applications, 2 names", func(ctx context.Context) (string, error) { return t.integrate(ctx, pair) }},
		{"an administrator consents to each", "2 principals, 2 names", func(ctx context.Context) (string, error) { return t.consent(ctx, pair) }},
		{"the customer assigns roles", "Reader, Contributor", func(ctx context.Context) (string, error) { return t.assign(ctx, pair) }},
		{"both are attached to the stack network", "READ, WRITE", func(ctx context.Context) (string, error) { return t.attach(ctx, read, write) }},
		{"planning reads, and cannot write", "GET 200, PUT 403", t.plan},
		{"applying writes", "PUT 201", t.apply},
	}
	outcomes := make([]outcome, 0, len(steps))
	for i, step := range steps {
		t.sayf("%d. %s", i+1, step.name)
		began := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, limit)
		seen, err := step.run(stepCtx)
		cancel()
		if err != nil {
			seen = "error: " + err.Error()
		}
		outcomes = append(outcomes, outcome{step: step.name, expected: step.expected, seen: seen, took: time.Since(began)})
		if err != nil {
			break
		}
	}
	ok, err := report(config.Out, outcomes)
	if err == nil && (!ok || len(outcomes) < len(steps)) {
		err = ErrMismatch
	}
	return errors.Join(err, platform.close())
}

// integration is one of the two, as the story knows it so far.
type integration struct {
	id, role  string
	clientID  string
	name      string
	principal string
}

func (i *integration) resource() string { return account + "/integrations/" + i.id }

// teller plays and tells.
type teller struct {
	config   Config
	platform *platform
	customer *customer
	start    time.Time
	mu       sync.Mutex
}

func (t *teller) sayf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The story is shown as it goes; that nobody reads it does not stop it.
	_, _ = fmt.Fprintf(t.config.Out, "%6.1fs  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

func (t *teller) integrate(ctx context.Context, pair []*integration) (string, error) {
	if _, err := t.platform.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{
		Parent: account, ProjectId: "network", RequestId: uuid.NewString(),
		Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, DisplayName: "Network"},
	}); err != nil {
		return "", err
	}
	for _, i := range pair {
		if _, err := t.platform.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: account, IntegrationId: i.id, RequestId: uuid.NewString(),
			Integration: &registryv1.Integration{
				DisplayName: i.id, TenantId: t.config.World.CustomerTenant, DefaultSubscriptionId: t.config.World.Subscription,
			},
		}); err != nil {
			return "", err
		}
		t.sayf("   %s: created in the registry", i.resource())
	}
	applications, names := map[string]bool{}, map[string]bool{}
	for _, i := range pair {
		for i.clientID == "" {
			got, err := t.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: i.resource()})
			if err != nil {
				return "", err
			}
			i.clientID, i.name = got.GetClientId(), got.GetApplicationDisplayName()
			if err := wait(ctx, 100*time.Millisecond); err != nil {
				return "", fmt.Errorf("waiting for the application of %s: %w", i.id, err)
			}
		}
		applications[i.clientID], names[i.name] = true, true
		t.sayf("   %s: application %q, client ID %s", i.id, i.name, i.clientID)
	}
	return fmt.Sprintf("%d applications, %d names", len(applications), len(names)), nil
}

func (t *teller) consent(ctx context.Context, pair []*integration) (string, error) {
	failures := make([]error, len(pair))
	var all sync.WaitGroup
	for n, i := range pair {
		all.Go(func() { failures[n] = t.consentTo(ctx, i) })
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return "", err
	}
	principals, names := map[string]bool{}, map[string]bool{}
	for _, i := range pair {
		name, err := t.customer.principalName(ctx, i.clientID)
		if err != nil {
			return "", err
		}
		principals[i.principal], names[name] = true, true
	}
	return fmt.Sprintf("%d principals, %d names", len(principals), len(names)), nil
}

func (t *teller) consentTo(ctx context.Context, i *integration) error {
	session, err := t.platform.consent.CreateConsentSession(ctx, &brokerv1.CreateConsentSessionRequest{
		Parent: account, RequestId: uuid.NewString(), ConsentSession: &brokerv1.ConsentSession{Integration: i.resource()},
	})
	if err != nil {
		return err
	}
	watch, err := t.platform.consent.WatchConsentSession(ctx, &brokerv1.WatchConsentSessionRequest{Name: session.GetName()})
	if err != nil {
		return err
	}
	var said string
	approved := false
	for {
		message, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("watching consent to %s: %w", i.id, err)
		}
		session = message.GetConsentSession()
		if line := tell(session, approved); line != said {
			said = line
			t.sayf("   %s: %s", i.id, line)
		}
		switch session.GetState() {
		case brokerv1.ConsentSession_STATE_AWAITING_CONSENT:
			if !approved {
				if err := t.approve(ctx, i, session.GetConsentUri()); err != nil {
					return err
				}
				approved = true
			}
		case brokerv1.ConsentSession_STATE_COMPLETED:
			i.principal = session.GetServicePrincipalObjectId()
			return nil
		case brokerv1.ConsentSession_STATE_EXPIRED:
			return fmt.Errorf("the session of %s has expired", i.id)
		default:
			// Waiting.
		}
	}
}

func tell(session *brokerv1.ConsentSession, approved bool) string {
	switch session.GetState() {
	case brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION:
		return "waiting for Entra's replicas to know the application"
	case brokerv1.ConsentSession_STATE_AWAITING_CONSENT:
		if refusal := session.GetLastRefusal(); refusal != "" && approved {
			return "approved; waiting for replication, the customer's tenant says " + refusal
		}
		if approved {
			return "approved; waiting for proof"
		}
		return "the administrator may consent"
	case brokerv1.ConsentSession_STATE_COMPLETED:
		return "proven by a token; service principal " + session.GetServicePrincipalObjectId()
	default:
		return session.GetState().String()
	}
}

func (t *teller) approve(ctx context.Context, i *integration, page string) error {
	for {
		refusal, err := t.customer.consent(ctx, page)
		if err != nil {
			return fmt.Errorf("consent page of %s: %w", i.id, err)
		}
		if refusal == "" {
			t.sayf("   %s: %s approves on Entra's page", i.id, t.config.World.Administrator)
			return nil
		}
		t.sayf("   %s: Entra's page says %s; again", i.id, refusal)
		if err := wait(ctx, retryPage); err != nil {
			return fmt.Errorf("consent page of %s still says %s: %w", i.id, refusal, err)
		}
	}
}

func (t *teller) assign(ctx context.Context, pair []*integration) (string, error) {
	roles := make([]string, 0, len(pair))
	for _, i := range pair {
		if err := t.customer.assign(ctx, i.principal, i.role); err != nil {
			return "", err
		}
		t.sayf("   %s gets %s on the subscription", i.name, i.role)
		roles = append(roles, i.role)
	}
	return strings.Join(roles, ", "), nil
}

func (t *teller) attach(ctx context.Context, read, write *integration) (string, error) {
	for _, a := range []struct {
		integration *integration
		access      typev1.Access
	}{{read, typev1.Access_ACCESS_READ}, {write, typev1.Access_ACCESS_WRITE}} {
		if _, err := t.platform.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: project, RequestId: uuid.NewString(),
			Attachment: &registryv1.Attachment{Integration: a.integration.resource(), Accesses: []typev1.Access{a.access}},
		}); err != nil {
			return "", err
		}
	}
	resolved := make([]string, 0, 2)
	for _, phase := range []typev1.Phase{typev1.Phase_PHASE_PLANNING, typev1.Phase_PHASE_APPLYING} {
		answer, err := t.platform.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project, Phase: phase})
		if err != nil {
			return "", err
		}
		t.sayf("   %s resolves to %s", phase, answer.GetIntegration())
		resolved = append(resolved, strings.TrimPrefix(answer.GetAccess().String(), "ACCESS_"))
	}
	return strings.Join(resolved, ", "), nil
}

func (t *teller) plan(ctx context.Context) (string, error) {
	get, err := t.run(ctx, typev1.Phase_PHASE_PLANNING, "GET", t.subscription(), 200)
	if err != nil {
		return "", err
	}
	put, err := t.run(ctx, typev1.Phase_PHASE_PLANNING, "PUT", t.subscription()+"/resourcegroups/network", 403)
	return get + ", " + put, err
}

func (t *teller) apply(ctx context.Context) (string, error) {
	return t.run(ctx, typev1.Phase_PHASE_APPLYING, "PUT", t.subscription()+"/resourcegroups/network", 201)
}

func (t *teller) subscription() string { return "/subscriptions/" + t.config.World.Subscription }

// run makes a grant and has `phasekey exec` run one call to Resource Manager under it. New role assignments replicate too, so
// the call is repeated for a while until it gives the status that is wanted.
func (t *teller) run(ctx context.Context, phase typev1.Phase, method, path string, want int) (string, error) {
	grant, err := t.grant(ctx, phase)
	if err != nil {
		return "", err
	}
	tls := t.config.Dir + "/tls/"
	command := exec.CommandContext(ctx, t.config.Phasekey, //nolint:gosec // our own programs
		"exec", "--vault", t.config.Endpoints.VaultRunners, "--vault-id", stack.ID("vault"), "--ca", tls+"ca.pem", "--grant-fd", "3", "--",
		t.config.Self, "arm", "--resource-manager", t.config.Endpoints.ResourceManager, "--ca", tls+"ca.pem",
		"--want", strconv.Itoa(want), method, path)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, t.config.Err
	reader, writer, err := os.Pipe()
	if err != nil {
		return "", err
	}
	command.ExtraFiles = []*os.File{reader}
	command.WaitDelay = time.Second
	_, err = io.WriteString(writer, grant.Expose())
	err = errors.Join(err, writer.Close())
	if err == nil {
		err = command.Run()
	}
	if err = errors.Join(err, reader.Close()); err != nil {
		return "", fmt.Errorf("phasekey exec: %w", err)
	}
	var call Call
	if err := json.Unmarshal(out.Bytes(), &call); err != nil {
		return "", fmt.Errorf("what ran under phasekey exec said %q: %w", out.String(), err)
	}
	t.sayf("   %s: a child of phasekey exec calls %s %s: %d (%d tries)", phase, method, path, call.Status, call.Tries)
	return fmt.Sprintf("%s %d", method, call.Status), nil
}

// grant makes one, waiting for the vault to have proven the integration's credential.
func (t *teller) grant(ctx context.Context, phase typev1.Phase) (secret.Text, error) {
	grant, err := t.platform.grants.CreateGrant(ctx, &vaultv1.CreateGrantRequest{
		Parent: account, RequestId: uuid.NewString(), Grant: &vaultv1.Grant{Project: project, Phase: phase, Run: "demo"},
	})
	if err != nil {
		return secret.Text{}, err
	}
	t.sayf("   %s: grant %s, pinned to %s", phase, grant.GetName(), grant.GetIntegration())
	return secret.New(grant.GetToken()), nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
