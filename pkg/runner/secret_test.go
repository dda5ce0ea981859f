package runner_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/runner/runnertest"
)

// secretCredential is what the vault sends as generation n to those who asked for the secret: the one of a version, until the
// grant's end.
func secretCredential(n, version int64) *vaultv1.Credential {
	return with(credential(n), func(c *vaultv1.Credential) {
		c.CredentialVersion = version
		c.RefreshTime, c.ExpireTime = c.GetGrantExpireTime(), c.GetGrantExpireTime()
		c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: fmt.Sprint(secretCanary, version)}}
	})
}

// sendSecret delivers a version's secret as generation n.
func sendSecret(n, version int64) step {
	return step{fmt.Sprintf("send %d, the secret of version %d", n, version), func(w *world) { w.s.Send(secretCredential(n, version)) }}
}

// holdsSecret checks that a version's secret is held, and nothing else that opens anything.
func holdsSecret(version int64) step {
	return step{fmt.Sprint("holds the secret of version ", version), func(w *world) {
		c, err := w.now()
		if err != nil || c.Version != version || c.ClientSecret.Expose() != fmt.Sprint(secretCanary, version) || !c.Token.IsZero() || c.Audience != "" {
			w.t.Errorf("holds version %d for %q (%v), want %d", c.Version, c.Audience, err, version)
		}
	}}
}

func TestRunner_ClientSecret(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "down")
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"is asked for, and held", []step{accept(), {"the request", func(w *world) {
			if r := w.s.Request; r.GetMaterial() != typev1.Material_MATERIAL_CLIENT_SECRET || r.GetAudience() != "" {
				w.t.Errorf("asked for %v, for %q", r.GetMaterial(), r.GetAudience())
			}
		}}, holdsNothing(), sendSecret(1, 1), holdsSecret(1)}},
		{"the newest is held", []step{accept(), sendSecret(1, 1), pass(24*time.Hour - time.Second), sendSecret(2, 2), holdsSecret(2)}},
		{"nothing is overdue before the grant's end nor after it", []step{accept(), sendSecret(1, 1), noStream(24*time.Hour - time.Second), holdsSecret(1),
			noStream(48 * time.Hour), holdsNothing()}},
		{"a grant that was extended", []step{accept(), sendSecret(1, 1), pass(23 * time.Hour), sendSecret(2, 1), pass(23 * time.Hour), holdsSecret(1), noStream(48 * time.Hour)}},
		{"a broken stream is opened again, for the secret", []step{accept(), sendSecret(1, 1), pass(time.Minute), end(unavailable), holdsSecret(1),
			within(time.Second), {"the request", func(w *world) {
				if got := w.s.Request.GetMaterial(); got != typev1.Material_MATERIAL_CLIENT_SECRET {
					w.t.Errorf("asked for %v", got)
				}
			}}, sendSecret(2, 1), holdsSecret(1)}},
		{"the end of the grant is final", []step{accept(), sendSecret(1, 1), pass(24 * time.Hour),
			end(vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_EXPIRED)), over("GRANT_EXPIRED"), noStream(time.Hour)}},
		{"a token is not taken for it", []step{accept(), send(1), holdsNothing(), within(time.Second), sendSecret(2, 1), holdsSecret(1)}},
		{"an empty one is not taken", []step{accept(), sendThis("an empty secret", func(c *vaultv1.Credential) {
			c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{}}
		}), holdsNothing(), within(time.Second)}},
		{"there are no tokens beside it", []step{accept(), sendSecret(1, 1), {"ask", func(w *world) {
			if _, err := w.runner.CredentialFor(w.t.Context(), resourceManager); !errors.Is(err, runner.ErrNoTokens) {
				w.t.Errorf("a token: %v", err)
			}
			if _, err := runner.Listen(w.t.Context(), runner.LoopbackConfig{Runner: w.runner, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, runner.ErrNoTokens) {
				w.t.Errorf("an endpoint: %v", err)
			}
			if n := len(w.vault.Fetches()); n != 0 {
				w.t.Errorf("%d fetches", n)
			}
		}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1), material: typev1.Material_MATERIAL_CLIENT_SECRET}
				w.start(grantCanary)
				defer w.stop()
				w.walk(tt.steps)
			})
		})
	}
	t.Run("is not taken for a token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.stop()
			w.walk([]step{accept(), sendSecret(1, 1), holdsNothing(), within(time.Second), send(2), holds(2)})
		})
	})
}
