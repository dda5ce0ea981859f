package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// state is what a Runner holds, and who waits for it.
type state struct {
	mu      sync.Mutex
	held    Credential // the newest; the zero value has expired long ago
	ever    bool       // something was delivered
	failure error      // the newest error since the last delivery
	end     error      // not nil once it is over
	changed chan struct{}
	done    chan struct{}
}

func newState() *state {
	return &state{changed: make(chan struct{}), done: make(chan struct{})}
}

// wait returns the credential that is held, as soon as it is one that works and is wanted. Before anything was delivered, a
// failure that does not pass by itself ends the wait.
func (s *state) wait(ctx context.Context, wanted func(Credential) bool) (Credential, error) {
	for {
		s.mu.Lock()
		held, ever, failure, end, changed := s.held, s.ever, s.failure, s.end, s.changed
		s.mu.Unlock()
		switch {
		case end != nil:
			return Credential{}, end
		case held.valid(time.Now()) && wanted(held):
			return held, nil
		case !ever && !passing(failure):
			return Credential{}, fmt.Errorf("wait for the first credential: %w", failure)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.mu.Lock()
			failure := s.failure
			s.mu.Unlock()
			return Credential{}, fmt.Errorf("wait for a credential: %w", errors.Join(ctx.Err(), failure))
		}
	}
}

// newest returns what was put last, whether it works or not.
func (s *state) newest() Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// put makes c what is held, unless it is over.
func (s *state) put(c Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return
	}
	s.held, s.ever, s.failure = c, true, nil
	s.wake()
}

// fail notes why nothing new comes. It changes nothing about what is held.
func (s *state) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
	s.wake()
}

// finish ends it; the first end stays. What is held is forgotten.
func (s *state) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return
	}
	s.end, s.held = err, Credential{}
	s.wake()
	close(s.done)
}

// wake has everybody who waits look again. The caller holds mu.
func (s *state) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// err returns why it is over, nil if it is not.
func (s *state) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}
