package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
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

// secretCredential is what the vault sends as generation n to those who asked for the secret: the one of a version, until the
// grant's end.
func secretCredential(n, version int64) *vaultv1.Credential {
	return with(credential(n), func(c *vaultv1.Credential) {
		c.CredentialVersion = version
		c.RefreshTime, c.ExpireTime = c.GetGrantExpireTime(), c.GetGrantExpireTime()
		c.Material = &vaultv1.Credential_ClientSecret{ClientSecret: &vaultv1.ClientSecret{Secret: fmt.Sprint(secretCanary, version)}}
	})
}

// with changes a credential.
func with(c *vaultv1.Credential, change func(*vaultv1.Credential)) *vaultv1.Credential {
	change(c)
	return c
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// world is a runner and its vault.
type world struct {
	t      *testing.T
	vault  *runnertest.Vault
	runner *runner.Runner
	log    *syncBuffer
	cancel context.CancelFunc
	ran    chan error
	s      *runnertest.Stream // accepted last
	old    *runnertest.Stream // the one before

	material typev1.Material // what the runner asks for
}

// newWorld starts a runner.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, vault: runnertest.New(grantCanary), log: &syncBuffer{}, ran: make(chan error, 1)}
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

func TestRunner_Stream(t *testing.T) {
	draining := rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "going away")
	proxy := status.Error(codes.PermissionDenied, "unexpected HTTP status code received from server: 403 (Forbidden)")
	unavailable := status.Error(codes.Unavailable, "down")
	notReady := vaultError(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY)
	revoked := vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED)

	// An outage of minutes, in which each attempt ends at once.
	outage := func(d time.Duration) step {
		return step{"outage of " + d.String(), func(w *world) {
			for over := time.After(d); ; {
				select {
				case s := <-w.vault.Streams():
					s.End(unavailable)
				case <-over:
					return
				}
			}
		}}
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"the first message is held", []step{holdsNothing(), accept(), holdsNothing(), send(1), holds(1)}},
		{"each message replaces the one before", []step{accept(), send(1), holds(1), pass(45 * time.Minute), send(2), holds(2)}},
		{"what is held ends with its time", []step{accept(), send(1), end(unavailable), pass(59 * time.Minute), holds(1),
			pass(2 * time.Minute), holdsNothing()}},
		{"a broken stream is opened again fast", []step{accept(), send(1), pass(time.Minute), end(unavailable), holds(1),
			within(200 * time.Millisecond), holds(1), send(2), holds(2)}},
		{"a stream that the vault closes is opened again", []step{accept(), send(1), pass(time.Minute), end(nil), holds(1), within(time.Second)}},
		{"an outage of minutes is not noticed", []step{accept(), send(1), pass(time.Minute), end(unavailable),
			outage(20 * time.Minute), holds(1), within(31 * time.Second), send(2), holds(2)}},
		{"a vault that is not ready is asked again", []step{accept(), end(notReady), holdsNothing(), within(time.Second), end(notReady),
			within(2 * time.Second), send(1), holds(1)}},
		{"the vault's own delay is kept", []step{accept(), end(rpcerr.New(codes.ResourceExhausted, "RATE_LIMITED", "slower", rpcerr.Retry(20*time.Second))),
			noStream(19 * time.Second), within(2 * time.Second)}},
		{"a draining vault is left at once", []step{accept(), send(1), pass(time.Minute), end(draining), holds(1), within(time.Millisecond), send(2), holds(2)}},
		{"a draining vault that spreads the return is obeyed", []step{accept(), send(1), pass(time.Minute),
			end(rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "going away", rpcerr.Retry(900*time.Millisecond))),
			noStream(899 * time.Millisecond), within(2 * time.Millisecond), send(2), holds(2)}},
		{"vaults that all drain are not hammered", []step{accept(), send(1), pass(time.Minute), end(draining),
			{"a hundred seconds of draining", func(w *world) {
				opened, stop := 0, time.After(100*time.Second)
				for opened <= 60 {
					select {
					case s := <-w.vault.Streams():
						opened++
						s.Send(credential(int64(opened + 1)))
						s.End(draining)
						continue
					case <-stop:
					}
					break
				}
				if opened > 60 {
					w.t.Errorf("%d streams in 100 s", opened)
				}
			}}}},
		{"a vault that is about to stop is left for another, and let go of when that delivers", []step{accept(), send(1), pass(time.Minute), leave(10 * time.Second),
			holds(1), within(10 * time.Second), oldIsGone(false), holds(1), send(2), holds(2), oldIsGone(true), noStream(40 * time.Minute)}},
		{"a vault that is about to stop and is the only one is kept to its end", []step{accept(), send(1), pass(time.Minute), leave(time.Second),
			within(time.Second), end(draining), {"the old one is accepted again", func(w *world) { w.s = w.old }}, send(2), holds(2), end(draining),
			within(time.Second), send(3), holds(3)}},
		{"a vault that stops before it was left", []step{accept(), send(1), pass(time.Minute), leave(time.Minute), end(draining), holds(1),
			within(time.Minute), send(2), holds(2)}},
		{"no vault has its stream be missing for long", []step{accept(), send(1), pass(time.Minute), leave(time.Hour), within(time.Minute)}},
		{"one that asks to be left twice, or with nonsense, is left once", []step{accept(), send(1), pass(time.Minute), leave(-time.Hour), within(200 * time.Millisecond),
			{"ask the old one again", func(w *world) { w.old.Leave(0) }}, noStream(59 * time.Second), send(2), holds(2), oldIsGone(true)}},
		{"vaults that all ask to be left are not hammered", []step{accept(), send(1), pass(time.Minute), leave(0),
			{"a hundred seconds of leaving", func(w *world) {
				opened, stop := 0, time.After(100*time.Second)
				for opened <= 60 {
					select {
					case s := <-w.vault.Streams():
						opened++
						s.Send(credential(int64(opened + 1)))
						s.Leave(0)
						continue
					case <-stop:
					}
					break
				}
				if opened > 60 || opened < 5 {
					w.t.Errorf("%d streams in 100 s", opened)
				}
			}}}},
		{"a proxy's 403 is not final", []step{accept(), send(1), pass(time.Minute), end(proxy), holds(1), within(time.Second), send(2), holds(2)}},
		{"another domain's reason is not final", []step{accept(), send(1), pass(time.Minute),
			end(status.Error(codes.PermissionDenied, "GRANT_REVOKED")), holds(1), within(time.Second)}},
		{"a final reason with another code is not final", []step{accept(), send(1), pass(time.Minute),
			end(vaultError(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED)), holds(1), within(time.Second)}},
		{"consent lost is not final", []step{accept(), send(1), pass(time.Minute),
			end(vaultError(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CONSENT_MISSING)), holds(1), within(time.Second)}},
		{"revocation is final", []step{accept(), send(1), holds(1), end(revoked), over("GRANT_REVOKED"), noStream(time.Hour)}},
		{"revocation before the first message is final", []step{accept(), end(revoked), over("GRANT_REVOKED")}},
		{"a message without a credential changes nothing", []step{accept(), send(1), {"send nil", func(w *world) { w.s.Send(nil) }},
			holds(1), within(time.Second), send(2), holds(2)}},
		{"a message without a token changes nothing", []step{accept(), send(1), sendThis("no material", func(c *vaultv1.Credential) { c.Material = nil }),
			holds(1), within(time.Second), send(2), holds(2)}},
		{"a message without an end changes nothing", []step{accept(), send(1), sendThis("no expire_time", func(c *vaultv1.Credential) { c.ExpireTime = nil }),
			holds(1), within(time.Second)}},
		{"a message that has expired changes nothing", []step{accept(), send(1), sendThis("expired", func(c *vaultv1.Credential) { c.ExpireTime = c.GetIssueTime() }),
			holds(1), within(time.Second)}},
		{"a vault that says nothing is left", []step{accept(), noStream(59 * time.Second), within(2 * time.Second), oldIsGone(true), send(1), holds(1)}},
		{"an overdue vault is doubled, and let go of when the other delivers", []step{accept(), send(1), noStream(45 * time.Minute),
			within(time.Minute), oldIsGone(false), holds(1), send(2), holds(2), oldIsGone(true)}},
		{"an overdue vault that is not there any more is kept trying", []step{accept(), send(1), pass(45*time.Minute + 30*time.Second), accept(), end(unavailable),
			within(time.Second), end(unavailable), within(time.Second), send(2), holds(2)}},
		{"one whose credentials are old already is doubled only now and then", []step{accept(),
			{"ten minutes of old credentials", func(w *world) {
				old := func() *vaultv1.Credential {
					return with(credential(1), func(c *vaultv1.Credential) { c.RefreshTime = timestamppb.New(time.Now().Add(-time.Hour)) })
				}
				w.s.Send(old())
				opened, stop := 0, time.After(10*time.Minute)
				for opened <= 20 {
					select {
					case s := <-w.vault.Streams():
						opened++
						s.Send(old())
						continue
					case <-stop:
					}
					break
				}
				if opened > 20 {
					w.t.Errorf("%d streams in ten minutes", opened)
				}
			}}}},
		{"one that owes nothing before the grant's end is not overdue", []step{accept(),
			sendThis("until the grant's end", func(c *vaultv1.Credential) { c.GrantExpireTime = c.GetRefreshTime() }), noStream(3 * time.Hour)}},
		{"the first message of a new stream may be older", []step{accept(), send(5), pass(time.Minute), end(unavailable), accept(), send(4), holds(5), send(6), holds(6)}},
		{"another lease starts counting anew", []step{accept(), send(5), pass(time.Minute), end(unavailable), accept(),
			{"send 1 of another lease", func(w *world) { w.s.Send(with(credential(1), func(c *vaultv1.Credential) { c.Lease = "lease-2" })) }}, holds(1)}},
	}
	for _, r := range []errorv1.ErrorReason{
		errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED, errorv1.ErrorReason_ERROR_REASON_GRANT_EXPIRED,
		errorv1.ErrorReason_ERROR_REASON_DETACHED, errorv1.ErrorReason_ERROR_REASON_INTEGRATION_DELETED, errorv1.ErrorReason_ERROR_REASON_ACCOUNT_FROZEN,
		errorv1.ErrorReason_ERROR_REASON_LEASE_CLOSED,
	} {
		reason := strings.TrimPrefix(r.String(), "ERROR_REASON_")
		tests = append(tests, struct {
			name  string
			steps []step
		}{reason + " is final", []step{accept(), send(1), end(vaultError(codes.PermissionDenied, r)), over(reason)}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.walk(tt.steps)
			})
		})
	}
}

