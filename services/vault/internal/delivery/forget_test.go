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

// fakePast is grants that ended long ago, and how they were asked for.
type fakePast struct {
	mu     sync.Mutex
	over   int
	err    error
	asked  int
	before time.Time
}

func (f *fakePast) ForgetGrants(_ context.Context, before time.Time, limit int) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	f.before = before
	if f.err != nil {
		return false, f.err
	}
	f.over -= min(limit, f.over)
	return f.over > 0, nil
}

func TestForgetter_DeletesALittleAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const retention = 48 * time.Hour
		past, log := &fakePast{over: 10_000}, &bytes.Buffer{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- delivery.NewForgetter(past, retention, obs.NewLogger(log, slog.LevelInfo, obs.FormatText)).Run(ctx)
		}()
		step := func(name string, err error, wait time.Duration, fewest, most, over int) {
			t.Helper()
			past.mu.Lock()
			past.err, past.asked = err, 0
			past.mu.Unlock()
			time.Sleep(wait)
			synctest.Wait()
			past.mu.Lock()
			defer past.mu.Unlock()
			if past.asked < fewest || past.asked > most || past.over != over {
				t.Errorf("%s: asked %d times, %d are left; want %d to %d, %d", name, past.asked, past.over, fewest, most, over)
			}
			if past.asked > 0 && past.before.After(time.Now().Add(-retention)) {
				t.Errorf("%s: what ended after %s", name, past.before)
			}
		}
		step("a second apart", nil, 4500*time.Millisecond, 5, 5, 7500)
		step("until nothing is left", nil, time.Minute, 15, 15, 0)
		step("seldom", nil, 10*time.Hour, 7, 14, 0)
		step("the database is away", errors.New("away"), 5*time.Hour, 3, 7, 0)
		step("it is back", nil, 5*time.Hour, 3, 7, 0)
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if strings.Count(log.String(), "level=WARN") != 1 || strings.Count(log.String(), "deleted again") != 1 {
			t.Errorf("logged %s", log)
		}
	})
}
