package delivery

import (
	"context"
	"log/slog"
	"time"

	"phasekey.dev/pkg/obs"
)

const (
	forgetEvery = time.Hour
	// forgetPause lies between two transactions while there is more, so that deliveries find their place.
	forgetPause   = time.Second
	forgetTimeout = 30 * time.Second
	forgetLimit   = 500
)

// past is what a Forgetter needs of the store.
type past interface {
	ForgetGrants(ctx context.Context, before time.Time, limit int) (more bool, err error)
}

// Forgetter deletes grants that ended long ago, and their leases: the audit says what they were. Every replica runs one; they do not get in each
// other's way.
type Forgetter struct {
	store     past
	retention time.Duration
	log       *slog.Logger
}

// NewForgetter makes a Forgetter that keeps grants for retention after their end.
func NewForgetter(store past, retention time.Duration, log *slog.Logger) *Forgetter {
	return &Forgetter{store: store, retention: retention, log: log}
}

// Run forgets until ctx ends; it returns nil. A failure is logged once; what was missed is forgotten when it is over.
func (f *Forgetter) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		more, err := f.forget(ctx)
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			f.log.WarnContext(ctx, "grants that ended long ago cannot be deleted", obs.KeyError, err)
		case err == nil && failing:
			f.log.InfoContext(ctx, "grants that ended long ago are deleted again")
		}
		failing = err != nil
		if more {
			pause(ctx, forgetPause)
		} else {
			pause(ctx, spread(forgetEvery))
		}
	}
	return nil
}

// forget deletes once, and reports whether there is more.
func (f *Forgetter) forget(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	return f.store.ForgetGrants(ctx, time.Now().Add(-f.retention), forgetLimit)
}
