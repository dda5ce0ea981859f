// Package electiontest is the suite every elector passes, and the parts for testing one: a fence in memory, and a service that tells what is asked of it.
package electiontest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// Fence is a fence in memory. It is as safe as a database's, and can refuse to work.
type Fence struct {
	mu      sync.Mutex
	masters map[int]election.Mastership
	taken   int
	refuse  error
}

// NewFence makes a fence whose shards nobody has taken.
func NewFence() *Fence { return &Fence{masters: map[int]election.Mastership{}} }

// Take makes the caller master. See election.Fence.
func (f *Fence) Take(_ context.Context, shard int, _ time.Time) (election.Mastership, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return election.Mastership{}, f.refuse
	}
	f.taken++
	m := election.Mastership{Shard: shard, Epoch: f.masters[shard].Epoch + 1, Holder: fmt.Sprintf("holder-%d", f.taken)}
	f.masters[shard] = m
	return m, nil
}

// Refuse has Take fail with err from now on, or work again if err is nil.
func (f *Fence) Refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

// Guard returns election.ErrFenced unless m is its shard's effective mastership.
func (f *Fence) Guard(m election.Mastership) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.masters[m.Shard] != m {
		return election.ErrFenced
	}
	return nil
}

// Term is one call of a Service's Serve.
type Term struct {
	election.Mastership
	// Ctx is the context of the mastership.
	Ctx context.Context //nolint:containedctx // what is tested
	// Return has Serve return, with this error.
	Return chan<- error
	// Began is when Serve was called.
	Began time.Time
}

// Service counts and announces the calls of Serve at one replica, and has them last until the test, or their mastership, ends them.
type Service struct {
	// Terms announces each call.
	Terms chan Term

	// Linger delays the return after the mastership has ended, until this is closed.
	Linger chan struct{}

	mu      sync.Mutex
	serving map[int]bool
	overlap bool
}

// NewService makes a service whose calls return as soon as their masterships end.
func NewService() *Service {
	s := &Service{Terms: make(chan Term, 1000), Linger: make(chan struct{}), serving: map[int]bool{}}
	close(s.Linger)
	return s
}

// Serve works on a shard. See election.Serve.
func (s *Service) Serve(ctx context.Context, m election.Mastership) error {
	s.enter(m.Shard)
	defer s.leave(m.Shard)
	end := make(chan error, 1)
	s.Terms <- Term{Mastership: m, Ctx: ctx, Return: end, Began: time.Now()}
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		<-s.Linger
		return nil
	}
}

func (s *Service) enter(shard int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overlap = s.overlap || s.serving[shard]
	s.serving[shard] = true
}

func (s *Service) leave(shard int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.serving, shard)
}

// Serving is how many shards are served now. It fails the test if a shard was ever served twice at once.
func (s *Service) Serving(t testing.TB) int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overlap {
		t.Error("a shard was served twice at once")
	}
	return len(s.serving)
}

// Next gives the next call of Serve, which must come within a time.
func (s *Service) Next(t testing.TB, within time.Duration) Term {
	t.Helper()
	select {
	case term := <-s.Terms:
		return term
	case <-time.After(within):
		t.Fatalf("no mastership within %v", within)
		return Term{}
	}
}

// Quiet fails the test if Serve is called during this time.
func (s *Service) Quiet(t testing.TB, during time.Duration) {
	t.Helper()
	select {
	case term := <-s.Terms:
		t.Fatalf("mastership %+v, where none should be", term.Mastership)
	case <-time.After(during):
	}
}

// Ends waits for a mastership's end, which must come within a time (0 for "has come") and for this cause.
func (term Term) Ends(t testing.TB, within time.Duration, cause error) {
	t.Helper()
	select {
	case <-term.Ctx.Done():
	case <-time.After(within):
	}
	if got := context.Cause(term.Ctx); !errors.Is(got, cause) {
		t.Fatalf("after %v the end of the mastership of shard %d is %v, want %v", within, term.Shard, got, cause)
	}
	if left := election.Left(term.Ctx); left > 0 {
		t.Fatalf("mastership of shard %d ended with %v left", term.Shard, left)
	}
}

