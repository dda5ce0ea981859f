package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

func TestHub_RefusesBeforeAnythingIsMinted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   error
	}{
		{"no token", func(w *world) { w.request.Token = secret.Text{} }, grant.ErrUnknown},
		{"no such token", func(w *world) { w.request.Token, _ = grant.Mint() }, grant.ErrUnknown},
		{"another certificate", func(w *world) { w.store.standing.Grant.CertificateSHA256 = "ab" }, grant.ErrCertificate},
		{"another certificate, revoked", func(w *world) {
			w.store.standing.Grant.CertificateSHA256, w.store.standing.Grant.RevokeTime = "ab", w.began
		}, grant.ErrCertificate},
		{"revoked", func(w *world) { w.store.standing.Grant.RevokeTime = w.began }, grant.ErrRevoked},
		{"expired", func(w *world) { w.store.standing.Grant.ExpireTime = w.began }, grant.ErrExpired},
		{"detached", func(w *world) { w.store.standing.Attached = false }, grant.ErrDetached},
		{"stale", func(w *world) { w.store.standing.BookmarkTime = w.began.Add(-time.Hour) }, grant.ErrStale},
		{"closed", func(w *world) { w.store.closed = true }, lease.ErrClosed},
		{"no version", func(w *world) { w.store.versions = nil }, issuer.ErrNotReady},
		{"no version, and no consent", func(w *world) { w.store.versions, w.store.consentLost = nil, w.began }, issuer.ErrConsentMissing},
		{"no secret, and no consent", func(w *world) {
			w.whole()
			w.store.versions, w.store.consentLost = nil, w.began
		}, issuer.ErrConsentMissing},
		{"audience", func(w *world) { w.request.Audience = "https://graph.microsoft.com" }, delivery.ErrAudienceNotAllowed},
		{"secret where nothing is said", func(w *world) { w.request.Material = lease.ClientSecret }, delivery.ErrMaterialNotAllowed},
		{"secret where tokens are given", func(w *world) {
			w.request.Material, w.store.materials = lease.ClientSecret, []lease.Material{lease.AccessToken}
		}, delivery.ErrMaterialNotAllowed},
		{"token where secrets are given", func(w *world) { w.store.materials = []lease.Material{lease.ClientSecret} }, delivery.ErrMaterialNotAllowed},
		{"no material", func(w *world) { w.request.Material = "" }, delivery.ErrMaterialNotAllowed},
		{"secret, nothing active", func(w *world) {
			w.whole()
			w.store.versions = []store.Live{retiring(1)}
		}, issuer.ErrNotReady},
		{"secret that ends too soon", func(w *world) {
			w.whole()
			w.store.versions[0].EndTime = w.began.Add(10*time.Hour + 5*time.Minute - time.Microsecond)
		}, lease.ErrHoldTooLong},
		{"secret that does not open", func(w *world) {
			w.whole()
			w.store.versions[0].Sealed = live(2).Sealed
		}, errSealed},
		{"database away", func(w *world) { w.store.down = true }, sqldb.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.store.do(func(*fakeStore) { tt.change(w) })
				defer w.open()()
				w.end("stream", tt.want)
				if _, err := w.hub.Fetch(w.t.Context(), w.request); !errors.Is(err, tt.want) {
					t.Errorf("fetch: %v, want %v", err, tt.want)
				}
				if errors.Is(tt.want, issuer.ErrNotReady) && w.store.used == 0 {
					t.Error("the token was shown, and that was not noted")
				}
				if w.issuer.minted != 0 || len(w.store.delivered) != 0 {
					t.Errorf("%d minted, %d recorded", w.issuer.minted, len(w.store.delivered))
				}
			})
		})
	}
}

func TestHub_NothingLeavesUnrecorded(t *testing.T) {
	inBubble(t, func(w *world) {
		// The database is lost between the reading and the recording.
		w.hub = delivery.New(delivery.Config{
			LongestHold: 24 * time.Hour,
			Store:       losing{w.store}, Issuer: w.issuer, Log: slog.New(slog.DiscardHandler),
			Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm}},
		})
		if d, err := w.hub.Fetch(w.t.Context(), w.request); !errors.Is(err, sqldb.ErrUnavailable) || !d.Token.IsZero() {
			t.Errorf("fetched %+v, %v", d, err)
		}
		defer w.open()()
		w.took("stream")
		w.end("stream", sqldb.ErrUnavailable)
	})
}

// losing is a database that takes no records.
type losing struct{ *fakeStore }

func (losing) Deliver(context.Context, time.Time, store.Delivery) (lease.Lease, error) {
	return lease.Lease{}, fmt.Errorf("%w: %w", sqldb.ErrUnavailable, sqldb.ErrUnknownOutcome)
}

func (l losing) DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error) {
	return deliverByToken(ctx, l, now, token, instanceID, choose)
}

func TestHub_FetchIsOfTheSameLease(t *testing.T) {
	inBubble(t, func(w *world) {
		defer w.open()()
		request := w.request
		request.Audience = "https://vault.azure.net/"
		d, err := w.hub.Fetch(w.t.Context(), request)
		if err != nil || d.LeaseUID != "lease" || d.Generation != 2 || d.Audience != "https://vault.azure.net" || d.Reason != delivery.Initial {
			t.Errorf("fetched %+v, %v", d, err)
		}
		w.after(30 * time.Minute)
		w.took("stream", "INITIAL v1 1", "REFRESH v1 3")
	})
}

// TestHub_AnInstanceHasFewStreams is against a runner that opens stream after stream: each costs a delivery at every change.
func TestHub_AnInstanceHasFewStreams(t *testing.T) {
	inBubble(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.t.Context())
		var group sync.WaitGroup
		var mu sync.Mutex
		ended := make(map[string]error)
		open := func(name, instance string) {
			request := w.request
			request.InstanceID = instance
			group.Go(func() {
				err := w.hub.Stream(ctx, request, func(delivery.Delivery) error { return nil }, stays)
				mu.Lock()
				defer mu.Unlock()
				ended[name] = err
			})
			synctest.Wait()
		}
		check := func(step string, want ...string) {
			w.t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if got := slices.Sorted(maps.Keys(ended)); !slices.Equal(got, want) {
				w.t.Errorf("%s: ended %q, want %q", step, got, want)
			}
		}
		for _, name := range []string{"1", "2", "3", "4"} {
			open(name, "instance")
		}
		open("other", "another")
		check("four, and another instance's")
		open("5", "instance")
		open("6", "instance")
		check("two more", "1", "2")
		for name, err := range ended {
			if !errors.Is(err, delivery.ErrTooManyStreams) {
				w.t.Errorf("%s ended with %v", name, err)
			}
		}
		cancel()
		group.Wait()
		ctx, cancel = context.WithCancel(w.t.Context())
		clear(ended)
		for _, name := range []string{"7", "8", "9", "10"} {
			open(name, "instance")
		}
		check("four again, after all have left")
		cancel()
		group.Wait()
	})
}
