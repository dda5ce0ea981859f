package limit_test

import (
	"fmt"
	"testing"
	"time"

	"phasekey.dev/pkg/limit"
)

const (
	perSecond = 50
	burst     = 200
	// kept is how many buckets there are at most.
	kept = 16 << 10
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func buckets() *limit.Buckets[string] {
	return limit.NewBuckets(func(string) string { return "" })
}

func TestBuckets(t *testing.T) {
	b := buckets()
	take := func(at time.Time, key string) (time.Duration, bool) { return b.Take(at, key, perSecond, burst) }
	for i := range burst {
		if _, ok := take(now, "a"); !ok {
			t.Fatalf("token %d is refused", i)
		}
	}
	if wait, ok := take(now, "a"); ok || wait != time.Second/perSecond {
		t.Errorf("one more: %v, after %s", ok, wait)
	}
	if _, ok := take(now, "b"); !ok {
		t.Error("another key's is refused")
	}
	if _, ok := take(now.Add(time.Second/perSecond), "a"); !ok {
		t.Error("after a while, one is refused")
	}
}

func TestBuckets_NewcomersShareOneWhenThereAreTooMany(t *testing.T) {
	b := buckets()
	let := 0
	for i := range 3 * kept {
		if _, ok := b.Take(now, fmt.Sprint(i), perSecond, burst); ok {
			let++
		}
	}
	if let != kept+burst {
		t.Errorf("%d were let in, not %d", let, kept+burst)
	}
	// Those that came before are as free as ever.
	if _, ok := b.Take(now, "0", perSecond, burst); !ok {
		t.Error("an early one is refused")
	}
	// A minute later all buckets are full again, and forgotten for newcomers.
	for i := range 2 * burst {
		if _, ok := b.Take(now.Add(time.Minute), fmt.Sprint("new ", i), perSecond, burst); !ok {
			t.Fatalf("newcomer %d is refused after a minute", i)
		}
	}
}

func TestBuckets_MakingRoomCostsLittle(t *testing.T) {
	b := buckets()
	for i := range kept {
		b.Take(now, fmt.Sprint(i), perSecond, burst)
	}
	// Had each of these looked through all buckets, it would take a minute.
	for i := range 100_000 {
		b.Take(now, fmt.Sprint("new ", i), perSecond, burst)
	}
}

func TestPlaces(t *testing.T) {
	p := limit.NewPlaces(2)
	for i, want := range []bool{true, true, false} {
		if got := p.Enter("a"); got != want {
			t.Errorf("place %d: %v", i, got)
		}
	}
	if !p.Enter("b") {
		t.Error("another source has none")
	}
	p.Leave("a")
	if !p.Enter("a") || p.Enter("a") {
		t.Error("a place that was left is not there once")
	}
	unlimited := limit.NewPlaces(-1)
	for range 10_000 {
		if !unlimited.Enter("a") {
			t.Fatal("there is a limit")
		}
	}
	if limit.NewPlaces(0).Enter("a") {
		t.Error("none is one")
	}
}

func TestSource(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:1234":            "192.0.2.1",
		"[::ffff:192.0.2.1]:1234":   "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64",
		"strange":                   "strange",
	} {
		if got := limit.Source(address); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}

func TestBuckets_LeftTakesNothing(t *testing.T) {
	b := limit.NewBuckets(func(string) string { return "" })
	now := time.Unix(1, 0)
	left := func(want time.Duration) {
		t.Helper()
		if wait, ok := b.Left(now, "a", 2); wait != want || ok != (want == 0) {
			t.Errorf("left: %s, %t; want %s", wait, ok, want)
		}
	}
	left(0)
	for taken := 1; taken <= 3; taken++ {
		b.Take(now, "a", 2, 3)
		for range 2 {
			if taken < 3 {
				left(0)
			} else {
				left(500 * time.Millisecond)
			}
		}
	}
	now = now.Add(500 * time.Millisecond)
	left(0)
}
