// Package redislock elects masters by locks in Redis, one for each shard.
//
// It guarantees that a shard without a master gets one within the locks' TTL, while Redis and the database answer and a replica that wants shards lives; that a replica takes
// no more than its fair share, which is the number of shards over the number of replicas, rounded up; and that a mastership which was not renewed
// ends by itself before its lock can expire, by the monotonic and by the wall clock (a suspended machine stops the one and not the other), both measured from before
// the request was sent. It does not guarantee that there is one master: see package election.
//
// A lock is a key whose value names the mastership that holds it. Asking again for what one has locked already succeeds, so a request whose reply was lost costs nothing; and a release that
// comes late does not touch the lock of the next mastership, though that be the same replica's. A replica shows that it lives, and that it reaches its database, by an entry in a sorted set
// of members, which expires as locks do. One that has not reached its database for a TTL gives everything up.
package redislock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"phasekey.dev/services/vault/internal/election"
)

// Config is what an elector needs. Only Wall may be left out.
type Config struct {
	// Client reaches Redis. Its timeouts should be well under the TTL.
	Client redis.UniversalClient
	// Prefix begins the names of all keys; it names the deployment.
	Prefix string
	// Replica names this replica in logs and in Redis. Two replicas of one name are told apart nevertheless.
	Replica string
	// Shards is the number of shards.
	Shards int
	// TTL is how long a lock outlives its last renewal. It is renewed when a third has passed.
	TTL time.Duration
	// Fence takes in the database what was locked in Redis.
	Fence election.Fence
	// Log gets a line for each mastership's beginning and end, and for each beginning and end of trouble with Redis.
	Log *slog.Logger
	// Wall is the wall clock; time.Now if nil. Only what it says is used, not its monotonic reading.
	Wall func() time.Time
}

// Elector competes for shards. Make it with New.
type Elector struct {
	config Config
	locks  locks
}

// New makes an elector; Run makes it work.
func New(config Config) (*Elector, error) {
	switch {
	case config.Client == nil || config.Fence == nil || config.Log == nil:
		return nil, errors.New("election: client, fence and log are required")
	case config.Prefix == "" || config.Replica == "":
		return nil, errors.New("election: prefix and replica are required")
	case config.Shards < 1:
		return nil, fmt.Errorf("election: %d shards", config.Shards)
	case config.TTL < minTTL:
		return nil, fmt.Errorf("election: a TTL of %v is under %v", config.TTL, minTTL)
	}
	if config.Wall == nil {
		config.Wall = time.Now
	}
	return &Elector{
		config: config,
		locks:  locks{client: config.Client, prefix: config.Prefix, member: config.Replica + "/" + uuid.NewString(), ttl: config.TTL},
	}, nil
}

// minTTL leaves room for a few requests within each part of a TTL.
const minTTL = 100 * time.Millisecond

// Run competes for shards until ctx ends. See election.Elector.
func (e *Elector) Run(ctx context.Context, serve election.Serve) error {
	c := &campaign{
		Elector: e,
		serve:   serve,
		held:    map[int]*term{},
		tried:   map[int]string{},
		barred:  map[int]time.Time{},
		ended:   make(chan end),
		ready:   time.Now(),
	}
	timer := time.NewTimer(c.round(ctx))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.stop(context.WithoutCancel(ctx))
			return nil
		case end := <-c.ended:
			c.settle(ctx, end)
			c.settleMore(ctx)
		case <-timer.C:
		}
		timer.Reset(c.round(ctx))
	}
}

// campaign is one Run. Its fields belong to Run's goroutine.
type campaign struct {
	*Elector
	serve election.Serve

	held   map[int]*term     // by shard; until its goroutine has ended and the lock is released
	tried  map[int]string    // by which value a shard's lock was asked for, without an answer; it may be ours
	locked int               // counts values of locks
	barred map[int]time.Time // shards not to compete for, until when
	ended  chan end
	ready  time.Time // when the database was last found ready
	unable bool      // it was not last time
	silent bool      // Redis did not answer last time
}

// end is how a term ended.
type end struct {
	shard int
	err   error // what serve, or taking the shard, returned
	cause error // why the mastership's context ended, if it did
}

// round shows that this replica lives, gives up shards beyond its share or takes missing ones, and says when to come again.
func (c *campaign) round(ctx context.Context) time.Duration {
	if !c.prepared(ctx) {
		// Without a beat the others soon do not count on us.
		return jitter(c.config.TTL / 6)
	}
	next := jitter(c.config.TTL / 3)
	members, change, err := c.locks.beat(ctx)
	c.hear(ctx, err)
	if err != nil {
		return jitter(c.config.TTL / 6)
	}
	next = min(next, change)

	share := (c.config.Shards + members - 1) / members
	c.shed(share)
	now := time.Now()
	for _, shard := range rand.Perm(c.config.Shards) { //nolint:gosec // spreads contenders, guards nothing
		if len(c.held) >= share {
			break
		}
		if _, ok := c.held[shard]; ok {
			continue
		}
		if until, ok := c.barred[shard]; ok && now.Before(until) {
			next = min(next, until.Sub(now))
			continue
		}
		delete(c.barred, shard)
		wait, err := c.try(ctx, shard)
		c.hear(ctx, err)
		if err != nil {
			next = min(next, jitter(c.config.TTL/6))
			break
		}
		next = min(next, wait)
	}
	// An expiry that is due now is over in a moment; asking again at once would only ask too early.
	return max(next, c.config.TTL/50)
}

