// Package limit bounds what callers may take of a server: how often (Buckets) and how much at once (Places).
//
// It guarantees that its memory is bounded however many addresses an attacker has, and that making room costs little: what
// cannot be kept apart any more is counted together, so that an attacker's addresses limit each other, and not those who came
// before.
package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxBuckets is how many buckets are kept.
	maxBuckets = 16 << 10
	// sweepInterval is how often full buckets are looked for at most, for that looks at all of them.
	sweepInterval = time.Second
)

// Buckets are token buckets by key. Make them with NewBuckets. They are safe for concurrent use.
type Buckets[K comparable] struct {
	// shared is the key that newcomers share when there are too many.
	shared func(K) K

	mu    sync.Mutex
	kept  map[K]*rate.Limiter
	swept time.Time
}

// NewBuckets makes an empty set. Shared says under which key a newcomer is counted when there are too many buckets: it must have few
// values.
func NewBuckets[K comparable](shared func(K) K) *Buckets[K] {
	return &Buckets[K]{shared: shared, kept: map[K]*rate.Limiter{}}
}

// Take takes one token of the key's bucket, which is refilled by so many a second up to burst. If there is none it returns how long
// until there is one, and false.
func (b *Buckets[K]) Take(now time.Time, key K, perSecond float64, burst int) (wait time.Duration, ok bool) {
	bucket := b.bucket(now, key, perSecond, burst)
	if bucket.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - bucket.TokensAt(now)
	return time.Duration(missing / perSecond * float64(time.Second)), false
}

// Left reports whether the key's bucket has a token, and takes none: if there is none it returns how long until there is one, and false. A
// key that nothing was taken of has its tokens.
func (b *Buckets[K]) Left(now time.Time, key K, perSecond float64) (wait time.Duration, ok bool) {
	b.mu.Lock()
	found := b.kept[key]
	if found == nil && len(b.kept) >= maxBuckets {
		found = b.kept[b.shared(key)]
	}
	b.mu.Unlock()
	if found == nil {
		return 0, true
	}
	missing := 1 - found.TokensAt(now)
	if missing <= 0 {
		return 0, true
	}
	return time.Duration(missing / perSecond * float64(time.Second)), false
}

// bucket returns a key's bucket. When there are too many, full ones are forgotten, for a new one is full too.
func (b *Buckets[K]) bucket(now time.Time, key K, perSecond float64, burst int) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if found := b.kept[key]; found != nil {
		return found
	}
	if len(b.kept) >= maxBuckets && now.Sub(b.swept) >= sweepInterval {
		b.swept = now
		for k, one := range b.kept {
			if one.TokensAt(now) >= float64(one.Burst()) {
				delete(b.kept, k)
			}
		}
	}
	if len(b.kept) >= maxBuckets {
		key = b.shared(key)
		if found := b.kept[key]; found != nil {
			return found
		}
	}
	made := rate.NewLimiter(rate.Limit(perSecond), burst)
	b.kept[key] = made
	return made
}

// Places are how many things each source has at once. Make them with NewPlaces. They are safe for concurrent use.
type Places struct {
	most int

	mu    sync.Mutex
	taken map[string]int // none that has none
}

// NewPlaces gives each source so many places; with a negative number, as many as it likes.
func NewPlaces(most int) *Places { return &Places{most: most, taken: map[string]int{}} }

// Enter takes one of a source's places; false when it has all. Whoever was let in leaves.
func (p *Places) Enter(source string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.most >= 0 && p.taken[source] >= p.most {
		return false
	}
	p.taken[source]++
	return true
}

// Leave gives back what Enter took.
func (p *Places) Leave(source string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[source]--; p.taken[source] == 0 {
		delete(p.taken, source)
	}
}

// Source is what an address (host and port) counts as: an IPv4 address, or the /64 of an IPv6 one, which is what one customer of a
// provider gets.
func Source(address string) string {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
