package grpcserver

import (
	"context"
	"time"

	"google.golang.org/grpc/tap"
)

// arrival is the wait for a call's first message.
type arrival struct {
	timer   *time.Timer
	unwatch func() bool
}

// arrivalKey is the context key of a call's arrival.
type arrivalKey struct{}

// awaitFirst ends a call whose first message does not come within the default timeout; gRPC itself then says CANCELLED. Until
// it comes the call costs a goroutine and has been charged to nobody. It is a tap because gRPC reads a unary call's message
// before any interceptor runs, and because nothing but the transport's own context ends a stream's wait for one.
func (s *Server) awaitFirst(ctx context.Context, _ *tap.Info) (context.Context, error) {
	limited, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(s.cfg.Timeout, func() { cancel(errIdle) })
	// A call that is over before that keeps nothing behind.
	unwatch := context.AfterFunc(ctx, func() { timer.Stop() })
	return context.WithValue(limited, arrivalKey{}, &arrival{timer: timer, unwatch: unwatch}), nil
}

// arrivalOf returns the arrival of the call that has this context; every call has one.
func arrivalOf(ctx context.Context) *arrival {
	a, _ := ctx.Value(arrivalKey{}).(*arrival)
	return a
}

// done says that the first message has come.
func (a *arrival) done() {
	a.unwatch()
	a.timer.Stop()
}
