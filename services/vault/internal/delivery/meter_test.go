package delivery_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
)

// fakeCounts adds up what is counted.
type fakeCounts struct {
	mu     sync.Mutex
	down   bool
	counts map[grant.Count]int64 // by account and hour
	calls  int
}

func (f *fakeCounts) CountDeliveries(_ context.Context, _ time.Time, counts []grant.Count) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.down {
		return sqldb.ErrUnavailable
	}
	for _, c := range counts {
		f.counts[grant.Count{Account: c.Account, Hour: c.Hour}] += c.Deliveries
	}
	return nil
}

func TestMeter_CountsEachDeliveryOnceAndRidesOutOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts, log := &fakeCounts{counts: map[grant.Count]int64{}}, &bytes.Buffer{}
		m := delivery.NewMeter(counts, obs.NewLogger(log, slog.LevelInfo, obs.FormatText))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		first := grant.HourOf(time.Now())
		is := func(when, account string, hour, want int64) {
			t.Helper()
			synctest.Wait()
			counts.mu.Lock()
			defer counts.mu.Unlock()
			if got := counts.counts[grant.Count{Account: account, Hour: hour}]; got != want {
				t.Errorf("%s: %s has %d, want %d", when, account, got, want)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if counts.calls != 0 {
			t.Errorf("%d calls for nothing", counts.calls)
		}
		m.Count(time.Now(), "acme")
		m.Count(time.Now(), "acme")
		m.Count(time.Now(), "other")
		is("before it is stored", "acme", first, 0)
		time.Sleep(30 * time.Second)
		is("stored", "acme", first, 2)
		is("stored", "other", first, 1)

		counts.mu.Lock()
		counts.down = true
		counts.mu.Unlock()
		m.Count(time.Now(), "acme")
		time.Sleep(time.Hour)
		m.Count(time.Now(), "acme")
		is("while the database is down", "acme", first, 2)
		counts.mu.Lock()
		counts.down = false
		counts.mu.Unlock()
		time.Sleep(30 * time.Second)
		is("afterwards", "acme", first, 3)
		is("afterwards", "acme", first+1, 1)
		if text := log.String(); strings.Count(text, "cannot be counted") != 1 || strings.Count(text, "counted again") != 1 {
			t.Errorf("logged %s", text)
		}

		m.Count(time.Now(), "acme")
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		is("at the end", "acme", first+1, 2)
	})
}
