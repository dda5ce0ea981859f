package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/redistest"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/election/electiontest"
	"phasekey.dev/services/vault/internal/election/redislock"
)

// ttl is short, for over a real Redis it is real time; but a busy machine must be able to renew within it. Tests run in parallel, for they mostly wait.
const ttl = 1500 * time.Millisecond

// late is what failing over may take: the promise is a fifth more than the TTL, the rest is for a busy machine.
const late = ttl + ttl/2

// replica is one of several electors.
type replica struct {
	*electiontest.Service

	link *redistest.Link
	wall atomic.Int64 // how far its wall clock is ahead
	stop func()
}

func join(t *testing.T, r *redistest.Redis, name string, shards int, fence election.Fence) *replica {
	t.Helper()
	one := &replica{Service: electiontest.NewService(), link: r.Link(t)}
	elector, err := redislock.New(redislock.Config{
		Client: one.link, Prefix: "test", Replica: name, Shards: shards, TTL: ttl, Fence: fence, Log: electiontest.Log(),
		Wall: func() time.Time { return time.Now().Add(time.Duration(one.wall.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	one.stop = electiontest.Start(t, elector, one.Service)
	return one
}

// settled waits until the replicas serve these numbers of shards, in any order, and do so for a TTL.
func settled(t *testing.T, want []int, replicas ...*replica) {
	t.Helper()
	deadline := time.After(20 * ttl)
	since := time.Now()
	for time.Since(since) < ttl {
		counts := map[int]int{}
		for _, n := range want {
			counts[n]++
		}
		for _, r := range replicas {
			counts[r.Serving(t)]--
		}
		for _, n := range counts {
			if n != 0 {
				since = time.Now()
			}
		}
		select {
		case <-deadline:
			for i, r := range replicas {
				t.Errorf("replica %d serves %d", i, r.Serving(t))
			}
			t.Fatalf("want %v", want)
		case <-time.After(ttl / 50):
		}
	}
}

// A mastership is lost that nobody gave up: the case that matters most, so it comes first.
func TestElector_LosesMastershipUnexpectedly(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// lose makes one replica, alone, lose the lock it holds.
		lose func(t *testing.T, r *redistest.Redis, one *replica)
		// within is by when it must have noticed: at its next renewal, or at the latest when the lock might have expired.
		within time.Duration
	}{
		{"the lock was deleted", func(t *testing.T, r *redistest.Redis, _ *replica) {
			if err := r.Link(t).Del(t.Context(), "test:{master-0}").Err(); err != nil {
				t.Error(err)
			}
		}, ttl / 2},
		{"everything was deleted", func(t *testing.T, r *redistest.Redis, _ *replica) {
			if err := r.Link(t).FlushAll(t.Context()).Err(); err != nil {
				t.Error(err)
			}
		}, ttl / 2},
		{"the lock is another's", func(t *testing.T, r *redistest.Redis, _ *replica) {
			if err := r.Link(t).Set(t.Context(), "test:{master-0}", "somebody", ttl).Err(); err != nil {
				t.Error(err)
			}
		}, ttl / 2},
		{"redis is down", func(_ *testing.T, _ *redistest.Redis, one *replica) { one.link.Cut() }, ttl},
		{"redis is cut off", func(_ *testing.T, _ *redistest.Redis, one *replica) { one.link.Stall() }, ttl},
		{"answers are lost", func(_ *testing.T, _ *redistest.Redis, one *replica) { one.link.LoseReplies() }, ttl},
		{"the machine was suspended", func(_ *testing.T, _ *redistest.Redis, one *replica) { one.wall.Add(int64(time.Hour)) }, ttl / 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
				one := join(t, r, "one", 1, electiontest.NewFence())
				first := one.Next(t, ttl)
				first.Lasts(t, 2*ttl) // renewed more than once
				test.lose(t, r, one)
				first.Ends(t, test.within+ttl/10, election.ErrLost)
				one.link.Heal()
				if second := one.Next(t, 2*ttl); second.Epoch <= first.Epoch {
					t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
				}
			})
		})
	}
}

func TestElector(t *testing.T) {
	t.Parallel()
	electiontest.Run(t, ttl, func(t *testing.T, test func(*testing.T, electiontest.Factory)) {
		t.Parallel()
		redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
			test(t, func(t *testing.T, shards int, ttl time.Duration, fence election.Fence) election.Elector {
				elector, err := redislock.New(redislock.Config{Client: r.Link(t), Prefix: "test", Replica: "one", Shards: shards, TTL: ttl,
					Fence: fence, Log: electiontest.Log()})
				if err != nil {
					t.Fatal(err)
				}
				return elector
			})
		})
	})
}

func TestElector_HandsOverWhenItStops(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		fence := electiontest.NewFence()
		one := join(t, r, "one", 1, fence)
		first := one.Next(t, ttl)
		two := join(t, r, "two", 1, fence)
		two.Quiet(t, ttl)
		one.stop()
		first.Ends(t, 0, election.ErrResigned)
		second := two.Next(t, ttl/2) // at its next round, not when the lock would have expired
		if second.Epoch <= first.Epoch {
			t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
		}
	})
}

