package web

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/limit"
)

const (
	// perSecond and burst are how many requests one source may make. A page that waits is loaded every five seconds, with its
	// stylesheet at first; many browsers may stand behind one address.
	perSecond = 50
	burst     = 200
	// maxPerSource is how many connections one source may have: an eighth of all, and as many as requests are served at once, for
	// a proxy in front is one source.
	maxPerSource = maxConnections / 8
)

// fairListener closes at once what a source opens beyond maxPerSource, so that no one has all connections.
type fairListener struct {
	net.Listener
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
