// Package budget shares what Graph takes of requests among the integrations of all replicas.
//
// It guarantees that all replicas together spend no more in any of Graph's windows than the limits say, while Redis
// answers; that a replica which Redis does not answer spends a configured share by itself; that after an answer to come
// back later nothing is sent to that cloud's Graph by anybody until then; and that a burst of new integrations does not
// make rotations late, nor rotations the new integrations.
//
// There are two classes, and each is guaranteed half of the rate. They fill a bucket each, and what one has no room for is
// the other's: a class that is idle costs the other nothing. Shares were chosen rather than priorities with ageing because
// they need no word from those who wait, whom Redis does not know, and because the promise to each class is then a number:
// its half, whatever the other wants. Half is plenty for what is regular: at three writes each, it rotates two hundred
// thousand integrations a day.
//
// Nobody waits here. Whoever gets no permit is told when to ask again and gives up its place meanwhile: behind those of
// its class who were told before, as far as this replica knows, so that a backlog is worked off about in order, and each of
// it asks a few times only.
//
// The tricky idea: a bucket is its level at some time, and that time may lie ahead. That is all an answer to come back later
// takes: the bucket is empty until then, and fills from there. A bucket that Redis does not know is empty too, for
// what was spent before Redis lost it is not known.
package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Kind is what is spent.
type Kind int

const (
	// Write is a request that may change something.
	Write Kind = iota
	// Read is one that does not.
	Read
)

var kinds = [...]string{Write: "write", Read: "read"} //nolint:gochecknoglobals // constant names

func (k Kind) String() string { return kinds[k] }

// Class is who spends it.
type Class int

const (
	// Upkeep is for integrations that have been in use: rotation, removal, repair.
	Upkeep Class = iota
	// Change is for those that are new, and those that are being deleted.
	Change
)

var classes = [...]string{Upkeep: "upkeep", Change: "change"} //nolint:gochecknoglobals // constant names

func (c Class) String() string { return classes[c] }

// Limits are what all replicas together may send to Graph in one cloud.
type Limits struct {
	// Writes is how many writes at most in any 2 min 30 s. Graph takes 3,000 of one application in one tenant; of all applications
	// in one tenant 18,000 in 5 min, and of one application in all tenants 70,000 in 5 min, which are wider.
	Writes int `yaml:"writes"`
	// Reads is how many reads at most in any 10 s. Graph takes 3,500 resource units of one application in a tenant with fewer than
	// 50 users, 5,000 up to 500 users, and 8,000 beyond. A read is one, and so is a write, which may bring two reads with it.
	Reads int `yaml:"reads"`
	// AloneShare is the part of both that one replica may spend by itself while Redis does not answer: one over the
	// number of replicas, or less.
	AloneShare float64 `yaml:"alone_share"`
}

// Graph's windows and limits. Source: "Microsoft Graph service-specific throttling limits", identity and access.
const (
	writeWindow = 150 * time.Second
	readWindow  = 10 * time.Second
	mostWrites  = 3000
	mostReads   = 8000
)

// DefaultLimits leave a fifth of the writes, and a good third of a small tenant's resource units, to whatever else uses the
// application, and suit four replicas.
func DefaultLimits() Limits { return Limits{Writes: 2400, Reads: 2000, AloneShare: 0.25} }

// Validate returns all problems at once. Development may exceed Graph's own limits: its Graph is simulated.
func (l Limits) Validate(development bool) error {
	var problems []error
	for _, n := range []struct {
		name       string
		have, most int
	}{{"writes", l.Writes, mostWrites}, {"reads", l.Reads, mostReads}} {
		if development {
			n.most = 1_000_000
		}
		if n.have < least || n.have > n.most {
			problems = append(problems, fmt.Errorf("%s: must be from %d to %d", n.name, least, n.most))
		}
	}
	if l.AloneShare < leastShare || l.AloneShare > 1 || math.IsNaN(l.AloneShare) {
		problems = append(problems, fmt.Errorf("alone_share: must be from %v to 1", leastShare))
	}
	return errors.Join(problems...)
}

// With so many requests in a window, and so large a share, both buckets of one replica can hold a permit.
const (
	least      = 100
	leastShare = 0.05
)

// rate is how a kind's buckets fill.
type rate struct {
	// perMilli is how many permits a millisecond brings, to both classes together.
	perMilli float64
	// room is how many permits a class can save up.
	room float64
}

// burst is the part of a window's limit that may be saved up, by both classes together: what is spent in a window is at most
// what was saved before it and what it brings.
const burst = 1.0 / 8

func (l Limits) rate(kind Kind, share float64) rate {
	limit, window := float64(l.Writes), writeWindow
	if kind == Read {
		limit, window = float64(l.Reads), readWindow
	}
	r := rate{perMilli: share * limit * (1 - burst) / float64(window.Milliseconds()), room: share * limit * burst / 2}
	if r.room < 1 {
		// A bucket that cannot hold a permit would never give one. What that is too much is taken from the rate.
		r = rate{perMilli: (share*limit - 2) / float64(window.Milliseconds()), room: 1}
	}
	return r
}

const (
	// longestPause caps what an answer to come back later asks of a whole cloud: Graph's longest window.
	longestPause = 5 * time.Minute
	// defaultPause is taken when such an answer does not say for how long.
	defaultPause = 10 * time.Second
	// silence is how long Redis is not asked after it did not answer.
	silence = 5 * time.Second
)

// Config is what a Budget is made from.
type Config struct {
	// Limits must be valid.
	Limits Limits
	// Client reaches Redis; nil means that this replica spends its share alone.
	Client redis.UniversalClient
	// Prefix begins the names of all keys; it names the deployment.
	Prefix string
	Log    *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
}

