package redislock_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/redistest"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/election/electiontest"
	"phasekey.dev/services/vault/internal/election/redislock"
	"phasekey.dev/services/vault/internal/election/static"
)

// ttl is short, for over a real Redis it is real time; but a busy machine must be able to renew within it. Tests run in parallel, for they mostly wait.
const ttl = 3 * time.Second

// late is what failing over may take: the promise is a fifth more than the TTL, the rest is for a busy machine.
const late = ttl + ttl/2

// Tests mostly wait, so more of them can run at once than there are processors; but each starts servers.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "20") // the flag exists, and takes numbers
	redisconn.LogTo(electiontest.Log())
	os.Exit(m.Run())
}

// kind is a kind of Redis.
type kind struct {
	name   string
	bubble bool
	start  func(t *testing.T) *locks
	losses []electiontest.Loss
}

// kinds are all that redisconn can reach, and one that lives in a bubble.
var kinds = []kind{
	{name: "miniredis", bubble: true, start: func(t *testing.T) *locks { return &locks{Redis: redistest.Mini(t)} }},
	{name: "redis-server", start: func(t *testing.T) *locks { return &locks{Redis: redistest.Server(t)} }, losses: []electiontest.Loss{
		{Name: "redis restarts empty", Lose: restart, Within: ttl},
	}},
	{name: "sentinel", start: func(t *testing.T) *locks {
		f := redistest.Sentinel(t)
		return &locks{Redis: f.Redis, failover: f}
	}, losses: []electiontest.Loss{
		{Name: "redis restarts empty before the sentinel notices", Lose: restart, Within: ttl},
		{
			Name:    "redis fails over to a replica that has not heard of the lock",
			Prepare: func(t *testing.T, place electiontest.Locks) { place.(*locks).failover.Deafen(t) },
			Lose: func(t *testing.T, place electiontest.Locks, _ *electiontest.Replica) {
				place.(*locks).failover.FailOver(t)
			},
			// The old master may answer for a while, and renew a lock that nobody else knows: that is the fence's affair.
			Within: failover + ttl,
		},
		{
			Name:    "redis dies, and its replica has not heard of the lock",
			Prepare: func(t *testing.T, place electiontest.Locks) { place.(*locks).failover.Deafen(t) },
			Lose: func(t *testing.T, place electiontest.Locks, _ *electiontest.Replica) {
				place.(*locks).failover.KillMaster(t)
			},
			Within: ttl,
			Back:   failover + 2*ttl,
		},
	}},
	{name: "cluster", start: func(t *testing.T) *locks { return &locks{Redis: redistest.Cluster(t)} }, losses: []electiontest.Loss{
		{Name: "all nodes restart empty", Lose: restart, Within: 5 * time.Second}, // for so long restarting takes
	}},
}

// failover is what a Sentinel may take on a busy machine.
const failover = 5 * time.Second

func restart(t *testing.T, place electiontest.Locks, _ *electiontest.Replica) {
	place.(*locks).Restart(t)
}

// in runs a test over such a Redis of its own.
func (k kind) in(t *testing.T, test func(t *testing.T, place *locks)) {
	t.Parallel()
	if k.bubble {
		synctest.Test(t, func(t *testing.T) { test(t, k.start(t)) })
		return
	}
	test(t, k.start(t))
}

// each runs a test over each kind.
func each(t *testing.T, test func(t *testing.T, place *locks)) {
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { k.in(t, test) })
	}
}

// locks are a Redis where replicas contend.
type locks struct {
	*redistest.Redis
	failover *redistest.Failover // nil unless it is one
}

// replica is one with what the suite does not know of.
type replica struct {
	*electiontest.Replica
	link *redistest.Link
	wall atomic.Int64 // how far its wall clock is ahead
}

// Join starts a replica. See electiontest.Place.
func (l *locks) Join(t *testing.T, name string, shards int, fence election.Fence) *electiontest.Replica {
	t.Helper()
	return l.join(t, name, shards, fence, l.Link(t)).Replica
}

