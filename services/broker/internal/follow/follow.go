// Package follow tells those who look at sessions, in a browser or by a stream, what becomes of them, whichever replica wrote it.
//
// It guarantees that a follower is given the newest state, not each between, within an interval; and that the database is asked as
// often for a thousand followers as for one, about those sessions alone that somebody follows. It does not guarantee that anything is
// told while the database is away: followers then learn of it afterwards.
package follow

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/broker/internal/consent"
)

// store keeps the sessions; its method is as package store describes it.
type store interface {
	ByLinks(ctx context.Context, linkHashes [][]byte) (map[string]consent.Session, error)
}

// Config is what a Hub is made from.
type Config struct {
	Store store
	// Interval is how often the database is asked.
	Interval time.Duration
	Log      *slog.Logger
}

// Hub knows who follows what. Make it with New, and Run it once. It is safe for concurrent use.
type Hub struct {
	cfg Config

	mu        sync.Mutex
	followers map[string]map[*Follower]bool // by link hash
}

// Follower follows one session.
type Follower struct {
	hub  *Hub
	hash string
	// seen is the version that was told last.
	seen int64
	news chan consent.Session
}

// New returns a hub; it starts nothing.
func New(cfg Config) *Hub { return &Hub{cfg: cfg, followers: map[string]map[*Follower]bool{}} }

// Follow tells from now on of changes of the session whose link has this hash, from a version on that is known already. Whoever
// follows closes it.
func (h *Hub) Follow(linkHash []byte, seen int64) *Follower {
	f := &Follower{hub: h, hash: string(linkHash), seen: seen, news: make(chan consent.Session, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.followers[f.hash] == nil {
		h.followers[f.hash] = map[*Follower]bool{}
	}
	h.followers[f.hash][f] = true
	return f
}

// News has the session after a change, the newest alone.
func (f *Follower) News() <-chan consent.Session { return f.news }

// Close ends it.
func (f *Follower) Close() {
	f.hub.mu.Lock()
	defer f.hub.mu.Unlock()
	delete(f.hub.followers[f.hash], f)
	if len(f.hub.followers[f.hash]) == 0 {
		delete(f.hub.followers, f.hash)
	}
}

// Run asks the database until ctx ends. It returns nil.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(h.cfg.Interval)
	defer tick.Stop()
	answering := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := h.look(ctx)
		if err != nil && ctx.Err() == nil && answering {
			h.cfg.Log.WarnContext(ctx, "sessions that are looked at cannot be read", slog.Any(obs.KeyError, err))
		}
		answering = err == nil
	}
}

func (h *Hub) look(ctx context.Context) error {
	h.mu.Lock()
	hashes := make([][]byte, 0, len(h.followers))
	for hash := range h.followers {
		hashes = append(hashes, []byte(hash))
	}
	h.mu.Unlock()
	if len(hashes) == 0 {
		return nil
	}
	found, err := h.cfg.Store.ByLinks(ctx, hashes)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for hash, session := range found {
		for f := range h.followers[hash] {
			f.tell(session)
		}
	}
	return nil
}

// tell gives a follower a session if it does not know it. The hub's lock is held.
func (f *Follower) tell(session consent.Session) {
	if session.Version == f.seen {
		return
	}
	f.seen = session.Version
	select {
	case <-f.news: // what was not taken is old
	default:
	}
	f.news <- session
}
