package sqldbtest

import (
	"context"

	"phasekey.dev/pkg/internal/sqlfault"
)

// Point is a moment of a transaction at which a Hook is called.
type Point = sqlfault.Point

// The points there are.
const (
	Begin     = sqlfault.Begin
	Commit    = sqlfault.Commit
	Committed = sqlfault.Committed
)

// Hook is called at each point of each attempt at a transaction. Its error takes the place of what would have happened next: at Begin nothing is
// sent, at Commit everything is rolled back, at Committed the caller gets it although all is done. At Commit it must not wait, for the transaction has its locks.
type Hook = sqlfault.Hook

// WithHook returns a context whose transactions pass the hook: a program of which several run in one process, on one database, can so be paused or killed alone.
func WithHook(ctx context.Context, hook Hook) context.Context { return sqlfault.With(ctx, hook) }

// WithCount returns a context that has count called for each statement of its transactions, before it is sent: to know what something costs.
func WithCount(ctx context.Context, count func(query string)) context.Context {
	return sqlfault.WithCount(ctx, count)
}
