// Package redislock elects masters by locks in Redis, one for each shard.
//
// It guarantees that a shard without a master gets one within the locks' TTL, while Redis and the database answer and a replica that wants shards lives; that a replica takes
// no more than its fair share, which is the number of shards over the number of replicas, rounded up; and that a mastership which was not renewed
// ends by itself before its lock can expire, by the monotonic and by the wall clock (a suspended machine stops the one and not the other), both measured from before
// the request was sent. It does not guarantee that there is one master: see package election.
//
// A lock is a key whose value names the elector that holds it. Asking for a lock one holds already succeeds, so a request whose reply was lost costs nothing. A replica shows that it
// lives by an entry in a sorted set of members, which expires as locks do.
package redislock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	id     string // the value of our locks, and our name among the members
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
	id := config.Replica + "/" + uuid.NewString()
	return &Elector{
		config: config,
		id:     id,
		locks:  locks{client: config.Client, prefix: config.Prefix, id: id, ttl: config.TTL},
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
		barred:  map[int]time.Time{},
		ended:   make(chan end),
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.stop(context.WithoutCancel(ctx))
			return nil
		case end := <-c.ended:
			c.settle(ctx, end)
			timer.Reset(0)
		case <-timer.C:
			timer.Reset(c.round(ctx))
		}
	}
}

// campaign is one Run. Its fields belong to Run's goroutine.
type campaign struct {
	*Elector
	serve election.Serve

	held   map[int]*term     // by shard; until its goroutine has ended and the lock is released
	barred map[int]time.Time // shards not to compete for, until when
	ended  chan end
	silent bool // Redis did not answer last time
}

// end is how a term ended.
type end struct {
	shard int
	err   error // what serve, or taking the shard, returned
	cause error // why the mastership's context ended, if it did
}

// round shows that this replica lives, gives up shards beyond its share or takes missing ones, and says when to come again.
func (c *campaign) round(ctx context.Context) time.Duration {
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
		since := c.instant()
		free, wait, err := c.locks.acquire(ctx, shard)
		c.hear(ctx, err)
		if err != nil {
			// Perhaps it was acquired. Asking again tells.
			next = min(next, jitter(c.config.TTL/6))
			break
		}
		if !free {
			next = min(next, wait)
			continue
		}
		c.held[shard] = c.begin(ctx, shard, since)
	}
	// An expiry that is due now is over in a moment; asking again at once would only ask too early.
	return max(next, c.config.TTL/50)
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

// stop resigns everything, waits until nobody works any more, and leaves the members.
func (c *campaign) stop(ctx context.Context) {
	for _, t := range c.held {
		t.cancel(election.ErrResigned)
	}
	for len(c.held) > 0 {
		c.settle(ctx, <-c.ended)
	}
	if err := c.locks.leave(ctx); err != nil {
		c.config.Log.WarnContext(ctx, "leaving the election failed, the entry will expire", "error", err)
	}
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
