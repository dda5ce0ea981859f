// Package delivery serves runners: it authenticates grants, mints tokens or opens secrets, has each delivery recorded before it
// leaves, keeps the streams of this replica up to date for as long as their grants live, and sees to it that what a grant
// held is released when it is over.
//
// It guarantees that nothing leaves without a committed audit record; that a change which the database knows reaches every
// stream within the polling interval, sooner with a hint; that a stream ends with a final error at the moment its grant
// does; and that a reader who is slow gets the newest state, never a queue, for nothing is made before the one before it was
// taken. It does not guarantee that a runner hears of an end while the database is down: then a stream stays up on what it
// holds, until that or the grant expires, as far as this replica knows, and ends with what is not final: only the database knows
// whether the grant was extended meanwhile.
//
// The tricky idea: a change is a reason to look, not a message. A wake-up that comes while a stream reads, mints or sends waits in a channel of one,
// and makes it look again; so does any that came between a stream's first reading and its joining. So nothing is missed, nothing
// is kept for it, and each stream costs the one goroutine that its handler runs on. Streams that wait and hold the same, and whose integration has rotated, are spared the look: they
// are given what was made and recorded for all of them. A stream that was taken for that may look by itself meanwhile; what it has is never replaced by an older generation, or by what was meant to replace something else.
package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/store"
)

const (
	pollEvery   = time.Second
	pollTimeout = 5 * time.Second
	pollLimit   = 1000
	// maxStreams is how many streams one runner instance may have: the one it reads, the one it opens before it lets go of
	// that, and broken ones that nobody has noticed yet. Each costs a delivery, on record, at every change.
	maxStreams = 4
	// drainStep is how far apart streams go when the replica stops, so that they do not all come back at once elsewhere.
	drainStep = 20 * time.Millisecond
	// moveTime is what runners have to be delivered to elsewhere, after the moment at which the last one asks, and again as long as they leave.
	moveTime = 2 * time.Second
	// longestDrain is the time for all of that where there is no bound.
	longestDrain = 2 * time.Minute
)

// database is what the hub needs of the store.
type database interface {
	GrantByToken(ctx context.Context, token grant.Hash) (grant.Grant, error)
	UseGrant(ctx context.Context, now time.Time, token grant.Hash) error
	EntitlementByToken(ctx context.Context, token grant.Hash, instanceID string) (*store.Entitlement, error)
	Entitlement(ctx context.Context, grantUID, instanceID string) (*store.Entitlement, error)
	SigningKeyCompromised(ctx context.Context, id string) (bool, error)
	WantProbe(ctx context.Context, integrationUID string, now time.Time) error
	Deliver(ctx context.Context, now time.Time, d store.Delivery) (lease.Lease, error)
	DeliverByToken(ctx context.Context, now time.Time, token grant.Hash, instanceID string, choose store.Choice) (lease.Lease, error)
	FanOut(ctx context.Context, now time.Time, f store.FanOut) ([]store.Reached, error)
	Entitled(ctx context.Context, now time.Time, f store.FanOut) ([]store.Reached, error)
	Acknowledge(ctx context.Context, now time.Time, grantUID, instanceID string, generation int64, caller grant.Caller) (released []int64, err error)
	CloseLease(ctx context.Context, now time.Time, grantUID, instanceID string, caller grant.Caller) error
	Changes(ctx context.Context, after int64, limit int) (changes []store.Change, newest int64, err error)
}

// tokens is what the hub needs of the issuer.
type tokens interface {
	Issue(ctx context.Context, request issuer.Request) (issuer.Token, error)
	Kept(request issuer.Request) (issuer.Token, bool)
	Drop(versionID string)
}

// opener decrypts what the vault has stored under an identity.
type opener interface {
	Open(ctx context.Context, identity string, sealed []byte) (secret.Text, error)
}

