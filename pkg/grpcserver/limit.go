package grpcserver

import (
	"errors"
	"fmt"
	"math"
	"time"

	"phasekey.dev/pkg/limit"
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
	// AnonymousConnections is how many connections each source address, as above, may have to a listener that takes callers without
	// a known identity, whoever they are; what is more is closed at once. Zero means 40000, or three quarters of what all of them together may have if that is less:
	// seven eighths of the process's descriptors, whatever is said here. Negative is no limit of each.
	AnonymousConnections int `yaml:"anonymous_connections"`
	// AnonymousHandshakes is how many of these may not have ended their TLS handshake yet. Zero means 1000, negative no limit.
	AnonymousHandshakes int `yaml:"anonymous_handshakes"`
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

// bucketKey is whose bucket it is and for what.
type bucketKey struct {
	who   string
	class class
}

// classAnonymous is the class of all calls of callers without a known identity.
const classAnonymous class = "anonymous"

// limits are how much each caller has taken of late.
type limits struct {
	sizes   map[class]Limit
	buckets *limit.Buckets[bucketKey]
	// going are the calls in progress of callers without a known identity, by source.
	going *limit.Places
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
		going: limit.NewPlaces(most),
		sizes: map[class]Limit{
			classRead:      fill(l.Read, 5000, 10_000),
			classWrite:     fill(l.Write, 2000, 4000),
			classStream:    fill(l.Stream, 2000, 20_000),
			classAnonymous: fill(l.Anonymous, 2000, 20_000),
		},
		buckets: limit.NewBuckets(func(k bucketKey) bucketKey { return bucketKey{"", k.class} }),
	}
}

// take takes one token. If there is none it returns how long until there is one, and false.
func (l *limits) take(now time.Time, who string, c class) (wait time.Duration, ok bool) {
	size := l.sizes[c]
	if size.PerSecond < 0 {
		return 0, true
	}
	return l.buckets.Take(now, bucketKey{who, c}, size.PerSecond, size.Burst)
}
