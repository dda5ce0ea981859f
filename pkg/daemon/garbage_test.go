package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"time"
)

func TestGrowthFor(t *testing.T) {
	for _, tt := range []struct {
		name        string
		live, roots uint64
		want        int
	}{
		{"little is in use", 8 << 20, 0, 700},
		{"roots are counted", 8 << 20, 6 << 20, 400},
		{"half of it", 32 << 20, 0, 100},
		{"more than half", 48 << 20, 0, 50},
		{"more than all", 1 << 30, 0, 50},
		{"many stacks", 64 << 20, 64 << 20, 25},
		{"more stacks than anything", 100 << 20, 300 << 20, 12},
		{"next to nothing", 1 << 10, 0, 1599},
	} {
		if got := growthFor(tt.live, tt.roots); got != tt.want {
			t.Errorf("%s: %d, not %d", tt.name, got, tt.want)
		}
	}
}

func TestCollectLater(t *testing.T) {
	if os.Getenv("GOGC") != "" {
		t.Fatal("GOGC is set")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(usualGrowth))
	collectLater()
	await := func(what string, is func(growth, goal uint64) bool) {
		t.Helper()
		found := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/heap/goal:bytes"}}
		for late := time.Now().Add(time.Minute); ; runtime.GC() {
			metrics.Read(found)
			growth, goal := found[0].Value.Uint64(), found[1].Value.Uint64()
			if is(growth, goal) {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("%s: garbage is collected at %d bytes, %d%%", what, goal, growth)
			}
		}
	}
	await("little is in use", func(growth, goal uint64) bool {
		return growth > usualGrowth && goal > leastHeap/2 && goal < 2*leastHeap
	})
	much := make([]byte, 2*leastHeap)
	await("much is in use", func(growth, _ uint64) bool { return growth > usualGrowth*9/10 && growth <= usualGrowth })
	leave := park(2000)
	await("many wait", func(growth, goal uint64) bool { return growth < usualGrowth*8/10 && goal < 5*leastHeap })
	leave()
	runtime.KeepAlive(much)
	await("little again", func(growth, goal uint64) bool { return growth > usualGrowth && goal < 2*leastHeap })
}

// park has so many goroutines wait, each with a stack of 32 KiB at least, until leave is called.
func park(n int) (leave func()) {
	var all sync.WaitGroup
	over := make(chan struct{})
	for range n {
		all.Go(func() { deep(over) })
	}
	return func() {
		close(over)
		all.Wait()
	}
}

//go:noinline
func deep(over <-chan struct{}) byte {
	var frame [20 << 10]byte
	frame[len(over)] = 1
	<-over
	return frame[cap(over)]
}
