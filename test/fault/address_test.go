package fault

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/test/internal/rigtest"
)

// Where Entra ID sends browsers back to is in every application. When the platform's address changes it is changed in all of them, of those who have
// consented too, for they may have to consent again.
func TestPublicURL_AChangeReachesEveryApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker, brokerAt := w.startBroker(t)
	ctx := t.Context()
	const moved = "https://moved.example/consent/callback"
	made, sessions := registryv1.NewIntegrationServiceClient(w.registry), brokerv1.NewConsentServiceClient(w.Dial(t, brokerAt, "broker"))
	tenant := w.Tenant(t, map[string]any{"displayName": "Customer"})
	rigtest.Must(t, w.Admin(ctx, http.MethodPost, "people", map[string]any{"tenant": tenant, "userName": "admin@customer.example", "admin": true}, nil))
	consent := func(ctx context.Context, name, redirect string) error {
		got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
		if err != nil {
			return err
		}
		return w.Admin(ctx, http.MethodPost, "consents", map[string]any{
			"tenant": tenant, "clientId": got.GetClientId(), "redirectUri": redirect, "userName": "admin@customer.example",
		}, nil)
	}
	state := func(name string, want registryv1.Integration_State) {
		t.Helper()
		rigtest.Await(t, time.Minute, func(ctx context.Context) error {
			got, err := made.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
			if err == nil && got.GetState() != want {
				err = notYet("%s is %s: %v", name, got.GetState(), got.GetConditions())
			}
			return err
		})
	}
	var names []string
	for n := range 3 {
		got, err := made.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: account, IntegrationId: fmt.Sprintf("moved%d", n), Integration: &registryv1.Integration{
			DisplayName: fmt.Sprintf("Moved %d", n), TenantId: tenant,
		}})
		rigtest.Must(t, err)
		names = append(names, got.GetName())
	}
	consented, waiting := names[0], names[1:]
	rigtest.Await(t, time.Minute, func(ctx context.Context) error { return consent(ctx, consented, rigtest.RedirectURI) })
	state(consented, registryv1.Integration_STATE_ACTIVE)
	for _, name := range waiting {
		state(name, registryv1.Integration_STATE_AWAITING_CONSENT)
	}
	session, err := sessions.CreateConsentSession(ctx, &brokerv1.CreateConsentSessionRequest{Parent: account, ConsentSession: &brokerv1.ConsentSession{Integration: waiting[0]}})
	rigtest.Must(t, err)

	broker.Stop(t)
	for _, v := range w.vaults {
		v.Stop(t)
	}
	files, err := filepath.Glob(filepath.Join(w.Dir, "*.yaml"))
	rigtest.Must(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		rigtest.Must(t, err)
		text = bytes.ReplaceAll(text, []byte(strings.TrimSuffix(rigtest.RedirectURI, "/consent/callback")), []byte(strings.TrimSuffix(moved, "/consent/callback")))
		// So that it is not a daily repair that brings it.
		text = bytes.ReplaceAll(text, []byte(`"ensure_interval": "1m"`), []byte(`"ensure_interval": "24h"`))
		rigtest.Must(t, os.WriteFile(file, text, 0o600))
	}
	for _, v := range w.vaults {
		v.Start(t)
	}
	broker.Start(t)

	for _, name := range names {
		rigtest.Await(t, time.Minute, func(ctx context.Context) error { return consent(ctx, name, moved) })
		rigtest.Await(t, time.Minute, func(ctx context.Context) error {
			if err := consent(ctx, name, rigtest.RedirectURI); err == nil || !strings.Contains(err.Error(), "50011") {
				return notYet("%s is led back to the old address: %v", name, err)
			}
			return nil
		})
		state(name, registryv1.Integration_STATE_ACTIVE)
	}
	got, err := sessions.GetConsentSession(ctx, &brokerv1.GetConsentSessionRequest{Name: session.GetName()})
	if err != nil || got.GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
		t.Errorf("the session from before: %v, error %v", got, err)
	}
	again, err := sessions.CreateConsentSession(ctx, &brokerv1.CreateConsentSessionRequest{Parent: account, ConsentSession: &brokerv1.ConsentSession{Integration: waiting[1]}})
	if err != nil || !strings.HasPrefix(again.GetConsentUri(), "https://moved.example/consent/") {
		t.Errorf("a session's link is not at the new address; error %v", err)
	}
}
