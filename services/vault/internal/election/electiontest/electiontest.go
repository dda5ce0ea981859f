// Package electiontest is the suite every elector passes, over whatever it elects by, and the parts for testing one: a fence in memory, and a service that tells what is asked of it.
package electiontest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// Fence is a fence in memory, as one replica sees it. It is as safe as a database's, and can be out of reach.
type Fence struct {
	*shards

	mu      sync.Mutex
	refuse  error
	unready error
}

// shards are what all replicas see.
type shards struct {
	mu      sync.Mutex
	masters map[int]election.Mastership
	taken   int
}

// NewFence makes a fence whose shards nobody has taken.
func NewFence() *Fence { return &Fence{shards: &shards{masters: map[int]election.Mastership{}}} }

// Another is the same fence, as another replica sees it: what one refuses the other does not.
func (f *Fence) Another() *Fence { return &Fence{shards: f.shards} }

// Take makes the caller master. See election.Fence.
func (f *Fence) Take(_ context.Context, shard int, _ time.Time) (election.Mastership, error) {
	f.mu.Lock()
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		return election.Mastership{}, refuse
	}
	s := f.shards
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	m := election.Mastership{Shard: shard, Epoch: s.masters[shard].Epoch + 1, Holder: fmt.Sprintf("holder-%d", s.taken)}
	s.masters[shard] = m
	return m, nil
}

// Ready fails when Take would, and while the database is said to be unready. See election.Fence.
func (f *Fence) Ready(context.Context, time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.refuse, f.unready)
}

// Unready has Ready alone fail with err from now on, as where clocks differ, or work again if err is nil.
func (f *Fence) Unready(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unready = err
}

// Refuse has Take and Ready fail with err from now on, or work again if err is nil.
func (f *Fence) Refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

// Guard returns election.ErrFenced unless m is its shard's effective mastership.
func (f *Fence) Guard(m election.Mastership) error {
	s := f.shards
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.masters[m.Shard] != m {
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

	mu      sync.Mutex
	serving map[int]bool
	linger  map[int]chan struct{}
	overlap bool
}

// NewService makes a service whose calls return as soon as their masterships end.
func NewService() *Service {
	return &Service{Terms: make(chan Term, 1000), serving: map[int]bool{}, linger: map[int]chan struct{}{}}
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
		s.mu.Lock()
		linger := s.linger[m.Shard]
		s.mu.Unlock()
		if linger != nil {
			<-linger
		}
		return nil
	}
}

// Linger has the work on a shard go on after its mastership has ended, until Release.
func (s *Service) Linger(shard int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linger[shard] = make(chan struct{})
}

// Release ends what Linger began.
func (s *Service) Release(shard int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.linger[shard])
	delete(s.linger, shard)
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

// Serving is how many shards are served now.
func (s *Service) Serving(t testing.TB) int {
	t.Helper()
	return len(s.Shards(t))
}

// Shards are those that are served now. It fails the test if one was ever served twice at once.
func (s *Service) Shards(t testing.TB) []int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overlap {
		t.Error("a shard was served twice at once")
	}
	return slices.Collect(maps.Keys(s.serving))
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