// Config is what a Hub is made from.
type Config struct {
	Store  database
	Issuer tokens
	// Keyring opens the sealed secrets of versions, see credential.SealedAs.
	Keyring opener
	// Signer signs assertions; nil where the vault is no issuer.
	Signer *signer.Signer
	// HoldMargin lies at least between the end of a grant that holds a client secret and the secret's own.
	HoldMargin time.Duration
	// Meter counts deliveries by account; nil counts none.
	Meter *Meter
	// LongestHold is how long after it was given away a client secret may be held.
	LongestHold time.Duration
	// Clouds are the configured ones, by name.
	Clouds map[string]Cloud
	// Poll is how often changes are looked for that no hint told of; 1 s when zero.
	Poll time.Duration
	// Hints say that there may be a change; what they say is not looked at. Nil when there are none.
	Hints <-chan string
	Log   *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Hub is the live streams of this replica.
type Hub struct {
	config     Config
	guard      guard
	nudged     chan struct{}
	deliveries *prometheus.CounterVec
	// fans are the fan-outs under way, which Run waits for; turns is for those that write their record.
	fans  sync.WaitGroup
	turns chan struct{}

	mu       sync.Mutex
	streams  map[*stream]struct{}
	joined   uint64                 // how many ever have
	woken    int64                  // how often wake was called
	byLease  map[leaseKey][]*stream // those that were not told to go, the oldest first
	draining bool
	empty    chan struct{} // closed when draining and the last stream has left
}

// stream is one live stream. Its handler's goroutine is the only one it has.
type stream struct {
	// number is one more than that of the stream that joined before.
	number         uint64
	lease          leaseKey
	integrationUID string
	account        string
	access         grant.Access
	request        *Request
	// wake holds one. What it is woken for is all of the following that is set: there is one channel, for each that a stream waits at costs it memory, and one at which
	// all wait costs them each other's time.
	wake chan struct{}
	// stale is set when it is to look; given is what it was given, the newest.
	stale atomic.Bool
	given atomic.Pointer[recorded]
	// window is within what time it is to ask its reader to leave; why is why it is to end.
	window atomic.Pointer[time.Duration]
	why    atomic.Pointer[error]
	// taken is set while a fan-out has it.
	taken atomic.Bool
	// idle is what it holds, while it waits and nobody has taken it to give it something.
	idle atomic.Pointer[holding]
}

// leaseKey is whose streams they are.
type leaseKey struct {
	grantUID   string
	instanceID string
}

// New makes a Hub.
func New(config Config) *Hub {
	if config.Poll == 0 {
		config.Poll = pollEvery
	}
	h := &Hub{
		config:  config,
		guard:   newGuard(),
		nudged:  make(chan struct{}, 1),
		streams: make(map[*stream]struct{}),
		byLease: make(map[leaseKey][]*stream),
		empty:   make(chan struct{}),
		turns:   make(chan struct{}, fanOutsAtOnce),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_deliveries_total",
			Help: "Credentials that left the vault, by reason. Every one is on record.",
		}, []string{"reason"}),
	}
	if config.Metrics != nil {
		config.Metrics.MustRegister(h.deliveries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "phasekey_vault_streams",
			Help: "Live streams of this replica.",
		}, func() float64 {
			h.mu.Lock()
			defer h.mu.Unlock()
			return float64(len(h.streams))
		}))
	}
	return h
}

// Run follows the changes in the database, and gives the streams that they concern what is new or has them look for it, until ctx ends. It returns nil.
func (h *Hub) Run(ctx context.Context) error {
	defer h.fans.Wait()
	follow := follower{hub: h, position: unknown}
	hints := h.config.Hints
	tick := time.NewTicker(h.config.Poll)
	defer tick.Stop()
	for {
		follow.poll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-h.nudged:
		case _, ok := <-hints:
			if !ok {
				hints = nil
			}
		}
	}
}

// Nudge has Run look for changes now. Whoever has just made one calls it.
func (h *Hub) Nudge() {
	select {
	case h.nudged <- struct{}{}:
	default:
	}
}

// Drain refuses new streams and has all leave by themselves, spread over half of the time that ctx leaves at most: each asks its reader to open another
// one, which sendAway sees to it that another replica takes. Those that are still there a while later are told to go, one after another. It returns when
// all have left or ctx ends. It may be called for each of several listeners.
func (h *Hub) Drain(ctx context.Context, sendAway func()) {
	left := longestDrain
	if deadline, ok := ctx.Deadline(); ok {
		left = min(left, max(0, time.Until(deadline)))
	}
	var window time.Duration
	h.mu.Lock()
	first, n := !h.draining, len(h.streams)
	h.draining = true
	if first && n == 0 {
		close(h.empty)
	} else if first {
		window = min(time.Duration(n)*drainStep, left/2)
		for s := range h.streams {
			s.window.Store(&window)
			s.signal()
		}
	}
	h.mu.Unlock()

	sendAway()
	if first && n > 0 {
		h.dismiss(ctx, left, window)
	}
	select {
	case <-h.empty:
	case <-ctx.Done():
	}
}

// dismiss tells the streams to go that do not leave by themselves within the window: when none has left for a while, or three quarters of the time are over.
func (h *Hub) dismiss(ctx context.Context, left, window time.Duration) {
	limit := time.NewTimer(left / 4 * 3)
	defer limit.Stop()
	wait := time.NewTimer(window)
	defer wait.Stop()
	var rest []*stream
	for over := false; !over; {
		select {
		case <-wait.C:
			before := len(rest)
			rest = h.present()
			over = len(rest) == before
			wait.Reset(min(moveTime, left/4))
		case <-limit.C:
			rest, over = h.present(), true
		case <-h.empty:
			return
		case <-ctx.Done():
			return
		}
	}
	for _, s := range rest {
		h.mu.Lock()
		h.tell(s, ErrDraining)
		h.mu.Unlock()
		pause(ctx, min(drainStep, left/8/time.Duration(len(rest))))
	}
}

// present are the streams there are, in random order.
func (h *Hub) present() []*stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.streams))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// heard is how many changes this replica has heard of, for whoever is about to read what they may concern, and to join.
func (h *Hub) heard() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.woken
}

