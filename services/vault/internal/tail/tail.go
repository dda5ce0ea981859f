// Package tail tells any number of readers of the audit's records as they are written, by whichever replica, by one reader of the database.
//
// It guarantees each reader every record behind its position, once, the records of each chain in their order; whoever goes on from a position that came
// with a message misses nothing and gets nothing again, at any replica. It does not guarantee an order between chains: records that are found
// together come by their times, and one that was committed late comes late.
//
// The tricky idea is the position. Numbers have no gaps within a chain, and a chain's records are committed in their order; across chains nothing is so. So a position
// names a record of every chain, and is short all the same: checkpoints say how long each chain was, so it is the newest checkpoint that was passed, and
// the chains that have grown since. For that the reader of the database tells a checkpoint only behind all that it covers.
//
// As in the registry's watches, nothing is ever sent to a reader: the newest records are kept, each takes what comes behind its own position, and those that
// have fallen behind what is kept read the database, one page at a time for all of them.
package tail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/audit"
)

var (
	// ErrTooMany means that the caller, or all together, have as many tails at this replica as there may be.
	ErrTooMany = errors.New("too many tails of the audit")
	// ErrUnavailable means that the database does not answer.
	ErrUnavailable = errors.New("audit records cannot be read")
)

// source is the database; see store.Store.
type source interface {
	AuditState(ctx context.Context, known int64) (audit.State, error)
	AuditRecords(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error)
	Checkpoints(ctx context.Context, after int64, limit int) ([]audit.Checkpoint, error)
	CheckpointBase(ctx context.Context, upTo int64) (audit.Checkpoint, error)
	FullCheckpoint(ctx context.Context, before time.Time) (audit.Checkpoint, error)
}

const (
	// DefaultPoll is how often is looked for new records, while anybody wants to hear of them.
	DefaultPoll = 500 * time.Millisecond
	// Bookmark is how often a reader gets a position at least.
	Bookmark = 10 * time.Second
	// PerCaller is how many tails a caller may have at a replica, and maxTails how many all together.
	PerCaller = 8
	maxTails  = 100

	// batch is about how many events a message has, and kept how many of the newest records are in memory, of at most about keptEvents events.
	batch      = 100
	kept       = 1000
	keptEvents = 20_000
)

// Config is what a Hub is made from.
type Config struct {
	Source source
	Log    *slog.Logger
	// Metrics is where metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Poll is the time between two looks; DefaultPoll when zero.
	Poll time.Duration
}

// item is the next thing in the log: a record, or that everything has been told that a checkpoint covers.
type item struct {
	record audit.Record
	passed *Position
}

// Hub has one reader of the database, Run, and any number of readers of what that finds, Tail.
type Hub struct {
	cfg   Config
	tails prometheus.Gauge
	// turn is for whoever reads the database to catch up.
	turn chan struct{}
	// wanted has a value when a look is wanted before the next is due.
	wanted chan struct{}

	mu      sync.Mutex
	callers map[string]int
	all     int
	// log are the newest items, of which the first has the number first. They never change.
	log   []item
	first int64
	// events is how many events the log has.
	events int
	// at is the position behind the log, and heads how far each chain was told.
	at    Position
	heads map[string]int64
	// restarts counts how often the reader began anew: there is then a hole before the log.
	restarts int
	// begun and ended count looks, good those that succeeded, and failure is the last one's error.
	begun, ended, good int64
	failure            error
	// changed is closed, and replaced, when there is something new.
	changed chan struct{}
}

// New makes a hub; it reads nothing before Run.
func New(cfg Config) *Hub {
	if cfg.Poll == 0 {
		cfg.Poll = DefaultPoll
	}
	h := &Hub{
		cfg: cfg, turn: make(chan struct{}, 1), wanted: make(chan struct{}, 1), callers: map[string]int{}, changed: make(chan struct{}),
		tails: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "phasekey_vault_audit_tails",
			Help: "Open streams of audit events at this replica.",
		}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(h.tails)
	}
	return h
}

