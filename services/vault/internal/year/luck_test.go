package year_test

import (
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"sync"
)

// luck draws what goes wrong. A draw is decided by the seed, the step and how often the step was come to, whatever else runs in between.
type luck struct {
	seed uint64

	mu    sync.Mutex
	count map[string]uint64
}

func newLuck(seed uint64) *luck { return &luck{seed: seed, count: map[string]uint64{}} }

// draw is a number from 0 to 1 for the next occurrence of a step.
func (l *luck) draw(step string) float64 {
	l.mu.Lock()
	n := l.count[step]
	l.count[step]++
	l.mu.Unlock()
	return rand.New(rand.NewPCG(l.seed^n*0x9e3779b97f4a7c15, stream(step))).Float64()
}

// dice are an actor's own.
func (l *luck) dice(actor string) *rand.Rand {
	return rand.New(rand.NewPCG(l.seed, stream(actor)))
}

func stream(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return binary.BigEndian.Uint64(h.Sum(nil))
}
