// Package redistest gives tests a Redis of their own: miniredis, which lives inside a testing/synctest bubble, or a private redis-server on a Unix socket. Each client has a link of its
// own, which fails the ways networks do. A machine without redis-server fails the test and is told what to install.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"phasekey.dev/pkg/redisconn"
)

const startTimeout = 30 * time.Second

// Redis is one server.
type Redis struct {
	dial   func(ctx context.Context) (net.Conn, error)
	config redisconn.Config
	bubble bool // may be used in one
}

// Each runs the test over miniredis inside a bubble (subtest "miniredis"), and over a real server outside (subtest "redis-server").
func Each(t *testing.T, test func(t *testing.T, r *Redis)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, Mini(t)) })
	})
	t.Run("redis-server", func(t *testing.T) { test(t, Server(t)) })
}

// Mini starts a miniredis without a socket, whose keys expire by the clock, which may be a bubble's.
func Mini(t testing.TB) *Redis {
	t.Helper()
	mini := miniredis.NewMiniRedis()
	mini.ClockTTL(true)
	t.Cleanup(mini.Close)
	return &Redis{dial: func(context.Context) (net.Conn, error) { return mini.Dial() }, bubble: true}
}

// keeper runs the server and waits for standard input to end, which it does when the test is over or its process dies, even by SIGKILL: nothing else holds
// the other end of that pipe.
const keeper = `
"$1" --port 0 --unixsocket "$2/socket" --unixsocketperm 700 --dir "$2" --save "" --appendonly no >"$2/log" 2>&1 </dev/null &
read -r _
kill -KILL $!
wait
rm -rf "$2"
`

// Server starts a private redis-server that keeps nothing on disk, stopped when the test ends.
func Server(t testing.TB) *Redis {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not here: apt-get install redis-server")
	}
	folder, err := os.MkdirTemp("/tmp", "redis") //nolint:usetesting // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/bin/sh", "-c", keeper, "keeper", program, folder)
	alive, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = alive.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("stop redis-server: %v", err)
		}
	})
	socket := filepath.Join(folder, "socket")
	r := &Redis{
		dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		config: redisconn.Config{Addrs: []string{socket}},
	}
	if err := r.answers(t.Context()); err != nil {
		log, _ := os.ReadFile(filepath.Join(folder, "log"))
		t.Fatalf("start redis-server: %v\n%s", err, log)
	}
	return r
}

func (r *Redis) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := r.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Config is how redisconn reaches a Server. A Mini has none.
func (r *Redis) Config() redisconn.Config { return r.config }

// Link makes a client with a link of its own to the server, closed when the test ends.
func (r *Redis) Link(t testing.TB) *Link {
	t.Helper()
	link := newLink()
	link.UniversalClient = link.client(r.dial)
	t.Cleanup(func() {
		_ = link.Close()
		if r.bubble && link.refused() {
			// After failures the client tries once a second in a goroutine whether it can connect. It notices the end after its nap, and a bubble waits for nobody.
			<-time.After(retryNap)
		}
	})
	return link
}

const retryNap = 1100 * time.Millisecond

// timeout is a link's patience with an answer, in redisconn's proportion to tests' short locks.
const timeout = 250 * time.Millisecond

func (l *Link) client(dial func(context.Context) (net.Conn, error)) redis.UniversalClient {
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                    []string{"127.0.0.1:6379"}, // a literal, for a name would be looked up
		Dialer:                   l.dialer(dial),
		DialTimeout:              timeout,
		ReadTimeout:              timeout,
		WriteTimeout:             timeout,
		PoolTimeout:              timeout,
		DialerRetries:            1,
		MaxRetries:               -1,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}
