package grpcserver

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/tap"
)

// patience is how long a call is waited for: for its first message, and as a stream then for the next one. It is the only context of a stream that can be canceled besides the transport's, since each takes
// a stream a third of a kilobyte.
type patience struct {
	timer   *time.Timer
	cancel  context.CancelCauseFunc
	unwatch func() bool
}

// patienceKey is the context key of a call's patience.
type patienceKey struct{}

// awaitFirst ends a call whose first message does not come within the default timeout; gRPC itself then says CANCELLED. Until
// it comes the call costs a goroutine and has been charged to nobody. It is a tap because gRPC reads a unary call's message
// before any interceptor runs, and because nothing but the transport's own context ends a stream's wait for one.
func (s *Server) awaitFirst(ctx context.Context, _ *tap.Info) (context.Context, error) {
	limited, cancel := context.WithCancelCause(ctx)
	p := &patience{timer: time.AfterFunc(s.cfg.Timeout, func() { cancel(errIdle) }), cancel: cancel}
	// A call that is over before that keeps nothing behind.
	p.unwatch = context.AfterFunc(ctx, func() { p.timer.Stop() })
	return context.WithValue(limited, patienceKey{}, p), nil
}

// patienceOf returns the patience with the call that has this context; every call has one.
func patienceOf(ctx context.Context) *patience {
	p, _ := ctx.Value(patienceKey{}).(*patience)
	return p
}

// arrived says that a message has come.
func (p *patience) arrived() {
	if p.unwatch != nil {
		p.unwatch()
		p.unwatch = nil
	}
	p.timer.Stop()
}

// streams are the streams that have not ended.
type streams struct {
	mu   sync.Mutex
	open map[*patience]struct{}
	// ended is why all of them were ended; nil before.
	ended error
}

// add adds a stream. After end it is ended at once.
func (s *streams) add(p *patience) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		p.cancel(s.ended)
		return
	}
	s.open[p] = struct{}{}
}

func (s *streams) remove(p *patience) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, p)
}

// end ends all streams, now and from now on.
func (s *streams) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = why
	for p := range s.open {
		p.cancel(why)
	}
}