func TestRunner_UnknownGrantIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New("another grant"), log: &syncBuffer{}, ran: make(chan error, 1)}
		w.start(grantCanary)
		defer w.stop()
		synctest.Wait()
		over("GRANT_UNKNOWN").do(w)
	})
}

func TestRunner_ClosesALeaseThatIsOfNoUseToIt(t *testing.T) {
	for reason, closed := range map[errorv1.ErrorReason]int{
		errorv1.ErrorReason_ERROR_REASON_DETACHED: 1, errorv1.ErrorReason_ERROR_REASON_ACCOUNT_FROZEN: 1,
		errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED: 0, errorv1.ErrorReason_ERROR_REASON_LEASE_CLOSED: 0,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.vault.Accept(t)
				s.Send(credential(1))
				synctest.Wait()
				s.End(vaultError(codes.PermissionDenied, reason))
				var final *runner.FinalError
				if err := <-w.ran; !errors.As(err, &final) {
					t.Errorf("Run: %v", err)
				}
				if closes := w.vault.Closes(); len(closes) != closed || closed == 1 && closes[0].GetInstanceId() != s.Request.GetInstanceId() {
					t.Errorf("closed %v, want %d", closes, closed)
				}
			})
		})
	}
}

func TestRunner_AcknowledgesOnlyWhenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.vault.Accept(t)
		for generation := range int64(3) {
			s.Send(credential(generation + 1))
			synctest.Wait()
		}
		if acks := w.vault.Acknowledges(); len(acks) != 0 {
			t.Errorf("acknowledged by itself: %v", acks)
		}
		c, err := w.runner.Credential(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.runner.Acknowledge(t.Context(), c); err != nil {
			t.Error(err)
		}
		if acks := w.vault.Acknowledges(); len(acks) != 1 || acks[0].GetGeneration() != 3 || acks[0].GetInstanceId() != s.Request.GetInstanceId() {
			t.Errorf("acknowledged %v", acks)
		}
		w.cancel()
		if err := <-w.ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRunner_ClosesItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.vault.Accept(t)
		s.Send(credential(1))
		synctest.Wait()
		w.cancel()
		if err := <-w.ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		closes := w.vault.Closes()
		if len(closes) != 1 || closes[0].GetInstanceId() != s.Request.GetInstanceId() {
			t.Errorf("closed %v, want instance %s", closes, s.Request.GetInstanceId())
		}
		if _, err := w.runner.Credential(t.Context()); !errors.Is(err, runner.ErrStopped) {
			t.Errorf("credential after the end: %v", err)
		}
		if err := w.runner.Run(t.Context()); err == nil {
			t.Error("it ran twice")
		}
	})
}

