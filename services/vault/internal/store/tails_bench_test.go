package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/store"
	"phasekey.dev/services/vault/internal/tail"
)

// BenchmarkDeliver_UnderTails is what deliveries lose to those who follow the audit of the same replica: rounds without any take turns with rounds of one, of
// as many as one caller may have, and of as many as there may be. It tells the rate, and this process's processor time of a delivery, as multiples of what they are without tails. The tails get
// every event, as far as the position that goes with it; what gRPC makes of that is not in it.
func BenchmarkDeliver_UnderTails(b *testing.B) {
	const (
		callers = 64
		rounds  = 5
		round   = time.Second
	)
	onBothEngines(b, func(b *testing.B, db *sqldb.DB) {
		c := anew(b, db)
		for i := range callers {
			c.grant(fmt.Sprint("g", i))
		}
		crowds := []int{0, 1, tail.PerCaller, 100}
		rates, costs, told := map[int][]float64{}, map[int][]float64{}, map[int]int64{}
		for b.Loop() {
			for range rounds {
				for _, tails := range crowds {
					stop := follow(b, c.store, tails)
					before := processorTime(b)
					n := float64(deliverFor(b, c.store, callers, round))
					rates[tails] = append(rates[tails], n)
					costs[tails] = append(costs[tails], float64((processorTime(b)-before).Microseconds())/n)
					told[tails] += stop()
				}
			}
		}
		b.ReportMetric(median(rates[0])/round.Seconds(), "deliveries/s")
		b.ReportMetric(median(costs[0]), "cpu-us/delivery")
		for _, tails := range crowds[1:] {
			if told[tails] == 0 {
				b.Errorf("%d tails were told nothing", tails)
			}
			b.ReportMetric(medianOf(rates[tails], rates[0]), fmt.Sprintf("rate_x_%d_tails", tails))
			b.ReportMetric(medianOf(costs[tails], costs[0]), fmt.Sprintf("cpu_x_%d_tails", tails))
		}
	})
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// medianOf is the median of each as a multiple of its neighbour.
func medianOf(all, neighbours []float64) float64 {
	of := make([]float64, len(all))
	for i := range all {
		of[i] = all[i] / neighbours[i]
	}
	return median(of)
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// deliverFor has callers deliver, each by a grant of its own, and returns how many deliveries that were.
func deliverFor(b *testing.B, s *store.Store, callers int, d time.Duration) (n int64) {
	var all atomic.Int64
	var group sync.WaitGroup
	until := time.Now().Add(d)
	for i := range callers {
		group.Go(func() {
			for time.Now().Before(until) {
				if _, err := s.Deliver(b.Context(), start, order(fmt.Sprint("g", i), "a", "v2")); err != nil {
					b.Error(err)
					return
				}
				all.Add(1)
			}
		})
	}
	group.Wait()
	return all.Load()
}

// follow has so many tails follow the audit from now on, until stop is called, which returns how many events they were told.
func follow(b *testing.B, s *store.Store, tails int) (stop func() int64) {
	hub := tail.New(tail.Config{Source: s, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	var told atomic.Int64
	var running, listening sync.WaitGroup
	running.Go(func() {
		if err := hub.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	for i := range tails {
		listening.Add(1)
		heard := sync.OnceFunc(listening.Done)
		running.Go(func() {
			defer heard()
			err := hub.Tail(ctx, tail.Request{Caller: fmt.Sprint(i / tail.PerCaller), Passes: func(audit.Event) bool { return true }}, func(events []audit.Event, at tail.Position) error {
				heard()
				_ = at.Bytes()
				told.Add(int64(len(events)))
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				b.Errorf("tail %d: %v", i, err)
			}
		})
	}
	listening.Wait()
	return func() int64 {
		cancel()
		running.Wait()
		return told.Load()
	}
}
