package delivery_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// lookedAt counts how often tokens are looked up.
type lookedAt struct {
	*fakeStore
	n atomic.Int64
}

func (l *lookedAt) GrantByToken(ctx context.Context, token grant.Hash) (grant.Grant, error) {
	l.n.Add(1)
	return l.fakeStore.GrantByToken(ctx, token)
}

func (l *lookedAt) EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*store.Entitlement, error) {
	l.n.Add(1)
	return l.fakeStore.EntitlementByToken(ctx, token, instanceID)
}

func (l *lookedAt) DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error) {
	return deliverByToken(ctx, l, now, token, instanceID, choose)
}

// watched is a hub whose lookups are counted.
func (w *world) watched() (*delivery.Hub, *lookedAt) {
	looked := &lookedAt{fakeStore: w.store}
	return delivery.New(delivery.Config{
		Store: looked, Issuer: w.issuer, Log: obs.NewLogger(w.log, slog.LevelDebug, obs.FormatText), Keyring: fakeKeyring{}, HoldMargin: 5 * time.Minute,
		Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm, Environment: "public"}},
	}), looked
}

func (w *world) from(source string, change ...func(*delivery.Request)) delivery.Request {
	r := w.request
	r.Source = source
	for _, f := range change {
		f(&r)
	}
	return r
}

func fresh(r *delivery.Request) { r.Token, _ = grant.Mint() }

func TestGuard_GuessesCostOneReadEachUntilThereAreTooMany(t *testing.T) {
	inBubble(t, func(w *world) {
		hub, looked := w.watched()
		fetch := func(r delivery.Request) error {
			_, err := hub.Fetch(t.Context(), r)
			return err
		}
		for range 2000 {
			if err := fetch(w.from("192.0.2.1", func(r *delivery.Request) { r.Token = secret.New("pkg_" + r.Token.Expose()[5:] + "0") })); !errors.Is(err, grant.ErrUnknown) {
				t.Fatalf("no token: %v", err)
			}
		}
		if n := looked.n.Load(); n != 0 {
			t.Errorf("%d reads for what is no token", n)
		}
		for i := range 600 {
			if err := fetch(w.from("192.0.2.1", fresh)); !errors.Is(err, grant.ErrUnknown) {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		if n := looked.n.Load(); n != 600 {
			t.Errorf("%d reads for 600 guesses", n)
		}
		for name, r := range map[string]delivery.Request{"a guess": w.from("192.0.2.1", fresh), "the right token": w.from("192.0.2.1")} {
			var rate *delivery.RateError
			if err := fetch(r); !errors.As(err, &rate) || !errors.Is(err, delivery.ErrTooManyCalls) || rate.Wait <= 0 || rate.Wait > 100*time.Millisecond {
				t.Errorf("%s from there: %v", name, err)
			}
			if err := hub.CloseLease(t.Context(), r); !errors.Is(err, delivery.ErrTooManyCalls) {
				t.Errorf("%s from there, to close: %v", name, err)
			}
		}
		if n := looked.n.Load(); n != 600 {
			t.Errorf("%d reads for those that are refused", n-600)
		}
		if err := fetch(w.from("192.0.2.2")); err != nil {
			t.Errorf("the right token from elsewhere: %v", err)
		}
		time.Sleep(time.Second)
		if err := fetch(w.from("192.0.2.1")); err != nil {
			t.Errorf("the right token, a second later: %v", err)
		}
	})
}

func TestGuard_AForeignCertificateIsToldNothingAndCounts(t *testing.T) {
	inBubble(t, func(w *world) {
		hub, looked := w.watched()
		w.store.do(func(f *fakeStore) { f.standing.Grant.CertificateSHA256 = "ab" })
		foreign := w.from("192.0.2.1", func(r *delivery.Request) { r.CertificateSHA256 = "cd" })
		for i := range 600 {
			_, err := hub.Fetch(t.Context(), foreign)
			if !errors.Is(err, grant.ErrUnknown) {
				t.Fatalf("attempt %d: %v", i, err)
			}
		}
		if _, err := hub.Fetch(t.Context(), foreign); !errors.Is(err, delivery.ErrTooManyCalls) || looked.n.Load() != 600 {
			t.Errorf("after 600: %v, %d reads", err, looked.n.Load())
		}
		if _, err := hub.Fetch(t.Context(), w.from("192.0.2.2", func(r *delivery.Request) { r.CertificateSHA256 = "ab" })); err != nil {
			t.Errorf("its own certificate, from elsewhere: %v", err)
		}
	})
}

func TestGuard_AGrantIsShownSoOften(t *testing.T) {
	inBubble(t, func(w *world) {
		hub, _ := w.watched()
		passed := func() (n int) {
			for i := range 400 {
				source := []string{"192.0.2.1", "192.0.2.2"}[i%2]
				switch _, err := hub.Fetch(t.Context(), w.from(source)); {
				case err == nil:
					n++
				case !errors.Is(err, delivery.ErrTooManyCalls):
					t.Fatalf("call %d: %v", i, err)
				}
			}
			return n
		}
		if n := passed(); n != 300 {
			t.Errorf("%d of 400 calls at once, want 300", n)
		}
		time.Sleep(3 * time.Second)
		if n := passed(); n != 30 {
			t.Errorf("%d calls three seconds later, want 30", n)
		}
	})
}