// Budget gives permits. It is safe for concurrent use.
type Budget struct {
	config  Config
	metrics *metrics

	mu     sync.Mutex
	clouds map[string]*cloud // by home tenant
	// silent is until when Redis is not asked; zero when it answered last time.
	silent time.Time
}

// cloud is what this replica knows of one cloud's budget.
type cloud struct {
	alone  [len(kinds)]bucket
	queues [len(kinds)][len(classes)]queue
}

// New makes a Budget.
func New(config Config) (*Budget, error) {
	if config.Log == nil || config.Client != nil && config.Prefix == "" {
		return nil, errors.New("budget: a log is required, and a prefix with Redis")
	}
	m, err := newMetrics(config.Metrics)
	if err != nil {
		return nil, err
	}
	return &Budget{config: config, metrics: m, clouds: map[string]*cloud{}}, nil
}

// Take spends one permit of a cloud, which is named by its home tenant, for an integration. It returns the zero time when it
// did, else when to ask again: a whole millisecond. It waits for Redis at most.
func (b *Budget) Take(ctx context.Context, tenant string, kind Kind, class Class, integrationUID string) time.Time {
	now := time.Now()
	if at, waits := b.queued(now, tenant, kind, class, integrationUID); waits {
		return at
	}
	got, source := b.spend(ctx, now, tenant, kind, class)
	now = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue(tenant, kind, class)
	if got.wait > 0 {
		q.refused(now, now.Add(got.wait))
		return q.tell(now, integrationUID)
	}
	b.metrics.permits.WithLabelValues(kind.String(), class.String(), source).Inc()
	if waited, ok := q.served(now, integrationUID, got.left); ok {
		b.metrics.waits.WithLabelValues(kind.String(), class.String()).Observe(waited.Seconds())
	}
	return time.Time{}
}

// queued reports whether the integration has to wait whatever Redis says, and until when.
func (b *Budget) queued(now time.Time, tenant string, kind Kind, class Class, integrationUID string) (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue(tenant, kind, class)
	q.sweep(now)
	if q.mayAsk(now, integrationUID) {
		return time.Time{}, false
	}
	return q.tell(now, integrationUID), true
}

// queue returns the queue of a class. The lock is held.
func (b *Budget) queue(tenant string, kind Kind, class Class) *queue {
	q := &b.cloud(tenant).queues[kind][class]
	if q.waiting == nil {
		q.waiting = map[string]waiter{}
		q.spacing = time.Duration(float64(time.Millisecond) / b.config.Limits.rate(kind, 1).perMilli)
	}
	return q
}

// cloud returns what is known of a cloud. The lock is held.
func (b *Budget) cloud(tenant string) *cloud {
	c := b.clouds[tenant]
	if c == nil {
		c = &cloud{}
		b.clouds[tenant] = c
	}
	return c
}

// spend takes a permit from Redis, or else from this replica's own share, and says whose it was.
func (b *Budget) spend(ctx context.Context, now time.Time, tenant string, kind Kind, class Class) (got answer, source string) {
	if b.listens(now) {
		got, err := take(ctx, b.config.Client, b.key(tenant, kind), b.config.Limits.rate(kind, 1), class)
		b.heard(ctx, err)
		if err == nil {
			return got, "shared"
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cloud(tenant).alone[kind].take(now, b.config.Limits.rate(kind, b.config.Limits.AloneShare), class), "alone"
}

// Throttled takes in that a cloud's Graph asked to come back after so long; 0 when it did not say. Nobody is given a permit until
// then, five minutes at most.
func (b *Budget) Throttled(ctx context.Context, tenant string, after time.Duration) {
	if after <= 0 {
		after = defaultPause
	}
	after = min(after, longestPause)
	now := time.Now()
	b.metrics.throttles.Inc()
	b.config.Log.WarnContext(ctx, "graph asks to come back later; nothing is sent to it until then", slog.String("home_tenant_id", tenant), slog.Duration("pause", after))
	b.mu.Lock()
	for k := range kinds {
		b.cloud(tenant).alone[k].pause(now, after)
		for class := range classes {
			// Redis may lose its word of it.
			b.queue(tenant, Kind(k), Class(class)).pause(now, now.Add(after))
		}
	}
	b.mu.Unlock()
	if !b.listens(now) {
		return
	}
	// It is for the others, so it is told even if the mastership of whoever heard it has just ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), silence)
	defer cancel()
	for k := range kinds {
		err := pause(ctx, b.config.Client, b.key(tenant, Kind(k)), after)
		b.heard(ctx, err)
		if err != nil {
			return
		}
	}
}

// key names a bucket. A cloud's have one hash tag.
func (b *Budget) key(tenant string, kind Kind) string {
	return fmt.Sprintf("%s:{graph-%s}:%s", b.config.Prefix, tenant, kind)
}

// listens reports whether Redis is to be asked.
func (b *Budget) listens(now time.Time) bool {
	if b.config.Client == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !now.Before(b.silent)
}

// heard notes whether Redis answered. That the caller gave up says nothing about it.
func (b *Budget) heard(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	was := !b.silent.IsZero()
	if err == nil {
		b.silent = time.Time{}
	} else {
		b.silent = time.Now().Add(silence)
	}
	switch {
	case err != nil && !was:
		b.config.Log.WarnContext(ctx, "redis does not answer; this replica spends its own share of graph's budget", slog.Any("error", err))
	case err == nil && was:
		b.config.Log.InfoContext(ctx, "redis answers again; graph's budget is shared")
	}
}