// Run looks for new records until ctx ends, while anybody wants to hear of them; it returns nil. A database that does not answer is asked again.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(h.cfg.Poll)
	defer tick.Stop()
	started, failing := false, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wanted:
		case <-tick.C:
		}
		if !h.begin() {
			started = false
			continue
		}
		err := h.look(ctx, &started)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err != nil && !failing:
			h.cfg.Log.WarnContext(ctx, "audit records cannot be read, trying again", slog.Any(obs.KeyError, err))
		case err == nil && failing:
			h.cfg.Log.InfoContext(ctx, "audit records can be read again")
		}
		failing = err != nil
		h.end(err)
	}
}

// begin begins a look, unless nobody wants any.
func (h *Hub) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == 0 {
		h.log, h.events, h.heads, h.at = nil, 0, nil, Position{}
		return false
	}
	h.begun++
	return true
}

func (h *Hub) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended, h.failure = h.begun, err
	if err == nil {
		h.good++
	}
	h.wake()
}

// wake tells all readers to look. The lock is held.
func (h *Hub) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// look takes in what was recorded since the last one. It begins anew where nothing was started, and where records are missing: readers find that out by
// the database itself.
func (h *Hub) look(ctx context.Context, started *bool) error {
	known := int64(-1)
	if *started {
		known = h.at.checkpoint // which nobody else writes
	}
	state, err := h.cfg.Source.AuditState(ctx, known)
	if err != nil {
		return err
	}
	if !*started {
		h.restart(state)
		*started = true
		return nil
	}
	var grown []stretch
	shrunk := state.Checkpoint.Number < known
	// A chain that was told further than checkpoints cover is among those of the state, unless it was cut off there.
	missing := maps.Clone(h.at.ahead)
	for _, c := range state.Chains {
		delete(missing, c.Writer)
		from := h.heads[c.Writer]
		shrunk = shrunk || c.End < from
		if c.End > from {
			grown = append(grown, stretch{writer: c.Writer, after: from, upTo: c.End})
		}
	}
	shrunk = shrunk || len(missing) > 0
	if !shrunk {
		err = follow(ctx, h.cfg.Source.AuditRecords, grown, func(records []audit.Record) error {
			h.add(records)
			return nil
		})
	}
	if shrunk || errors.Is(err, ErrPosition) {
		h.cfg.Log.ErrorContext(ctx, "audit records are missing", slog.Any(obs.KeyError, err))
		*started = false
		return h.look(ctx, started)
	}
	if err == nil && state.Checkpoint.Number > known {
		h.pass(state)
	}
	return err
}

// positionOf is the position at the end of all chains.
func positionOf(s audit.State) Position {
	p := positionAt(s.Checkpoint)
	for _, c := range s.Chains {
		if c.End > c.Covered {
			p.ahead[c.Writer] = c.End
		}
	}
	return p
}

func (h *Hub) restart(state audit.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.first += int64(len(h.log))
	h.log, h.events, h.at, h.heads = nil, 0, positionOf(state), map[string]int64{}
	for _, c := range state.Chains {
		h.heads[c.Writer] = c.End
	}
	h.restarts++
	h.wake()
}

func (h *Hub) add(records []audit.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range records {
		h.append(item{record: r})
		h.heads[r.Writer], h.at.ahead[r.Writer] = r.Seq, r.Seq
	}
	h.wake()
}

// pass takes in that all has been told that the newest checkpoint covers.
func (h *Hub) pass(state audit.State) {
	at := positionOf(state)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = at.clone()
	h.append(item{passed: &at})
	h.wake()
}

// append adds to the log. The lock is held.
func (h *Hub) append(i item) {
	// A new slice when it is too long: readers may have the old one.
	if len(h.log) >= 2*kept || h.events >= 2*keptEvents {
		old := 0
		for ; len(h.log)-old > kept || h.events > keptEvents; old++ {
			h.events -= len(h.log[old].record.Entries)
		}
		h.first += int64(old)
		h.log = append(make([]item, 0, 2*kept), h.log[old:]...)
	}
	h.log = append(h.log, i)
	h.events += len(i.record.Entries)
}