// taking is ErrDraining when no more streams are taken.
func (h *Hub) taking() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return ErrDraining
	}
	return nil
}

// join adds a stream. It looks again soon when changes were heard of since. When the instance has too many, its oldest one ends.
func (h *Hub) join(g grant.Grant, r *Request, since int64) (*stream, error) {
	s := &stream{
		lease: leaseKey{g.UID, r.InstanceID}, integrationUID: g.IntegrationUID, account: g.Account, access: g.Access(), request: r,
		wake: make(chan struct{}, 1),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return nil, ErrDraining
	}
	h.joined++
	s.number = h.joined
	h.streams[s] = struct{}{}
	if h.woken != since {
		s.look()
	}
	if same := h.byLease[s.lease]; len(same) >= maxStreams {
		h.tell(same[0], ErrTooManyStreams)
	}
	h.byLease[s.lease] = append(h.byLease[s.lease], s)
	return s, nil
}

// tell has a stream end, unless it was told before. The lock is held.
func (h *Hub) tell(s *stream, why error) {
	if !s.why.CompareAndSwap(nil, &why) {
		return
	}
	s.signal()
	h.forget(s)
}

// forget takes a stream from its lease's. The lock is held.
func (h *Hub) forget(s *stream) {
	same := slices.DeleteFunc(h.byLease[s.lease], func(o *stream) bool { return o == s })
	if len(same) == 0 {
		delete(h.byLease, s.lease)
		return
	}
	h.byLease[s.lease] = same
}

func (h *Hub) leave(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, s)
	h.forget(s)
	if h.draining && len(h.streams) == 0 {
		close(h.empty)
	}
}

// Streams is how many live streams of an account this replica has.
func (h *Hub) Streams(account string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.streams {
		if s.account == account {
			n++
		}
	}
	return n
}

// wake has the streams look that a change concerns, or, where that may be a rotation, be given what is new; with everything, all look.
func (h *Hub) wake(ctx context.Context, changes []store.Change, everything bool) {
	grants, integrations, accounts := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, c := range changes {
		if c.Account != "" {
			accounts[c.Account] = true
		}
		if c.GrantUID != "" {
			grants[c.GrantUID] = true
		}
		if c.IntegrationUID != "" {
			integrations[c.IntegrationUID] = true
		}
	}
	h.fanOuts(ctx, h.concerned(func(s *stream) (itself, integration bool) {
		return everything || grants[s.lease.grantUID] || accounts[s.account], integrations[s.integrationUID]
	}))
}

// concerned has the streams look that something concerns by itself, and takes those that it concerns as their integration's.
func (h *Hub) concerned(how func(s *stream) (itself, integration bool)) (f fan) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.woken++
	for s := range h.streams {
		switch itself, integration := how(s); {
		case itself:
			s.look()
		case integration && !f.take(s):
			s.lookNext()
		}
	}
	return f
}

// look has the stream look.
func (s *stream) look() {
	s.stale.Store(true)
	s.signal()
}

// lookNext has the stream look, after the fan-out that has it.
func (s *stream) lookNext() {
	s.stale.Store(true)
	if !s.taken.Load() { // who gives it something has cleared that before
		s.signal()
	}
}

// give has it pass on what is on record.
func (s *stream) give(made *recorded) {
	s.given.Store(made)
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // it has yet to see to the last one
	}
}

// unknown is the position before the first successful poll.
const unknown = -1

// follower reads the changes in their order.
type follower struct {
	hub      *Hub
	position int64
	failing  bool
}

// poll reads what is new and wakes whom it concerns. A failure is logged once; what was missed is read when it is over.
func (f *follower) poll(ctx context.Context) {
	err := f.read(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil && !f.failing:
		f.failing = true
		f.hub.config.Log.ErrorContext(ctx, "changes cannot be read, streams go on with what they have", obs.KeyError, err)
	case err == nil && f.failing:
		f.failing = false
		f.hub.config.Log.InfoContext(ctx, "changes are read again")
	}
}

func (f *follower) read(ctx context.Context) error {
	for {
		limit := pollLimit
		if f.position == unknown {
			limit = 0
		}
		changes, newest, err := f.changes(ctx, limit)
		if err != nil {
			return fmt.Errorf("follow changes: %w", err)
		}
		switch {
		case f.position == unknown || newest < f.position:
			// The first time, or the database was restored: whatever happened before, all have to look once.
			f.position = newest
			f.hub.wake(ctx, nil, true)
			return nil
		case len(changes) == 0:
			return nil
		}
		gap := changes[0].Seq != f.position+1
		f.position = changes[len(changes)-1].Seq
		f.hub.wake(ctx, changes, gap)
		if f.position >= newest {
			return nil
		}
	}
}

func (f *follower) changes(ctx context.Context, limit int) ([]store.Change, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	return f.hub.config.Store.Changes(ctx, max(f.position, 0), limit)
}

// spread is d, give or take a quarter.
func spread(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2) //nolint:gosec // spreads retries, guards nothing
}
