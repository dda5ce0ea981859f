package web

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	// maxPerSource is how many connections one source may have: an eighth of all, and as many as requests are served at once, for
	// a proxy in front is one source.
	maxPerSource = maxConnections / 8
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

// fairListener closes at once what a source opens beyond maxPerSource, so that no one has all connections.
type fairListener struct {
	net.Listener
	refused prometheus.Counter

	mu   sync.Mutex
	open map[string]int // by source; none that has no connection
}

// Accept implements net.Listener.
func (l *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sourceOf(c.RemoteAddr().String())
		if l.take(source) {
			return &fairConn{Conn: c, give: sync.OnceFunc(func() { l.give(source) })}, nil
		}
		l.refused.Inc()
		_ = c.Close()
	}
}

func (l *fairListener) take(source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source] >= maxPerSource {
		return false
	}
	l.open[source]++
	return true
}

func (l *fairListener) give(source string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source]--; l.open[source] == 0 {
		delete(l.open, source)
	}
}

// fairConn gives its place back when it is closed.
type fairConn struct {
	net.Conn
	give func()
}

// Close implements net.Conn.
func (c *fairConn) Close() error {
	c.give()
	return c.Conn.Close()
}
