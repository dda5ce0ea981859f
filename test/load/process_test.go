package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 30 * time.Second
	// clockTick is the unit of the times in /proc/PID/stat.
	clockTick = 10 * time.Millisecond
)

// binary is the path of a built command.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", ".bin", name))
	must(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run 'make build': %v", name, err)
	}
	return path
}

// process is a program that may be started more than once.
type process struct {
	name    string
	command []string
	// answers are the addresses that it listens on once it is up.
	answers []string
	output  output

	running *exec.Cmd // nil while it does not run
	input   io.WriteCloser
	ended   chan error
}

// start starts it and waits until it listens. It does not outlive the test's process.
func (p *process) start(t *testing.T) {
	t.Helper()
	p.running = exec.Command(p.command[0], p.command[1:]...)
	p.running.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.running.Stdout, p.running.Stderr = &p.output, &p.output
	var err error
	p.input, err = p.running.StdinPipe()
	must(t, err)
	must(t, p.running.Start())
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

// finish waits until it ends by itself, which must succeed.
func (p *process) finish(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.ended:
		p.running = nil
		if err != nil {
			t.Fatalf("%s: %v\n%s", p.name, err, p.output.tail())
		}
	case <-time.After(stopTimeout):
		t.Fatalf("%s does not end within %s\n%s", p.name, stopTimeout, p.output.tail())
	}
}

// kill ends it at once.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if p.running == nil {
		return
	}
	must(t, p.running.Process.Kill())
	if err := <-p.ended; err == nil || !strings.Contains(err.Error(), syscall.SIGKILL.String()) {
		t.Errorf("%s had ended before it was killed: %v\n%s", p.name, err, p.output.tail())
	}
	p.running = nil
}

// memory is what it has of the machine's.
func (p *process) memory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.running.Process.Pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			must(t, err)
			return kib << 10
		}
	}
	t.Fatalf("/proc says nothing of the memory of %s", p.name)
	return 0
}

// processorTime is what processes have had of the machine's processors, all together. One that is over counts for nothing.
func processorTime(t *testing.T, pids ...int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The second field is a name in parentheses, which may hold anything.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			must(t, err)
			sum += time.Duration(ticks) * clockTick
		}
	}
	return sum
}

// output keeps the end of what a process prints.
type output struct {
	mu   sync.Mutex
	text []byte
}

// outputKept is how much of it.
const outputKept = 4000

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if n := len(o.text); n > 16*outputKept {
		o.text = append([]byte(nil), o.text[n-outputKept:]...)
	}
	return len(p), nil
}

func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text[max(0, len(o.text)-outputKept):])
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
