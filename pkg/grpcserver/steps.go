package grpcserver

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/redact"
	"phasekey.dev/pkg/rpcerr"
)

// internalMessage is all that a caller learns of an error that nobody mapped.
const internalMessage = "internal error"

// requestIDHeader carries the request's ID both ways.
const requestIDHeader = "x-request-id"

// saneRequestID is what an incoming ID must look like to be believed; it goes into logs.
var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9._-]{8,64}$`)

// Why the server itself ended a stream: causes of its context.
var (
	errDraining = errors.New("server is draining")
	errIdle     = errors.New("stream is idle")
)

// protect turns a panic in f into an error with its stack, and counts it: one of f's own, and one that f brings from whoever worked for it.
func (s *Server) protect(f func() error) error {
	err := caught.Panic(f)
	if panicOf(err) != nil {
		s.metrics.panics.Inc()
	}
	return err
}

// requestID believes the caller's request ID or makes one, and sends it back. A call that fails carries it in the
// trailer: a header would make the response more than trailers, and clients repeat nothing that has begun to be answered. So does a
// stream, since gRPC keeps headers until it ends.
func (s *Server) requestID(c *call) error {
	if got := metadata.ValueFromIncomingContext(c.ctx, requestIDHeader); len(got) == 1 && saneRequestID.MatchString(got[0]) {
		c.id = got[0]
	} else {
		c.id = cryptorand.Text()
	}
	transport := c.ctx
	c.ctx = obs.WithRequestID(c.ctx, c.id)
	c.after(func(err error) error {
		set := grpc.SetHeader
		if err != nil || c.method.class == classStream {
			set = grpc.SetTrailer
		}
		// It can only fail when the caller is gone.
		_ = set(transport, metadata.Pairs(requestIDHeader, c.id))
		return err
	})
	return nil
}

// measure counts and times what the caller sees.
func (s *Server) measure(c *call) error {
	end := s.metrics.begin(c.method)
	c.after(func(err error) error {
		end(status.Code(err), time.Since(c.began))
		return err
	})
	return nil
}

// accessLog turns whatever comes out of the inner chain into what the caller may see, and logs both.
func (s *Server) accessLog(c *call) error {
	c.after(func(err error) error {
		shown := s.mask(c, err)
		s.log(c, err, shown)
		return shown
	})
	return nil
}

// log logs how a call went.
func (s *Server) log(c *call, err, shown error) {
	code := status.Code(shown)
	level := levelOf(code)
	if code == codes.OK && c.method.foreign != "" {
		level = slog.LevelDebug
	}
	if !s.cfg.Log.Enabled(c.ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs,
		slog.String(obs.KeyMethod, c.method.full), slog.String(obs.KeyCode, code.String()),
		slog.Duration(obs.KeyDuration, time.Since(c.began)), slog.String(obs.KeyAddress, c.addr),
		slog.String(obs.KeyPeer, c.peer), slog.String(obs.KeyRole, c.caller.Role),
	)
	if err != nil {
		attrs = append(attrs, slog.String(obs.KeyReason, rpcerr.Reason(shown)), slog.Any(obs.KeyError, err))
		if p := panicOf(err); p != nil {
			attrs = append(attrs, slog.String(obs.KeyStack, string(p.Stack)))
		}
	}
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	if first != nil && s.cfg.Log.Enabled(c.ctx, slog.LevelDebug) {
		attrs = append(attrs, slog.Any(obs.KeyRequest, redact.Message(first)))
	}
	s.cfg.Log.LogAttrs(c.ctx, level, "call handled", attrs...)
}

// levelOf says how much of an operator's attention a code deserves.
func levelOf(code codes.Code) slog.Level {
	switch code {
	case codes.OK, codes.Canceled:
		return slog.LevelInfo
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

// mask returns what the caller may see of an error: the status it carries, without text that was wrapped around it; a
// context's end; or, for anything else and for codes that mean our own fault, nothing but where to look.
func (s *Server) mask(c *call, err error) error {
	if err == nil {
		return nil
	}
	st, ok := rpcerr.FromError(err)
	if ok && (st.Code() == codes.Canceled || st.Code() == codes.DeadlineExceeded) {
		switch cause := context.Cause(c.ctx); {
		case errors.Is(cause, errDraining):
			// Spread the return: a thousand streams were told at once.
			return rpcerr.New(codes.Unavailable, rpcerr.ReasonDraining, "server is draining",
				rpcerr.Retry(rand.N(time.Second))) //nolint:gosec // jitter
		case errors.Is(cause, errIdle):
			return rpcerr.New(codes.Unavailable, rpcerr.ReasonStreamIdle, "stream is idle", rpcerr.Retry(0))
		}
	}
	if ok {
		switch st.Code() {
		case codes.Internal, codes.Unknown, codes.DataLoss, codes.OK:
		default:
			return st.Err()
		}
	}
	return rpcerr.New(codes.Internal, rpcerr.ReasonInternal, internalMessage,
		rpcerr.Metadata(rpcerr.MetadataRequestID, c.id))
}

// authenticate finds out who calls, from the TLS connection alone.
func (s *Server) authenticate(c *call) error {
	if err := s.identify(c); err != nil {
		return err
	}
	if c.known || s.cfg.AnonymousOK || c.method.foreign == roleAnyone {
		return nil
	}
	return rpcerr.New(codes.Unauthenticated, rpcerr.ReasonIdentityUnknown, "the server does not know this identity")
}

// identify notes who the peer is.
func (s *Server) identify(c *call) error {
	p, ok := peer.FromContext(c.ctx)
	if !ok {
		return errors.New("no peer in the context")
	}
	c.addr = p.Addr.String()
	tlsInfo, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		// Never plaintext, whatever the listener was configured to be.
		return rpcerr.New(codes.Unauthenticated, rpcerr.ReasonIdentityUnknown, "the connection is not secured by TLS")
	}
	if len(tlsInfo.State.PeerCertificates) == 0 {
		return nil
	}
	id, err := mtls.IDFromState(tlsInfo.State)
	if err != nil {
		return rpcerr.New(codes.Unauthenticated, rpcerr.ReasonIdentityUnknown, "the client certificate has no SPIFFE ID")
	}
	c.peer = id
	if c.caller, c.known = s.identities[id]; c.known {
		c.ctx = context.WithValue(c.ctx, identityKey{}, c.caller)
	}
	return nil
}

// authorize decides whether this caller may call this method, and about which accounts. What the caller is told does not
// name who might.
func (s *Server) authorize(c *call) error {
	m := c.method
	switch {
	case m.foreign == roleAnyone, m.foreign == roleKnown && c.known:
		return nil
	case c.known && slices.Contains(m.roles, c.caller.Role):
		if c.caller.unlimited() {
			return nil
		}
		return c.check(accountCheck(c.caller))
	case m.grants():
		// The handler authenticates the grant, which says itself what it is for.
		return nil
	case !c.known:
		return rpcerr.New(codes.Unauthenticated, rpcerr.ReasonIdentityUnknown, "this method needs a known identity")
	default:
		return rpcerr.New(codes.PermissionDenied, rpcerr.ReasonCallerNotAllowed, "this identity may not call the method")
	}
}

// rateLimit takes a token from the caller's bucket, and counts the calls that strangers have in progress.
func (s *Server) rateLimit(c *call) error {
	who, class := c.caller.ID, c.method.class
	if !c.known {
		who, class = limit.Source(c.addr), classAnonymous
	}
	if wait, ok := s.limits.take(time.Now(), who, class); !ok {
		return rpcerr.New(codes.ResourceExhausted, rpcerr.ReasonRateLimited, "too many calls", rpcerr.Retry(wait))
	}
	if c.known {
		return nil
	}
	if !s.limits.going.Enter(who) {
		return rpcerr.New(codes.ResourceExhausted, rpcerr.ReasonRateLimited, "too many calls at once", rpcerr.Retry(time.Second))
	}
	c.after(func(err error) error {
		s.limits.going.Leave(who)
		return err
	})
	return nil
}

// limitTime gives unary calls a deadline if they have none, and ends streams that are idle or in the way of stopping.
func (s *Server) limitTime(c *call) error {
	if c.method.class != classStream {
		if _, ok := c.ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			c.ctx, cancel = context.WithTimeout(c.ctx, s.cfg.Timeout)
			c.after(func(err error) error {
				cancel()
				return err
			})
		}
		return nil
	}
	p := c.patience
	s.streams.add(p)
	if s.cfg.StreamIdle > 0 {
		c.touch = func() { p.timer.Reset(s.cfg.StreamIdle) }
	}
	c.after(func(err error) error {
		s.streams.remove(p)
		p.timer.Stop()
		p.cancel(nil)
		return err
	})
	return nil
}

// validate checks the constraints that the protos put on fields.
func (s *Server) validate(c *call) error {
	if c.method.foreign != "" {
		return nil
	}
	return c.check(func(m proto.Message, _ bool) error {
		if c.method.class == classStream {
			return caught.Apart(func() error { return s.validateMessage(m) })
		}
		return s.validateMessage(m)
	})
}

// idPattern and uuidPattern are what patterns of resource names are made of.
const (
	idPattern   = `[a-z]([a-z0-9-]{0,61}[a-z0-9])?`
	uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`
)

