package obs

import "context"

// requestKey is the context key of the request's ID.
type requestKey struct{}

// WithRequestID returns a context that carries the ID of the request being served, so that logs name it and calls to
// other services pass it on.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID returns the ID of the request being served, "" outside of one.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}
