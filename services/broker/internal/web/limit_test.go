package web

import (
	"fmt"
	"testing"
	"time"
)

func TestSources(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := newSources()
	for i := range burst {
		if !s.allow(now, "a") {
			t.Fatalf("request %d is refused", i)
		}
	}
	if s.allow(now, "a") {
		t.Error("one more is let in")
	}
	if !s.allow(now, "b") {
		t.Error("another source is refused")
	}
	if !s.allow(now.Add(time.Second/perSecond), "a") {
		t.Error("after a while, one is refused")
	}
}

func TestSources_HaveBoundedMemory(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := newSources()
	let := 0
	for i := range 3 * maxSources {
		if s.allow(now, fmt.Sprint(i)) {
			let++
		}
	}
	if n := len(s.buckets); n > maxSources+1 {
		t.Errorf("%d buckets", n)
	}
	// Those that came too late share one.
	if let != maxSources+burst {
		t.Errorf("%d were let in", let)
	}
	// A minute later all buckets are full again, and forgotten for a newcomer.
	if !s.allow(now.Add(time.Minute), "new") || len(s.buckets) != 1 {
		t.Errorf("%d buckets after a minute", len(s.buckets))
	}
}

func TestSourceOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:1234":            "192.0.2.1",
		"[::ffff:192.0.2.1]:1234":   "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64",
		"strange":                   "strange",
	} {
		if got := sourceOf(address); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}