func (l *locks) join(t *testing.T, name string, shards int, fence election.Fence, link *redistest.Link) *replica {
	t.Helper()
	one := &replica{Replica: &electiontest.Replica{Service: electiontest.NewService(), Faults: link}, link: link}
	elector, err := redislock.New(redislock.Config{
		Client: link, Prefix: "test", Replica: name, Shards: shards, TTL: ttl, Fence: fence, Log: electiontest.Log(),
		Wall: func() time.Time { return time.Now().Add(time.Duration(one.wall.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	one.Stop = electiontest.Start(t, elector, one.Service)
	return one
}

// Forget deletes everything. See electiontest.Locks.
func (l *locks) Forget(t *testing.T) {
	t.Helper()
	if err := l.Link(t).Forget(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestElector(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			electiontest.Run(t, electiontest.Backend{
				TTL: ttl,
				In: func(t *testing.T, test func(*testing.T, electiontest.Place)) {
					k.in(t, func(t *testing.T, place *locks) { test(t, place) })
				},
				Contend: func(t *testing.T, test func(*testing.T, electiontest.Locks)) {
					k.in(t, func(t *testing.T, place *locks) { test(t, place) })
				},
				Losses: append([]electiontest.Loss{
					{Name: "the lock was deleted", Within: ttl / 2, Lose: func(t *testing.T, place electiontest.Locks, _ *electiontest.Replica) {
						if err := place.(*locks).Link(t).Del(t.Context(), lock).Err(); err != nil {
							t.Error(err)
						}
					}},
					{Name: "the lock is another's", Within: ttl / 2, Lose: func(t *testing.T, place electiontest.Locks, _ *electiontest.Replica) {
						if err := place.(*locks).Link(t).Set(t.Context(), lock, "somebody", ttl).Err(); err != nil {
							t.Error(err)
						}
					}},
				}, k.losses...),
			})
		})
	}
}

// lock is the first shard's.
const lock = "test:{master-0}"

// A machine is suspended, which stops one of its clocks.
func TestElector_LosesWhenTheWallClockSaysSo(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		one := place.join(t, "one", 1, electiontest.NewFence(), place.Link(t))
		first := one.Next(t, ttl)
		first.Lasts(t, ttl)
		one.wall.Add(int64(time.Hour))
		first.Ends(t, ttl/6+ttl/10, election.ErrLost)
		one.Next(t, ttl)
	})
}

// A lock that has become another's is left alone, also by the release that follows.
func TestElector_ReleasesOnlyItsOwn(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		other := place.Link(t)
		one := place.Join(t, "one", 1, electiontest.NewFence())
		first := one.Next(t, ttl)
		if err := other.Set(t.Context(), lock, "somebody", ttl).Err(); err != nil {
			t.Fatal(err)
		}
		first.Ends(t, ttl/2, election.ErrLost)
		one.Quiet(t, ttl/6)
		if got, err := other.Get(t.Context(), lock).Result(); err != nil || got != "somebody" {
			t.Errorf("the lock is %q's, error %v", got, err)
		}
	})
}

// A lock is renewed when a third of its life has passed, or soon after on a busy machine: there is time for more attempts.
func TestElector_RenewsEarly(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		other := place.Link(t)
		one := place.Join(t, "one", 1, electiontest.NewFence())
		term := one.Next(t, ttl)
		for range 40 {
			left, err := other.PTTL(t.Context(), lock).Result()
			if err != nil || left < ttl/2 {
				t.Errorf("the lock has %v left, error %v", left, err)
			}
			term.Lasts(t, ttl/20)
		}
	})
}

// A fail-over brings a lock back that had been released. Its holder is gone; it is waited for, and no longer than a TTL.
func TestElector_ALockComesBack(t *testing.T) {
	t.Parallel()
	f := redistest.Sentinel(t)
	place := &locks{Redis: f.Redis, failover: f}
	fence := electiontest.NewFence()
	one := place.Join(t, "one", 1, fence)
	first := one.Next(t, late)
	f.Deafen(t)
	one.Stop()
	f.KillMaster(t)
	two := place.Join(t, "two", 1, fence)
	if second := two.Next(t, failover+late); second.Epoch <= first.Epoch {
		t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
	}
}

// An operator names a static master while Redis is away. It works; and if it is still named when Redis is back, it and the elected one take turns, of which one is effective.
func TestElector_BesideAStaticMaster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		place := &locks{Redis: redistest.Mini(t)}
		fence := electiontest.NewFence()
		one := place.Join(t, "one", 1, fence)
		first := one.Next(t, ttl)
		one.Faults.Cut()
		first.Ends(t, ttl, election.ErrLost)

		elector, err := static.New(static.Config{Replica: "two", Master: "two", Shards: 1, Backoff: ttl, Fence: fence, Log: electiontest.Log()})
		if err != nil {
			t.Fatal(err)
		}
		two := electiontest.NewService()
		electiontest.Start(t, elector, two)
		named := two.Next(t, ttl/10)
		one.Quiet(t, 3*ttl)
		named.Lasts(t, 3*ttl)

		one.Faults.Heal()
		elected := one.Next(t, ttl)
		if err := fence.Guard(elected.Mastership); err != nil {
			t.Errorf("the elected one took the shard, and is not effective: %v", err)
		}
		named.Return <- fence.Guard(named.Mastership)
		elected.Lasts(t, ttl)
		again := two.Next(t, ttl)
		if err := fence.Guard(again.Mastership); err != nil {
			t.Errorf("the named one took the shard, and is not effective: %v", err)
		}
		if err := fence.Guard(elected.Mastership); !errors.Is(err, election.ErrFenced) {
			t.Errorf("the elected one: %v, want ErrFenced", err)
		}
	})
}

