// Package chance is the simulator's only source of randomness: one seed, and
// for every actor a generator of its own. What one actor draws depends on the
// seed, on its name and on what it drew before, never on the others, so adding
// a client to a test does not change what the existing clients meet.
package chance

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Source hands out one generator per actor.
type Source struct {
	seed  uint64
	epoch uint64

	mu    sync.Mutex
	actor map[string]*Dice
}

// NewSource returns the generators of seed. The epoch tells one start of a
// durable simulator from the next: without it a restart would draw the same
// identifiers again.
func NewSource(seed, epoch uint64) *Source {
	return &Source{seed: seed, epoch: epoch, actor: make(map[string]*Dice)}
}

// Of returns the actor's generator, the same one each time.
func (s *Source) Of(actor string) *Dice {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.actor[actor]
	if d == nil {
		h := sha256.New()
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], s.seed)
		binary.BigEndian.PutUint64(b[8:], s.epoch)
		h.Write(b[:])
		h.Write([]byte(actor))
		d = &Dice{src: rand.NewChaCha8([32]byte(h.Sum(nil)))}
		s.actor[actor] = d
	}
	return d
}

// Dice is one actor's generator. It is safe for concurrent use.
type Dice struct {
	mu  sync.Mutex
	src *rand.ChaCha8
}

// IntN returns a number in [0,n); n below 2 gives 0.
func (d *Dice) IntN(n int) int {
	if n < 2 {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return rand.New(d.src).IntN(n) //nolint:gosec // reproducible by design
}

// Between returns a duration in [low,high]; high not above low gives low.
func (d *Dice) Between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return low + time.Duration(rand.New(d.src).Int64N(int64(high-low)+1)) //nolint:gosec // reproducible by design
}

// Chance is true with probability p.
func (d *Dice) Chance(p float64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return rand.New(d.src).Float64() < p //nolint:gosec // reproducible by design
}

// Read fills p, and never fails.
func (d *Dice) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.src.Read(p)
}

// UUID returns a random (version 4) identifier in its usual text form.
func (d *Dice) UUID() string {
	var u uuid.UUID
	_, _ = d.Read(u[:])
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u.String()
}

// Text returns n characters of the alphabet, which has at most 256.
func (d *Dice) Text(n int, alphabet string) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[d.IntN(len(alphabet))]
	}
	return string(b)
}
