package redislock

import (
	"context"
	"fmt"
	"sync"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// instant is a moment by both clocks.
type instant struct {
	monotonic time.Time // a reading of time.Now, whose differences are the monotonic clock's
	wall      time.Time // without a monotonic reading
}

func (e *Elector) instant() instant {
	return instant{monotonic: time.Now(), wall: e.config.Wall().Round(0)}
}

// left is how much is left of ttl since an instant. A hundredth is kept back, for Redis' clock may be faster than ours.
func left(now, since instant, ttl time.Duration) time.Duration {
	passed := max(now.monotonic.Sub(since.monotonic), now.wall.Sub(since.wall))
	return ttl - ttl/100 - passed
}

// term is one mastership: the lock that is renewed, and the work that is done under it.
type term struct {
	ctx    context.Context //nolint:containedctx // its end is the term's, which both goroutines and the campaign ask for
	cancel context.CancelCauseFunc
	lock   string // the lock's value

	mu    sync.Mutex
	since instant // before the last successful request was sent
}

func (t *term) renewed() instant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.since
}

func (t *term) renew(since instant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = since
}

// begin starts a term for a shard whose lock was acquired, with this value, by a request sent at since. The term ends by a message on c.ended.
func (c *campaign) begin(ctx context.Context, shard int, lock string, since instant) *term {
	// Not ctx's end ends the work but stop, which says why.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	t := &term{ctx: ctx, cancel: cancel, lock: lock, since: since}
	ctx = election.WithLeft(ctx, func() time.Duration { return left(c.instant(), t.renewed(), c.config.TTL) })
	served := make(chan error, 1)
	go func() { served <- c.work(ctx, shard) }()
	go func() {
		err, cause := c.keep(ctx, t, shard, served)
		// Only a lock that is still ours is released; if that fails it expires.
		if releaseErr := c.locks.release(context.WithoutCancel(ctx), shard, lock); releaseErr != nil {
			c.config.Log.WarnContext(ctx, "releasing a lock failed, it will expire", "shard", shard, "error", releaseErr)
		}
		cancel(election.ErrResigned)
		c.ended <- end{shard: shard, err: err, cause: cause}
	}()
	return t
}

// work takes the shard in the database and serves it.
func (c *campaign) work(ctx context.Context, shard int) error {
	m, err := c.config.Fence.Take(ctx, shard, c.config.Wall())
	if err != nil {
		return fmt.Errorf("take shard %d: %w", shard, err)
	}
	c.config.Log.InfoContext(ctx, "mastership taken", "shard", m.Shard, "epoch", m.Epoch, "holder", m.Holder)
	return c.serve(ctx, m)
}

// keep renews the lock until the work returns, which it makes it do when the lock is lost. It looks at the clocks twelve times a TTL, so that a wall clock
// which jumped is noticed soon.
func (c *campaign) keep(ctx context.Context, t *term, shard int, served <-chan error) (err, cause error) {
	tick := c.config.TTL / 12
	timer := time.NewTimer(tick)
	defer timer.Stop()
	var failure error // of the last attempt to renew
	for {
		select {
		case err := <-served:
			return err, context.Cause(ctx)
		case <-ctx.Done():
			return <-served, context.Cause(ctx)
		case <-timer.C:
		}
		now := c.instant()
		remains := left(now, t.renewed(), c.config.TTL)
		if remains > 0 && now.monotonic.Sub(t.renewed().monotonic) >= c.config.TTL/3 {
			var ours bool
			ours, failure = c.extend(ctx, t, shard, remains)
			if failure == nil && !ours {
				t.cancel(fmt.Errorf("%w: the lock was deleted or is another's", election.ErrLost))
				continue
			}
			if ours {
				t.renew(now)
			}
			// After a failure it is tried again at the next tick.
			remains = left(c.instant(), t.renewed(), c.config.TTL)
		}
		if remains <= 0 {
			t.cancel(lost(failure))
			continue
		}
		timer.Reset(min(tick, remains))
	}
}

// lost says why a lock was not renewed in time: failure is that of the last attempt, if one failed since the last success.
func lost(failure error) error {
	if failure == nil {
		return fmt.Errorf("%w: no time to renew the lock, as after a pause", election.ErrLost)
	}
	return fmt.Errorf("%w: the lock was not renewed in time: %w", election.ErrLost, failure)
}

func (c *campaign) extend(ctx context.Context, t *term, shard int, remains time.Duration) (ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, remains) // an answer after that would be of no use
	defer cancel()
	return c.locks.extend(ctx, shard, t.lock)
}
