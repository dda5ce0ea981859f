package redistest

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Link is a client and its way to the server. The faults concern this client alone, and last until Heal.
type Link struct {
	redis.UniversalClient

	mu    sync.Mutex
	fault fault
	lost  bool // a connection could not be made
	conns map[net.Conn]bool
}

type fault int

const (
	none fault = iota
	cut
	stalled
	deaf
)

func newLink() *Link { return &Link{conns: map[net.Conn]bool{}} }

// Cut breaks every connection and refuses new ones, as a server that is down does.
func (l *Link) Cut() { l.set(cut) }

// Stall has everything vanish that is sent from now on, as a partition does: nothing is refused, and nothing answered.
func (l *Link) Stall() { l.set(stalled) }

// LoseReplies has the server do what it is told, and its answers vanish.
func (l *Link) LoseReplies() { l.set(deaf) }

// Heal ends the fault. What had vanished stays so: connections are made anew.
func (l *Link) Heal() { l.set(none) }

func (l *Link) set(f fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
	if f == cut || f == none {
		for conn := range l.conns {
			_ = conn.Close()
		}
		clear(l.conns)
	}
}

func (l *Link) current() fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

var errCut = errors.New("connection refused")

func (l *Link) refused() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *Link) refuse(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	return err
}

func (l *Link) dialer(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		switch l.current() {
		case cut:
			return nil, l.refuse(errCut)
		case stalled:
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			<-ctx.Done()
			return nil, l.refuse(ctx.Err())
		case none, deaf:
		}
		conn, err := dial(ctx, address)
		if err != nil {
			return nil, l.refuse(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns[conn] = true
		return &linkConn{Conn: conn, link: l}, nil
	}
}

// linkConn is a connection over a link.
type linkConn struct {
	net.Conn
	link *Link
}

// Write sends, unless everything vanishes.
func (c *linkConn) Write(p []byte) (int, error) {
	if c.link.current() == stalled {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// Read receives, unless answers vanish.
func (c *linkConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if f := c.link.current(); err != nil || f != stalled && f != deaf {
			return n, err
		}
	}
}

// Close has the link forget the connection.
func (c *linkConn) Close() error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	delete(c.link.conns, c.Conn)
	return c.Conn.Close()
}
