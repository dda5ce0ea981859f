package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/store"
)

// left is how one of many streams went.
type left struct {
	asked, ended time.Duration // since the draining began
	within       time.Duration // what it was asked
	err          error
}

// drain opens streams and drains the hub within a time. Each stream's reader leaves so long after it was asked as leaves says; negative is never.
func drain(w *world, streams int, limit time.Duration, leaves func(i int, within time.Duration) time.Duration) (all []left, took time.Duration) {
	w.t.Helper()
	all = make([]left, streams)
	var began time.Time
	var group sync.WaitGroup
	for i := range streams {
		group.Go(func() {
			request := w.request
			request.InstanceID = fmt.Sprint("instance-", i)
			reading, leave := context.WithCancel(w.t.Context())
			defer leave()
			all[i].err = w.hub.Stream(reading, request, func(delivery.Delivery) error { return nil }, func(within time.Duration) error {
				all[i].asked, all[i].within = time.Since(began), within
				if after := leaves(i, within); after >= 0 {
					// Never at once: timers that are over as they are set, in several of a bubble's goroutines, break Go 1.26's race detector.
					time.AfterFunc(max(after, 1), leave)
				}
				return nil
			})
			all[i].ended = time.Since(began)
		})
	}
	w.after(time.Second)
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	began = time.Now()
	sentAway := 0
	// Both listeners drain.
	group.Go(func() { w.hub.Drain(ctx, func() {}) })
	w.hub.Drain(ctx, func() {
		sentAway++
		if took := time.Since(began); took != 0 {
			w.t.Errorf("sent away after %v", took)
		}
	})
	took = time.Since(began)
	group.Wait()
	if sentAway != 1 {
		w.t.Errorf("sent away %d times", sentAway)
	}
	defer w.open()()
	w.end("afterwards", delivery.ErrDraining)
	return all, took
}

func TestHub_DrainLetsStreamsLeaveByThemselves(t *testing.T) {
	for _, tt := range []struct {
		streams int
		within  time.Duration
	}{
		{1, 20 * time.Millisecond},
		{10, 200 * time.Millisecond},
		// However many there are, half of the time is left to those who are slow to go.
		{250, 2500 * time.Millisecond},
	} {
		t.Run(fmt.Sprint(tt.streams), func(t *testing.T) {
			inBubble(t, func(w *world) {
				all, took := drain(w, tt.streams, 5*time.Second, func(i int, within time.Duration) time.Duration {
					// The last one needs a second to be delivered to elsewhere.
					return within*time.Duration(i)/time.Duration(tt.streams) + time.Second
				})
				for i, l := range all {
					if l.asked != 0 || l.within != tt.within || !errors.Is(l.err, context.Canceled) {
						t.Errorf("stream %d: %+v, want it asked within %v, and leave", i, l, tt.within)
					}
				}
				if took > tt.within+time.Second {
					t.Errorf("took %v: it waited when all had left", took)
				}
			})
		})
	}
}

func TestHub_DrainTellsThoseWhoStay(t *testing.T) {
	for _, streams := range []int{10, 250} {
		t.Run(fmt.Sprint(streams), func(t *testing.T) {
			inBubble(t, func(w *world) {
				all, took := drain(w, streams, 5*time.Second, func(i int, _ time.Duration) time.Duration { return time.Duration(i%2 - 1) })
				var ended []time.Duration
				for i, l := range all {
					want := context.Canceled
					if i%2 == 0 {
						want = delivery.ErrDraining
						ended = append(ended, l.ended)
						if patience := l.within + 1250*time.Millisecond; l.ended < patience {
							t.Errorf("stream %d ended after %v, and had until %v to leave", i, l.ended, patience)
						}
					}
					if !errors.Is(l.err, want) {
						t.Errorf("stream %d: %v, want %v", i, l.err, want)
					}
				}
				slices.Sort(ended)
				if n := len(slices.Compact(ended)); n < streams/2 {
					t.Errorf("they ended at once: %v", ended)
				}
				if took > 4500*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// As long as runners find another replica, however slowly, none is told to go; but not for ever.
func TestHub_DrainWaitsWhileStreamsLeave(t *testing.T) {
	inBubble(t, func(w *world) {
		const each = 1400 * time.Millisecond
		all, took := drain(w, 50, time.Minute, func(i int, _ time.Duration) time.Duration { return time.Duration(i+1) * each })
		for i, l := range all {
			if moved := errors.Is(l.err, context.Canceled); moved != (time.Duration(i+1)*each < 45*time.Second) {
				t.Errorf("stream %d, which leaves after %v, ended with %v", i, time.Duration(i+1)*each, l.err)
			}
		}
		if took < 45*time.Second || took > 50*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// What changed at the same moment is delivered before the reader has left.
func TestHub_DrainLosesNoChange(t *testing.T) {
	inBubble(t, func(w *world) {
		defer w.open()()
		w.took("at first", "INITIAL v1 1")
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		w.store.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(2), retiring(1)} })
		var draining sync.WaitGroup
		draining.Go(func() { w.hub.Drain(ctx, func() {}) })
		w.hub.Nudge()
		synctest.Wait()
		w.took("while draining", "ROTATED v2 2")
		draining.Wait()
		w.end("told", delivery.ErrDraining)
	})
}

// Who still waited for its first credential when the replica began to stop is asked to leave once it has that, and told to go when it does not.
func TestHub_DrainAsksWhoHasYetToBegin(t *testing.T) {
	inBubble(t, func(w *world) {
		w.store.do(func(f *fakeStore) { f.standing.Revision, f.standing.Attached = 4, false }) // the copy of the registry is behind
		ctx, cancel := context.WithTimeout(w.t.Context(), 8*time.Second)
		defer cancel()
		asked := make(chan time.Duration, 1)
		over := make(chan error, 1)
		go func() {
			over <- w.hub.Stream(w.t.Context(), w.request, func(delivery.Delivery) error { return nil }, func(within time.Duration) error {
				asked <- within
				return nil
			})
		}()
		synctest.Wait()
		var draining sync.WaitGroup
		draining.Go(func() { w.hub.Drain(ctx, func() {}) })
		w.after(time.Second)
		if len(asked) > 0 {
			t.Error("asked before it began")
		}
		w.store.do(func(f *fakeStore) { f.standing.Revision, f.standing.Attached = 5, true })
		w.after(500 * time.Millisecond)
		if len(asked) != 1 {
			t.Error("not asked")
		}
		draining.Wait()
		if err := <-over; !errors.Is(err, delivery.ErrDraining) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestHub_DrainOfNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		sentAway := false
		w.hub.Drain(w.t.Context(), func() { sentAway = true }) // returns although there is no deadline: nothing is to be waited for
		if !sentAway {
			t.Error("nobody was sent away")
		}
	})
}

func TestHub_DrainDoesNotWaitForEver(t *testing.T) {
	inBubble(t, func(w *world) {
		w.block = make(chan struct{})
		defer w.open()()
		defer close(w.block)
		w.after(0)
		ctx, cancel := context.WithTimeout(w.t.Context(), 3*time.Second)
		defer cancel()
		w.hub.Drain(ctx, func() {})
		if took := time.Since(w.began); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
