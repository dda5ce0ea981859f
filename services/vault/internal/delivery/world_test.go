package delivery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
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
	keys        []signingkey.Key
	// fanOuts is how many there were; missed is an instance that none reaches. They come late, wait when they are recorded, fail or die.
	fanOuts                 int
	missed                  string
	fanOutComes             chan struct{}
	fanOutWaits             chan struct{}
	fanOutFails, fanOutDies bool
	judged                  int // how often Entitled was asked
	// fanOutBy says by what grant it goes to an instance; nil by the standing one.
	fanOutBy     func(instanceID string, g *grant.Grant)
	consentLost  time.Time
	probesWanted []string // by integrations
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

func (f *fakeStore) DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error) {
	return deliverByToken(ctx, f, now, token, instanceID, choose)
}

// deliverByToken does it one after the other.
func deliverByToken(ctx context.Context, by interface {
	EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*store.Entitlement, error)
	Deliver(ctx context.Context, now time.Time, d store.Delivery) (lease.Lease, error)
}, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error) {
	e, err := by.EntitlementByToken(ctx, token, instanceID)
	if err != nil {
		return lease.Lease{}, err
	}
	d, err := choose(e)
	if err != nil {
		return lease.Lease{}, err
	}
	d.GrantUID, d.InstanceID = e.Grant.UID, instanceID
	if e.Grant.UseTime.IsZero() {
		d.Token = token
	}
	return by.Deliver(ctx, now, d)
}

func (f *fakeStore) WantProbe(_ context.Context, integrationUID string, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probesWanted = append(f.probesWanted, integrationUID)
	return nil
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
	if comes := f.fanOutComes; comes != nil {
		f.mu.Unlock()
		select {
		case <-comes:
		case <-ctx.Done():
		}
		f.mu.Lock()
	}
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

func (f *fakeStore) Entitled(_ context.Context, now time.Time, o store.FanOut) ([]store.Reached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judged++
	if f.down {
		return nil, sqldb.ErrUnavailable
	}
	out := make([]store.Reached, len(o.To))
	for i, to := range o.To {
		if f.standing.Check(now) == nil && to.InstanceID != f.missed {
			out[i] = store.Reached{Lease: lease.Lease{UID: first(f.leaseUID, "lease")}, Grant: f.standing.Grant}
		}
		if f.fanOutBy != nil {
			f.fanOutBy(to.InstanceID, &out[i].Grant)
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
		if f.fanOutBy != nil {
			f.fanOutBy(to.InstanceID, &out[i].Grant)
		}
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

func (f *fakeIssuer) Kept(r issuer.Request) (issuer.Token, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept, ok := f.kept[r.Versions[0].ID+r.Audience]
	return kept, ok && time.Now().Before(kept.RenewTime)
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

var errSealed = fmt.Errorf("sealed under another identity: %w", keyring.ErrCorrupt)

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
