package rpc_test

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/services/broker/internal/consent"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// received is what came out of a stream: a session, or its end.
type received struct {
	session *brokerv1.ConsentSession
	err     error
}

// receive receives in the background until the stream ends.
func receive(stream grpc.ServerStreamingClient[brokerv1.WatchConsentSessionResponse]) <-chan received {
	out := make(chan received, 100)
	go func() {
		for {
			m, err := stream.Recv()
			out <- received{m.GetConsentSession(), err}
			if err != nil {
				return
			}
		}
	}()
	return out
}

func TestWatchConsentSession(t *testing.T) {
	ready := consent.Observation{Finding: consent.Ready, ClientID: "client"}
	refused := ready
	refused.Proof = &consent.Proof{Refusal: "AADSTS700016"}
	proven := ready
	proven.Proof = &consent.Proof{Consented: true, PrincipalObjectID: "oid"}
	type step struct {
		name string
		do   func(t *testing.T, w *world)
		// want is the state of the one message that must come, unspecified for none; end is whether the stream then ends, and how.
		want brokerv1.ConsentSession_State
		// ended is whether there is no link any more.
		ended    bool
		refusal  string
		callback string
		end      error
		code     codes.Code
		reason   string
	}
	first := step{name: "the state at once", want: brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"to completion", []step{
			first,
			{name: "nothing changes", do: func(*testing.T, *world) { <-time.After(10 * time.Minute) }},
			{name: "ready", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", ready) },
				want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT},
			{name: "still ready", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", ready) }},
			{name: "refused", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", refused) },
				want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT, refusal: "AADSTS700016"},
			{name: "proven", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", proven) },
				want: brokerv1.ConsentSession_STATE_COMPLETED, ended: true, end: io.EOF},
		}},
		{"with what a browser says", []step{
			first,
			{name: "ready", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", ready) }, want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT},
			{name: "declined", do: func(t *testing.T, w *world) { w.comeBack(t, "AADSTS65004") },
				want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT, callback: "AADSTS65004"},
			{name: "declined again", do: func(t *testing.T, w *world) { w.comeBack(t, "AADSTS65004") }},
			{name: "approved", do: func(t *testing.T, w *world) { w.comeBack(t, "") },
				want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT, callback: "APPROVED"},
		}},
		{"several changes between two looks are one message", []step{
			first,
			{name: "ready, refused, proven", do: func(t *testing.T, w *world) {
				w.settle(t, "uid-new", ready)
				w.settle(t, "uid-new", refused)
				w.settle(t, "uid-new", proven)
			}, want: brokerv1.ConsentSession_STATE_COMPLETED, ended: true, end: io.EOF},
		}},
		{"to expiry", []step{
			first,
			{name: "the integration is deleted", do: func(t *testing.T, w *world) { w.settle(t, "uid-new", consent.Observation{Finding: consent.Gone}) },
				want: brokerv1.ConsentSession_STATE_EXPIRED, ended: true, refusal: "INTEGRATION_DELETED", end: io.EOF},
		}},
		{"until the replica stops", []step{
			first,
			{name: "drain", do: func(t *testing.T, w *world) {
				if err := w.server.Stop(); err != nil {
					t.Error(err)
				}
			}, code: codes.Unavailable, reason: "DRAINING"},
		}},
		{"while the database is away", []step{
			first,
			{name: "away", do: func(t *testing.T, w *world) {
				w.failing.fail(consent.ErrUnavailable)
				w.settle(t, "uid-new", ready)
			}},
			{name: "back", do: func(_ *testing.T, w *world) { w.failing.fail(nil) }, want: brokerv1.ConsentSession_STATE_AWAITING_CONSENT},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				c := w.client(t, platform)
				created, err := c.CreateConsentSession(t.Context(), create("new"))
				if err != nil {
					t.Fatal(err)
				}
				stream, err := c.WatchConsentSession(t.Context(), &brokerv1.WatchConsentSessionRequest{Name: created.GetName()})
				if err != nil {
					t.Fatal(err)
				}
				got := receive(stream)
				for _, step := range tc.steps {
					if step.do != nil {
						step.do(t, w)
						<-time.After(poll)
					}
					synctest.Wait()
					if step.want != brokerv1.ConsentSession_STATE_UNSPECIFIED {
						m := next(t, step.name, got)
						if s := m.session; m.err != nil || s.GetState() != step.want || s.GetLastRefusal() != step.refusal || (s.GetConsentUri() == "") != step.ended || s.GetLastCallback() != step.callback {
							t.Errorf("step %s: %v", step.name, m)
						}
					}
					switch {
					case step.end != nil:
						if m := next(t, step.name, got); !errors.Is(m.err, step.end) {
							t.Errorf("step %s: the stream goes on, or ends otherwise: %v", step.name, m)
						}
					case step.code != codes.OK:
						check(t, next(t, step.name, got).err, step.code, step.reason)
					}
					if n := len(got); n != 0 {
						t.Errorf("step %s: %d messages more: %v", step.name, n, <-got)
					}
				}
			})
		})
	}
}

