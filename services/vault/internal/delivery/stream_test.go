package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// What changes between a stream's first reading and its joining is not missed.
func TestStream_LooksAgainAtWhatChangedBeforeItJoined(t *testing.T) {
	inBubble(t, func(w *world) {
		w.store.read = func() {
			w.store.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(2), retiring(1)} })
			time.Sleep(2 * time.Second) // until the hub has heard of it
		}
		defer w.open()()
		w.after(3 * time.Second)
		w.took("at once", "INITIAL v1 1", "ROTATED v2 2")
	})
}

func TestHub_FirstMessageIsTheWholeState(t *testing.T) {
	inBubble(t, func(w *world) {
		defer w.open()()
		w.took("at once", "INITIAL v1 1")
		d := w.last()
		if d.at != 0 {
			t.Errorf("sent after %v", d.at)
		}
		want := delivery.Delivery{
			LeaseUID: "lease", Generation: 1, Version: 1, Phase: grant.Planning, Access: grant.Read, Reason: delivery.Initial,
			IssueTime: w.began, RefreshTime: w.began.Add(30 * time.Minute), ExpireTime: w.began.Add(time.Hour), GrantExpireTime: w.began.Add(10 * time.Hour),
			Cloud: "public", TenantID: "tenant", ClientID: "client", SubscriptionID: "sub", Material: lease.AccessToken, Audience: arm, Token: d.Token,
			Environment: map[string]string{
				"ARM_TENANT_ID": "tenant", "ARM_CLIENT_ID": "client", "ARM_SUBSCRIPTION_ID": "sub", "ARM_ENVIRONMENT": "public",
				"AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_ID": "client", "ARM_RESOURCE_PROVIDER_REGISTRATIONS": "none",
			},
		}
		if diff := cmp.Diff(want, d.Delivery, cmp.Comparer(secret.Text.Equal)); diff != "" || d.Token.Expose() != "CANARY-1" {
			t.Errorf("message differs: %s", diff)
		}
		record := w.store.delivered[0]
		if record.VersionID != "v1" || record.ClientRequestID != "asked-1" || record.Reason != "INITIAL" || record.Audience != arm {
			t.Errorf("recorded %+v", record)
		}
		if w.store.used != 1 {
			t.Errorf("first use noted %d times", w.store.used)
		}
	})
}

// step is what is done while a stream is up, and what it takes and how it ends in the time after that.
type step struct {
	name string
	do   func(w *world)
	wait time.Duration
	took []string
	end  error
}

func (w *world) check(s step) {
	w.t.Helper()
	w.after(s.wait)
	w.took(s.name, s.took...)
	w.end(s.name, s.end)
}