func TestRunner_SaysWhyItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		waited := make(chan error)
		go func() {
			_, err := w.runner.Credential(ctx)
			waited <- err
		}()
		synctest.Wait()
		w.vault.Accept(t).End(vaultError(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CONSENT_MISSING))
		w.vault.Accept(t)
		err := <-waited
		if got := rpcerr.Reason(err); got != "CONSENT_MISSING" || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNew_RefusesWhatItCannotUse(t *testing.T) {
	_, err := runner.New(runner.Config{})
	for _, want := range []string{"no connection", "no grant", "no log"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	_, err = runner.New(runner.Config{Material: typev1.Material_MATERIAL_CLIENT_SECRET, Audience: resourceManager})
	if err == nil || !strings.Contains(err.Error(), "audience for a client secret") {
		t.Errorf("an audience for a secret: %v", err)
	}
	_, err = runner.New(runner.Config{Material: 99})
	if err == nil || !strings.Contains(err.Error(), "unknown material 99") {
		t.Errorf("an unknown material: %v", err)
	}
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
				w := &world{t: t, vault: runnertest.New(grantCanary), log: &syncBuffer{}, ran: make(chan error, 1), material: typev1.Material_MATERIAL_CLIENT_SECRET}
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

func TestRunner_RefusedBeforeTheFirstCredential(t *testing.T) {
	refused := func(reason string) step {
		return step{"refused with " + reason, func(w *world) {
			ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			if _, err := w.runner.Credential(ctx); rpcerr.Reason(err) != reason || time.Since(began) != 0 {
				w.t.Errorf("got %v after %s", err, time.Since(began))
			}
			if err := w.runner.Err(); err != nil {
				w.t.Errorf("the runner has ended: %v", err)
			}
		}}
	}
	waits := step{"waits", func(w *world) {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if _, err := w.runner.Credential(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			w.t.Errorf("got %v after %s", err, time.Since(began))
		}
	}}
	notAllowed := vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_MATERIAL_NOT_ALLOWED)
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"MATERIAL_NOT_ALLOWED", []step{accept(), end(notAllowed), refused("MATERIAL_NOT_ALLOWED")}},
		{"HOLD_TOO_LONG", []step{accept(), end(vaultError(codes.FailedPrecondition, errorv1.ErrorReason_ERROR_REASON_HOLD_TOO_LONG)), refused("HOLD_TOO_LONG")}},
		{"INVALID_FIELDS", []step{accept(), end(rpcerr.Invalid("material", "must be a defined one")), refused("INVALID_FIELDS")}},
		{"IDENTITY_UNKNOWN", []step{accept(), end(vaultError(codes.Unauthenticated, errorv1.ErrorReason_ERROR_REASON_IDENTITY_UNKNOWN)), refused("IDENTITY_UNKNOWN")}},
		{"mended", []step{accept(), end(notAllowed), refused("MATERIAL_NOT_ALLOWED"), within(time.Second), send(1), holds(1)}},
		{"later it changes nothing", []step{accept(), send(1), pass(time.Minute), end(notAllowed), holds(1), within(time.Second), end(notAllowed), holds(1)}},
		{"later it is waited out", []step{accept(), send(1), pass(time.Hour), end(notAllowed), waits}},
		{"not ready is waited out", []step{accept(), end(vaultError(codes.Unavailable, errorv1.ErrorReason_ERROR_REASON_CREDENTIAL_NOT_READY)), waits}},
		{"too many leases are waited out", []step{accept(), end(vaultError(codes.ResourceExhausted, errorv1.ErrorReason_ERROR_REASON_TOO_MANY_LEASES)), waits}},
		{"a proxy's 403 is waited out", []step{accept(), end(status.Error(codes.PermissionDenied, "403 (Forbidden)")), waits}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.walk(tt.steps)
			})
		})
	}
	t.Run("who waits already is told", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			defer w.stop()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			told := make(chan error)
			go func() {
				_, err := w.runner.Credential(ctx)
				told <- err
			}()
			synctest.Wait()
			w.vault.Accept(t).End(notAllowed)
			w.vault.Accept(t)
			if err := <-told; rpcerr.Reason(err) != "MATERIAL_NOT_ALLOWED" || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestRunner_Next(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.walk([]step{accept(), send(1)})
		first, err := w.runner.Next(t.Context(), runner.Credential{})
		if err != nil || first.Generation != 1 {
			t.Fatalf("the first: %d, %v", first.Generation, err)
		}
		next := make(chan int64)
		go func() {
			c, err := w.runner.Next(t.Context(), first)
			if err != nil {
				t.Errorf("the next: %v", err)
			}
			next <- c.Generation
		}()
		synctest.Wait()
		select {
		case n := <-next:
			t.Fatalf("%d came before anything was sent", n)
		case <-time.After(30 * time.Minute):
		}
		w.s.Send(credential(2))
		if n := <-next; n != 2 {
			t.Errorf("the next is %d", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		last, err := w.now()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.runner.Next(ctx, last); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("none comes: %v", err)
		}
		w.s.End(vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_GRANT_REVOKED))
		var final *runner.FinalError
		if _, err := w.runner.Next(t.Context(), last); !errors.As(err, &final) {
			t.Errorf("none will come: %v", err)
		}
	})
}