// comeBack has a browser press the button of the one session and come back with a code, at any replica.
func (w *world) comeBack(t *testing.T, code string) {
	t.Helper()
	now := time.Now()
	claim, err := w.store.Claim(t.Context(), now, now.Add(time.Minute), "uid-new")
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.Settle(t.Context(), claim, func(target consent.Target, _ []consent.Session) (consent.Target, []consent.Session) {
		return target, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	attempt, state, browser := consent.Begin(now, claim.Open[0].Name, []byte("here"), time.Minute)
	if err := w.store.Begin(t.Context(), "uid-new", attempt, consent.Kept{PerSource: 5, PerSession: 5}); err != nil {
		t.Fatal(err)
	}
	said := consent.Callback{State: state, Code: code}
	v, err := w.store.Return(t.Context(), now, consent.Hash(state), func(a *consent.Attempt, s consent.Session) consent.Verdict {
		return consent.Judge(now, said, consent.Browser{attempt.ID: {browser}}, a, s)
	})
	if err != nil || !v.Consumed {
		t.Fatalf("verdict %+v, error %v", v, err)
	}
}

// next returns what has come, without waiting.
func next(t *testing.T, step string, got <-chan received) received {
	t.Helper()
	select {
	case m := <-got:
		return m
	default:
		t.Fatalf("step %s: nothing came", step)
		return received{}
	}
}

func TestWatchConsentSession_ManyAskTheDatabaseAsOftenAsOne(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		const sessions, streams = 3, 24
		var names []string
		for range sessions {
			created, err := c.CreateConsentSession(t.Context(), create("new"))
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, created.GetName())
		}
		watch := func(n int) (watched []<-chan received) {
			for i := range n {
				stream, err := c.WatchConsentSession(t.Context(), &brokerv1.WatchConsentSessionRequest{Name: names[i%sessions]})
				if err != nil {
					t.Fatal(err)
				}
				watched = append(watched, receive(stream))
			}
			synctest.Wait()
			return watched
		}
		asked := func() int {
			_, before := w.failing.reads()
			<-time.After(10 * time.Minute)
			synctest.Wait()
			_, after := w.failing.reads()
			return after - before
		}
		all := watch(1)
		one := asked()
		all = append(all, watch(streams-1)...)
		many := asked()
		if gets, _ := w.failing.reads(); one == 0 || many != one || gets != streams {
			t.Errorf("asked %d times for one stream, %d for %d; and read %d sessions one by one", one, many, streams, gets)
		}
		w.settle(t, "uid-new", consent.Observation{Finding: consent.Ready, ClientID: "client"})
		<-time.After(poll)
		synctest.Wait()
		for i, got := range all {
			if first, then := next(t, "at once", got), next(t, "ready", got); first.err != nil || then.session.GetState() != brokerv1.ConsentSession_STATE_AWAITING_CONSENT {
				t.Errorf("stream %d: %v, then %v", i, first, then)
			}
		}
	})
}

func TestWatchConsentSession_OfAnEndedSession(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		c := w.client(t, platform)
		created, err := c.CreateConsentSession(t.Context(), create("new"))
		if err != nil {
			t.Fatal(err)
		}
		w.settle(t, "uid-new", consent.Observation{Finding: consent.Deleting})
		stream, err := c.WatchConsentSession(t.Context(), &brokerv1.WatchConsentSessionRequest{Name: created.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || m.GetConsentSession().GetState() != brokerv1.ConsentSession_STATE_EXPIRED {
			t.Errorf("first message %v, error %v", m, err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("then %v", err)
		}
	})
}
