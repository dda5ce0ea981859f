package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/test/internal/rigtest"
)

const (
	// streamsPerConnection is how many streams share a connection where they do.
	streamsPerConnection = 500
	// openAtOnce is how many runners come at the same moment.
	openAtOnce  = 64
	callTimeout = 30 * time.Second
	// mostCallers is how many call at the same time where it matters: the vault's profile is taken then.
	mostCallers = 64
)

// listed resolves targets of this form: all:///address,address.
type listed struct{}

func (listed) Scheme() string { return "all" }

func (listed) Build(target resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for address := range strings.SplitSeq(target.Endpoint(), ",") {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	return listed{}, conn.UpdateState(state)
}

func (listed) ResolveNow(resolver.ResolveNowOptions) {}
func (listed) Close()                                {}

// connect makes a runner's connection, to the first of the servers that answers.
func (w *world) connect(servers ...*server) (*grpc.ClientConn, error) {
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.runners)
	}
	return grpc.NewClient("all:///"+strings.Join(addresses, ","),
		grpc.WithResolvers(listed{}), grpc.WithDisableServiceConfig(), grpc.WithTransportCredentials(credentials.NewTLS(w.runner)),
		// As pkg/grpcclient's.
		grpc.WithReadBufferSize(4<<10), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(1<<20),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second,
		}))
}

func (h holder) shown(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+h.token)
}

// fetched is what callers of FetchCredential had of it.
type fetched struct {
	calls    int
	duration time.Duration
	// server and database are what the calls cost of the processors, where it is known, and runners what they cost those who call.
	server, database, runners time.Duration
	// shares are what the server's were for, allocated how many bytes it did; nothing when it takes no profiles.
	shares    map[share]float64
	allocated int64
}

// rate is in calls a second.
func (f fetched) rate() float64 { return float64(f.calls) / f.duration.Seconds() }

// cost is the server's processor time for a call, in microseconds.
func (f fetched) cost(of time.Duration) float64 {
	return float64(of.Microseconds()) / float64(max(f.calls, 1))
}

// caller calls over a connection of its own, which leave closes.
type caller struct {
	call  func(ctx context.Context) error
	leave func()
}

// fetch has callers fetch credentials for so long.
func (w *world) fetch(t *testing.T, to *server, callers int, holders []holder, d time.Duration, database func(t *testing.T) time.Duration) fetched {
	t.Helper()
	var turn atomic.Int64
	turn.Store(rand.Int64N(int64(len(holders))))
	come := func() (caller, error) {
		conn, err := w.connect(to)
		if err != nil {
			return caller{}, err
		}
		client := vaultv1.NewCredentialServiceClient(conn)
		return caller{
			call: func(ctx context.Context) error {
				h := holders[int(turn.Add(1))%len(holders)]
				_, err := client.FetchCredential(h.shown(ctx), &vaultv1.FetchCredentialRequest{InstanceId: h.instance, Material: typev1.Material_MATERIAL_ACCESS_TOKEN})
				return err
			},
			leave: func() { _ = conn.Close() },
		}, nil
	}
	if to.profiles == "" || callers != mostCallers {
		return called(t, &to.Process, callers, come, database, pass(d))
	}
	var of map[share]float64
	var allocated int64
	out := called(t, &to.Process, callers, come, database, func(ctx context.Context) (err error) {
		of, allocated, err = profileOf(ctx, to, max(d, profileTime))
		return err
	})
	out.shares, out.allocated = of, allocated
	return out
}

// pass lets so long pass.
func pass(d time.Duration) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// called has callers come, and call while something goes on: from when each has called once, until that is over.
func called(t *testing.T, of *rigtest.Process, callers int, come func() (caller, error), database func(t *testing.T) time.Duration, during func(ctx context.Context) error) fetched {
	t.Helper()
	var (
		calls          atomic.Int64
		counting, over atomic.Bool
		all, warm      sync.WaitGroup
		failures       = make(chan error, callers)
	)
	warm.Add(callers)
	for range callers {
		all.Go(func() {
			c, err := come()
			if err != nil {
				failures <- err
				warm.Done()
				return
			}
			defer c.leave()
			for first := true; !over.Load(); first = false {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				err := c.call(ctx)
				cancel()
				if first {
					warm.Done()
				}
				if err != nil {
					failures <- err
					return
				}
				if counting.Load() {
					calls.Add(1)
				}
			}
		})
	}
	warm.Wait()
	out := fetched{server: -processorTime(t, of.PID()), database: -database(t), runners: -processorTime(t, os.Getpid())}
	began := time.Now()
	counting.Store(true)
	rigtest.Must(t, during(t.Context()))
	counting.Store(false)
	out.duration, out.calls = time.Since(began), int(calls.Load())
	out.server += processorTime(t, of.PID())
	out.runners += processorTime(t, os.Getpid())
	out.database += database(t)
	over.Store(true)
	all.Wait()
	select {
	case err := <-failures:
		t.Fatalf("%d callers of %s: %v\n%s", callers, of.Name, err, of.Output.Tail())
	default:
	}
	return out
}

func nothing(*testing.T) time.Duration { return 0 }