// Two servers, one vault behind them: the first is told to stop, which asks the runner to leave while its stream still lives.
func TestRunner_OpensTheNewStreamBeforeLettingGoOfTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New(grantCanary), log: &syncBuffer{}, ran: make(chan error, 1)}
		cert, pool := runnertest.Certificate(t)
		first, second := bufconn.Listen(64<<10), bufconn.Listen(64<<10)
		leaving := w.vault.Serve(t, first, cert)
		w.vault.Serve(t, second, cert)
		var moved atomic.Bool
		w.run(grantCanary, runnertest.Dial(t, pool, func(ctx context.Context) (net.Conn, error) {
			if moved.Load() {
				return second.DialContext(ctx)
			}
			return first.DialContext(ctx)
		}))
		defer w.stop()
		accept().do(w)
		send(1).do(w)
		synctest.Wait()
		moved.Store(true)
		stopped := make(chan struct{})
		go func() { leaving.GracefulStop(); close(stopped) }()
		w.walk([]step{within(time.Second), oldIsGone(false), holds(1), send(2), holds(2), oldIsGone(true)})
		<-stopped
	})
}

// Each of many vaults that stop one after another asks to be left within ten seconds: thousands of runners that were asked at one moment come spread over them.
func TestRunner_LeavesAtAMomentOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			rounds = 40
			window = 10 * time.Second
		)
		w := newWorld(t)
		defer w.stop()
		w.walk([]step{accept(), send(1)})
		var early, late int
		for n := range int64(rounds) {
			w.walk([]step{pass(time.Minute), leave(window)})
			asked := time.Now()
			w.walk([]step{within(window), send(n + 2), oldIsGone(true)})
			if time.Since(asked) < window/2 {
				early++
			} else {
				late++
			}
		}
		// Evenly drawn, either is as rare as this once in ten thousand times.
		if early < 8 || late < 8 {
			t.Errorf("of %d times it came in the first half %d times, in the second %d times", rounds, early, late)
		}
	})
}

