package runner_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/runner/runnertest"
)

func TestRunner_UnknownGrantIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New("another grant"), log: &logtest.Transcript{}, ran: make(chan error, 1)}
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
		w := &world{t: t, vault: vault, log: &logtest.Transcript{}, ran: make(chan error, 1)}
		w.run(grantCanary, conn)
		defer w.stop()
		noStream(time.Minute).do(w)
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
