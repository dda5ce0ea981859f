package runner_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner/runnertest"
)

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
		{"no vault has its stream be missing for long", []step{accept(), send(1), {"twenty vaults that would", func(w *world) {
			for n := range int64(20) {
				w.walk([]step{pass(time.Minute), leave(time.Hour), within(time.Minute), send(n + 2)})
			}
		}}}},
		{"one that asks to be left, and at its end for time, is given that", []step{accept(), send(1), pass(time.Minute), leave(0),
			end(rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "going away", rpcerr.Retry(20*time.Second))),
			noStream(20*time.Second - time.Millisecond), within(2 * time.Millisecond), send(2), holds(2)}},
		{"one that has hardly delivered when it asks to be left has failed once", []step{accept(), send(1), leave(0),
			end(rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "going away", rpcerr.Retry(time.Millisecond))), within(2 * time.Millisecond)}},
		{"one that says both in a message is heard on both", []step{accept(), send(1), {"send 2 and leave", func(w *world) {
			w.s.Say(&vaultv1.StreamCredentialsResponse{Credential: credential(2), LeaveWindow: durationpb.New(0)})
		}}, holds(2), within(200 * time.Millisecond), send(3), holds(3), oldIsGone(true)}},
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
		{"a vault that asks to be left and says nothing else is left for good", []step{accept(), leave(0), within(time.Second), oldIsGone(false), pass(90 * time.Second),
			oldIsGone(true), accept(), send(1), holds(1)}},
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
		{"a token that ends sooner leaves the one that is held", []step{accept(), send(1), pass(30 * time.Minute), end(unavailable), accept(),
			sendThis("the token of a replica that cannot ask for a newer one", func(c *vaultv1.Credential) {
				c.Generation, c.ExpireTime, c.RefreshTime = 2, timestamppb.New(time.Now().Add(10*time.Minute)), timestamppb.New(time.Now().Add(9*time.Minute))
			}), pass(20 * time.Minute), {"holds the first token, by the second delivery", func(w *world) {
				if c, err := w.now(); err != nil || c.Generation != 2 || c.Token.Expose() != tokenCanary+"1" {
					w.t.Errorf("holds %s of %d, %v", c.Token.Expose(), c.Generation, err)
				}
			}}, pass(11 * time.Minute), holdsNothing()}},
		{"a token that ends sooner, for the one before is in other hands", []step{accept(), send(1), sendThis("compromised", func(c *vaultv1.Credential) {
			c.Generation, c.Reason, c.ExpireTime = 2, vaultv1.Credential_REASON_COMPROMISED, timestamppb.New(time.Now().Add(10*time.Minute))
		}), pass(11 * time.Minute), holdsNothing()}},
		{"a token that ends sooner, of another version", []step{accept(), send(1), sendThis("rotated", func(c *vaultv1.Credential) {
			c.Generation, c.CredentialVersion, c.ExpireTime = 2, 2, timestamppb.New(time.Now().Add(10*time.Minute))
		}), pass(11 * time.Minute), holdsNothing()}},
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

// Two servers, one vault behind them: the first is told to stop, which asks the runner to leave while its stream still lives.
func TestRunner_OpensTheNewStreamBeforeLettingGoOfTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1)}
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

// Each of many vaults that stop one after another asks to be left within ten seconds: thousands of runners that were asked at one moment come spread over them, also
// when their streams end before they have left.
func TestRunner_LeavesAtAMomentOfItsOwn(t *testing.T) {
	for name, then := range map[string][]step{
		"before its stream ends":   nil,
		"after its stream has":     {end(rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "going away"))},
		"after its stream broke":   {end(status.Error(codes.Unavailable, "down"))},
		"after the vault ended it": {end(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const (
					rounds = 80
					window = 10 * time.Second
				)
				w := newWorld(t)
				defer w.stop()
				w.walk([]step{accept(), send(1)})
				var early, late int
				for n := range int64(rounds) {
					w.walk([]step{pass(time.Minute), leave(window)})
					asked := time.Now()
					w.walk(then)
					w.walk([]step{within(window), send(n + 2), oldIsGone(true)})
					if time.Since(asked) < window/2 {
						early++
					} else {
						late++
					}
				}
				// Evenly drawn, either is as rare as this once in millions of times.
				if early < rounds/5 || late < rounds/5 {
					t.Errorf("of %d times it came in the first half %d times, in the second %d times", rounds, early, late)
				}
			})
		})
	}
}

// Servers that all want the runner to leave as soon as they have delivered: each stream lives on, so none ends with an error.
func TestRunner_ServersThatAllSendItAwayAreNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, vault: runnertest.New(grantCanary), log: &logtest.Transcript{}, ran: make(chan error, 1)}
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