// Servers that all want the runner to leave as soon as they have delivered: each stream lives on, so none ends with an error.
func TestRunner_ServersThatAllSendItAwayAreNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New(grantCanary), log: &syncBuffer{}, ran: make(chan error, 1)}
		cert, pool := runnertest.Certificate(t)
		var serving atomic.Pointer[grpc.Server]
		w.run(grantCanary, runnertest.Dial(t, pool, func(ctx context.Context) (net.Conn, error) {
			ln := bufconn.Listen(64 << 10)
			serving.Store(w.vault.Serve(t, ln, cert))
			return ln.DialContext(ctx)
		}))
		var leaving sync.WaitGroup
		defer leaving.Wait()
		defer w.stop()
		opened := 0
		for over := time.After(100 * time.Second); opened <= 60; {
			select {
			case s := <-w.vault.Streams():
				opened++
				s.Send(credential(int64(opened)))
				synctest.Wait()
				leaving.Go(serving.Load().GracefulStop)
				continue
			case <-over:
			}
			break
		}
		if opened > 60 || opened < 5 {
			t.Errorf("%d streams in 100 s", opened)
		}
		holds(int64(opened)).do(w)
	})
}

func TestRunner_ShowsTheGrantOnlyInPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := bufconn.Listen(64 << 10)
		vault := runnertest.New(grantCanary)
		srv := grpc.NewServer()
		vaultv1.RegisterCredentialServiceServer(srv, vault)
		go func() { _ = srv.Serve(ln) }()
		defer srv.Stop()
		conn, err := grpc.NewClient("passthrough:///vault", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		w := &world{t: t, vault: vault, log: &syncBuffer{}, ran: make(chan error, 1)}
		w.run(grantCanary, conn)
		defer w.stop()
		noStream(time.Minute).do(w)
	})
}