// A lock has more life than any that is written now: Redis' clock was set back after somebody had locked and died.
func TestElector_OutlivesALockOfAnotherTime(t *testing.T) {
	t.Parallel()
	for name, life := range map[string]time.Duration{"an hour": time.Hour, "for ever": 0} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, place *locks) {
				if err := place.Link(t).Set(t.Context(), lock, "somebody", life).Err(); err != nil {
					t.Fatal(err)
				}
				one := place.Join(t, "one", 1, electiontest.NewFence())
				one.Quiet(t, ttl/2)
				one.Next(t, ttl)
			})
		})
	}
}

// hook does something to answers to requests about the first shard's lock, which have been carried out.
type hook func() error

// DialHook changes nothing.
func (h hook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessPipelineHook changes nothing.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook has an answer replaced by an error, if there is one.
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil && slices.Contains(cmd.Args(), any(lock)) {
			if err = h(); err != nil {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

// An answer to the request for the lock is lost. The lock is ours, and we find out without waiting for it to expire.
func TestElector_LostReplyToAcquire(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		link := place.Link(t)
		var answers atomic.Int64
		link.AddHook(hook(func() error {
			if answers.Add(1) == 1 {
				return io.EOF
			}
			return nil
		}))
		one := place.join(t, "one", 1, electiontest.NewFence(), link)
		one.Next(t, ttl/2)
		if n := answers.Load(); n < 2 {
			t.Errorf("%d answers, so none was lost", n)
		}
	})
}

// No answer comes to the request for the lock, until the replica stops. The lock may be its own, and others need not wait for it to expire.
func TestElector_ReleasesWhatItMayHave(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		link, other := place.Link(t), place.Link(t)
		link.AddHook(hook(func() error { return io.EOF }))
		one := place.join(t, "one", 1, electiontest.NewFence(), link)
		held := func() bool {
			n, err := other.Exists(t.Context(), lock).Result()
			if err != nil {
				t.Fatal(err)
			}
			return n == 1
		}
		for deadline := time.Now().Add(ttl); !held(); <-time.After(ttl / 50) {
			if time.Now().After(deadline) {
				t.Fatal("it never locked, so this tests nothing")
			}
		}
		one.Stop()
		if held() {
			t.Error("it stopped, and its lock is still there")
		}
	})
}

// A request to release comes late: the shard is already the same replica's again.
func TestElector_LateReleaseIsOfNoConsequence(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		other := place.Link(t)
		value := func() string {
			text, err := other.Get(t.Context(), lock).Result()
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		one := place.Join(t, "one", 1, electiontest.NewFence())
		first := one.Next(t, ttl)
		former := value()
		first.Return <- errors.New("a failure")
		second := one.Next(t, ttl)
		if value() == former {
			t.Error("two masterships lock by one value, so a release of the first would free the second's lock")
		}
		second.Lasts(t, ttl)
	})
}

// Left shrinks between renewals, by whichever clock is ahead, and never says more than the lock has.
func TestLeft_CountsFromBeforeTheRequest(t *testing.T) {
	each(t, func(t *testing.T, place *locks) {
		link, other := place.Link(t), place.Link(t)
		link.AddHook(hook(func() error { // answers are under way for some time
			<-time.After(ttl / 20)
			return nil
		}))
		one := place.join(t, "one", 1, electiontest.NewFence(), link)
		term := one.Next(t, ttl)
		for range 20 {
			began := time.Now()
			said := election.Left(term.Ctx)
			has, err := other.PTTL(t.Context(), lock).Result()
			if err != nil {
				t.Fatal(err)
			}
			// What Redis has was asked later, so it may be less by the time that took, and by what is cut off from milliseconds.
			if said > has+time.Since(began)+time.Millisecond || said <= 0 {
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
