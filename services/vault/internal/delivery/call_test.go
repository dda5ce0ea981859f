package delivery_test

import (
	"errors"
	"testing"

	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
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
