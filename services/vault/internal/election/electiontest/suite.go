package electiontest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// Replica is one of several electors, running, with what it is asked to serve.
type Replica struct {
	*Service

	// Faults are what can happen to its way to the locks; nil where there are none.
	Faults Faults
	// Stop stops it as SIGTERM does, and waits for it.
	Stop func()
}

// Faults concern one replica alone, and last until Heal. See redistest.Link.
type Faults interface {
	Cut()
	Stall()
	LoseReplies()
	Heal()
}

// Place is where replicas are.
type Place interface {
	// Join starts a replica, stopped when the test ends. A shard that was fenced it leaves alone for the backend's TTL.
	Join(t *testing.T, name string, shards int, fence election.Fence) *Replica
}

// Locks is a place whose replicas contend for locks.
type Locks interface {
	Place
	// Forget loses all locks, and who is a member.
	Forget(t *testing.T)
}

// Loss is a way to lose a mastership that nobody gave up.
type Loss struct {
	Name string
	// Prepare may do something before there is a master.
	Prepare func(t *testing.T, place Locks)
	// Lose makes a replica, which is alone, lose the only shard's mastership.
	Lose func(t *testing.T, place Locks, one *Replica)
	// Within is by when it must have noticed.
	Within time.Duration
	// Back is by when it must be master again after that, once its faults are healed; two TTLs when zero.
	Back time.Duration
}

// Backend is a way of electing masters.
type Backend struct {
	// TTL is for how long a shard has no master after one was lost. Cases wait for several times that, so it should be short outside of bubbles.
	TTL time.Duration
	// In runs a case in a place of its own.
	In func(t *testing.T, test func(t *testing.T, place Place))
	// Contend is In for backends whose replicas contend for locks; nil for others.
	Contend func(t *testing.T, test func(t *testing.T, place Locks))
	// Losses are ways to lose a mastership that only this backend has.
	Losses []Loss
}

// Run runs the suite. That a mastership is lost unexpectedly is the case that matters most, so it comes first.
func Run(t *testing.T, b Backend) {
	t.Helper()
	if b.Contend != nil {
		t.Run("loses its mastership unexpectedly", b.losesUnexpectedly)
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, ttl time.Duration, place Place)
	}{
		{"ends a fenced mastership and backs off", backsOffWhenFenced},
		{"comes back after a failure", comesBack},
		{"comes back when the database refused", comesBackFromRefusal},
		{"takes nothing while clocks differ, and gives up what it has", keepsAwayWhileClocksDiffer},
		{"serves each shard once", servesEachShard},
		{"waits for the work before it stops", waitsForWork},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.In(t, func(t *testing.T, place Place) { test.run(t, b.TTL, place) })
		})
	}
	if b.Contend == nil {
		return
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, ttl time.Duration, place Locks)
	}{
		{"of two that believe one is effective", twoBelieveOneIsEffective},
		{"fails over when a replica is cut off", failsOver},
		{"fails over when all were cut off", comesBackFromPartition},
		{"fails over when a replica does not reach its database", failsOverFromDatabase},
		{"hands over when it stops", handsOver},
		{"hands over each shard as its work ends", handsOverOneByOne},
		{"takes its fair share", fairShare},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.Contend(t, func(t *testing.T, place Locks) { test.run(t, b.TTL, place) })
		})
	}
}

func (b Backend) losesUnexpectedly(t *testing.T) {
	t.Parallel() // waits for its cases, which may be parallel too
	ttl := b.TTL
	losses := append([]Loss{
		{Name: "everything was forgotten", Lose: func(t *testing.T, place Locks, _ *Replica) { place.Forget(t) }, Within: ttl / 2},
		{Name: "the service is down", Lose: func(_ *testing.T, _ Locks, one *Replica) { one.Faults.Cut() }, Within: ttl},
		{Name: "the service is cut off", Lose: func(_ *testing.T, _ Locks, one *Replica) { one.Faults.Stall() }, Within: ttl},
		{Name: "answers are lost", Lose: func(_ *testing.T, _ Locks, one *Replica) { one.Faults.LoseReplies() }, Within: ttl},
	}, b.Losses...)
	for _, loss := range losses {
		t.Run(loss.Name, func(t *testing.T) {
			b.Contend(t, func(t *testing.T, place Locks) {
				if loss.Prepare != nil {
					loss.Prepare(t, place)
				}
				one := place.Join(t, "one", 1, NewFence())
				first := one.Next(t, late(ttl))
				first.Lasts(t, ttl) // renewed more than once
				loss.Lose(t, place, one)
				first.Ends(t, loss.Within+ttl/10, election.ErrLost)
				one.Faults.Heal()
				back := loss.Back
				if back == 0 {
					back = 2 * ttl
				}
				if second := one.Next(t, back); second.Epoch <= first.Epoch {
					t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
				}
			})
		})
	}
}

