package delivery

import (
	"context"
	"log/slog"
	"time"

	"phasekey.dev/pkg/obs"
)

const (
	releaseEvery   = 5 * time.Second
	releaseTimeout = 30 * time.Second
	releaseLimit   = 100
)

// holdings is what a Releaser needs of the store.
type holdings interface {
	ReleaseEnded(ctx context.Context, now time.Time, limit int) (int, error)
}

// Releaser releases what grants held that are over, so that secrets that were replaced can be removed. Every replica runs one; they
// do not get in each other's way.
type Releaser struct {
	store  holdings
	margin time.Duration
	log    *slog.Logger
}

// NewReleaser makes a Releaser. It waits for margin after each grant's end, since by the clock of a runner, or of the replica that
// would extend it, that may not have come yet. With Config.HoldMargin the secret itself ends no sooner.
func NewReleaser(store holdings, margin time.Duration, log *slog.Logger) *Releaser {
	return &Releaser{store: store, margin: margin, log: log}
}

// Run releases until ctx ends; it returns nil. A failure is logged once; what was missed is released when it is over.
func (r *Releaser) Run(ctx context.Context) error {
	failing := false
	tick := time.NewTicker(releaseEvery)
	defer tick.Stop()
	for {
		more, err := r.release(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			r.log.ErrorContext(ctx, "client secrets of grants that are over cannot be released", obs.KeyError, err)
		case err == nil && failing:
			r.log.InfoContext(ctx, "client secrets of grants that are over are released again")
		}
		failing = err != nil
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// release releases once, and reports whether there is more to be released at once.
func (r *Releaser) release(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	n, err := r.store.ReleaseEnded(ctx, time.Now().Add(-r.margin), releaseLimit)
	return err == nil && n == releaseLimit, err
}