// fetched is what the vault answers for another audience.
func fetched(req *vaultv1.FetchCredentialRequest, token string, life time.Duration) *vaultv1.Credential {
	return with(credential(100), func(c *vaultv1.Credential) {
		c.RefreshTime = timestamppb.New(time.Now().Add(life / 2))
		c.ExpireTime = timestamppb.New(time.Now().Add(life))
		c.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: req.GetAudience(), Token: tokenCanary + token}}
	})
}

func TestRunner_OtherAudiences(t *testing.T) {
	const keyVault = "https://vault.azure.net"
	unavailable := status.Error(codes.Unavailable, "down")

	bubble := func(name string, do func(*testing.T, *world)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				accept().do(w)
				send(1).do(w)
				synctest.Wait()
				do(t, w)
			})
		})
	}
	get := func(t *testing.T, w *world, audience string) string {
		t.Helper()
		// More than the longest outage here and the longest wait that may follow it, drawn from up to half a minute.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := w.runner.CredentialFor(ctx, audience)
		if err != nil {
			t.Fatalf("%s: %v", audience, err)
		}
		return strings.TrimPrefix(c.Token.Expose(), tokenCanary)
	}

	bubble("an application's ID, in letters of either case", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "aks", time.Hour), nil
		})
		for _, name := range []string{"6dae42f8-4368-4678-94ff-3960e28e3630", "6DAE42F8-4368-4678-94FF-3960E28E3630"} {
			if got := get(t, w, name); got != "aks" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if fetches := w.vault.Fetches(); len(fetches) != 1 || fetches[0].GetAudience() != "6dae42f8-4368-4678-94ff-3960e28e3630" {
			t.Errorf("asked for %v", fetches)
		}
		if _, err := w.runner.CredentialFor(t.Context(), "6dae42f8-4368-4678-94ff"); !errors.Is(err, runner.ErrAudience) {
			t.Errorf("half an ID: %v", err)
		}
	})
	bubble("the streamed one by all of its names", func(t *testing.T, w *world) {
		for _, name := range []string{resourceManager, resourceManager + "/", "https://management.core.windows.net/"} {
			if got := get(t, w, name); got != "1" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if n := len(w.vault.Fetches()); n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
	bubble("one call however many ask, kept until its refresh time", func(t *testing.T, w *world) {
		calls := 0
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			calls++
			time.Sleep(time.Second)
			return fetched(req, fmt.Sprint("kv", calls), time.Hour), nil
		})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if got := get(t, w, keyVault+"/"); got != "kv1" {
					t.Errorf("got %s", got)
				}
			})
		}
		all.Wait()
		time.Sleep(29 * time.Minute)
		if got := get(t, w, keyVault); got != "kv1" {
			t.Errorf("before its refresh time: %s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := get(t, w, keyVault); got != "kv2" {
			t.Errorf("after its refresh time: %s", got)
		}
		fetches := w.vault.Fetches()
		if len(fetches) != 2 || fetches[0].GetInstanceId() != w.s.Request.GetInstanceId() || fetches[0].GetAudience() != keyVault {
			t.Errorf("fetches: %v", fetches)
		}
	})
	bubble("kept past its refresh time while the vault is away", func(t *testing.T, w *world) {
		down := false
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			if down {
				return nil, unavailable
			}
			return fetched(req, "kv", time.Hour), nil
		})
		get(t, w, keyVault)
		down = true
		time.Sleep(50 * time.Minute)
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("got %s", got)
		}
		time.Sleep(9*time.Minute + 50*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		time.Sleep(20 * time.Second)
		if c, err := w.runner.CredentialFor(ctx, keyVault); err == nil {
			t.Errorf("got %v after its end", c.ExpireTime)
		}
	})
	bubble("an outage is waited for", func(t *testing.T, w *world) {
		up := time.Now().Add(10 * time.Second)
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			if time.Now().Before(up) {
				return nil, unavailable
			}
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("got %s", got)
		}
	})
	bubble("fetched anew after a rotation, once", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		get(t, w, keyVault)
		w.s.Send(with(credential(2), func(c *vaultv1.Credential) { c.CredentialVersion = 2 }))
		synctest.Wait()
		get(t, w, keyVault)
		get(t, w, keyVault)
		if n := len(w.vault.Fetches()); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
	bubble("a refusal is passed on", func(t *testing.T, w *world) {
		_, err := w.runner.CredentialFor(t.Context(), keyVault)
		if rpcerr.Reason(err) != "AUDIENCE_NOT_ALLOWED" || len(w.vault.Fetches()) != 1 {
			t.Errorf("got %v after %d fetches", err, len(w.vault.Fetches()))
		}
		holds(1).do(w)
	})
	bubble("a token for something else is not taken", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			req.Audience = "https://elsewhere.example"
			return fetched(req, "kv", time.Hour), nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := w.runner.CredentialFor(ctx, keyVault); err == nil {
			t.Error("it was taken")
		}
	})
	bubble("a final refusal ends everything", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return nil, vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_DETACHED)
		})
		var final *runner.FinalError
		if _, err := w.runner.CredentialFor(t.Context(), keyVault); !errors.As(err, &final) {
			t.Errorf("got %v", err)
		}
		over("DETACHED").do(w)
	})
	bubble("nonsense stays here", func(t *testing.T, w *world) {
		for _, audience := range []string{"", "vault.azure.net", "http://vault.azure.net", "https://a/b", "https://-a", "https://" + strings.Repeat("a", 200)} {
			if _, err := w.runner.CredentialFor(t.Context(), audience); !errors.Is(err, runner.ErrAudience) {
				t.Errorf("%q: %v", audience, err)
			}
		}
		if n := len(w.vault.Fetches()); n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
	bubble("a refusal is repeated without a call for a while", func(t *testing.T, w *world) {
		for range 100 {
			if _, err := w.runner.CredentialFor(t.Context(), keyVault); rpcerr.Reason(err) != "AUDIENCE_NOT_ALLOWED" {
				t.Fatalf("got %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(w.vault.Fetches()); n != 1 {
			t.Errorf("%d fetches in ten seconds", n)
		}
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("after it was allowed: %s", got)
		}
	})
	bubble("a child that invents names does not have the vault asked without end, nor keep others out", func(t *testing.T, w *world) {
		for n := range 1000 {
			_, _ = w.runner.CredentialFor(t.Context(), fmt.Sprintf("https://n%d.example", n))
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(w.vault.Fetches()); n > 400 {
			t.Errorf("%d fetches in a hundred seconds", n)
		}
		time.Sleep(time.Minute)
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("an allowed one: %s", got)
		}
	})
	bubble("a child cannot fill the memory", func(t *testing.T, w *world) {
		var err error
		for n := 0; n < 100 && !errors.Is(err, runner.ErrTooManyAudiences); n++ {
			_, err = w.runner.CredentialFor(t.Context(), fmt.Sprintf("https://n%d.example", n))
		}
		if !errors.Is(err, runner.ErrTooManyAudiences) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRunner_SaysThatACredentialWasCompromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		warned := func(want bool) step {
			return step{fmt.Sprint("warned: ", want), func(w *world) {
				if strings.Contains(w.log.String(), "other hands") != want {
					w.t.Errorf("log:\n%s", w.log)
				}
			}}
		}
		because := func(r vaultv1.Credential_Reason) func(*vaultv1.Credential) {
			return func(c *vaultv1.Credential) { c.Reason = r }
		}
		w.walk([]step{
			accept(), send(1), sendThis("a rotated one", because(vaultv1.Credential_REASON_ROTATED)), warned(false),
			sendThis("one after a compromise", because(vaultv1.Credential_REASON_COMPROMISED)), warned(true),
		})
	})
}
