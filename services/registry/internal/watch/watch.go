// Package watch tells any number of watchers of every change, by one reader of the database.
//
// It guarantees each watcher every change after its cursor, in commit order, without gaps; and that a bookmark, which says
// that there was nothing more up to a revision, rests on a read of the database made since the last message. It does not
// guarantee that a change is told within a time: a hint hastens it, the poll finds it.
//
// The tricky idea: nothing is ever sent to a watcher. The reader keeps the newest changes and wakes everybody; each watcher
// takes what comes after its own cursor, and those that have fallen behind what is kept read the database, one page at a time for all of
// them. So a slow watcher keeps nobody waiting, and needs no queue.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/resource"
)

// source is the database.
type source interface {
	// Changes gives at most limit changes after a position, in order, and the newest revision. resource.ErrCursor means that
	// the position cannot be followed.
	Changes(ctx context.Context, after resource.Position, limit int) ([]change.Change, int64, error)
	// Head is the newest position.
	Head(ctx context.Context) (resource.Position, error)
	// Committed hints that there are changes.
	Committed() <-chan struct{}
}

const (
	// DefaultPoll is how soon other replicas' changes are found.
	DefaultPoll = 200 * time.Millisecond
	// DefaultBookmark is how often an idle watcher hears that it has missed nothing.
	DefaultBookmark = 5 * time.Second

	// batch bounds a message: even of the largest resources, so many stay below gRPC's usual 4 MiB.
	batch = 100
	// kept is how many of the newest changes are in memory.
	kept = 1000
)

// Config is what a Hub is made from.
type Config struct {
	Source source
	Log    *slog.Logger
	// Metrics is where the hub's metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Poll is the time between two reads; DefaultPoll when zero.
	Poll time.Duration
	// Bookmark is the time between two bookmarks of an idle watcher; DefaultBookmark when zero. It should be several times Poll.
	Bookmark time.Duration
}

// Hub has one reader, Run, and any number of watchers, Watch.
type Hub struct {
	cfg      Config
	pager    *pager
	watchers prometheus.Gauge
	revision prometheus.Gauge

	mu sync.Mutex
	// recent are the newest changes, without a gap, up to head. Its elements never change.
	recent []change.Change
	head   resource.Position
	// restarts counts how often the reader began anew; a watcher then has the database judge its cursor.
	restarts int
	// reads counts the successful reads; failure is the last one's error, if it failed.
	reads   int64
	failure error
	// changed is closed, and replaced, when head grows.
	changed chan struct{}
}

// New makes a hub; it reads nothing before Run.
func New(cfg Config) (*Hub, error) {
	if cfg.Poll == 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.Bookmark == 0 {
		cfg.Bookmark = DefaultBookmark
	}
	h := &Hub{
		cfg: cfg, pager: newPager(cfg.Source), changed: make(chan struct{}),
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_registry_watchers",
			Help: "Open watches of this replica; each vault replica holds one.",
		}),
		revision: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_registry_revision",
			Help: "The newest revision this replica has read; a replica that stays behind the others cannot read its database.",
		}),
	}
	if cfg.Metrics == nil {
		return h, nil
	}
	for _, c := range []prometheus.Collector{h.watchers, h.revision} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register watch metrics: %w", err)
		}
	}
	return h, nil
}

// Run reads changes until ctx ends. A database that does not answer is tried again at each poll.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(h.cfg.Poll)
	defer tick.Stop()
	started, failing := false, false
	for {
		err := h.readOn(ctx, &started)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err != nil && !failing:
			h.cfg.Log.WarnContext(ctx, "changes cannot be read, trying again", slog.Any(obs.KeyError, err))
		case err == nil && failing:
			h.cfg.Log.InfoContext(ctx, "changes can be read again")
		}
		failing = err != nil
		h.finishRead(err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			h.pager.forget()
		case <-h.cfg.Source.Committed():
		}
	}
}

// readOn reads up to the newest change. Where to begin is the newest position: at the start, when the database has got another
// incarnation, or after a compaction that overtook a database which had not answered for long.
func (h *Hub) readOn(ctx context.Context, started *bool) error {
	if !*started {
		head, err := h.cfg.Source.Head(ctx)
		if err != nil {
			return fmt.Errorf("read the newest position: %w", err)
		}
		h.restart(head)
		*started = true
	}
	for {
		changes, head, err := h.cfg.Source.Changes(ctx, h.newest(), batch)
		if errors.Is(err, resource.ErrCursor) {
			*started = false
		}
		if err != nil {
			return err
		}
		h.add(changes)
		if h.newest().Revision >= head {
			return nil
		}
	}
}

