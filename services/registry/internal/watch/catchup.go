package watch

import (
	"context"
	"time"

	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/resource"
)

// pagesKept is how many pages are remembered for others; so many cover what the hub keeps of the newest changes.
const pagesKept = 2 * kept / batch

// pager reads for those watchers who need what the hub does not keep. It reads one page at a time, however many want one: when thousands
// come back at once they wait for each other, and neither writes nor the look at the database's health wait for them. A page that was
// read since a watcher began to catch up is as good as one of its own.
type pager struct {
	source source
	// turn is held by whoever reads, and guards pages.
	turn  chan struct{}
	pages []sharedPage
}

// sharedPage is what came after a position at a time.
type sharedPage struct {
	after   resource.Position
	changes []change.Change
	head    int64
	time    time.Time // when it was asked for
}

func newPager(source source) *pager { return &pager{source: source, turn: make(chan struct{}, 1)} }

// read gives a page after a position and the newest revision, as the database had them after since.
func (p *pager) read(ctx context.Context, after resource.Position, since time.Time) ([]change.Change, int64, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	for _, page := range p.pages {
		if page.after == after && page.time.After(since) {
			return page.changes, page.head, nil
		}
	}
	now := time.Now()
	changes, head, err := p.source.Changes(ctx, after, batch)
	if err != nil {
		return nil, 0, err
	}
	kept := make([]sharedPage, 0, pagesKept)
	for _, page := range p.pages[max(0, len(p.pages)-pagesKept+1):] {
		if page.after != after {
			kept = append(kept, page)
		}
	}
	p.pages = append(kept, sharedPage{after: after, changes: changes, head: head, time: now})
	return changes, head, nil
}

// forget lets go of what no watcher wants any more.
func (p *pager) forget() {
	select {
	case p.turn <- struct{}{}:
		p.pages = nil
		<-p.turn
	default: // somebody is catching up
	}
}
