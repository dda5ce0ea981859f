package grpcserver

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limit is a token bucket.
type Limit struct {
	// PerSecond is the refill; zero means the default, negative no limit.
	PerSecond float64 `yaml:"per_second"`
	// Burst is the size; zero means two seconds' worth.
	Burst int `yaml:"burst"`
}

// Limits are the rates of calls by class of method, each per identity; Anonymous instead is per source address (of IPv6:
// per /64) and of all classes together.
type Limits struct {
	// Read is for methods whose idempotency_level is NO_SIDE_EFFECTS; default 5000/s.
	Read Limit `yaml:"read"`
	// Write is for all other unary methods; default 2000/s.
	Write Limit `yaml:"write"`
	// Stream is for the opening of streams; default 2000/s.
	Stream Limit `yaml:"stream"`
	// Anonymous is for callers without a known identity; default 2000/s with a burst of 20000: many runners may
	// stand behind one address.
	Anonymous Limit `yaml:"anonymous"`
	// AnonymousCalls is how many calls of callers without a known identity may be in progress at once, per source address as
	// above: a stream may last, so a rate alone bounds nothing. Zero means 20000, negative no limit.
	AnonymousCalls int `yaml:"anonymous_calls"`
}

// Validate reports all that is wrong with the limits. A bucket that holds nothing would refuse every call.
func (l Limits) Validate() error {
	var errs []error
	check := func(name string, limit Limit) {
		if limit.Burst < 0 {
			errs = append(errs, fmt.Errorf("%s.burst: must not be negative", name))
		}
	}
	check("read", l.Read)
	check("write", l.Write)
	check("stream", l.Stream)
	check("anonymous", l.Anonymous)
	return errors.Join(errs...)
}

// defaultAnonymousCalls is as many runners as may stand behind one address.
const defaultAnonymousCalls = 20_000

// maxBuckets bounds the memory for buckets: an attacker may have many addresses.
const maxBuckets = 16 << 10

// bucketKey is whose bucket it is and for what.
type bucketKey struct {
	who   string
	class class
}

// classAnonymous is the class of all calls of callers without a known identity.
const classAnonymous class = "anonymous"

// limits are the buckets in use.
type limits struct {
	sizes map[class]Limit

	mu      sync.Mutex
	buckets map[bucketKey]*rate.Limiter
	// going are the calls in progress of callers without a known identity, by source; at most most.
	going map[string]int
	most  int
}

// newLimits fills in the defaults.
func newLimits(l Limits) *limits {
	fill := func(l Limit, perSecond float64, burst int) Limit {
		if l.PerSecond == 0 {
			l.PerSecond = perSecond
			if l.Burst == 0 {
				l.Burst = burst
			}
		}
		if l.Burst == 0 {
			l.Burst = max(1, int(math.Ceil(2*l.PerSecond)))
		}
		return l
	}
	most := l.AnonymousCalls
	if most == 0 {
		most = defaultAnonymousCalls
	}
	return &limits{
		going: map[string]int{},
		most:  most,
		sizes: map[class]Limit{
			classRead:      fill(l.Read, 5000, 10_000),
			classWrite:     fill(l.Write, 2000, 4000),
			classStream:    fill(l.Stream, 2000, 20_000),
			classAnonymous: fill(l.Anonymous, 2000, 20_000),
		},
		buckets: map[bucketKey]*rate.Limiter{},
	}
}

// take takes one token. If there is none it returns how long until there is one, and false.
func (l *limits) take(now time.Time, who string, c class) (wait time.Duration, ok bool) {
	size := l.sizes[c]
	if size.PerSecond < 0 {
		return 0, true
	}
	b := l.bucket(now, bucketKey{who, c}, size)
	if b.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - b.TokensAt(now)
	return time.Duration(missing / size.PerSecond * float64(time.Second)), false
}

// enter counts one more call of a source; false when it has as many as it may. Whoever was let in leaves.
func (l *limits) enter(source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most >= 0 && l.going[source] >= l.most {
		return false
	}
	l.going[source]++
	return true
}

// leave ends what enter began.
func (l *limits) leave(source string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.going[source]--; l.going[source] == 0 {
		delete(l.going, source)
	}
}

// bucket returns a caller's bucket. When there are too many, full ones are forgotten, for a new one is full too; if
// that does not help, newcomers share one bucket, so that an attacker's addresses limit each other.
func (l *limits) bucket(now time.Time, key bucketKey, size Limit) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[key]; b != nil {
		return b
	}
	if len(l.buckets) >= maxBuckets {
		for k, b := range l.buckets {
			if b.TokensAt(now) >= float64(b.Burst()) {
				delete(l.buckets, k)
			}
		}
		if len(l.buckets) >= maxBuckets {
			key = bucketKey{"", key.class}
			if b := l.buckets[key]; b != nil {
				return b
			}
		}
	}
	b := rate.NewLimiter(rate.Limit(size.PerSecond), size.Burst)
	l.buckets[key] = b
	return b
}

// source is what an address counts as: an IPv4 address, or the /64 of an IPv6 one, which is what one customer gets.
func source(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
