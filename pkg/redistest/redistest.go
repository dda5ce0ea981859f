// Package redistest gives tests a Redis of their own: miniredis, which lives inside a testing/synctest bubble; a private redis-server on a Unix socket; a master and a replica under a
// Sentinel; a Cluster of three. Each client has a link of its own, which fails the ways networks do. A machine without redis-server fails the test and is told what to install.
package redistest

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"phasekey.dev/pkg/redisconn"
)

// Redis is one server, or several that work together.
type Redis struct {
	dial   func(ctx context.Context, address string) (net.Conn, error)
	config redisconn.Config
	nodes  []*node // none in a bubble
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
	return &Redis{
		dial:   func(context.Context, string) (net.Conn, error) { return mini.Dial() },
		config: redisconn.Config{Addrs: []string{"127.0.0.1:6379"}}, // a literal, for a name would be looked up
	}
}

// volatile are the arguments of a server that keeps nothing on disk.
var volatile = []string{"--save", "", "--appendonly", "no"}

// Server starts a private redis-server, stopped when the test ends.
func Server(t testing.TB) *Redis {
	t.Helper()
	n := newNode(t, 0, volatile...)
	n.start(t)
	return &Redis{
		dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, n.network, n.address)
		},
		config: redisconn.Config{Addrs: []string{n.address}},
		nodes:  []*node{n},
	}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// Restart kills the servers that hold data and starts them again: empty, for nothing is on disk. A Mini cannot.
func (r *Redis) Restart(t testing.TB) {
	t.Helper()
	for _, n := range r.nodes {
		n.kill(t)
	}
	for _, n := range r.nodes {
		n.start(t)
	}
}

// Config is how redisconn reaches a Server. A Mini has none.
func (r *Redis) Config() redisconn.Config { return r.config }

// Link makes a client with a link of its own to the server, closed when the test ends.
func (r *Redis) Link(t testing.TB) *Link {
	t.Helper()
	link := newLink()
	link.UniversalClient = link.client(r)
	t.Cleanup(func() {
		_ = link.Close()
		if r.nodes == nil && link.refused() {
			// After failures the client tries once a second in a goroutine whether it can connect. It notices the end after its nap, and a bubble waits for nobody.
			<-time.After(retryNap)
		}
	})
	return link
}

const retryNap = 1100 * time.Millisecond

// timeout is a link's patience with an answer, in redisconn's proportion to tests' short locks.
const timeout = 500 * time.Millisecond

func (l *Link) client(r *Redis) redis.UniversalClient {
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                    r.config.Addrs,
		MasterName:               r.config.MasterName,
		IsClusterMode:            r.config.Cluster,
		Dialer:                   l.dialer(r.dial),
		DialTimeout:              timeout,
		ReadTimeout:              timeout,
		WriteTimeout:             timeout,
		PoolTimeout:              timeout,
		PoolSize:                 poolSize,
		DialerRetries:            1,
		MaxRetries:               -1,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// poolSize is more than any test has use for: whoever has to wait for a connection does so by a timer of go-redis' that others had before, and ends the
// process if those were in another bubble.
const poolSize = 1000

// Forget deletes everything, on every server that has something.
func (l *Link) Forget(ctx context.Context) error {
	if cluster, ok := l.UniversalClient.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return node.FlushAll(ctx).Err() })
	}
	return l.FlushAll(ctx).Err()
}