// late is what failing over may take: the promise is a fifth more than the TTL, the rest is for a busy machine.
func late(ttl time.Duration) time.Duration { return ttl + ttl/2 }

func backsOffWhenFenced(t *testing.T, ttl time.Duration, place Place) {
	fence := NewFence()
	one := place.Join(t, "one", 1, fence)
	first := one.Next(t, ttl)
	if _, err := fence.Take(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	first.Return <- fmt.Errorf("commit: %w", fence.Guard(first.Mastership))
	one.Quiet(t, ttl-ttl/20)
	second := one.Next(t, 2*ttl)
	if second.Epoch <= first.Epoch || second.Holder == first.Holder {
		t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
	}
	first.Ends(t, 0, election.ErrResigned)
}

func comesBack(t *testing.T, ttl time.Duration, place Place) {
	one := place.Join(t, "one", 1, NewFence())
	for _, err := range []error{errors.New("a failure"), nil} {
		one.Next(t, ttl).Return <- err
	}
	one.Next(t, ttl).Lasts(t, 2*ttl)
}

func comesBackFromRefusal(t *testing.T, ttl time.Duration, place Place) {
	fence := NewFence()
	fence.Refuse(errors.New("no database"))
	one := place.Join(t, "one", 2, fence)
	one.Quiet(t, 2*ttl)
	fence.Refuse(nil)
	one.Next(t, ttl)
	one.Next(t, ttl)
}

// The shards could be taken. Whoever works by a clock that is wrong must not all the same.
func keepsAwayWhileClocksDiffer(t *testing.T, ttl time.Duration, place Place) {
	fence := NewFence()
	fence.Unready(errors.New("clocks differ"))
	one := place.Join(t, "one", 2, fence)
	one.Quiet(t, 2*ttl)
	fence.Unready(nil)
	first, second := one.Next(t, ttl), one.Next(t, ttl)
	first.Lasts(t, 2*ttl)
	fence.Unready(errors.New("clocks differ"))
	first.Lasts(t, ttl/2) // it may pass
	first.Ends(t, 2*ttl, election.ErrResigned)
	second.Ends(t, ttl, election.ErrResigned)
	one.Quiet(t, 2*ttl)
	fence.Unready(nil)
	one.Next(t, ttl)
	one.Next(t, ttl)
}

func servesEachShard(t *testing.T, ttl time.Duration, place Place) {
	fence := NewFence()
	one := place.Join(t, "one", 3, fence)
	seen := map[int]bool{}
	for range 3 {
		term := one.Next(t, ttl)
		seen[term.Shard] = true
		if err := fence.Guard(term.Mastership); err != nil {
			t.Errorf("mastership %+v is not effective", term.Mastership)
		}
		if election.Left(term.Ctx) <= 0 {
			t.Errorf("nothing is left of a new mastership")
		}
	}
	if len(seen) != 3 {
		t.Errorf("served %v, want each of three", seen)
	}
	one.Quiet(t, 3*ttl)
	if n := one.Serving(t); n != 3 {
		t.Errorf("%d shards are served, want 3", n)
	}
}

func waitsForWork(t *testing.T, ttl time.Duration, place Place) {
	one := place.Join(t, "one", 1, NewFence())
	one.Linger(0)
	term := one.Next(t, ttl)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		one.Stop()
	}()
	term.Ends(t, ttl, election.ErrResigned)
	select {
	case <-stopped:
		t.Error("stopped before the work had")
	case <-time.After(2 * ttl):
	}
	one.Release(0)
	<-stopped
}

