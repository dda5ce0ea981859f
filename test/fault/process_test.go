package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"phasekey.dev/test/internal/rigtest"
)

// record is a line of a vault's log, as far as it is of interest.
type record struct {
	Message string `json:"msg"`
	Shard   int    `json:"shard"`
	Epoch   int64  `json:"epoch"`
}

// records are the whole lines of a process's log there are so far, of that message.
func records(p *rigtest.Process, message string) (out []record) {
	for line := range strings.Lines(p.Output.String()) {
		var r record
		if strings.Contains(line, message) && json.Unmarshal([]byte(line), &r) == nil && r.Message == message {
			out = append(out, r)
		}
	}
	return out
}

// proxy is the way from one program to another. It can be interrupted, as networks are: what is sent vanishes, and nothing is refused.
type proxy struct {
	address string
	dial    func() (net.Conn, error)

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	return listenProxy(t, func() (net.Conn, error) { return net.Dial("tcp", to) })
}

// listenProxy is a proxy whose way leads to what is dialled.
func listenProxy(t *testing.T, dial func() (net.Conn, error)) *proxy {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), dial: dial, conns: map[net.Conn]bool{}}
	var carriers sync.WaitGroup
	carriers.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed
			}
			carriers.Go(func() { p.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.heal()
		carriers.Wait()
	})
	return p
}

// carry carries one connection until either end closes it, or the way is healed.
func (p *proxy) carry(near net.Conn) {
	p.keep(near)
	defer p.drop(near)
	far, err := p.dial()
	if err != nil {
		return // which the client sees as a server that closes
	}
	p.keep(far)
	defer p.drop(far)
	var ways sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		ways.Go(func() {
			defer func() { _, _ = near.Close(), far.Close() }()
			buffer := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buffer)
				if err != nil {
					return
				}
				if p.interrupted() {
					continue
				}
				if _, err := way[1].Write(buffer[:n]); err != nil {
					return
				}
			}
		})
	}
	ways.Wait()
}

func (p *proxy) keep(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = true
}

func (p *proxy) drop(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

func (p *proxy) interrupted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}

// interrupt has everything vanish that is sent from now on.
func (p *proxy) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
}

// heal ends that. What had vanished stays so: connections are made anew.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	for conn := range p.conns {
		_ = conn.Close()
	}
}

var errNotYet = errors.New("not yet")

func notYet(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNotYet, fmt.Sprintf(format, args...))
}