// first is how long a runner that comes anew waits for its credential.
func (w *world) first(ctx context.Context, to *server, h holder) (time.Duration, error) {
	began := time.Now()
	conn, err := w.connect(to)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(h.shown(ctx), callTimeout)
	defer cancel()
	stream, err := vaultv1.NewCredentialServiceClient(conn).StreamCredentials(ctx, h.request())
	if err != nil {
		return 0, err
	}
	_, err = stream.Recv()
	return time.Since(began), err
}

func (h holder) request() *vaultv1.StreamCredentialsRequest {
	return &vaultv1.StreamCredentialsRequest{InstanceId: h.instance, Material: typev1.Material_MATERIAL_ACCESS_TOKEN}
}

// crowd is many runners with a stream each.
type crowd struct {
	world   *world
	servers []*server
	conns   []*grpc.ClientConn
	runners sync.WaitGroup
	stop    context.CancelFunc
	// opened is how long it took until all had a credential, firsts how long each did.
	opened time.Duration
	firsts []time.Duration

	// elsewhere are the runners that found the first of the servers too slow, and went to another.
	elsewhere atomic.Int64

	// arrivals gets the moment of every credential that is no stream's first, returns of every one that is, but for a runner's very first.
	arrivals, returns chan time.Time
}

var errOverdue = errors.New("not in time")

// gather opens n streams to the first of the servers, so many on a connection, and returns when all have a credential.
func (w *world) gather(t *testing.T, n, perConnection int, holders []holder, limit time.Duration, servers ...*server) *crowd {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	c := &crowd{world: w, servers: servers, stop: stop, arrivals: make(chan time.Time, 2*n), returns: make(chan time.Time, 2*n)}
	t.Cleanup(c.leave)
	for range (n + perConnection - 1) / perConnection {
		conn, err := w.connect(servers...)
		rigtest.Must(t, err)
		c.conns = append(c.conns, conn)
	}
	type outcome struct {
		took time.Duration
		err  error
	}
	firsts := make(chan outcome, n)
	places := make(chan struct{}, openAtOnce)
	began := time.Now()
	c.runners.Go(func() {
		for i := range n {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			c.runners.Go(func() {
				came := time.Now()
				stream, err := c.open(ctx, i/perConnection, holders[i])
				if err == nil && !servedBy(stream, servers[0]) {
					c.elsewhere.Add(1)
				}
				firsts <- outcome{time.Since(came), err}
				<-places
				if err == nil {
					c.follow(ctx, i/perConnection, holders[i], stream)
				}
			})
		}
	})
	late := time.After(limit)
	for range n {
		select {
		case got := <-firsts:
			if got.err != nil {
				t.Fatalf("a stream of %s: %v\n%s", servers[0].Name, got.err, servers[0].Output.Tail())
			}
			c.firsts = append(c.firsts, got.took)
		case <-late:
			t.Fatalf("%d of %d streams of %s have a credential within %s", len(c.firsts), n, servers[0].Name, limit)
		}
	}
	c.opened = time.Since(began)
	slices.Sort(c.firsts)
	return c
}

// open opens a stream and waits for its first credential.
func (c *crowd) open(ctx context.Context, conn int, h holder) (grpc.ServerStreamingClient[vaultv1.StreamCredentialsResponse], error) {
	stream, err := vaultv1.NewCredentialServiceClient(c.conns[conn]).StreamCredentials(h.shown(ctx), h.request(), grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	_, err = stream.Recv()
	return stream, err
}

func servedBy(stream grpc.ClientStream, s *server) bool {
	from, ok := peer.FromContext(stream.Context())
	return ok && from.Addr.String() == s.runners
}

// follow reads a stream, and opens it anew when it breaks, until ctx ends.
func (c *crowd) follow(ctx context.Context, conn int, h holder, stream grpc.ServerStreamingClient[vaultv1.StreamCredentialsResponse]) {
	for {
		_, err := stream.Recv()
		for ctx.Err() == nil && err != nil {
			if stream, err = c.open(ctx, conn, h); err != nil {
				select {
				case <-ctx.Done():
				case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
				}
				continue
			}
			note(c.returns)
			_, err = stream.Recv()
		}
		if ctx.Err() != nil {
			return
		}
		note(c.arrivals)
	}
}

func note(to chan<- time.Time) {
	select {
	case to <- time.Now():
	default: // nobody counts so many
	}
}

// reached waits until so many have come by the channel, and returns the moment of the last.
func (c *crowd) reached(n int, by <-chan time.Time, limit time.Duration) (last time.Time, err error) {
	late := time.After(limit)
	for i := range n {
		select {
		case at := <-by:
			if at.After(last) {
				last = at
			}
		case <-late:
			return last, fmt.Errorf("%d of %d %w (%s)", i, n, errOverdue, limit)
		}
	}
	return last, nil
}

// forget forgets what has come.
func (c *crowd) forget() {
	for _, from := range []chan time.Time{c.arrivals, c.returns} {
		for len(from) > 0 {
			<-from
		}
	}
}

// leave ends all streams and connections. It may be called twice.
func (c *crowd) leave() {
	c.stop()
	for _, conn := range c.conns {
		if conn.GetState() != connectivity.Shutdown {
			_ = conn.Close()
		}
	}
	c.runners.Wait()
}

// quantile is of sorted durations, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	return milliseconds(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
