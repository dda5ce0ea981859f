package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// With the token at hand a delivery is recorded in the transaction that finds the grant: whoever may not call must be turned away before.
func TestHub_NothingIsRecordedForWhoMayNotCall(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   error
	}{
		{"with a foreign certificate", func(w *world) {
			w.store.do(func(f *fakeStore) { f.standing.Grant.CertificateSHA256 = "ab" })
			w.request.CertificateSHA256 = "cd"
		}, grant.ErrUnknown},
		{"too often", func(w *world) {
			for range 400 {
				_ = w.hub.CloseLease(w.t.Context(), w.request)
			}
		}, delivery.ErrTooManyCalls},
		{"by a grant that is over", func(w *world) {
			w.store.do(func(f *fakeStore) { f.standing.Grant.RevokeTime = f.standing.Grant.CreateTime })
		}, grant.ErrRevoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				fetch := func() error {
					_, err := w.hub.Fetch(w.t.Context(), w.request)
					return err
				}
				for range 2 {
					if err := fetch(); err != nil {
						w.t.Fatal(err)
					}
				}
				if w.issuer.minted != 1 {
					w.t.Fatalf("%d minted", w.issuer.minted)
				}
				tt.change(w)
				before := len(w.store.delivered)
				if err := fetch(); !errors.Is(err, tt.want) {
					w.t.Errorf("%v, want %v", err, tt.want)
				}
				defer w.open()()
				w.end("stream", tt.want)
				if n := len(w.store.delivered) - before; n != 0 {
					w.t.Errorf("%d recorded", n)
				}
			})
		})
	}
}

func TestHub_NothingIsRecordedForWhoComesToAReplicaThatStops(t *testing.T) {
	inBubble(t, func(w *world) {
		if _, err := w.hub.Fetch(w.t.Context(), w.request); err != nil {
			w.t.Fatal(err)
		}
		w.hub.Drain(w.t.Context(), func() {})
		defer w.open()()
		w.end("stream", delivery.ErrDraining)
		if n := len(w.store.delivered); n != 1 {
			w.t.Errorf("%d recorded", n-1)
		}
	})
}

// doubtful is a database that repeats each transaction, and of the first so many commits does not know whether they were made.
type doubtful struct {
	*fakeStore
	unknown, chosen int
}

func (d *doubtful) DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error) {
	again := func(e *store.Entitlement) (store.Delivery, error) {
		_, _ = choose(e)
		d.chosen++
		return choose(e)
	}
	l, err := deliverByToken(ctx, d.fakeStore, now, token, instanceID, again)
	if d.unknown > 0 {
		d.unknown--
		return lease.Lease{}, fmt.Errorf("%w: %w", sqldb.ErrUnavailable, sqldb.ErrUnknownOutcome)
	}
	return l, err
}

func TestHub_WhatIsRecordedAtOnceIsRecordedAndCountedOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		database, counts := &doubtful{fakeStore: w.store}, &fakeCounts{counts: map[grant.Count]int64{}}
		meter := delivery.NewMeter(counts, slog.New(slog.DiscardHandler))
		hub := delivery.New(delivery.Config{
			Store: database, Issuer: w.issuer, Log: slog.New(slog.DiscardHandler), Meter: meter,
			Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm}},
		})
		fetch := func() error {
			_, err := hub.Fetch(w.t.Context(), w.request)
			return err
		}
		for range 2 { // of which the first has its token made
			if err := fetch(); err != nil {
				w.t.Fatal(err)
			}
		}
		over, end := context.WithCancel(w.t.Context())
		end()
		if err := meter.Run(over); err != nil {
			w.t.Error(err)
		}
		if n := counts.counts[grant.Count{Account: "acme", Hour: grant.HourOf(time.Now())}]; n != 2 {
			w.t.Errorf("%d counted", n)
		}
		database.unknown = 1
		before, chosen := len(w.store.delivered), database.chosen
		if err := fetch(); !errors.Is(err, sqldb.ErrUnknownOutcome) {
			w.t.Errorf("of unknown outcome: %v", err)
		}
		if n := len(w.store.delivered) - before; n != 1 || database.chosen != chosen+1 {
			w.t.Errorf("recorded %d times, after an outcome that is not known", n)
		}
		passed := 3
		for range 400 {
			if fetch() == nil {
				passed++
			}
		}
		if passed != 300 {
			w.t.Errorf("%d calls by one grant at once, want 300", passed)
		}
	})
}
