package delivery

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/grant"
)

const (
	meterEvery   = 30 * time.Second
	meterTimeout = 5 * time.Second
)

// counter is what a Meter needs of the store.
type counter interface {
	CountDeliveries(ctx context.Context, now time.Time, counts []grant.Count) error
}

// Meter counts deliveries by account and hour, and has the counts stored from time to time: no delivery waits for that, and a replica
// that crashes loses what it had not stored.
type Meter struct {
	store counter
	log   *slog.Logger

	mu     sync.Mutex
	counts map[meterKey]int64
}

type meterKey struct {
	account string
	hour    int64
}

// NewMeter makes a Meter.
func NewMeter(store counter, log *slog.Logger) *Meter {
	return &Meter{store: store, log: log, counts: map[meterKey]int64{}}
}

// Count counts a delivery.
func (m *Meter) Count(now time.Time, account string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[meterKey{account, grant.HourOf(now)}]++
}

// Run stores the counts until ctx ends, and once more then; it returns nil. A failure is logged once; what was not stored is
// stored with what comes after it.
func (m *Meter) Run(ctx context.Context) error {
	failing := false
	tick := time.NewTicker(meterEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := m.flush(context.WithoutCancel(ctx)); err != nil {
				m.log.WarnContext(ctx, "the last deliveries are not counted", slog.Any(obs.KeyError, err))
			}
			return nil
		case <-tick.C:
		}
		err := m.flush(ctx)
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			m.log.WarnContext(ctx, "deliveries cannot be counted", slog.Any(obs.KeyError, err))
		case err == nil && failing:
			m.log.InfoContext(ctx, "deliveries are counted again")
		}
		failing = err != nil
	}
}

func (m *Meter) flush(ctx context.Context) error {
	m.mu.Lock()
	taken := m.counts
	m.counts = map[meterKey]int64{}
	m.mu.Unlock()
	if len(taken) == 0 {
		return nil
	}
	counts := make([]grant.Count, 0, len(taken))
	for key, n := range taken {
		counts = append(counts, grant.Count{Account: key.account, Hour: key.hour, Deliveries: n})
	}
	ctx, cancel := context.WithTimeout(ctx, meterTimeout)
	defer cancel()
	err := m.store.CountDeliveries(ctx, time.Now(), counts)
	if err == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, n := range taken {
		m.counts[key] += n
	}
	// An outage that lasts must not fill the memory; what is older is of no use to anybody.
	maps.DeleteFunc(m.counts, func(key meterKey, _ int64) bool { return key.hour <= grant.HourOf(time.Now())-grant.HoursOfMonth })
	return err
}
