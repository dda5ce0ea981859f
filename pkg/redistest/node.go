package redistest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"phasekey.dev/pkg/loopbacktest"
)

const startTimeout = 30 * time.Second

// node is a process of redis-server and what it keeps in its folder.
type node struct {
	folder  string
	network string // of address: unix or tcp
	address string
	args    []string

	command *exec.Cmd
	alive   io.Closer
}

// keeper runs the server and waits for standard input to end, which it does when the test is over or its process dies, even by SIGKILL: nothing else holds
// the other end of that pipe.
const keeper = `
log=$1
shift
"$@" >>"$log" 2>&1 </dev/null &
read -r _
kill -KILL $!
wait
`

// newNode makes the folder of a server that listens on this TCP port of an address of its own, or for port 0 on a socket in its folder. It is started by start.
func newNode(t testing.TB, port int, args ...string) *node {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "redis") //nolint:usetesting // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	n := &node{folder: folder}
	t.Cleanup(func() {
		n.kill(t)
		_ = os.RemoveAll(folder)
	})
	if port == 0 {
		n.network, n.address = "unix", filepath.Join(folder, "socket")
		args = append(args, "--port", "0", "--unixsocket", n.address, "--unixsocketperm", "700")
	} else {
		host := loopbacktest.Host()
		n.network, n.address = "tcp", net.JoinHostPort(host, fmt.Sprint(port))
		args = append(args, "--bind", host, "--port", fmt.Sprint(port))
	}
	n.args = append(args, "--dir", folder, "--protected-mode", "no")
	return n
}

func (n *node) host() string { return strings.Split(n.address, ":")[0] }

// start starts the process and waits until it answers.
func (n *node) start(t testing.TB) {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not here: apt-get install redis-server")
	}
	log := filepath.Join(n.folder, "log")
	n.command = exec.Command("/bin/sh", append([]string{"-c", keeper, "keeper", log, program}, n.args...)...)
	if n.alive, err = n.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := n.command.Start(); err != nil {
		t.Fatal(err)
	}
	client := n.client()
	defer func() { _ = client.Close() }()
	if err := await(t, func(ctx context.Context) error { return client.Ping(ctx).Err() }); err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("start redis-server: %v\n%s", err, text)
	}
}

// kill kills the process, if it runs.
func (n *node) kill(t testing.TB) {
	t.Helper()
	if n.command == nil {
		return
	}
	_ = n.alive.Close()
	if err := n.command.Wait(); err != nil {
		t.Errorf("stop redis-server: %v", err)
	}
	n.command = nil
}

// client is for giving orders to the process.
func (n *node) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Network: n.network, Addr: n.address, MaxRetries: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// order has the process do something, once it can.
func (n *node) order(t testing.TB, args ...any) {
	t.Helper()
	client := n.client()
	defer func() { _ = client.Close() }()
	if err := await(t, func(ctx context.Context) error { return client.Do(ctx, args...).Err() }); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

// await tries until there is no error, and returns the last one when that takes too long.
func await(t testing.TB, try func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