// prepared tells whether the database could be worked with. When it could not for a TTL, everything is given up: others may reach it.
func (c *campaign) prepared(ctx context.Context) bool {
	checking, cancel := context.WithTimeout(ctx, c.config.TTL/6)
	defer cancel()
	err := c.config.Fence.Ready(checking, time.Now())
	if ctx.Err() != nil {
		return false
	}
	if unable := err != nil; unable != c.unable {
		c.unable = unable
		if unable {
			c.config.Log.WarnContext(ctx, "the database is not ready, no shards can be taken", "error", err)
		} else {
			c.config.Log.InfoContext(ctx, "the database is ready again")
		}
	}
	now := time.Now()
	if err == nil {
		c.ready = now
	} else if now.Sub(c.ready) >= c.config.TTL {
		c.shed(0)
	}
	return err == nil
}

// try asks for a shard's lock and begins a term if it gets it. If it is another's, wait says when it would expire.
func (c *campaign) try(ctx context.Context, shard int) (wait time.Duration, err error) {
	lock, asked := c.tried[shard]
	if !asked {
		c.locked++
		lock = fmt.Sprintf("%s/%d", c.locks.member, c.locked)
		c.tried[shard] = lock
	}
	since := c.instant()
	free, wait, err := c.locks.acquire(ctx, shard, lock)
	if err != nil {
		// Perhaps it was acquired. Asking again by the same value tells.
		return 0, err
	}
	delete(c.tried, shard)
	if !free {
		return wait, nil
	}
	c.held[shard] = c.begin(ctx, shard, lock, since)
	return c.config.TTL, nil
}

// shed resigns what is beyond the share. What is ending already has been counted before.
func (c *campaign) shed(share int) {
	var working []*term
	for _, t := range c.held {
		if t.ctx.Err() == nil {
			working = append(working, t)
		}
	}
	for _, t := range working[min(share, len(working)):] {
		t.cancel(election.ErrResigned)
	}
}

// settle notes how a term ended.
func (c *campaign) settle(ctx context.Context, end end) {
	delete(c.held, end.shard)
	log := c.config.Log.With("shard", end.shard)
	switch {
	case errors.Is(end.err, election.ErrFenced):
		// Somebody else is master, and needs no competition.
		c.barred[end.shard] = time.Now().Add(c.config.TTL + rand.N(c.config.TTL/2)) //nolint:gosec // spreads contenders, guards nothing
		log.WarnContext(ctx, "mastership fenced", "error", end.err)
	case end.cause == nil:
		c.barred[end.shard] = time.Now().Add(jitter(c.config.TTL / 2))
		log.WarnContext(ctx, "mastership given up", "error", end.err)
	case errors.Is(end.cause, election.ErrLost):
		log.WarnContext(ctx, "mastership lost", "cause", end.cause, "error", end.err)
	default:
		log.InfoContext(ctx, "mastership resigned", "error", end.err)
	}
}

// settleMore settles what else has ended and been released by now, so that one round is enough for all of it.
func (c *campaign) settleMore(ctx context.Context) {
	for {
		select {
		case end := <-c.ended:
			c.settle(ctx, end)
		default:
			return
		}
	}
}

// stop resigns everything and leaves the members, so that others take each shard as soon as its work has ended; and waits until all has.
func (c *campaign) stop(ctx context.Context) {
	c.shed(0)
	if err := c.locks.leave(ctx); err != nil {
		c.config.Log.WarnContext(ctx, "leaving the election failed, the entry will expire", "error", err)
	}
	var doubtful sync.WaitGroup
	for shard, lock := range c.tried {
		doubtful.Go(func() { _ = c.locks.release(ctx, shard, lock) }) // else it expires, if it is ours at all
	}
	for len(c.held) > 0 {
		c.settle(ctx, <-c.ended)
	}
	doubtful.Wait()
}

// hear logs when Redis falls silent and when it is back.
func (c *campaign) hear(ctx context.Context, err error) {
	if silent := err != nil; silent != c.silent && ctx.Err() == nil {
		c.silent = silent
		if silent {
			c.config.Log.WarnContext(ctx, "redis does not answer, no shards can be taken", "error", err)
		} else {
			c.config.Log.InfoContext(ctx, "redis answers again")
		}
	}
}

// jitter spreads replicas: something between three quarters of d and d.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/4+1) //nolint:gosec // spreads contenders, guards nothing
}
