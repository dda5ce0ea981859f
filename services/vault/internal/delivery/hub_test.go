package delivery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signing"
	"phasekey.dev/services/vault/internal/store"
)

const arm = "https://management.azure.com"

// fakeStore is a database with one grant and one integration.
type fakeStore struct {
	mu         sync.Mutex
	token      grant.Hash
	standing   grant.Standing
	versions   []store.Live
	audiences  []string
	materials  []lease.Material
	changes    []store.Change
	forgotten  int64 // changes up to here are forgotten
	down       bool
	closed     bool
	generation int64
	delivered  []store.Delivery
	used       int
	read       func() // called when an entitlement was read by a token
	reads      int
	goneOnce   bool // the next delivery finds its version gone
	policyGone bool // the next delivery that the policy must allow finds that it does so no longer
	// compromised is up to which version somebody said so.
	compromised int64
	federated   bool
	leaseUID    string // of the one lease, where the delivery chose it
	keys        []signing.Key
	// fanOuts is how many there were; missed is an instance that none reaches. They wait, fail or die.
	fanOuts                 int
	missed                  string
	fanOutWaits             chan struct{}
	fanOutFails, fanOutDies bool
	consentLost             time.Time
}

func (f *fakeStore) GrantByToken(_ context.Context, token grant.Hash) (grant.Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.down:
		return grant.Grant{}, sqldb.ErrUnavailable
	case token != f.token:
		return grant.Grant{}, grant.ErrUnknown
	}
	return f.standing.Grant, nil
}

func (f *fakeStore) EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*store.Entitlement, error) {
	g, err := f.GrantByToken(ctx, token)
	if err != nil {
		return nil, err
	}
	e, err := f.Entitlement(ctx, g.UID, instanceID)
	if f.read != nil {
		f.read()
	}
	return e, err
}

func (f *fakeStore) UseGrant(_ context.Context, now time.Time, _ grant.Hash) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used++
	f.standing.Grant.UseTime = now
	return nil
}

func (f *fakeStore) Entitlement(context.Context, string, string) (*store.Entitlement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if f.down {
		return nil, sqldb.ErrUnavailable
	}
	e := &store.Entitlement{
		Standing: f.standing, Versions: slices.Clone(f.versions), Compromised: f.compromised, ConsentLostTime: f.consentLost,
		Integration: store.Integration{UID: "uid", TenantID: "tenant", Cloud: "public", AllowedAudiences: f.audiences, DeliveryMaterials: f.materials, Federated: f.federated},
		Lease:       lease.Lease{UID: f.leaseUID},
	}
	if f.closed {
		e.Lease.CloseTime = time.Now()
	}
	return e, nil
}

func (f *fakeStore) Deliver(_ context.Context, now time.Time, d store.Delivery) (lease.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return lease.Lease{}, sqldb.ErrUnavailable
	}
	if err := f.standing.Check(now); err != nil {
		return lease.Lease{}, err
	}
	usable := slices.ContainsFunc(f.versions, func(v store.Live) bool { return v.ID == d.VersionID })
	if !usable || f.goneOnce {
		f.goneOnce = false
		return lease.Lease{}, lease.ErrVersionGone
	}
	if f.policyGone && d.PolicyAudience {
		f.audiences = nil
		return lease.Lease{}, lease.ErrVersionGone
	}
	if d.Material == lease.ClientSecret {
		if err := lease.CheckHold(f.standing.Grant.ExpireTime, d.HoldLimit); err != nil {
			return lease.Lease{}, err
		}
	}
	if f.leaseUID == "" {
		f.leaseUID = d.LeaseUID
	}
	if d.LeaseUID != "" && d.LeaseUID != f.leaseUID {
		return lease.Lease{}, lease.ErrVersionGone
	}
	if d.Token != (grant.Hash{}) {
		f.used++
		f.standing.Grant.UseTime = now
	}
	f.generation++
	f.delivered = append(f.delivered, d)
	return lease.Lease{UID: first(f.leaseUID, "lease"), Generation: f.generation}, nil
}

