// Package tally counts what becomes of masterships, whatever elects: it wraps an elector.
package tally

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/vault/internal/election"
)

// Elector is an elector whose masterships are counted. Make it with New.
type Elector struct {
	inner  election.Elector
	held   prometheus.Gauge
	ended  *prometheus.CounterVec
	fenced prometheus.Counter
}

// New wraps an elector.
func New(inner election.Elector, r prometheus.Registerer) (*Elector, error) {
	e := &Elector{
		inner: inner,
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_vault_masterships_held",
			Help: "Shards that this replica is master of, as far as it knows. Over all replicas the sum should be the number of shards; for moments it may be more.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_masterships_ended_total",
			Help: "Masterships that ended, by why: resigned (stopping, or another replica's share), lost (the lock was not renewed in time, or was gone: Redis or this machine was away), " +
				"fenced (another replica took the shard), failed (the work gave up).",
		}, []string{"why"}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_fenced_writes_total",
			Help: "Transactions that the database refused since another replica had taken the shard: what would have gone wrong without the fence.",
		}),
	}
	for _, why := range []string{resigned, lost, fenced, failed} {
		e.ended.WithLabelValues(why) // 0 until the first
	}
	var problems []error
	for _, c := range []prometheus.Collector{e.held, e.ended, e.fenced} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("register metrics of the election: %w", err)
	}
	return e, nil
}

const (
	resigned = "resigned"
	lost     = "lost"
	fenced   = "fenced"
	failed   = "failed"
)

// Run competes for shards. See election.Elector.
func (e *Elector) Run(ctx context.Context, serve election.Serve) error {
	return e.inner.Run(ctx, func(ctx context.Context, m election.Mastership) error {
		e.held.Inc()
		defer e.held.Dec()
		err := serve(election.WithFenced(ctx, e.fenced.Inc), m)
		e.ended.WithLabelValues(why(err, context.Cause(ctx))).Inc()
		return err
	})
}

// why is how a mastership ended: by what its work returned, and by the cause with which its context ended, if it did.
func why(err, cause error) string {
	switch {
	case errors.Is(err, election.ErrFenced):
		return fenced
	case errors.Is(cause, election.ErrLost):
		return lost
	case errors.Is(cause, election.ErrResigned):
		return resigned
	default:
		return failed
	}
}
