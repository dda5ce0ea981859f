// Package rigtest is what tests of the built commands stand on: processes, certificates, a simulated Entra.
package rigtest

import (
	"context"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"phasekey.dev/pkg/logtest"
)

const (
	// StartTimeout is how long a process may take until it listens.
	StartTimeout = time.Minute
	stopTimeout  = 30 * time.Second
)

// Binary is the path of a built command.
func Binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", ".bin", name))
	Must(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run 'make build': %v", name, err)
	}
	return path
}

// RunAbreast runs a package's tests, as many at once as it says unless -parallel says otherwise: they wait more than they work, whatever the number of cores.
func RunAbreast(m *testing.M, tests int) {
	_ = flag.Set("test.parallel", strconv.Itoa(tests)) // which there is in every test
	m.Run()
}

// Process is a program that may be started more than once.
type Process struct {
	Name    string
	Command []string
	// Answers are the addresses that it listens on once it is up.
	Answers []string
	Output  Output
	// Input is what it reads, of its newest life.
	Input io.WriteCloser

	running *exec.Cmd // nil while it does not run
	ended   chan error
}

// Start starts it and waits until it listens. It does not outlive the test's process.
func (p *Process) Start(t *testing.T) {
	t.Helper()
	p.running = exec.Command(p.Command[0], p.Command[1:]...)
	p.running.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.running.Stdout, p.running.Stderr = &p.Output, &p.Output
	var err error
	p.Input, err = p.running.StdinPipe()
	Must(t, err)
	Must(t, p.running.Start())
	p.ended = make(chan error, 1)
	go func(command *exec.Cmd, ended chan<- error) { ended <- command.Wait() }(p.running, p.ended)
	ctx, cancel := context.WithTimeout(t.Context(), StartTimeout)
	defer cancel()
	for _, address := range p.Answers {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case err := <-p.ended:
				p.running = nil
				t.Fatalf("%s ended: %v\n%s", p.Name, err, p.Output.Tail())
			case <-ctx.Done():
				t.Fatalf("%s does not listen at %s: %v\n%s", p.Name, address, err, p.Output.Tail())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// Running says whether it was started, and has not been seen to end.
func (p *Process) Running() bool { return p.running != nil }

// PID is the number of the running process.
func (p *Process) PID() int { return p.running.Process.Pid }

// Signal sends it a signal.
func (p *Process) Signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.running.Process.Signal(s); err != nil {
		t.Fatalf("%s %s: %v", s, p.Name, err)
	}
}

// Ended waits until it ends by itself, and returns how it did; ctx's error when that ends first.
func (p *Process) Ended(ctx context.Context) error {
	select {
	case err := <-p.ended:
		p.running = nil
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Finish waits until it ends by itself, which must succeed in time.
func (p *Process) Finish(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stopTimeout)
	defer cancel()
	if err := p.Ended(ctx); err != nil {
		t.Fatalf("%s: %v\n%s", p.Name, err, p.Output.Tail())
	}
}

// Kill ends it at once, whatever it does, and also when it is stopped.
func (p *Process) Kill(t *testing.T) {
	t.Helper()
	if p.running == nil {
		return
	}
	p.Signal(t, syscall.SIGKILL)
	if err := <-p.ended; err == nil || !strings.Contains(err.Error(), syscall.SIGKILL.String()) {
		t.Errorf("%s had ended before it was killed: %v\n%s", p.Name, err, p.Output.Tail())
	}
	p.running = nil
}

// Stop ends it in order, which must succeed in time.
func (p *Process) Stop(t *testing.T) {
	t.Helper()
	if p.running == nil {
		return
	}
	p.Signal(t, syscall.SIGTERM)
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("%s: %v\n%s", p.Name, err, p.Output.Tail())
		}
		p.running = nil
	case <-time.After(stopTimeout):
		t.Errorf("%s does not stop within %s\n%s", p.Name, stopTimeout, p.Output.Tail())
		p.Kill(t)
	}
}

// Output keeps what a process prints, over all its lives.
type Output struct{ logtest.Transcript }

// Tail is the end of it.
func (o *Output) Tail() string {
	text := o.String()
	return text[max(0, len(text)-4000):]
}

// Await tries until there is no error, and fails with the last one when that takes longer than the limit.
func Await(t *testing.T, limit time.Duration, try func(ctx context.Context) error) {
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

// Must fails the test with an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
