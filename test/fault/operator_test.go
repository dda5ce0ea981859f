package fault

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/test/internal/rigtest"
)

// startBroker starts the broker, of which most faults need none.
func (w *world) startBroker(t *testing.T) (*rigtest.Process, string) {
	t.Helper()
	address, pages := w.At(7431), w.At(7433)
	broker := &rigtest.Process{Name: "brokerd", Answers: []string{address, pages}, Command: []string{rigtest.Binary(t, "brokerd"), "--config", w.Configure(t, "broker", map[string]any{
		"listen": address, "https_listen": pages, "public_url": strings.TrimSuffix(rigtest.RedirectURI, "/consent/callback"), "platform_name": "Faults",
		"development": true, "drain": "1s", "probe_interval": "500ms", "poll_interval": "500ms", "state_key_file": filepath.Join(w.Dir, "broker.key"),
		"database": database(w.postgres.Config(t)), "tls": w.Certificate(t, "broker").Config(), "identities": rigtest.Identities("platform"),
		"registry": map[string]any{"target": w.At(7441), "id": rigtest.TrustDomain + "registry"},
		"vault":    map[string]any{"target": w.vaults[0].services, "id": rigtest.TrustDomain + "vault"},
		"clouds":   map[string]any{"public": map[string]any{"login_url": w.Origin, "graph_url": w.Origin}},
	})}}
	broker.Start(t)
	t.Cleanup(func() { broker.Stop(t) })
	return broker, address
}

// command is the operator's, running.
type command struct {
	rigtest.Process
	t *testing.T
}

// says waits until it has printed something.
func (c *command) says(what string) {
	c.t.Helper()
	rigtest.Await(c.t, time.Minute, func(context.Context) error {
		if !strings.Contains(c.Output.String(), what) {
			return notYet("%s does not say %q: %s", c.Name, what, c.Output.Tail())
		}
		return nil
	})
}

// ends waits until it ends, and has succeeded.
func (c *command) ends() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	if err := c.Ended(ctx); err != nil {
		c.t.Errorf("%s: %v\n%s", c.Name, err, c.Output.Tail())
	}
}

// Whoever waits goes on waiting when the service that tells is killed or stopped, and hears of what happened then.
func TestCommands_GoOnAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker, brokerAt := w.startBroker(t)
	ctx := t.Context()
	shown, contexts := w.Certificate(t, "platform"), filepath.Join(w.Dir, "contexts.yaml")
	words := func(line string) []string {
		return append([]string{rigtest.Binary(t, "phasekey")}, append(strings.Fields(line), "--contexts-file", contexts)...)
	}
	run := func(line string) *command {
		t.Helper()
		c := &command{t: t, Process: rigtest.Process{Name: line, Command: words(line)}}
		c.Start(t)
		t.Cleanup(func() { c.Kill(t) })
		return c
	}
	run("context set faults --registry " + w.At(7441) + " --broker " + brokerAt + " --vault " + w.vaults[0].services +
		" --cert " + shown.CertFile + " --key " + shown.KeyFile + " --ca " + shown.CAFile + " --default-account acme").ends()

	tenant := w.Tenant(t, map[string]any{"displayName": "Customer"})
	rigtest.Must(t, w.Admin(ctx, http.MethodPost, "people", map[string]any{"tenant": tenant, "userName": "admin@customer.example", "admin": true}, nil))
	made := registryv1.NewIntegrationServiceClient(w.registry)
	name := account + "/integrations/waited-for"
	_, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: account, IntegrationId: "waited-for", Integration: &registryv1.Integration{
		DisplayName: "Waited for", TenantId: tenant, RotationPeriod: durationpb.New(time.Hour),
	}})
	rigtest.Must(t, err)

	active, watch, start := run("integrations wait waited-for"), run("integrations get waited-for --watch"), run("consent start waited-for")
	start.says("waiting for the customer's administrator")
	session := strings.Fields(start.Output.String())[1]
	wait := run("consent wait " + session)
	for _, c := range []*command{active, watch} {
		c.says("AWAITING_CONSENT")
	}
	for _, c := range []*command{start, wait} {
		c.says("the administrator can consent")
	}

	broker.Kill(t)
	w.registryd.Stop(t)
	for _, c := range []*command{start, wait, active, watch} {
		c.says("broken off")
	}
	w.registryd.Start(t)
	broker.Start(t)
	rigtest.Await(t, time.Minute, func(ctx context.Context) error {
		_, err := made.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
			Integration: &registryv1.Integration{Name: name, Labels: []string{"changed-meanwhile"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		})
		return err
	})
	watch.says("changed-meanwhile")

	rigtest.Await(t, time.Minute, func(ctx context.Context) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
		if err != nil {
			return err
		}
		return w.Admin(ctx, http.MethodPost, "consents", map[string]any{
			"tenant": tenant, "clientId": got.GetClientId(), "redirectUri": rigtest.RedirectURI, "userName": "admin@customer.example",
		}, nil)
	})
	start.ends()
	wait.ends()
	active.ends()
	proven, err := brokerv1.NewConsentServiceClient(w.Dial(t, brokerAt, "broker")).GetConsentSession(ctx, &brokerv1.GetConsentSessionRequest{Name: session})
	if err != nil || proven.GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
		t.Fatalf("%v, error %v", proven, err)
	}
	for _, c := range []*command{start, wait} {
		c.says(proven.GetServicePrincipalObjectId())
	}
	watch.says("ACTIVE")

	// The shard's master may be any of the vaults; the command asks the first alone.
	rotation := run("rotations start waited-for --yes")
	rotation.says("replicates in Entra ID")
	w.vaults[0].Kill(t)
	rotation.says("broken off")
	w.vaults[0].Start(t)
	rotation.ends()
	rotation.says("is active")

	watch.Signal(t, syscall.SIGINT)
	watch.ends()
}
