package web

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// perSecond and burst are how many requests one source may make. A page that waits is loaded every five seconds, with its
	// stylesheet at first; many browsers may stand behind one address.
	perSecond = 50
	burst     = 200
	// maxSources bounds the memory for buckets: an attacker may have many addresses.
	maxSources = 16 << 10
	// sweepInterval is how often full buckets are looked for at most, for that looks at all of them.
	sweepInterval = time.Second
)

// sources are how much each source has asked of late.
type sources struct {
	mu      sync.Mutex
	buckets map[string]*rate.Limiter
	swept   time.Time
}

func newSources() *sources { return &sources{buckets: map[string]*rate.Limiter{}} }

// allow takes one request of a source, if it may make one now.
func (s *sources) allow(now time.Time, source string) bool {
	return s.bucket(now, source).AllowN(now, 1)
}

// bucket returns a source's bucket. When there are too many, full ones are forgotten, for a new one is full too; if that does
// not help, newcomers share one, so that an attacker's addresses limit each other.
func (s *sources) bucket(now time.Time, source string) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[source]; b != nil {
		return b
	}
	if len(s.buckets) >= maxSources {
		if now.Sub(s.swept) >= sweepInterval {
			s.swept = now
			for k, b := range s.buckets {
				if b.TokensAt(now) >= burst {
					delete(s.buckets, k)
				}
			}
		}
		if len(s.buckets) >= maxSources {
			source = ""
			if b := s.buckets[source]; b != nil {
				return b
			}
		}
	}
	b := rate.NewLimiter(perSecond, burst)
	s.buckets[source] = b
	return b
}

// sourceOf is what an address counts as: an IPv4 address, or the /64 of an IPv6 one, which is what one customer gets.
func sourceOf(address string) string {
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