func (h *Hub) newest() resource.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head
}

func (h *Hub) restart(head resource.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recent, h.head = nil, head
	h.restarts++
	h.wake()
}

func (h *Hub) add(changes []change.Change) {
	if len(changes) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// A new slice when it is too long: watchers may be reading the old one.
	if len(h.recent)+len(changes) > 2*kept {
		h.recent = append(make([]change.Change, 0, 2*kept), h.recent[len(h.recent)-kept:]...)
	}
	h.recent = append(h.recent, changes...)
	h.head.Revision = changes[len(changes)-1].Revision
	h.wake()
}

// wake tells all watchers to look. The caller holds mu.
func (h *Hub) wake() {
	h.revision.Set(float64(h.head.Revision))
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hub) finishRead(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failure = err
	if err == nil {
		h.reads++
	}
}

// view is what a watcher sees of the hub at one moment.
type view struct {
	// changes are those after the cursor, at most a batch.
	changes []change.Change
	// missed says that the changes right after the cursor are not kept any more.
	missed   bool
	restarts int
	reads    int64
	failure  error
	changed  <-chan struct{}
}

func (h *Hub) after(cursor resource.Position) view {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := view{restarts: h.restarts, reads: h.reads, failure: h.failure, changed: h.changed}
	// The reader may not have noticed another incarnation yet, which the watcher's cursor is of already. In the other case it has
	// begun anew, by which the watcher knows.
	if cursor.Incarnation != h.head.Incarnation || cursor.Revision >= h.head.Revision {
		return v
	}
	oldest := h.head.Revision - int64(len(h.recent)) // the revision before the first kept
	if cursor.Revision < oldest {
		v.missed = true
		return v
	}
	rest := h.recent[cursor.Revision-oldest:]
	// A copy: a watcher that is stuck in sending must not keep all of recent as it was then.
	v.changes = slices.Clone(rest[:min(len(rest), batch)])
	return v
}

// Watch gives send every change after the cursor, in messages of one or more, and empty messages as bookmarks: one as soon as
// the watcher has caught up, then one whenever nothing was sent for a while. With each comes the position up to which
// everything has been sent. It returns send's error, ctx's, resource.ErrCursor, or resource.ErrUnavailable
// when the database does not answer: at first, or for as long as a bookmark is due.
func (h *Hub) Watch(ctx context.Context, cursor resource.Position, send func(changes []change.Change, at resource.Position) error) error {
	h.watchers.Inc()
	defer h.watchers.Dec()
	idle := time.NewTimer(h.cfg.Bookmark)
	defer idle.Stop()
	tell := func(changes []change.Change) error {
		if len(changes) > 0 {
			cursor.Revision = changes[len(changes)-1].Revision
		}
		idle.Reset(h.cfg.Bookmark)
		return send(changes, cursor)
	}
	catchUp := func() error {
		begun := time.Now()
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			changes, head, err := h.pager.read(ctx, cursor, begun)
			if err != nil {
				return err
			}
			if len(changes) > 0 {
				if err := tell(changes); err != nil {
					return err
				}
			}
			if cursor.Revision >= head {
				return nil
			}
		}
	}

	last := h.after(cursor)
	if err := catchUp(); err != nil {
		return err
	}
	if err := tell(nil); err != nil {
		return err
	}
	seen := last.reads
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := h.after(cursor)
		var err error
		switch {
		case v.missed, v.restarts != last.restarts:
			seen, err = v.reads, catchUp()
		case len(v.changes) > 0:
			seen, err = v.reads, tell(v.changes)
		default:
			select {
			case <-v.changed:
			case <-idle.C:
				// It is another look than the one above: the reader may have begun anew in between.
				switch v = h.after(cursor); {
				case v.missed, v.restarts != last.restarts:
					seen, err = v.reads, catchUp()
				case v.reads == seen:
					return errors.Join(resource.ErrUnavailable, v.failure)
				default:
					seen, err = v.reads, tell(nil)
				}
			case <-ctx.Done():
			}
		}
		if err != nil {
			return err
		}
		last = v
	}
}