// enter counts a tail of the caller's in.
func (h *Hub) enter(caller string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.callers[caller] >= PerCaller || h.all >= maxTails {
		return ErrTooMany
	}
	h.callers[caller]++
	h.all++
	h.tails.Inc()
	return nil
}

func (h *Hub) leave(caller string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tails.Dec()
	h.all--
	if h.callers[caller]--; h.callers[caller] == 0 {
		delete(h.callers, caller)
	}
}

// joint is where a reader comes to the log.
type joint struct {
	number   int64
	restarts int
	at       Position
	heads    map[string]int64
}

// join waits for a look that begins after it was called, so that the log has all that any replica may have told before, and returns its end.
func (h *Hub) join(ctx context.Context) (joint, error) {
	h.mu.Lock()
	fresh := h.begun + 1
	h.mu.Unlock()
	select {
	case h.wanted <- struct{}{}:
	default:
	}
	for {
		h.mu.Lock()
		changed, failure := h.changed, h.failure
		if h.ended >= fresh && failure == nil {
			j := joint{number: h.first + int64(len(h.log)), restarts: h.restarts, at: h.at.clone(), heads: maps.Clone(h.heads)}
			h.mu.Unlock()
			return j, nil
		}
		ended := h.ended
		h.mu.Unlock()
		if ended >= fresh {
			return joint{}, errors.Join(ErrUnavailable, failure)
		}
		select {
		case <-ctx.Done():
			return joint{}, ctx.Err()
		case <-changed:
		}
	}
}

// view is what a reader sees of the hub at one moment.
type view struct {
	items []item
	// lost says that the items right behind the reader are not kept any more.
	lost    bool
	good    int64
	failure error
	changed <-chan struct{}
}

func (h *Hub) behind(number int64, restarts int) view {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := view{good: h.good, failure: h.failure, changed: h.changed}
	if restarts != h.restarts || number < h.first {
		v.lost = true
		return v
	}
	rest := h.log[number-h.first:]
	// A copy: a reader that is stuck in sending must not keep all of the log as it was then.
	v.items = slices.Clone(rest[:min(len(rest), batch)])
	return v
}

// stretch is a part of a chain.
type stretch struct {
	writer      string
	after, upTo int64
}

// mergeWidth is how many chains are read side by side.
const mergeWidth = 20

// follow gives the records of stretches, pages of those of several chains together, by time as far as that keeps the order of each.
func follow(ctx context.Context, read func(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error), all []stretch,
	give func([]audit.Record) error,
) error {
	for some := range slices.Chunk(all, mergeWidth) {
		for some = slices.Clone(some); len(some) > 0; {
			pages := make([][]audit.Record, len(some))
			for i := range some {
				s := &some[i]
				page, err := read(ctx, s.writer, s.after, s.upTo)
				if err != nil {
					return err
				}
				for _, r := range page {
					if s.after++; r.Seq != s.after {
						return fmt.Errorf("%w: record %d of %s is not there", ErrPosition, s.after, s.writer)
					}
				}
				if len(page) == 0 {
					return fmt.Errorf("%w: record %d of %s is not there", ErrPosition, s.after+1, s.writer)
				}
				pages[i] = page
			}
			if err := give(merge(pages)); err != nil {
				return err
			}
			some = slices.DeleteFunc(some, func(s stretch) bool { return s.after >= s.upTo })
		}
	}
	return nil
}

// merge puts pages together, by the times of their records, each page in its order.
func merge(pages [][]audit.Record) []audit.Record {
	var out []audit.Record
	for {
		earliest := -1
		for i, p := range pages {
			if len(p) > 0 && (earliest < 0 || p[0].Entries[0].Time < pages[earliest][0].Entries[0].Time) {
				earliest = i
			}
		}
		if earliest < 0 {
			return out
		}
		out = append(out, pages[earliest][0])
		pages[earliest] = pages[earliest][1:]
	}
}