func TestElector_FailsOver(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		fence := electiontest.NewFence()
		one := join(t, r, "one", 1, fence)
		first := one.Next(t, ttl)
		two := join(t, r, "two", 1, fence)
		two.Quiet(t, 2*ttl)
		one.link.Stall()
		second := two.Next(t, late)
		select {
		case <-first.Ctx.Done():
		default:
			t.Error("the first master believes although its lock was given to another by expiry")
		}
		second.Lasts(t, ttl)
	})
}

func TestElector_FairShare(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		const shards = 5
		fence := electiontest.NewFence()
		one := join(t, r, "one", shards, fence)
		settled(t, []int{5}, one)
		two := join(t, r, "two", shards, fence)
		settled(t, []int{3, 2}, one, two)
		three := join(t, r, "three", shards, fence)
		settled(t, []int{2, 2, 1}, one, two, three)
		two.link.Stall() // killed: nothing is said any more
		settled(t, []int{0, 3, 2}, two, one, three)
		one.stop()
		settled(t, []int{5}, three)
	})
}

// Redis loses its memory, and gives a lock out that it had given out before. Both believe; one is effective.
func TestElector_TwoBelieveOneIsEffective(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		fence := electiontest.NewFence()
		one := join(t, r, "one", 1, fence)
		first := one.Next(t, ttl)
		one.link.Stall() // so that it cannot notice
		if err := r.Link(t).FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		two := join(t, r, "two", 1, fence)
		second := two.Next(t, ttl/2)
		if first.Ctx.Err() != nil {
			t.Fatal("the first does not believe any more, so this tests nothing")
		}
		if err := fence.Guard(first.Mastership); !errors.Is(err, election.ErrFenced) {
			t.Errorf("the first may write: %v", err)
		}
		if err := fence.Guard(second.Mastership); err != nil {
			t.Errorf("the second may not write: %v", err)
		}
		// The first finds out by a write, does not come back at once, and leaves the lock alone, which is the second's.
		first.Return <- fence.Guard(first.Mastership)
		one.link.Heal()
		one.Quiet(t, ttl)
		second.Lasts(t, ttl)
	})
}

// An answer to the request for the lock is lost. The lock is ours, and we find out without waiting for it to expire.
func TestElector_LostReplyToAcquire(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		other := r.Link(t)
		if err := other.Set(t.Context(), "test:{master-0}", "somebody", 0).Err(); err != nil {
			t.Fatal(err)
		}
		one := join(t, r, "one", 1, electiontest.NewFence())
		one.Quiet(t, ttl/2)
		one.link.LoseReplies()
		if err := other.Del(t.Context(), "test:{master-0}").Err(); err != nil {
			t.Fatal(err)
		}
		one.Quiet(t, ttl)
		one.link.Heal()
		one.Next(t, ttl/2)
	})
}

// Left shrinks between renewals, by whichever clock is ahead, and never says more than the lock has.
func TestLeft_CountsFromBeforeTheRequest(t *testing.T) {
	t.Parallel()
	redistest.Each(t, func(t *testing.T, r *redistest.Redis) {
		one := join(t, r, "one", 1, electiontest.NewFence())
		term := one.Next(t, ttl)
		for range 20 {
			said := election.Left(term.Ctx)
			has, err := r.Link(t).PTTL(context.WithoutCancel(t.Context()), "test:{master-0}").Result()
			if err != nil {
				t.Fatal(err)
			}
			// What Redis has was asked later, so it may be less by the time that took; over a busy machine that is little against the TTL.
			if said > has+ttl/10 || said <= 0 {
				t.Errorf("%v left is said, the lock has %v", said, has)
			}
			term.Lasts(t, ttl/15)
		}
		before := election.Left(term.Ctx)
		one.wall.Add(int64(ttl / 3))
		if after := election.Left(term.Ctx); after > before-ttl/3+ttl/20 {
			t.Errorf("%v left, %v after the wall clock went ahead by %v", before, after, ttl/3)
		}
	})
}

func TestNew_RefusesHalfAConfiguration(t *testing.T) {
	t.Parallel()
	whole := redislock.Config{Client: redistest.Mini(t).Link(t), Prefix: "test", Replica: "one", Shards: 1, TTL: ttl, Fence: electiontest.NewFence(), Log: electiontest.Log()}
	if _, err := redislock.New(whole); err != nil {
		t.Fatal(err)
	}
	for i, spoil := range []func(*redislock.Config){
		func(c *redislock.Config) { c.Client = nil },
		func(c *redislock.Config) { c.Fence = nil },
		func(c *redislock.Config) { c.Log = nil },
		func(c *redislock.Config) { c.Prefix = "" },
		func(c *redislock.Config) { c.Replica = "" },
		func(c *redislock.Config) { c.Shards = 0 },
		func(c *redislock.Config) { c.TTL = time.Millisecond },
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			config := whole
			spoil(&config)
			if _, err := redislock.New(config); err == nil {
				t.Error("no error")
			}
		})
	}
}
