// Package static names one replica master of all shards: the way to work without Redis, or with one replica only. There is no lock: the replica that is named must
// be the only one named. If two are, by mistake, or while others elect by locks, the database still lets only the last to take a shard work on it, and they
// take turns at it, each backing off when fenced.
package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"phasekey.dev/services/vault/internal/election"
)

// Config is what an elector needs. All of it is required.
type Config struct {
	// Replica is this replica's name.
	Replica string
	// Master is the name of the replica that is master.
	Master string
	// Shards is the number of shards.
	Shards int
	// Backoff is how long a shard is left alone after a failure, and a little longer after being fenced; and for how long the database may be unready before
	// everything is given up.
	Backoff time.Duration
	// Fence takes shards in the database, and says whether it can be worked with.
	Fence election.Fence
	// Log gets a line for each mastership's beginning and end.
	Log *slog.Logger
}

// Elector is master of all shards or of none. Make it with New.
type Elector struct {
	config Config
}

// New makes an elector; Run makes it work.
func New(config Config) (*Elector, error) {
	switch {
	case config.Fence == nil || config.Log == nil:
		return nil, errors.New("election: fence and log are required")
	case config.Replica == "" || config.Master == "":
		return nil, errors.New("election: replica and master are required")
	case config.Shards < 1:
		return nil, fmt.Errorf("election: %d shards", config.Shards)
	case config.Backoff <= 0:
		return nil, errors.New("election: backoff is required")
	}
	return &Elector{config: config}, nil
}

// Run serves all shards if this replica is the master; else it waits for ctx to end. See election.Elector.
func (e *Elector) Run(ctx context.Context, serve election.Serve) error {
	if e.config.Replica != e.config.Master {
		<-ctx.Done()
		return nil
	}
	ticks := time.NewTicker(e.config.Backoff / 3)
	defer ticks.Stop()
	var shards sync.WaitGroup
	var resign context.CancelFunc // nil while nothing is served
	var since time.Time           // when the database was first found unready, zero while it is ready
	for ctx.Err() == nil {
		err := e.ready(ctx)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			continue
		case err == nil:
			since = time.Time{}
		case since.IsZero():
			since = now
			e.config.Log.WarnContext(ctx, "the database is not ready, no shards can be taken", "error", err)
		}
		switch {
		case err == nil && resign == nil:
			var serving context.Context
			serving, resign = context.WithCancel(ctx)
			for shard := range e.config.Shards {
				shards.Go(func() { e.run(serving, shard, serve) })
			}
		case err != nil && resign != nil && now.Sub(since) >= e.config.Backoff:
			resign()
			shards.Wait()
			resign = nil
		}
		select {
		case <-ctx.Done():
		case <-ticks.C:
		}
	}
	if resign != nil {
		resign()
	}
	shards.Wait()
	return nil
}

// ready tells whether the database could be worked with.
func (e *Elector) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.config.Backoff/6)
	defer cancel()
	return e.config.Fence.Ready(ctx, time.Now())
}

// run serves one shard, again and again.
func (e *Elector) run(ctx context.Context, shard int, serve election.Serve) {
	log := e.config.Log.With("shard", shard)
	for ctx.Err() == nil {
		err := e.term(ctx, shard, serve)
		if ctx.Err() != nil {
			log.InfoContext(ctx, "mastership resigned", "error", err)
			return
		}
		wait := e.config.Backoff/2 + rand.N(e.config.Backoff/4+1) //nolint:gosec // spreads contenders, guards nothing
		if errors.Is(err, election.ErrFenced) {
			wait += e.config.Backoff / 2
		}
		log.WarnContext(ctx, "mastership given up", "error", err, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (e *Elector) term(ctx context.Context, shard int, serve election.Serve) error {
	// Its end is a resignation: see election.Serve.
	termCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { cancel(election.ErrResigned) })()
	defer cancel(election.ErrResigned)
	m, err := e.config.Fence.Take(termCtx, shard, time.Now())
	if err != nil {
		return fmt.Errorf("take shard %d: %w", shard, err)
	}
	e.config.Log.InfoContext(ctx, "mastership taken", "shard", m.Shard, "epoch", m.Epoch, "holder", m.Holder)
	return serve(termCtx, m)
}
