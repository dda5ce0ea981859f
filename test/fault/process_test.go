package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the path of a built command.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", ".bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run 'make build': %v", name, err)
	}
	return path
}

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
)

// process is a program that may be started more than once.
type process struct {
	name    string
	command []string
	// answers are the addresses that it listens on once it is up.
	answers []string
	output  output

	running *exec.Cmd // nil while it does not run
	ended   chan error
}

// start starts it and waits until it listens. It does not outlive the test's process.
func (p *process) start(t *testing.T) {
	t.Helper()
	p.running = exec.Command(p.command[0], p.command[1:]...)
	p.running.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.running.Stdout, p.running.Stderr = &p.output, &p.output
	if err := p.running.Start(); err != nil {
		t.Fatal(err)
	}
	p.ended = make(chan error, 1)
	go func(command *exec.Cmd, ended chan<- error) { ended <- command.Wait() }(p.running, p.ended)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for _, address := range p.answers {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case err := <-p.ended:
				t.Fatalf("%s ended: %v\n%s", p.name, err, p.output.tail())
			case <-ctx.Done():
				t.Fatalf("%s does not listen at %s: %v\n%s", p.name, address, err, p.output.tail())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// signal sends it a signal.
func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.running.Process.Signal(s); err != nil {
		t.Fatalf("%s %s: %v", s, p.name, err)
	}
}

// kill ends it at once, whatever it does, and also when it is stopped.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if p.running == nil {
		return
	}
	p.signal(t, syscall.SIGKILL)
	if err := <-p.ended; err == nil {
		t.Errorf("%s had ended before it was killed", p.name)
	}
	p.running = nil
}

// stop ends it in order, which must succeed in time.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if p.running == nil {
		return
	}
	p.signal(t, syscall.SIGTERM)
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("%s: %v\n%s", p.name, err, p.output.tail())
		}
		p.running = nil
	case <-time.After(stopTimeout):
		t.Errorf("%s does not stop within %s\n%s", p.name, stopTimeout, p.output.tail())
		p.kill(t)
	}
}

// output keeps what a process prints, over all its lives.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// tail is the end of it.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := o.text.Bytes()
	return string(text[max(0, len(text)-4000):])
}

// record is a line of a vault's log, as far as it is of interest.
type record struct {
	Message string `json:"msg"`
	Shard   int    `json:"shard"`
	Epoch   int64  `json:"epoch"`
}

// records are the whole lines of a log there are so far, of that message.
func (o *output) records(message string) (out []record) {
	o.mu.Lock()
	text := bytes.Clone(o.text.Bytes())
	o.mu.Unlock()
	for line := range bytes.Lines(text) {
		var r record
		if bytes.Contains(line, []byte(message)) && json.Unmarshal(line, &r) == nil && r.Message == message {
			out = append(out, r)
		}
	}
	return out
}

// proxy is the way from one program to another. It can be interrupted, as networks are: what is sent vanishes, and nothing is refused.
type proxy struct {
	address string
	to      string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), to: to, conns: map[net.Conn]bool{}}
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
	far, err := net.Dial("tcp", p.to)
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

// await tries until there is no error, and fails with the last one when that takes longer than the limit.
func await(t *testing.T, limit time.Duration, try func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", limit, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var errNotYet = errors.New("not yet")

func notYet(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNotYet, fmt.Sprintf(format, args...))
}