func (f *fakeStore) FanOut(ctx context.Context, now time.Time, o store.FanOut) ([]store.Reached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fanOuts++
	switch {
	case f.down, f.fanOutFails:
		return nil, sqldb.ErrUnavailable
	case f.fanOutDies:
		panic("fan-out") //nolint:forbidigo // what is tested
	}
	out := f.reach(now, o)
	if wait := f.fanOutWaits; wait != nil {
		f.mu.Unlock()
		defer f.mu.Lock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return out, nil
}

func (f *fakeStore) reach(now time.Time, o store.FanOut) []store.Reached {
	out := make([]store.Reached, len(o.To))
	for i, to := range o.To {
		usable := slices.ContainsFunc(f.versions, func(v store.Live) bool { return v.ID == o.VersionID })
		if !usable || f.standing.Check(now) != nil || to.InstanceID == f.missed {
			continue
		}
		f.generation++
		f.delivered = append(f.delivered, store.Delivery{
			GrantUID: to.GrantUID, InstanceID: to.InstanceID, VersionID: o.VersionID, Material: o.Material, Reason: o.Reason, Audience: o.Audience,
			PolicyAudience: o.PolicyAudience, ClientRequestID: o.ClientRequestID, ExpireTime: o.ExpireTime, Caller: to.Caller,
		})
		out[i] = store.Reached{Lease: lease.Lease{UID: first(f.leaseUID, "lease"), Generation: f.generation}, Grant: f.standing.Grant}
	}
	return out
}

func (f *fakeStore) Acknowledge(context.Context, time.Time, string, string, int64, grant.Caller) ([]int64, error) {
	return nil, nil
}

func (f *fakeStore) CloseLease(context.Context, time.Time, string, string, grant.Caller) error {
	f.change("", "g1", func(f *fakeStore) { f.closed = true })
	return nil
}

func (f *fakeStore) Changes(_ context.Context, after int64, limit int) ([]store.Change, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, 0, sqldb.ErrUnavailable
	}
	newest := int64(len(f.changes))
	from := max(after, f.forgotten)
	if limit == 0 || newest <= from {
		return nil, newest, nil
	}
	return slices.Clone(f.changes[from:min(newest, from+int64(limit))]), newest, nil
}

// change does something to the rows and notes it, as one transaction.
func (f *fakeStore) change(integrationUID, grantUID string, do func(f *fakeStore)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f)
	f.changes = append(f.changes, store.Change{Seq: int64(len(f.changes)) + 1, IntegrationUID: integrationUID, GrantUID: grantUID})
}

func (f *fakeStore) do(do func(f *fakeStore)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f)
}

// fakeIssuer keeps a token a version for as long as it is told.
type fakeIssuer struct {
	mu      sync.Mutex
	kept    map[string]issuer.Token
	minted  int
	err     error
	dropped []string
}

func (f *fakeIssuer) Issue(_ context.Context, r issuer.Request) (issuer.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, now := r.Versions[0], time.Now()
	key := v.ID + r.Audience
	if kept, ok := f.kept[key]; ok && now.Before(kept.RenewTime) {
		return kept, nil
	}
	if f.err != nil {
		if kept, ok := f.kept[key]; ok && now.Add(time.Minute).Before(kept.ExpireTime) {
			return kept, nil
		}
		return issuer.Token{}, f.err
	}
	f.minted++
	f.kept[key] = issuer.Token{
		Text: secret.New(fmt.Sprint("CANARY-", f.minted)), IssueTime: now, RenewTime: now.Add(30 * time.Minute), ExpireTime: now.Add(time.Hour),
		RequestID: fmt.Sprint("asked-", f.minted), VersionID: v.ID, VersionNumber: v.Number,
	}
	return f.kept[key], nil
}

func (f *fakeIssuer) Drop(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped = append(f.dropped, id)
}

func (f *fakeIssuer) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// fakeKeyring opens what is sealed by its identity.
type fakeKeyring struct{}

func (fakeKeyring) Open(_ context.Context, identity string, sealed []byte) (secret.Text, error) {
	text, ok := strings.CutPrefix(string(sealed), identity+":")
	if !ok {
		return secret.Text{}, errSealed
	}
	return secret.New(text), nil
}

var errSealed = errors.New("sealed under another identity")

// got is one message a reader took, and when.
type got struct {
	delivery.Delivery
	at time.Duration
}

// world is a hub with a stream.
type world struct {
	t       *testing.T
	began   time.Time
	store   *fakeStore
	issuer  *fakeIssuer
	hints   chan string
	hub     *delivery.Hub
	stop    context.CancelFunc
	request delivery.Request
	log     *bytes.Buffer

	mu      sync.Mutex
	taken   []got
	block   chan struct{} // when not nil, the reader waits for it with each message
	err     error
	ended   time.Duration
	hasEnd  bool
	lastLen int
}

