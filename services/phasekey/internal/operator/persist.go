package operator

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"

	"phasekey.dev/pkg/rpcerr"
)

// firstAgain and longestAgain are how long is waited before what broke goes on.
const (
	firstAgain   = time.Second
	longestAgain = 30 * time.Second
)

// persist does what takes long until it has ended, and again when it broke for a reason that passes, such as a service's restart. do
// reports whether anything came meanwhile. What breaks before anything has come is an error, unless it began already.
func (p *printer) persist(ctx context.Context, began bool, do func(ctx context.Context) (came bool, err error)) error {
	for again := firstAgain; ; again = min(2*again, longestAgain) {
		came, err := do(ctx)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if came {
			began, again = true, firstAgain
		}
		if err == nil || !began || !breaks(err) {
			return err
		}
		p.note("broken off, going on in %s: %s", again, rpcerr.Explain(err))
		if !pause(ctx, again) {
			return ctx.Err()
		}
	}
}

// breaks tells whether an error passes.
func breaks(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	st, ok := rpcerr.FromError(err)
	return ok && (st.Code() == codes.Unavailable || st.Code() == codes.ResourceExhausted || st.Code() == codes.DeadlineExceeded)
}

// poll asks for something every now and then until it is done, after what is known of it. tell says how far it is, where that is new.
func poll[M any](ctx context.Context, p *printer, known M, every time.Duration, tell func(M) string, done func(M) bool, get func(ctx context.Context) (M, error)) (M, error) {
	begun, told := time.Now(), ""
	err := p.persist(ctx, true, func(ctx context.Context) (came bool, err error) {
		for {
			if now := tell(known); now != told {
				p.note("%4s  %s", about(time.Since(begun)), now)
				told = now
			}
			if done(known) {
				return came, nil
			}
			if !pause(ctx, every) {
				return came, ctx.Err()
			}
			next, err := get(ctx)
			if err != nil {
				return came, err
			}
			known, came = next, true
		}
	})
	return known, err
}
