package delivery_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

func TestHub_SecretIsTheActiveVersionsUntilTheGrantsEnd(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		w.store.versions = []store.Live{live(2), retiring(1)}
		w.issuer.fail(issuer.ErrEntra) // Entra is not asked
		defer w.open()()
		w.took("at once", "INITIAL v2 1")
		d, end := w.last().Delivery, w.began.Add(10*time.Hour)
		want := delivery.Delivery{
			LeaseUID: "lease", Generation: 1, Version: 2, Phase: grant.Planning, Access: grant.Read, Reason: delivery.Initial,
			IssueTime: w.began, RefreshTime: end, ExpireTime: end, GrantExpireTime: end,
			Cloud: "public", TenantID: "tenant", ClientID: "client", SubscriptionID: "sub", Material: lease.ClientSecret, Secret: d.Secret,
			Environment: map[string]string{
				"ARM_TENANT_ID": "tenant", "ARM_CLIENT_ID": "client", "ARM_SUBSCRIPTION_ID": "sub", "ARM_ENVIRONMENT": "public",
				"AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_ID": "client", "ARM_RESOURCE_PROVIDER_REGISTRATIONS": "none",
			},
		}
		if diff := cmp.Diff(want, d, cmp.Comparer(secret.Text.Equal)); diff != "" || d.Secret.Expose() != "CANARY-secret-v2" {
			t.Errorf("message differs: %s", diff)
		}
		record := w.store.delivered[0]
		if record.VersionID != "v2" || record.Material != lease.ClientSecret || record.Audience != "" || record.ClientRequestID != "" ||
			!record.ExpireTime.Equal(end) || !record.HoldLimit.Equal(w.store.versions[0].EndTime.Add(-5*time.Minute)) {
			t.Errorf("recorded %+v", record)
		}
		if fetched, err := w.hub.Fetch(t.Context(), w.request); err != nil || fetched.Secret.Expose() != "CANARY-secret-v2" || fetched.Generation != 2 {
			t.Errorf("fetched %+v, %v", fetched, err)
		}
		w.after(10*time.Hour - time.Microsecond)
		w.took("all the while nothing")
		w.end("a moment before the end", nil)
		w.after(time.Microsecond)
		w.end("at the grant's end", grant.ErrExpired)
		if w.issuer.minted != 0 {
			t.Errorf("%d tokens were minted", w.issuer.minted)
		}
	})
}

// Its integration's master hears of it, and makes another one.
func TestHub_ASecretThatCannotBeOpenedIsToldToItsMaster(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		lost := live(2)
		lost.Sealed = []byte("not by this identity")
		w.store.versions = []store.Live{lost}
		if _, err := w.hub.Fetch(t.Context(), w.request); !errors.Is(err, issuer.ErrNotReady) {
			t.Errorf("fetched: %v", err)
		}
		if len(w.store.probesWanted) != 1 || w.store.probesWanted[0] != lost.IntegrationUID || lost.IntegrationUID == "" {
			t.Errorf("told are the masters of %q", w.store.probesWanted)
		}
	})
}