func TestHub_StreamsFollowWhatChanges(t *testing.T) {
	rotate := func(w *world) {
		w.store.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(2), live(1)} })
	}
	initial := step{name: "open", took: []string{"INITIAL v1 1"}}
	within := pollInterval
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"refreshed before it expires, again and again", []step{
			initial,
			{name: "not yet", wait: 30*time.Minute - time.Second},
			{name: "refresh time", wait: time.Second, took: []string{"REFRESH v1 2"}},
			{name: "next", wait: 30 * time.Minute, took: []string{"REFRESH v1 3"}},
		}},
		{"rotated", []step{
			initial,
			{name: "new version", do: rotate, wait: within, took: []string{"ROTATED v2 2"}},
			{name: "old one removed", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(2)} })
			}, wait: within},
		}},
		{"revoked while open", []step{
			initial,
			{name: "revoked", do: func(w *world) {
				w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.RevokeTime = time.Now() })
			}, wait: within, end: grant.ErrRevoked},
		}},
		{"detached", []step{
			initial,
			{name: "detached", do: func(w *world) { w.store.change("uid", "", func(f *fakeStore) { f.standing.Attached = false }) }, wait: within, end: grant.ErrDetached},
		}},
		{"integration deleted", []step{
			initial,
			{name: "deleted", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.standing.IntegrationLives = false })
			}, wait: within, end: grant.ErrIntegrationDeleted},
		}},
		{"lease closed", []step{
			initial,
			{name: "closed", do: func(w *world) {
				if err := w.hub.CloseLease(w.t.Context(), w.request); err != nil {
					w.t.Error(err)
				}
			}, wait: within, end: lease.ErrClosed},
		}},
		{"expired at the very moment", []step{
			initial,
			{name: "a moment before", wait: 10*time.Hour - time.Microsecond, took: refreshes(19)},
			{name: "at the moment", wait: time.Microsecond, end: grant.ErrExpired},
		}},
		{"extended", []step{
			initial,
			{name: "extended", do: func(w *world) {
				w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(11 * time.Hour) })
			}, wait: within, took: []string{"REFRESH v1 2"}},
			{name: "at the old end", wait: 10*time.Hour - within, took: refreshesFrom(3, 20)},
			{name: "at the new end", wait: time.Hour, took: refreshesFrom(23, 1), end: grant.ErrExpired},
		}},
		{"other integrations' and grants' changes", []step{
			initial,
			{name: "foreign", do: func(w *world) {
				w.store.change("other", "", func(f *fakeStore) { f.standing.Attached = false })
				w.store.change("", "g2", func(*fakeStore) {})
			}, wait: 10 * within},
		}},
		{"another account frozen, then its own", []step{
			initial,
			{name: "another", do: func(w *world) {
				w.store.do(func(f *fakeStore) {
					f.changes = append(f.changes, store.Change{Seq: int64(len(f.changes)) + 1, Account: "other"})
				})
			}, wait: 10 * within},
			{name: "its own", do: func(w *world) {
				w.store.do(func(f *fakeStore) {
					f.standing.Frozen = true
					f.changes = append(f.changes, store.Change{Seq: int64(len(f.changes)) + 1, Account: "acme"})
				})
			}, wait: within, end: grant.ErrAccountFrozen},
		}},
		{"changes forgotten meanwhile", []step{
			initial,
			{name: "gap", do: func(w *world) {
				w.store.change("uid", "", func(f *fakeStore) { f.standing.Attached = false })
				w.store.change("other", "", func(f *fakeStore) { f.forgotten = 1 })
			}, wait: within, end: grant.ErrDetached},
		}},
		{"database restored from a backup", []step{
			{name: "open", do: func(w *world) { rotate(w); rotate(w) }, took: []string{"INITIAL v2 1"}, wait: within},
			{name: "restored", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.changes, f.standing.Attached = nil, false })
			}, wait: within, end: grant.ErrDetached},
		}},
		{"audience allowed no longer", []step{
			{name: "open", do: func(w *world) { w.request.Audience = "https://vault.azure.net/" }, took: []string{"INITIAL v1 1"}},
			{name: "no longer", do: func(w *world) { w.store.change("uid", "", func(f *fakeStore) { f.audiences = nil }) }, wait: within, end: delivery.ErrAudienceNotAllowed},
		}},
		{"consent lost at a rotation", []step{
			initial,
			{name: "lost", do: func(w *world) { w.issuer.fail(issuer.ErrConsentMissing); rotate(w) }, wait: within, end: issuer.ErrConsentMissing},
		}},
		{"no version left", []step{
			initial,
			{name: "gone", do: func(w *world) { w.store.change("uid", "", func(f *fakeStore) { f.versions = nil }) }, wait: within, end: issuer.ErrNotReady},
		}},
		{"registry silent for long", []step{
			initial,
			{name: "silence alone changes nothing", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.standing.BookmarkTime = w.began })
			}, wait: 20 * time.Minute},
			{name: "nothing new is delivered", wait: 10 * time.Minute, end: grant.ErrStale},
		}},
		{"entra away over a refresh", []step{
			initial,
			{name: "away", do: func(w *world) { w.issuer.fail(issuer.ErrEntra) }, wait: 40 * time.Minute},
			{name: "back", do: func(w *world) { w.issuer.fail(nil) }, wait: 10 * time.Second, took: []string{"REFRESH v1 2"}},
		}},
		{"entra away until what is held has expired", []step{
			initial,
			{name: "a moment before", do: func(w *world) { w.issuer.fail(issuer.ErrEntra) }, wait: time.Hour - time.Microsecond},
			{name: "expired", wait: time.Microsecond, end: issuer.ErrEntra},
		}},
		{"database away over a rotation and a refresh", []step{
			initial,
			{name: "away", do: func(w *world) { rotate(w); w.store.do(func(f *fakeStore) { f.down = true }) }, wait: 45 * time.Minute},
			{name: "back", do: func(w *world) { w.store.do(func(f *fakeStore) { f.down = false }) }, wait: 10 * time.Second, took: []string{"ROTATED v2 2"}},
		}},
		{"database away until what is held has expired", []step{
			initial,
			{name: "a moment before", do: func(w *world) { w.store.do(func(f *fakeStore) { f.down = true }) }, wait: time.Hour - time.Microsecond},
			{name: "expired", wait: time.Microsecond, end: sqldb.ErrUnavailable},
		}},
		{"database away at the grant's end", []step{
			{name: "open", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(20 * time.Minute) })
			}, took: []string{"INITIAL v1 1"}},
			{name: "at its end", do: func(w *world) { w.store.do(func(f *fakeStore) { f.down = true }) }, wait: 20 * time.Minute, end: sqldb.ErrUnavailable},
		}},
		{"database away at the end of a grant that was extended through another replica", []step{
			{name: "open", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(20 * time.Minute) })
			}, took: []string{"INITIAL v1 1"}},
			{name: "extended", do: func(w *world) {
				w.store.do(func(f *fakeStore) { f.down = true })
				w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(10 * time.Hour) })
			}, wait: 20*time.Minute - time.Microsecond},
			{name: "at the end that was", wait: time.Microsecond, end: sqldb.ErrUnavailable},
		}},
		{"audience taken back between mint and record", []step{
			{name: "open", do: func(w *world) { w.request.Audience = "https://vault.azure.net/" }, took: []string{"INITIAL v1 1"}},
			{name: "rotated", do: func(w *world) { w.store.do(func(f *fakeStore) { f.policyGone = true }); rotate(w) }, wait: within, end: delivery.ErrAudienceNotAllowed},
		}},
		{"no policy takes Resource Manager back", []step{
			initial,
			{name: "rotated", do: func(w *world) { w.store.do(func(f *fakeStore) { f.policyGone = true }); rotate(w) }, wait: within, took: []string{"ROTATED v2 2"}},
		}},
		{"version taken back between mint and record", []step{
			initial,
			{name: "rotated twice", do: func(w *world) { w.store.do(func(f *fakeStore) { f.goneOnce = true }); rotate(w) }, wait: within, took: []string{"ROTATED v2 2"}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.after(0)
				for i, s := range tt.steps {
					if s.do != nil {
						s.do(w)
					}
					if i == 0 {
						defer w.open()()
					}
					w.check(s)
				}
			})
		})
	}
}

