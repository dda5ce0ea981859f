package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/connectivity"
	"google.golang.org/protobuf/types/known/durationpb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
)

const (
	// firstMessageTimeout is how long a stream may be silent at first. The first message comes at once, but for the
	// vault's own wait for Entra.
	firstMessageTimeout = time.Minute
	// settled is how long a stream must have delivered for its end to count as a first failure, not as the next in a row.
	settled = 10 * time.Second
	// overdueGrace is how long after the refresh time the vault is given before another stream is tried, and the shortest
	// time between two that are tried for that.
	overdueGrace = 30 * time.Second
	// leaveMax is the most that the vault may have the next stream wait for when it is about to stop.
	leaveMax = time.Minute
)

// Why a stream ended without an error of the vault's.
var (
	errSilent = fmt.Errorf("vault said nothing for %s", firstMessageTimeout)
	errClosed = errors.New("vault closed the stream")
)

// connection is what a gRPC connection can tell beyond calls; a Runner does without, if it cannot.
//
// It is not told to hurry (ResetConnectBackoff): gRPC then walks through a map that a connection to several servers changes at the same time,
// which ends the process (https://github.com/grpc/grpc-go/pull/9155). How soon it tries again by itself is for its back-off.
type connection interface {
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, s connectivity.State) bool
}

// event is one thing that happened on one stream: a message, the wish that it be left, or its end.
type event struct {
	stream  int
	message *vaultv1.Credential
	leave   *durationpb.Duration
	err     error
}

// stream is one call of StreamCredentials that has not ended.
type stream struct {
	cancel    context.CancelFunc
	delivered time.Time // when the first message was taken; zero before
	leaving   bool      // its connection or its server is going away, and the next one is due
}

// follower keeps a stream open. All of its fields belong to the goroutine in run.
type follower struct {
	r       *Runner
	events  chan event
	leaving chan struct{}

	live    map[int]*stream
	newest  int // the stream opened last
	fails   int // in a row
	retry   *time.Timer
	overdue *time.Timer
	warned  string // what was warned of last
}

func newFollower(r *Runner) *follower {
	return &follower{
		r:       r,
		events:  make(chan event),
		leaving: make(chan struct{}),
		live:    map[int]*stream{},
	}
}

// run opens streams and takes in what they deliver, until ctx ends (nil) or delivery does (a *FinalError).
func (f *follower) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	running := make(chan struct{})
	count := 0
	start := func(do func()) {
		count++
		go func() { do(); running <- struct{}{} }()
	}
	defer func() {
		cancel()
		for ; count > 0; count-- {
			<-running
		}
	}()
	f.retry, f.overdue = stopped(), stopped()
	defer f.retry.Stop()
	defer f.overdue.Stop()
	f.open(ctx, start)
	if conn, ok := f.r.cfg.Conn.(connection); ok {
		start(func() { f.watch(ctx, conn) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.r.state.done:
			// A unary call has met a final error.
			return f.r.state.err()
		case <-running:
			count--
		case <-f.retry.C:
			f.open(ctx, start)
		case <-f.leaving:
			if s := f.live[f.newest]; f.delivers() && !s.leaving {
				f.r.cfg.Log.DebugContext(ctx, "connection is going away, opening another stream")
				f.move(time.Now(), s, 0)
			}
		case <-f.overdue.C:
			if f.delivers() {
				f.warn(ctx, overdue, nil)
				f.open(ctx, start)
			}
		case e := <-f.events:
			s := f.live[e.stream]
			switch {
			case s == nil:
				// One that was let go of.
			case e.leave != nil:
				f.leave(ctx, time.Now(), e.stream, s, e.leave.AsDuration())
			case e.message != nil:
				f.take(ctx, time.Now(), e.stream, s, e.message)
			default:
				if err := f.ended(ctx, time.Now(), e.stream, s, e.err); err != nil {
					return err
				}
			}
		}
	}
}

// stopped is a timer that is not set.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// delivers reports whether the stream opened last has delivered and has not ended: no other one is on its way.
func (f *follower) delivers() bool {
	s := f.live[f.newest]
	return s != nil && !s.delivered.IsZero()
}

// open starts one more stream.
func (f *follower) open(ctx context.Context, start func(func())) {
	f.retry.Stop()
	f.newest++
	id := f.newest
	streamCtx, cancel := context.WithCancelCause(ctx)
	f.live[id] = &stream{cancel: func() { cancel(nil) }}
	start(func() {
		defer cancel(nil)
		err := f.follow(streamCtx, cancel, id)
		f.send(ctx, event{stream: id, err: err})
	})
}

// follow is one stream from its opening to its end.
func (f *follower) follow(ctx context.Context, cancel context.CancelCauseFunc, id int) error {
	silent := time.AfterFunc(firstMessageTimeout, func() { cancel(errSilent) })
	defer silent.Stop()
	calls, err := f.r.client.StreamCredentials(ctx, &vaultv1.StreamCredentialsRequest{
		InstanceId: f.r.instance,
		Material:   f.r.cfg.Material,
		Audience:   f.r.cfg.Audience,
	}, f.r.bearer)
	if err != nil {
		return err
	}
	for {
		m, err := calls.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errClosed
		case err != nil && errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case err != nil:
			return err
		}
		leave := m.GetLeaveWindow()
		if c := m.GetCredential(); c != nil || leave == nil {
			silent.Stop()
			f.send(ctx, event{stream: id, message: cmp.Or(c, &vaultv1.Credential{})})
		}
		if leave != nil {
			f.send(ctx, event{stream: id, leave: leave})
		}
	}
}

// send hands an event to run, unless ctx ends first.
func (f *follower) send(ctx context.Context, e event) {
	select {
	case f.events <- e:
	case <-ctx.Done():
	}
}

