package delivery_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/delivery"
)

// fakeHoldings is grants that are over, and what was asked about them.
type fakeHoldings struct {
	mu       sync.Mutex
	over     int
	err      error
	released []int
	asked    []time.Time
}

func (f *fakeHoldings) ReleaseEnded(_ context.Context, now time.Time, limit int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, now)
	if f.err != nil {
		return 0, f.err
	}
	n := min(limit, f.over)
	f.over -= n
	if n > 0 {
		f.released = append(f.released, n)
	}
	return n, nil
}

func (f *fakeHoldings) set(over int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over, f.err, f.released, f.asked = over, err, nil, nil
}

func TestReleaser_ReleasesAllAMarginAfterTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holdings, log := &fakeHoldings{over: 1}, &bytes.Buffer{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- delivery.NewReleaser(holdings, time.Minute, obs.NewLogger(log, slog.LevelInfo, obs.FormatText)).Run(ctx)
		}()
		for _, step := range []struct {
			name string
			over int
			err  error
			wait time.Duration
			// released is how many in all, asked how often.
			released, asked int
		}{
			{name: "many at once", over: 1050, wait: 5 * time.Second, released: 1050, asked: 11},
			{name: "none", wait: time.Minute, asked: 12},
			{name: "the database is away", over: 3, err: errors.New("away"), wait: time.Minute, asked: 12},
			{name: "it is back", over: 3, wait: 5 * time.Second, released: 3, asked: 1},
		} {
			synctest.Wait()
			holdings.set(step.over, step.err)
			time.Sleep(step.wait)
			synctest.Wait()
			released := 0
			for _, n := range holdings.released {
				released += n
			}
			if last := holdings.asked[len(holdings.asked)-1]; time.Since(last) < time.Minute || time.Since(last) > time.Minute+5*time.Second {
				t.Errorf("%s: released what was over %s ago, want a minute", step.name, time.Since(last))
			}
			if released != step.released || len(holdings.asked) != step.asked {
				t.Errorf("%s: released %d, asked %d times; want %d, %d", step.name, released, len(holdings.asked), step.released, step.asked)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if got := strings.Count(log.String(), "level=ERROR"); got != 1 || !strings.Contains(log.String(), "released again") {
			t.Errorf("logged %s", log)
		}
	})
}