func TestHub_StreamsOfSecretsFollowWhatChanges(t *testing.T) {
	versions := func(all ...func() store.Live) func(w *world) {
		return func(w *world) {
			w.store.change("uid", "", func(f *fakeStore) {
				f.versions = nil
				for _, v := range all {
					f.versions = append(f.versions, v())
				}
			})
		}
	}
	active := func(n int64) func() store.Live { return func() store.Live { return live(n) } }
	replaced := func(n int64) func() store.Live { return func() store.Live { return retiring(n) } }
	short := func() store.Live {
		v := live(2)
		v.EndTime = time.Now().Add(time.Hour)
		return v
	}
	extend := func(to time.Duration) func(w *world) {
		return func(w *world) {
			w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(to) })
		}
	}
	initial := step{name: "open", took: []string{"INITIAL v1 1"}}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"rotated", []step{
			initial,
			{name: "new version", do: versions(active(2), replaced(1)), wait: pollInterval, took: []string{"ROTATED v2 2"}},
			{name: "nothing else", wait: time.Hour},
		}},
		{"extended", []step{
			initial,
			{name: "extended", do: extend(11 * time.Hour), wait: pollInterval, took: []string{"REFRESH v1 2"}},
			{name: "at the old end", wait: 10 * time.Hour},
			{name: "at the new end", wait: time.Hour, end: grant.ErrExpired},
		}},
		{"extended and rotated", []step{
			initial,
			{name: "both", do: func(w *world) { extend(11 * time.Hour)(w); versions(active(2), replaced(1))(w) }, wait: pollInterval, took: []string{"ROTATED v2 2"}},
			{name: "at the new end", wait: 11 * time.Hour, end: grant.ErrExpired},
		}},
		{"policy withdrawn", []step{
			initial,
			{name: "withdrawn", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.materials = nil })
			}, wait: pollInterval, end: delivery.ErrMaterialNotAllowed},
		}},
		{"a successor that ends before the grant", []step{
			initial,
			{name: "what is held stays", do: versions(short, replaced(1)), wait: 5 * time.Hour},
			{name: "one that does not", do: versions(active(3), replaced(2), replaced(1)), wait: pollInterval, took: []string{"ROTATED v3 2"}},
		}},
		{"no successor", []step{
			initial,
			{name: "what is held stays", do: versions(replaced(1)), wait: 5 * time.Hour},
			{name: "there is one", do: versions(active(2), replaced(1)), wait: pollInterval, took: []string{"ROTATED v2 2"}},
		}},
		{"a successor that was refused", []step{
			initial,
			{name: "what is held stays", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) {
					f.versions = []store.Live{live(2), retiring(1)}
					f.versions[0].Refusals = 1
				})
			}, wait: time.Hour},
			{name: "extended meanwhile", do: extend(11 * time.Hour), wait: time.Hour},
			{name: "it works again, without a change", do: func(w *world) { w.store.do(func(f *fakeStore) { f.versions[0].Refusals = 0 }) }, wait: 10 * time.Second, took: []string{"ROTATED v2 2"}},
			{name: "at the new end", wait: 11 * time.Hour, end: grant.ErrExpired},
		}},
		{"compromised", []step{
			initial,
			{name: "new version", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.versions, f.compromised = []store.Live{live(2)}, 1 })
			}, wait: pollInterval, took: []string{"COMPROMISED v2 2"}},
			{name: "another one", do: versions(active(3), replaced(2)), wait: pollInterval, took: []string{"ROTATED v3 3"}},
		}},
		{"compromised, with a gap", []step{
			initial,
			{name: "gone", do: func(w *world) { w.store.change("uid", "", func(f *fakeStore) { f.versions, f.compromised = nil, 1 }) }, wait: time.Hour},
			{name: "new version", do: versions(active(2)), wait: pollInterval, took: []string{"COMPROMISED v2 2"}},
		}},
		{"what is held is gone", []step{
			initial,
			{name: "gone", do: versions(replaced(2)), wait: pollInterval, end: issuer.ErrNotReady},
		}},
		{"rotated twice between opening and recording", []step{
			initial,
			{name: "gone once", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.goneOnce = true })
				versions(active(2), replaced(1))(w)
			}, wait: pollInterval, took: []string{"ROTATED v2 2"}},
		}},
		{"database away over a rotation", []step{
			initial,
			{name: "away", do: func(w *world) {
				versions(active(2), replaced(1))(w)
				w.store.do(func(f *fakeStore) { f.down = true })
			}, wait: 2 * time.Hour},
			{name: "back", do: func(w *world) { w.store.do(func(f *fakeStore) { f.down = false }) }, wait: 10 * time.Second, took: []string{"ROTATED v2 2"}},
		}},
		{"database away at the grant's end", []step{
			initial,
			{name: "at its end", do: func(w *world) { w.store.do(func(f *fakeStore) { f.down = true }) }, wait: 10 * time.Hour, end: sqldb.ErrUnavailable},
		}},
		{"integration deleted", []step{
			initial,
			{name: "deleted", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.standing.IntegrationLives = false })
			}, wait: pollInterval, end: grant.ErrIntegrationDeleted},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.whole()
				w.after(0)
				defer w.open()()
				for _, s := range tt.steps {
					if s.do != nil {
						s.do(w)
					}
					w.check(s)
				}
				if w.store.reads > 5000 {
					t.Errorf("the database was asked %d times", w.store.reads)
				}
			})
		})
	}
}

// TestHub_SaysThatWhatIsHeldWasCompromised has somebody hold a secret that was taken back while consent is known to be lost.
func TestHub_SaysThatWhatIsHeldWasCompromised(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		w.store.consentLost = w.began
		defer w.open()()
		for _, s := range []step{
			{name: "open", took: []string{"INITIAL v1 1"}},
			{name: "taken back", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.versions, f.compromised = nil, 1 })
			}, wait: time.Hour},
			{name: "consent is back", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.versions, f.consentLost = []store.Live{live(2)}, time.Time{} })
			}, wait: pollInterval, took: []string{"COMPROMISED v2 2"}},
		} {
			if s.do != nil {
				s.do(w)
			}
			w.check(s)
		}
	})
}

func TestHub_NobodyIsGivenASecretThatWasRefused(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		w.store.versions = []store.Live{live(2), retiring(1)}
		w.store.versions[0].Refusals = 1
		if _, err := w.hub.Fetch(t.Context(), w.request); !errors.Is(err, issuer.ErrNotReady) {
			t.Errorf("refused with %v", err)
		}
		if len(w.store.delivered) != 0 {
			t.Errorf("recorded are %+v", w.store.delivered)
		}
	})
}

func TestHub_NoSecretLeavesUnrecorded(t *testing.T) {
	inBubble(t, func(w *world) {
		w.whole()
		w.hub = delivery.New(delivery.Config{
			LongestHold: 24 * time.Hour,
			Store:       losing{w.store}, Issuer: w.issuer, Keyring: fakeKeyring{}, Clouds: map[string]delivery.Cloud{"public": {ResourceManager: arm}},
		})
		if d, err := w.hub.Fetch(w.t.Context(), w.request); err == nil || !d.Secret.IsZero() {
			t.Errorf("fetched %+v, %v", d, err)
		}
	})
}

func TestMaterialError_NamesTheMaterial(t *testing.T) {
	inBubble(t, func(w *world) {
		w.request.Material = lease.ClientSecret
		_, err := w.hub.Fetch(t.Context(), w.request)
		if refusal := (*delivery.MaterialError)(nil); !errors.As(err, &refusal) || refusal.Material != lease.ClientSecret {
			t.Errorf("refused with %v", err)
		}
	})
}