// watch says when the connection stops being ready: it broke, or the server wants everybody to leave it.
func (f *follower) watch(ctx context.Context, conn connection) {
	for {
		s := conn.GetState()
		if !conn.WaitForStateChange(ctx, s) {
			return
		}
		if s != connectivity.Ready {
			continue
		}
		select {
		case f.leaving <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// take makes a message what is held, if it is newer, and lets go of the streams that are older than the one it came by.
func (f *follower) take(ctx context.Context, now time.Time, id int, s *stream, m *vaultv1.Credential) {
	log := f.r.cfg.Log
	c, err := newCredential(now, f.r.cfg.Material, m)
	if err != nil {
		// Keep what is held; another stream, later, may say it better.
		s.cancel()
		delete(f.live, id)
		f.again(ctx, now, s, err)
		return
	}
	held := f.r.state.newest()
	// The first message of a new stream may have been made before the last one of the old. What follows on a stream is
	// in order.
	late := s.delivered.IsZero() && c.Lease == held.Lease && c.Generation < held.Generation && held.valid(now)
	if s.delivered.IsZero() {
		s.delivered = now
	}
	f.warned = ""
	if !late {
		if m.GetReason() != vaultv1.Credential_REASON_COMPROMISED {
			c = c.lasting(held)
		}
		f.r.state.put(c)
	}
	for older, o := range f.live {
		if older < id {
			o.cancel()
			delete(f.live, older)
		}
	}
	f.expect(now, f.r.state.newest())
	log.DebugContext(ctx, "credential delivered",
		slog.Int64("generation", c.Generation), slog.Int64("version", c.Version),
		slog.String("sent_because", m.GetReason().String()), slog.Time("expire_time", c.ExpireTime))
	if m.GetReason() == vaultv1.Credential_REASON_COMPROMISED {
		// A program that was started with a secret goes on with it, and is refused.
		log.WarnContext(ctx, "credential was replaced because the one before may be in other hands; what used that is refused from now on, or soon",
			slog.Int64("version", c.Version))
	}
}

// leave opens another stream within the time that the vault names, for it will end this one.
func (f *follower) leave(ctx context.Context, now time.Time, id int, s *stream, within time.Duration) {
	if id != f.newest {
		// The next one is on its way already.
		return
	}
	f.r.cfg.Log.DebugContext(ctx, "vault is about to stop, opening another stream", slog.Duration("within", within))
	f.move(now, s, within)
}

// move has another stream be opened while s lives, within a time drawn evenly, and not before back-off would have it.
func (f *follower) move(now time.Time, s *stream, within time.Duration) {
	if !s.leaving {
		s.leaving = true
		f.count(now, s)
	}
	wait := backoffDelay(f.fails - 1)
	if within = min(within, leaveMax); within > 0 {
		wait = max(wait, rand.N(within)) //nolint:gosec // spreading load, not hiding anything
	}
	f.retry.Reset(wait)
}

// expect sets the timer for when the vault will be overdue. It owes nothing more after a credential that is good until the
// grant's end, a client secret above all: then the stream ends, or tells of a later end.
func (f *follower) expect(now time.Time, held Credential) {
	if end := held.GrantExpireTime; !end.IsZero() && !held.RefreshTime.Before(end) {
		f.overdue.Stop()
		return
	}
	f.overdue.Reset(max(held.RefreshTime.Add(overdueGrace).Sub(now), overdueGrace))
}

// ended decides what the end of a stream means: an error if it is final, else when to open the next.
func (f *follower) ended(ctx context.Context, now time.Time, id int, s *stream, err error) error {
	delete(f.live, id)
	if final := asFinal(err); final != nil {
		return final
	}
	f.again(ctx, now, s, err)
	return nil
}

// again sets the timer for the next stream after one that failed with err.
func (f *follower) again(ctx context.Context, now time.Time, s *stream, err error) {
	f.r.state.fail(err)
	draining := rpcerr.Reason(err) == rpcerr.ReasonDraining
	if _, ok := f.live[f.newest]; ok {
		// The next one is on its way already.
		return
	}
	asked := min(rpcerr.RetryDelay(err), backoffMax)
	if s.leaving && asked == 0 {
		// Its end was expected, and is counted.
		return
	}
	if !s.leaving {
		f.count(now, s)
	}
	wait := max(backoffDelay(f.fails-1), asked)
	if draining && f.fails == 1 {
		// It leaves in an order of its own choosing, and others are up.
		wait = asked
	}
	f.retry.Reset(wait)
	if !draining {
		f.warn(ctx, noStream, err)
	}
}

// count counts the end of s: as a first one if s had delivered for a while.
func (f *follower) count(now time.Time, s *stream) {
	if !s.delivered.IsZero() && now.Sub(s.delivered) >= settled {
		f.fails = 0
	}
	f.fails++
}

// The two things that are worth a warning.
const (
	overdue  = "vault is overdue, opening another stream"
	noStream = "no stream to the vault, keeping what is held"
)

// warn logs at warning level, at debug level what was said for the same reason since the last delivery: a long outage is
// one line. The message is one of the two above.
func (f *follower) warn(ctx context.Context, message string, err error) {
	why := message
	if st, ok := rpcerr.FromError(err); ok {
		why += st.Code().String() + rpcerr.Reason(err)
	}
	level := slog.LevelWarn
	if f.warned == why {
		level = slog.LevelDebug
	}
	f.warned = why
	var attrs []any
	if err != nil {
		attrs = append(attrs, slog.String(obs.KeyError, rpcerr.Explain(err)))
	}
	f.r.cfg.Log.Log(ctx, level, message, attrs...) //nolint:sloglint // one of two constants
}
