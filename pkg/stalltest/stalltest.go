// Package stalltest is for tests that measure real time. A machine may stand still for seconds, as virtual ones do, and then everything is late by as much, whatever is tested.
// Nobody promises anything for that time, so it is not counted, or what failed meanwhile is tried again.
package stalltest

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

const (
	// tick is how often a Clock looks, and late how much later than that it may come without anything having stood still.
	tick = 20 * time.Millisecond
	late = 150 * time.Millisecond
	// attempts is how often Try tries.
	attempts = 3
)

// Clock counts the time in which the test's process ran.
type Clock struct {
	stopped chan struct{}

	mu          sync.Mutex
	began, seen time.Time
	lost        time.Duration
	longest     time.Duration
}

// Start starts a clock, which goes until the test ends.
func Start(t testing.TB) *Clock {
	now := time.Now()
	c := &Clock{stopped: make(chan struct{}), began: now, seen: now}
	var looking sync.WaitGroup
	looking.Go(func() {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				c.look(time.Now())
			case <-c.stopped:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(c.stopped)
		looking.Wait()
	})
	return c
}

// look takes down for how long nobody has looked. Whoever asks looks too: it may run before the clock does.
func (c *Clock) look(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gap := now.Sub(c.seen); gap > tick+late {
		c.lost += gap
		c.longest = max(c.longest, gap)
	}
	// A machine that was suspended shows it by its wall clock alone.
	c.longest = max(c.longest, now.Round(0).Sub(c.seen.Round(0)))
	c.seen = now
}

// Ran is for how long the process has run since the start: the time that has passed, without that in which it stood still.
func (c *Clock) Ran() time.Duration {
	now := time.Now()
	c.look(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(c.began) - c.lost
}

// Stood is for how long the process stood still at most, at one time.
func (c *Clock) Stood() time.Duration {
	c.look(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.longest
}

// After is closed when the process has run for so long, or the test ends.
func (c *Clock) After(d time.Duration) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for left := d - c.Ran(); left > 0; left = d - c.Ran() {
			select {
			case <-time.After(left):
			case <-c.stopped:
				return
			}
		}
	}()
	return over
}

// Try runs a test as a subtest. If it fails, and the process stood still meanwhile for longer than the test bears, that says nothing, and it is tried again; it is skipped when
// nothing else happens. The test must fail through the testing.TB that it is given.
func Try(t *testing.T, bears time.Duration, test func(t testing.TB)) {
	t.Helper()
	for n := 1; ; n++ {
		var void bool
		t.Run(fmt.Sprint("attempt ", n), func(t *testing.T) {
			a := &attempt{TB: t, bears: bears}
			t.Cleanup(func() { void = a.isVoid() }) // after all other cleanups
			a.clock = Start(t)
			test(a)
		})
		if !void {
			return
		}
		if n == attempts {
			t.Skipf("the machine stood still in each of %d attempts", attempts)
		}
	}
}

// attempt is a test whose failures may be excused.
type attempt struct {
	testing.TB

	clock *Clock
	bears time.Duration
	mu    sync.Mutex
	void  bool
}

func (a *attempt) isVoid() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.void
}

// excused says whether a failure says nothing.
func (a *attempt) excused(failure string) bool {
	a.Helper()
	stood := a.clock.Stood()
	if stood <= a.bears {
		return false
	}
	a.Logf("excused, since the process stood still for %s: %s", stood, failure)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.void = true
	return true
}

// Error implements testing.TB.
func (a *attempt) Error(args ...any) {
	a.Helper()
	if !a.excused(fmt.Sprint(args...)) {
		a.TB.Error(args...)
	}
}

// Errorf implements testing.TB.
func (a *attempt) Errorf(format string, args ...any) {
	a.Helper()
	if !a.excused(fmt.Sprintf(format, args...)) {
		a.TB.Errorf(format, args...)
	}
}

// Fatal implements testing.TB.
func (a *attempt) Fatal(args ...any) {
	a.Helper()
	if a.excused(fmt.Sprint(args...)) {
		a.SkipNow()
	}
	a.TB.Fatal(args...)
}

// Fatalf implements testing.TB.
func (a *attempt) Fatalf(format string, args ...any) {
	a.Helper()
	if a.excused(fmt.Sprintf(format, args...)) {
		a.SkipNow()
	}
	a.TB.Fatalf(format, args...)
}

// Fail implements testing.TB.
func (a *attempt) Fail() {
	a.Helper()
	if !a.excused("it failed") {
		a.TB.Fail()
	}
}

// FailNow implements testing.TB.
func (a *attempt) FailNow() {
	a.Helper()
	if a.excused("it failed") {
		a.SkipNow()
	}
	a.TB.FailNow()
}

// Failed implements testing.TB.
func (a *attempt) Failed() bool { return a.isVoid() || a.TB.Failed() }