func live(number int64) store.Live {
	id := fmt.Sprint("v", number)
	return store.Live{ClientID: "client", Version: credential.Version{
		ID: id, Number: number, IntegrationUID: "uid", State: credential.Active,
		Sealed: []byte(credential.SealedAs(id) + ":CANARY-secret-" + id), EndTime: time.Now().Add(24 * time.Hour),
	}}
}

// retiring is one that was replaced.
func retiring(number int64) store.Live {
	v := live(number)
	v.State = credential.Retiring
	return v
}

// inBubble runs a case in a bubble whose goroutines must all have ended with it.
func inBubble(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		token, hash := grant.Mint()
		g, err := grant.New(now, "g1", grant.Request{Account: "acme", Project: "accounts/acme/projects/network", Phase: grant.Planning, Run: "r", ExpireTime: now.Add(10 * time.Hour)},
			grant.Resolution{IntegrationUID: "uid", ProjectUID: "network", SubscriptionID: "sub", Incarnation: "registry", Revision: 5})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{
			t: t, began: now,
			store: &fakeStore{
				token: hash, versions: []store.Live{live(1)}, audiences: []string{"https://vault.azure.net"},
				standing: grant.Standing{Grant: g, Incarnation: "registry", Revision: 5, BookmarkTime: now.Add(24 * time.Hour), IntegrationLives: true, ProjectLives: true, Attached: true},
			},
			issuer: &fakeIssuer{kept: map[string]issuer.Token{}}, hints: make(chan string), log: &bytes.Buffer{},
			request: delivery.Request{Token: token, InstanceID: "instance", Material: lease.AccessToken},
		}
		w.hub = delivery.New(delivery.Config{
			LongestHold: 24 * time.Hour,
			Store:       w.store, Issuer: w.issuer, Hints: w.hints, Log: obs.NewLogger(w.log, slog.LevelDebug, obs.FormatText),
			Clouds:  map[string]delivery.Cloud{"public": {ResourceManager: arm, Environment: "public"}},
			Keyring: fakeKeyring{}, HoldMargin: 5 * time.Minute,
			Signer: signer.New(signer.Config{Issuer: "https://issuer.example", Store: w.store, Keyring: fakeKeyring{}, Log: slog.New(slog.DiscardHandler)}),
		})
		ctx, stop := context.WithCancel(t.Context())
		w.stop = stop
		done := make(chan error, 1)
		hub := w.hub // a case may put another one in its place
		go func() { done <- hub.Run(ctx) }()
		test(w)
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if strings.Contains(w.log.String(), "CANARY") || strings.Contains(w.log.String(), token.Expose()) {
			t.Errorf("a secret was logged: %s", w.log)
		}
	})
}

// stays is a reader that does not leave when it is asked to.
func stays(time.Duration) error { return nil }

// open opens the stream; it ends with ctx at the latest.
func (w *world) open() context.CancelFunc {
	ctx, cancel := context.WithCancel(w.t.Context())
	go func() {
		err := w.hub.Stream(ctx, w.request, func(d delivery.Delivery) error {
			w.mu.Lock()
			block := w.block
			w.mu.Unlock()
			if block != nil {
				<-block
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.taken = append(w.taken, got{d, time.Since(w.began)})
			return nil
		}, stays)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err, w.ended, w.hasEnd = err, time.Since(w.began), true
	}()
	synctest.Wait()
	return cancel
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// took checks what the reader took since the last call: "REASON version generation" each.
func (w *world) took(step string, want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var have []string
	for _, m := range w.taken[w.lastLen:] {
		have = append(have, fmt.Sprintf("%s v%d %d", m.Reason, m.Version, m.Generation))
	}
	w.lastLen = len(w.taken)
	if !slices.Equal(have, want) {
		w.t.Errorf("%s: took %q, want %q", step, have, want)
	}
}

// last is the newest message.
func (w *world) last() got {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.taken[len(w.taken)-1]
}

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

// whole has the request be for the secret, and the integration give it.
func (w *world) whole() {
	w.request.Material, w.store.materials = lease.ClientSecret, []lease.Material{lease.AccessToken, lease.ClientSecret}
}

// end checks that the stream is up (want nil), or how it ended.
func (w *world) end(step string, want error) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hasEnd != (want != nil) || !errors.Is(w.err, want) {
		w.t.Errorf("%s: ended %v with %v, want %v", step, w.hasEnd, w.err, want)
	}
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

func TestHub_StreamsFollowWhatChanges(t *testing.T) {
	type step struct {
		name string
		do   func(w *world)
		wait time.Duration
		took []string
		end  error
	}
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
					w.after(s.wait)
					w.took(s.name, s.took...)
					w.end(s.name, s.end)
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
