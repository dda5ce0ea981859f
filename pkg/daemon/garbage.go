package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// leastHeap is how large the heap may get before garbage is collected, however little of it is in use. By itself Go collects whenever there is as much garbage as there is in use, which in a
	// server that holds a few megabytes is every few hundred calls: a quarter of what its calls cost.
	leastHeap = 64 << 20
	// usualGrowth is by how many percent it may grow beyond that. By itself Go lets it double. Twenty thousand streams that wait on shared connections took 19.0 KiB each by that, 17.6 to 19.1 by three quarters and 17.0 to
	// 18.0 by half, and a rotation that reached all of them 38, 45 and 51 to 61 µs of processor time each.
	usualGrowth = 50
)

// collectLater has garbage collected no sooner than the heap is as large as leastHeap, unless the environment says when (GOGC).
func collectLater() {
	if os.Getenv("GOGC") != "" {
		return
	}
	c := &collection{found: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
	}}
	c.over()
}

// collection is what nobody refers to, so that each collection of garbage finds it, and has it say when the next one is to be.
type collection struct {
	growth int
	found  []metrics.Sample
}

func (c *collection) over() {
	metrics.Read(c.found)
	if g := growthFor(c.found[0].Value.Uint64(), c.found[1].Value.Uint64()+c.found[2].Value.Uint64()); g != c.growth {
		c.growth = g
		debug.SetGCPercent(g)
	}
	runtime.SetFinalizer(c, (*collection).over)
}

// growthFor is by how many percent the heap may grow that has so many bytes in use: by usualGrowth of that, or until it is as large as leastHeap. Go counts the growth in percent of what it has to look
// through, which is roots besides, and of leastInUse where that is less. The roots are goroutines' stacks, above all: where ten thousand streams wait they are more than the heap, and garbage would have
// the room of the stacks once more.
func growthFor(live, roots uint64) int {
	const leastInUse = 4 << 20
	return int((max(leastHeap, live+live*usualGrowth/100) - live) * 100 / max(live+roots, leastInUse)) //nolint:gosec // at most 1600
}