// pollInterval is how soon a change must be heard without a hint.
const pollInterval = time.Second

func refreshes(n int) []string { return refreshesFrom(2, n) }

func refreshesFrom(generation, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint("REFRESH v1 ", generation+i))
	}
	return all
}

func TestHub_HintsAndNudgesMakeItSooner(t *testing.T) {
	for name, sooner := range map[string]func(w *world){
		"hint":  func(w *world) { w.hints <- "anything" },
		"nudge": func(w *world) { w.hub.Nudge() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				defer w.open()()
				w.after(pollInterval / 3)
				w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.RevokeTime = time.Now() })
				w.after(0)
				w.end("before", nil)
				sooner(w)
				w.after(0)
				w.end("after", grant.ErrRevoked)
			})
		})
	}
	t.Run("hints that end", func(t *testing.T) {
		inBubble(t, func(w *world) {
			defer w.open()()
			close(w.hints)
			w.after(0)
			w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.RevokeTime = time.Now() })
			w.after(pollInterval)
			w.end("by polling", grant.ErrRevoked)
		})
	})
}

func TestHub_SlowReaderGetsTheNewestStateAlone(t *testing.T) {
	inBubble(t, func(w *world) {
		w.block = make(chan struct{})
		defer w.open()()
		for number := int64(2); number <= 6; number++ {
			w.store.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(number), live(number - 1)} })
			w.after(2 * pollInterval)
		}
		w.took("not reading")
		w.mu.Lock()
		block := w.block
		w.block = nil
		w.mu.Unlock()
		close(block)
		w.after(0)
		w.took("reading", "INITIAL v1 1", "ROTATED v6 2")
		if !slices.Equal(w.issuer.dropped, []string{"v1"}) {
			t.Errorf("dropped %v", w.issuer.dropped)
		}
	})
}

func TestHub_WaitsForTheProjection(t *testing.T) {
	behind := func(w *world) { w.store.do(func(f *fakeStore) { f.standing.Revision, f.standing.Attached = 4, false }) }
	t.Run("reached in time", func(t *testing.T) {
		inBubble(t, func(w *world) {
			behind(w)
			defer w.open()()
			w.after(5 * time.Second)
			w.took("behind")
			w.store.change("uid", "", func(f *fakeStore) { f.standing.Revision, f.standing.Attached = 5, true })
			w.after(time.Second)
			w.took("reached", "INITIAL v1 1")
		})
	})
	t.Run("not reached", func(t *testing.T) {
		inBubble(t, func(w *world) {
			behind(w)
			defer w.open()()
			w.after(10*time.Second - 1)
			w.end("patient", nil)
			w.after(1)
			w.end("no longer", grant.ErrBehind)
			if _, err := w.hub.Fetch(w.t.Context(), w.request); !errors.Is(err, grant.ErrBehind) {
				t.Errorf("fetch: %v", err)
			}
		})
	})
	t.Run("caller gone", func(t *testing.T) {
		inBubble(t, func(w *world) {
			behind(w)
			cancel := w.open()
			cancel()
			w.after(0)
			w.end("gone", context.Canceled)
		})
	})
}
