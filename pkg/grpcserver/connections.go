package grpcserver

import (
	"log/slog"
	"math"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/obs"
)

const (
	// defaultConnections is as many runners as may stand behind one address, each with a connection or, while it moves, two.
	defaultConnections = 40_000
	// defaultHandshakes is how many of them may come at the same moment. Others come back, as clients do.
	defaultHandshakes = 1000
	// refusalInterval is how often refused connections are logged at most.
	refusalInterval = time.Minute
)

// Why a connection was refused, in metrics.
const (
	refusedConnections = "connections"
	refusedHandshakes  = "handshakes"
	refusedDescriptors = "descriptors"
)

// doorkeeper bounds what each source may have of a listener that strangers reach: connections, and among them those whose TLS handshake is not
// over. It closes what is too much as soon as it is accepted, before anything is read of it: a source that opens more than it may keeps out itself. Each
// connection takes a descriptor, so all sources together leave some to the rest of the process.
type doorkeeper struct {
	net.Listener
	all, connections, handshakes *limit.Places
	refused                      func(why string)
	log                          *slog.Logger

	mu     sync.Mutex
	logged time.Time
}

// newDoorkeeper fills in the defaults.
func newDoorkeeper(ln net.Listener, l Limits, refused func(why string), log *slog.Logger) *doorkeeper {
	room := descriptors() / 8 * 7
	return &doorkeeper{
		Listener: ln, refused: refused, log: log,
		all:         limit.NewPlaces(room),
		connections: limit.NewPlaces(orDefaultCount(l.AnonymousConnections, min(defaultConnections, room/4*3))),
		handshakes:  limit.NewPlaces(orDefaultCount(l.AnonymousHandshakes, defaultHandshakes)),
	}
}

// descriptors is how many files and connections the process may have open.
func descriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(l.Cur)
}

// orDefaultCount returns n, or def if n is zero.
func orDefaultCount(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// Accept implements net.Listener.
func (d *doorkeeper) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := limit.Source(conn.RemoteAddr().String())
		if why := d.enter(source); why != "" {
			d.turnAway(conn, source, why)
			continue
		}
		return &guest{Conn: conn, door: d, source: source}, nil
	}
}

// enter takes the places that a new connection needs, or says why there are none.
func (d *doorkeeper) enter(source string) (refused string) {
	if !d.connections.Enter(source) {
		return refusedConnections
	}
	if !d.handshakes.Enter(source) {
		d.connections.Leave(source)
		return refusedHandshakes
	}
	if !d.all.Enter(everybody) {
		d.handshakes.Leave(source)
		d.connections.Leave(source)
		return refusedDescriptors
	}
	return ""
}

// everybody is the source that all connections count as together.
const everybody = ""

func (d *doorkeeper) turnAway(conn net.Conn, source, why string) {
	_ = conn.Close() // there is nobody to tell
	d.refused(why)
	now := time.Now()
	d.mu.Lock()
	due := now.Sub(d.logged) >= refusalInterval
	if due {
		d.logged = now
	}
	d.mu.Unlock()
	if due {
		d.log.Warn("connections are too many, closing further ones",
			slog.String(obs.KeyAddress, source), slog.String(obs.KeyReason, why))
	}
}

// guest is a connection that was let in.
type guest struct {
	net.Conn
	door    *doorkeeper
	source  string
	greeted sync.Once
	left    sync.Once
}

// greet notes that the handshake is over.
func (g *guest) greet() { g.greeted.Do(func() { g.door.handshakes.Leave(g.source) }) }

// Close implements net.Conn.
func (g *guest) Close() error {
	g.greet()
	g.left.Do(func() {
		g.door.connections.Leave(g.source)
		g.door.all.Leave(everybody)
	})
	return g.Conn.Close()
}

// greeting is a transport's security that tells the door when a handshake is over.
type greeting struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c greeting) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := c.TransportCredentials.ServerHandshake(conn)
	if g, ok := conn.(*guest); ok && err == nil {
		g.greet()
	}
	return secured, info, err
}

// Clone implements credentials.TransportCredentials.
func (c greeting) Clone() credentials.TransportCredentials {
	return greeting{c.TransportCredentials.Clone()}
}