// Lasts fails the test if the mastership ends during this time.
func (term Term) Lasts(t testing.TB, during time.Duration) {
	t.Helper()
	select {
	case <-term.Ctx.Done():
		t.Fatalf("mastership of shard %d ended: %v", term.Shard, context.Cause(term.Ctx))
	case <-time.After(during):
	}
}

// Start runs an elector, and returns what stops it and waits for it. It is stopped when the test ends, at the latest.
func Start(t testing.TB, elector election.Elector, service *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- elector.Run(ctx, service.Serve) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if n := service.Serving(t); n != 0 {
			t.Errorf("%d shards are served after the end", n)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Log discards lines.
func Log() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Factory makes an elector for the only replica there is, which is to be master of all shards. ttl is how long it leaves a shard alone after being fenced.
type Factory func(t *testing.T, shards int, ttl time.Duration, fence election.Fence) election.Elector

// Run runs the suite. Each case gets an elector of its own. Cases wait for several times the ttl, so it should be short outside of bubbles.
func Run(t *testing.T, ttl time.Duration, in func(t *testing.T, test func(t *testing.T, factory Factory))) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(t *testing.T, ttl time.Duration, factory Factory)
	}{
		{"ends a fenced mastership and backs off", backsOffWhenFenced},
		{"comes back after a failure", comesBack},
		{"comes back when the database refused", comesBackFromRefusal},
		{"serves each shard once", servesEachShard},
		{"waits for the work before it stops", waitsForWork},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, factory Factory) { test.run(t, ttl, factory) })
		})
	}
}

func backsOffWhenFenced(t *testing.T, ttl time.Duration, factory Factory) {
	fence, service := NewFence(), NewService()
	Start(t, factory(t, 1, ttl, fence), service)
	first := service.Next(t, ttl)
	if _, err := fence.Take(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	first.Return <- fmt.Errorf("commit: %w", fence.Guard(first.Mastership))
	service.Quiet(t, ttl-ttl/20)
	second := service.Next(t, 2*ttl)
	if second.Epoch <= first.Epoch || second.Holder == first.Holder {
		t.Errorf("mastership %+v after %+v", second.Mastership, first.Mastership)
	}
	first.Ends(t, 0, election.ErrResigned)
}

func comesBack(t *testing.T, ttl time.Duration, factory Factory) {
	fence, service := NewFence(), NewService()
	Start(t, factory(t, 1, ttl, fence), service)
	for _, err := range []error{errors.New("a failure"), nil} {
		service.Next(t, ttl).Return <- err
	}
	service.Next(t, ttl).Lasts(t, 2*ttl)
}

func comesBackFromRefusal(t *testing.T, ttl time.Duration, factory Factory) {
	fence, service := NewFence(), NewService()
	fence.Refuse(errors.New("no database"))
	Start(t, factory(t, 2, ttl, fence), service)
	service.Quiet(t, 2*ttl)
	fence.Refuse(nil)
	service.Next(t, ttl)
	service.Next(t, ttl)
}

func servesEachShard(t *testing.T, ttl time.Duration, factory Factory) {
	fence, service := NewFence(), NewService()
	Start(t, factory(t, 3, ttl, fence), service)
	seen := map[int]bool{}
	for range 3 {
		term := service.Next(t, ttl)
		seen[term.Shard] = true
		if err := fence.Guard(term.Mastership); err != nil {
			t.Errorf("mastership %+v is not effective", term.Mastership)
		}
		if election.Left(term.Ctx) <= 0 {
			t.Errorf("nothing is left of a new mastership")
		}
	}
	if len(seen) != 3 {
		t.Errorf("served %v, want each of three", seen)
	}
	service.Quiet(t, 3*ttl)
	if n := service.Serving(t); n != 3 {
		t.Errorf("%d shards are served, want 3", n)
	}
}

func waitsForWork(t *testing.T, ttl time.Duration, factory Factory) {
	fence, service := NewFence(), NewService()
	service.Linger = make(chan struct{})
	stop := Start(t, factory(t, 1, ttl, fence), service)
	term := service.Next(t, ttl)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	term.Ends(t, ttl, election.ErrResigned)
	select {
	case <-stopped:
		t.Error("stopped before the work had")
	case <-time.After(2 * ttl):
	}
	close(service.Linger)
	<-stopped
}