// formOf says what a field that breaks a pattern must look like, as people read it.
func formOf(pattern string) string {
	form := strings.NewReplacer(idPattern, "{id}", uuidPattern, "{uuid}").Replace(strings.TrimSuffix(strings.TrimPrefix(pattern, "^"), "$"))
	what := "must be of the form " + form
	if strings.Contains(form, "{id}") {
		what += ", where an {id} is 1 to 63 of a-z, 0-9 and '-', begins with a letter and does not end with '-'"
	}
	return what
}

// validateMessage names every field that breaks a constraint, without its value. A constraint that cannot be evaluated is
// our own fault and refuses too.
func (s *Server) validateMessage(m proto.Message) error {
	err := s.validator.Validate(m)
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return fmt.Errorf("validate: %w", err)
	}
	bad := &errdetails.BadRequest{}
	for _, v := range invalid.Violations {
		field, what := protovalidate.FieldPathString(v.Proto.GetField()), v.Proto.GetMessage()
		if v.Proto.GetRuleId() == "string.pattern" {
			what = formOf(v.RuleValue.String())
		}
		if what == "" {
			what = "breaks the constraint " + v.Proto.GetRuleId()
		}
		bad.FieldViolations = append(bad.FieldViolations, rpcerr.Field(field, what).GetFieldViolations()...)
	}
	return rpcerr.InvalidFields(bad)
}
