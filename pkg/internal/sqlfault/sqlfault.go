// Package sqlfault lets a test stand between a program and its database, as one of several programs in a process. What it is given travels in the
// program's context, so that nothing but the test knows of it.
package sqlfault

import "context"

// Point is a moment of a transaction.
type Point string

// The points there are.
const (
	// Begin: nothing was sent yet.
	Begin Point = "begin"
	// Commit: everything is done but the commit.
	Commit Point = "commit"
	// Committed: the commit has succeeded, and the program does not know it yet.
	Committed Point = "committed"
)

// Hook is called at each point of each attempt at a transaction. Its error takes the place of what would have happened next; at Commit it must not wait.
type Hook func(ctx context.Context, at Point, readOnly bool) error

type key struct{}

// With returns a context whose transactions pass the hook.
func With(ctx context.Context, hook Hook) context.Context { return context.WithValue(ctx, key{}, hook) }

// Strike calls the context's hook, if there is one.
func Strike(ctx context.Context, at Point, readOnly bool) error {
	if hook, ok := ctx.Value(key{}).(Hook); ok {
		return hook(ctx, at, readOnly)
	}
	return nil
}

type countKey struct{}

// WithCount returns a context that has count called for each statement of its transactions, before it is sent.
func WithCount(ctx context.Context, count func(query string)) context.Context {
	return context.WithValue(ctx, countKey{}, count)
}

// Count calls the context's count, if there is one.
func Count(ctx context.Context, query string) {
	if count, ok := ctx.Value(countKey{}).(func(query string)); ok {
		count(query)
	}
}
