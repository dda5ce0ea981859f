package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
)

// call is one RPC on its way through the chain, unary or a stream.
type call struct {
	ctx    context.Context
	method *method
	began  time.Time
	id     string // request ID
	addr   string // the peer's address
	peer   string // the peer's SPIFFE ID, "" if it has none
	caller Identity
	known  bool // caller is set: the configuration knows the peer

	patience *patience
	handle   func() error   // what the chain ends in
	touch    func()         // called with each message of a stream, for the idle limit; may be nil
	checks   []messageCheck // on each received message
	ends     []func(err error) error

	mu sync.Mutex // for streams: RecvMsg and SendMsg may run at once
	// first is the first message received.
	first proto.Message
	// refused is the error of the first check that failed; nothing goes well afterwards.
	refused error
}

// messageCheck judges a received message.
type messageCheck func(m proto.Message, first bool) error

// step is one link of the chain: with an error the call goes no further. What is to become of the outcome of all that follows it says by call.after.
type step func(c *call) error

// after has end called with the outcome of what follows, and returns it to what went before: whatever that end makes of it.
func (c *call) after(end func(err error) error) { c.ends = append(c.ends, end) }

// run runs the chain. Its steps are not around the handler, which may wait for long: they have left the stack by then.
func (s *Server) run(c *call) (err error) {
	defer func() { err = s.leave(c, err) }()
	if err := s.enter(c); err != nil {
		return err
	}
	return c.handle()
}

func (s *Server) enter(c *call) error {
	return s.protect(func() error {
		for _, step := range s.steps {
			if err := step(c); err != nil {
				return err
			}
		}
		return nil
	})
}

// leave calls the ends, the last first, and masks what they leave. Handlers are protected where they are called, so that metrics and log see their panics as the errors
// they are; a panic in the chain itself does not end the process either.
func (s *Server) leave(c *call, err error) error {
	for i := len(c.ends) - 1; i >= 0; i-- {
		outcome := err
		err = caught.Panic(func() error { return c.ends[i](outcome) })
		if panicOf(err) != panicOf(outcome) && panicOf(err) != nil {
			s.metrics.panics.Inc()
		}
	}
	if p := panicOf(err); p != nil {
		s.cfg.Log.ErrorContext(c.ctx, "panic in the interceptor chain",
			slog.Any(obs.KeyError, p), slog.String(obs.KeyStack, string(p.Stack)))
	}
	return s.mask(c, err)
}

// panicOf is the panic that an error is, nil when it is none.
func panicOf(err error) *caught.PanicError {
	p, _ := errors.AsType[*caught.PanicError](err)
	return p
}

// check adds a check on received messages. On the message of a unary call it runs now, at its place in the chain; on those
// of a stream, as they come.
func (c *call) check(f messageCheck) error {
	c.checks = append(c.checks, f)
	if c.first == nil {
		return nil
	}
	return f(c.first, true)
}

// received runs the checks on a message of a stream.
func (c *call) received(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("received a %T, which is no proto message", m)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused != nil {
		return c.refused
	}
	first := c.first == nil
	if first {
		c.first = msg
	}
	for _, f := range c.checks {
		if err := f(msg, first); err != nil {
			c.refused = err
			return err
		}
	}
	return nil
}

// sendable returns why nothing may be sent on a stream now. A stream whose messages are checked sends nothing before
// the first one has come.
func (c *call) sendable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil && c.first == nil {
		return fmt.Errorf("%s sends before it has received", c.method.full)
	}
	return c.refused
}

// verdict is the outcome of a stream's handler: a refused message is the outcome whatever the handler made of it.
func (c *call) verdict(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused != nil {
		return c.refused
	}
	return err
}

// begin starts a call. A method that is not in the table cannot come here, as gRPC answers UNIMPLEMENTED itself; if it does,
// it is refused.
func (s *Server) begin(ctx context.Context, full string) (*call, error) {
	m := s.methods[full]
	if m == nil {
		return nil, rpcerr.New(codes.PermissionDenied, rpcerr.ReasonCallerNotAllowed, "nobody may call this method")
	}
	return &call{ctx: ctx, method: m, began: time.Now(), patience: patienceOf(ctx)}, nil
}

// room is how much of its stack a unary call is likely to need.
const room = 5 << 10

// makeRoom has the goroutine's stack grow at once, while there is little on it. It would grow anyway, once or twice, when the handler is deep in its calls: then all of their frames have to be moved, which
// took up to a twelfth of a call's processor time. A stream's stack is to stay small.
//
//go:noinline
func makeRoom(at int) byte {
	var frame [room]byte
	frame[at]++
	return frame[room-1-at]
}

// unary runs the chain around a unary call.
func (s *Server) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	c, err := s.begin(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	c.patience.arrived()
	makeRoom(0)
	msg, ok := req.(proto.Message)
	if !ok {
		return nil, rpcerr.New(codes.Internal, rpcerr.ReasonInternal, internalMessage)
	}
	c.first = msg
	var resp any
	c.handle = func() error {
		return s.protect(func() error {
			var err error
			resp, err = handler(c.ctx, req)
			return err
		})
	}
	if err := s.run(c); err != nil {
		return nil, err
	}
	return resp, nil
}

// stream runs the chain around a stream.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	c, err := s.begin(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	c.handle = func() error {
		return c.verdict(s.protect(func() error { return handler(srv, &checkedStream{ServerStream: ss, c: c}) }))
	}
	return s.run(c)
}

// checkedStream is a stream whose messages pass the call's checks.
type checkedStream struct {
	grpc.ServerStream
	c *call
}

// Context implements grpc.ServerStream.
func (s *checkedStream) Context() context.Context { return s.c.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.c.patience.arrived()
	if s.c.touch != nil {
		s.c.touch()
	}
	return s.c.received(m)
}

// SendMsg implements grpc.ServerStream.
func (s *checkedStream) SendMsg(m any) error {
	if err := s.c.sendable(); err != nil {
		return err
	}
	if s.c.touch != nil {
		s.c.touch()
	}
	return s.ServerStream.SendMsg(m)
}