// The locks are lost, and one is given out that had been given out before. Both believe; one is effective.
func twoBelieveOneIsEffective(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	one := place.Join(t, "one", 1, fence)
	first := one.Next(t, ttl)
	one.Faults.Stall() // so that it cannot notice
	place.Forget(t)
	two := place.Join(t, "two", 1, fence)
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
	one.Faults.Heal()
	one.Quiet(t, ttl)
	second.Lasts(t, ttl)
}

func failsOver(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	one := place.Join(t, "one", 1, fence)
	first := one.Next(t, ttl)
	two := place.Join(t, "two", 1, fence)
	two.Quiet(t, 2*ttl)
	one.Faults.Stall()
	second := two.Next(t, late(ttl))
	select {
	case <-first.Ctx.Done():
	default:
		t.Error("the first master believes although its lock was given to another by expiry")
	}
	second.Lasts(t, ttl)
}

func comesBackFromPartition(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	one := place.Join(t, "one", 2, fence)
	two := place.Join(t, "two", 2, fence)
	settled(t, ttl, []int{1, 1}, one, two)
	one.Faults.Stall()
	two.Faults.Stall()
	settled(t, ttl, []int{0, 0}, one, two)
	one.Faults.Heal()
	two.Faults.Heal()
	settled(t, ttl, []int{1, 1}, one, two)
}

// A replica that reaches the locks and not its database is of no use, and must not stand in the way of one that is.
func failsOverFromDatabase(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	near, far := fence.Another(), fence.Another()
	one := place.Join(t, "one", 2, near)
	two := place.Join(t, "two", 2, far)
	settled(t, ttl, []int{1, 1}, one, two)
	far.Refuse(errors.New("no database"))
	settled(t, ttl, []int{2, 0}, one, two)
	far.Refuse(nil)
	settled(t, ttl, []int{1, 1}, one, two)
}

func handsOver(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	one := place.Join(t, "one", 1, fence)
	first := one.Next(t, ttl)
	two := place.Join(t, "two", 1, fence)
	two.Quiet(t, ttl)
	one.Stop()
	first.Ends(t, 0, election.ErrResigned)
	second := two.Next(t, ttl/2) // at its next round, not when the lock would have expired
	if second.Epoch <= first.Epoch {
		t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
	}
}

// One shard's work takes its time to end. The other shards do not wait for it.
func handsOverOneByOne(t *testing.T, ttl time.Duration, place Locks) {
	fence := NewFence()
	one := place.Join(t, "one", 4, fence)
	two := place.Join(t, "two", 4, fence)
	settled(t, ttl, []int{2, 2}, one, two)
	served := one.Shards(t)
	if len(served) == 0 {
		t.Fatal("one replica has lost what both had shared")
	}
	slow := served[0]
	one.Linger(slow)
	end := sync.OnceFunc(func() { one.Release(slow) })
	t.Cleanup(end)
	go one.Stop()
	for late := time.Now().Add(ttl * 3 / 4); two.Serving(t) != 3; <-time.After(ttl / 50) {
		if time.Now().After(late) {
			t.Fatalf("the other serves %d shards, want 3: all but the one that takes its time", two.Serving(t))
		}
	}
	end()
	settled(t, ttl, []int{0, 4}, one, two)
}

// settled waits until the replicas serve these numbers of shards, in any order, and do so for half a TTL: for longer than they wait between rounds.
func settled(t *testing.T, ttl time.Duration, want []int, replicas ...*Replica) {
	t.Helper()
	deadline := time.After(20 * ttl)
	since := time.Now()
	for time.Since(since) < ttl/2 {
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

func fairShare(t *testing.T, ttl time.Duration, place Locks) {
	const shards = 5
	fence := NewFence()
	one := place.Join(t, "one", shards, fence)
	settled(t, ttl, []int{5}, one)
	two := place.Join(t, "two", shards, fence)
	settled(t, ttl, []int{3, 2}, one, two)
	three := place.Join(t, "three", shards, fence)
	settled(t, ttl, []int{2, 2, 1}, one, two, three)
	two.Faults.Stall() // killed: nothing is said any more
	settled(t, ttl, []int{0, 3, 2}, two, one, three)
	one.Stop()
	settled(t, ttl, []int{5}, three)
}
