package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/runner/runnertest"
	"phasekey.dev/pkg/secret"
)

const (
	// grantCanary, tokenCanary and secretCanary are in no output, ever.
	grantCanary  = "pk_grant_canary_0123456789"
	tokenCanary  = "token_canary_"
	secretCanary = "secret_canary_"

	resourceManager = "https://management.azure.com"
	clientID        = "11111111-2222-3333-4444-555555555555"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// credential is what the vault sends as generation n: a token for an hour, renewed after 45 minutes.
func credential(n int64) *vaultv1.Credential {
	now := time.Now()
	return &vaultv1.Credential{
		Lease:             "lease-1",
		Generation:        n,
		CredentialVersion: 1,
		Phase:             typev1.Phase_PHASE_PLANNING,
		Access:            typev1.Access_ACCESS_READ,
		Reason:            vaultv1.Credential_REASON_REFRESH,
		IssueTime:         timestamppb.New(now),
		RefreshTime:       timestamppb.New(now.Add(45 * time.Minute)),
		ExpireTime:        timestamppb.New(now.Add(time.Hour)),
		GrantExpireTime:   timestamppb.New(now.Add(24 * time.Hour)),
		TenantId:          "tenant",
		ClientId:          clientID,
		SubscriptionId:    "subscription",
		Material: &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{
			Audience: resourceManager,
			Token:    fmt.Sprint(tokenCanary, n),
		}},
	}
}

// with changes a credential.
func with(c *vaultv1.Credential, change func(*vaultv1.Credential)) *vaultv1.Credential {
	change(c)
	return c
}

// world is a runner and its vault.
type world struct {
	t      *testing.T
	vault  *runnertest.Vault
	runner *runner.Runner
	log    *logtest.Transcript
	cancel context.CancelFunc
	ran    chan error
	s      *runnertest.Stream // accepted last
	old    *runnertest.Stream // the one before

	material typev1.Material // what the runner asks for
}

// newWorld starts a runner.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1)}
	w.start(grantCanary)
	return w
}

func (w *world) start(grant string) {
	w.t.Helper()
	w.run(grant, w.vault.Memory(w.t))
}

// run starts a runner over a connection.
func (w *world) run(grant string, conn grpc.ClientConnInterface) {
	w.t.Helper()
	r, err := runner.New(runner.Config{
		Conn:     conn,
		Grant:    secret.New(grant),
		Material: w.material,
		Log:      obs.NewLogger(w.log, slog.LevelDebug, obs.FormatText),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.runner = r
	ctx, cancel := context.WithCancel(w.t.Context())
	w.cancel = cancel
	go func() { w.ran <- r.Run(ctx) }()
}

// stop ends the runner and looks for secrets in its log.
func (w *world) stop() {
	w.cancel()
	if err := <-w.ran; err != nil {
		w.t.Logf("the runner ended: %v", err)
	}
	if out := w.log.String(); strings.Contains(out, grantCanary) || strings.Contains(out, tokenCanary) || strings.Contains(out, secretCanary) {
		w.t.Errorf("secret in the log:\n%s", out)
	}
}

// now returns what the runner gives without waiting.
func (w *world) now() (runner.Credential, error) {
	ctx, cancel := context.WithCancel(w.t.Context())
	cancel()
	return w.runner.Credential(ctx)
}

// step is one thing that happens, or one that must be so.
type step struct {
	name string
	do   func(*world)
}

// walk takes steps until one fails.
func (w *world) walk(steps []step) {
	w.t.Helper()
	for _, s := range steps {
		s.do(w)
		synctest.Wait()
		if w.t.Failed() {
			w.t.Fatalf("at step %q; log:\n%s", s.name, w.log)
		}
	}
}

func accept() step {
	return step{"a stream is opened", func(w *world) { w.old, w.s = w.s, w.vault.Accept(w.t) }}
}

func send(n int64) step {
	return step{fmt.Sprint("send ", n), func(w *world) { w.s.Send(credential(n)) }}
}

func sendThis(name string, change func(*vaultv1.Credential)) step {
	return step{"send " + name, func(w *world) { w.s.Send(with(credential(9), change)) }}
}

func leave(within time.Duration) step {
	return step{"leave within " + within.String(), func(w *world) { w.s.Leave(within) }}
}

func end(err error) step { return step{fmt.Sprint("end: ", err), func(w *world) { w.s.End(err) }} }

func pass(d time.Duration) step { return step{"pass " + d.String(), func(*world) { time.Sleep(d) }} }

func holds(n int64) step {
	return step{fmt.Sprint("holds ", n), func(w *world) {
		c, err := w.now()
		if err != nil || c.Generation != n || c.Token.Expose() != fmt.Sprint(tokenCanary, n) {
			w.t.Errorf("holds %d (%v), want %d", c.Generation, err, n)
		}
	}}
}

func holdsNothing() step {
	return step{"holds nothing", func(w *world) {
		if c, err := w.now(); err == nil {
			w.t.Errorf("holds %d, want nothing", c.Generation)
		}
	}}
}

func noStream(d time.Duration) step {
	return step{"no stream for " + d.String(), func(w *world) {
		select {
		case <-w.vault.Streams():
			w.t.Error("a stream was opened")
		case <-time.After(d):
		}
	}}
}

// within says how long the next stream may take.
func within(d time.Duration) step {
	return step{"a stream within " + d.String(), func(w *world) {
		select {
		case s := <-w.vault.Streams():
			w.old, w.s = w.s, s
		case <-time.After(d):
			w.t.Fatalf("no stream after %s", d)
		}
	}}
}

func oldIsGone(gone bool) step {
	return step{fmt.Sprint("old stream is gone: ", gone), func(w *world) {
		select {
		case <-w.old.Done:
			if !gone {
				w.t.Error("the old stream was let go of")
			}
		default:
			if gone {
				w.t.Error("the old stream is still held")
			}
		}
	}}
}

func over(reason string) step {
	return step{"over with " + reason, func(w *world) {
		var final *runner.FinalError
		_, err := w.now()
		if !errors.As(err, &final) || final.Reason != reason {
			w.t.Errorf("credential's error is %v, want %s", err, reason)
		}
		if !errors.As(w.runner.Err(), &final) {
			w.t.Errorf("Err is %v", w.runner.Err())
		}
		err = <-w.ran
		w.ran <- err
		if !errors.As(err, &final) || final.Reason != reason {
			w.t.Errorf("Run's error is %v, want %s", err, reason)
		}
		select {
		case <-w.runner.Done():
		default:
			w.t.Error("Done is open")
		}
	}}
}

func vaultError(code codes.Code, r errorv1.ErrorReason) error { return runnertest.Error(code, r) }
