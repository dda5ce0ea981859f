package web

import (
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/services/broker/internal/consent"
)

const (
	// perSecond and burst are how many requests one source may make. A page that waits is loaded every five seconds, with its
	// stylesheet at first; many browsers may stand behind one address.
	perSecond = 50
	burst     = 200
	// maxPerSource is how many connections one source may have: an eighth of all, and as many as requests are served at once. A trusted
	// proxy may have all, for it opens them for others.
	maxPerSource = maxConnections / 8
)

// How often the button may be pressed: by one source in one session, in one session, and in all of an account's, each refilled by so
// many a second up to a burst. Whoever has a link can press, and each press is written down.
const (
	pressesOfSource, burstOfSource   = 0.1, 20
	pressesOfSession, burstOfSession = 1, 60
	pressesOfAccount, burstOfAccount = 10, 300
)

// kept is how many presses are remembered until their time is over.
var kept = consent.Kept{PerSource: 10, PerSession: 200}

// mayPress reports whether the button may be pressed; if not, when to try again.
func (s *Site) mayPress(now time.Time, source string, session consent.Name) (wait time.Duration, ok bool) {
	for _, bound := range []struct {
		key       string
		perSecond float64
		burst     int
	}{
		{"source " + source + " " + session.String(), pressesOfSource, burstOfSource},
		{"session " + session.String(), pressesOfSession, burstOfSession},
		{"account " + session.Account, pressesOfAccount, burstOfAccount},
	} {
		if wait, ok := s.presses.Take(now, bound.key, bound.perSecond, bound.burst); !ok {
			return wait, false
		}
	}
	return 0, true
}

// fairListener closes at once what a source opens beyond maxPerSource, so that no one has all connections.
type fairListener struct {
	net.Listener
	proxies Proxies
	refused prometheus.Counter
	open    *limit.Places
}

// Accept implements net.Listener.
func (l *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.proxies.trusts(c.RemoteAddr().String()) {
			return c, nil
		}
		source := limit.Source(c.RemoteAddr().String())
		if l.open.Enter(source) {
			return &fairConn{Conn: c, give: sync.OnceFunc(func() { l.open.Leave(source) })}, nil
		}
		l.refused.Inc()
		_ = c.Close()
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
