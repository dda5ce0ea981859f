package watch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/watch"
)

// fakeSource is a database in memory.
type fakeSource struct {
	committed chan struct{}

	mu sync.Mutex
	// incarnation tells databases apart.
	incarnation string
	head        int64
	floor       int64 // changes up to here are compacted
	failure     error
	reads       int
	made        []weak.Pointer[project.Project]
}

const incarnation = "first"

func newSource() *fakeSource {
	return &fakeSource{committed: make(chan struct{}, 1), incarnation: incarnation}
}

// grow makes so many changes; told is whether this replica made them.
func (f *fakeSource) grow(n int64, told bool) {
	f.mu.Lock()
	f.head += n
	f.mu.Unlock()
	if told {
		select {
		case f.committed <- struct{}{}:
		default:
		}
	}
}

func (f *fakeSource) set(change func(f *fakeSource)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeSource) Committed() <-chan struct{} { return f.committed }

func (f *fakeSource) Head(context.Context) (resource.Position, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return resource.Position{Incarnation: f.incarnation, Revision: f.head}, f.failure
}

func (f *fakeSource) Changes(_ context.Context, from resource.Position, limit int) ([]change.Change, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if f.failure != nil {
		return nil, 0, f.failure
	}
	after := from.Revision
	if from.Incarnation != f.incarnation || after > f.head || after < f.floor {
		return nil, 0, resource.ErrCursor
	}
	var changes []change.Change
	for r := after + 1; r <= f.head && len(changes) < limit; r++ {
		p := &project.Project{UID: fmt.Sprint(r)}
		f.made = append(f.made, weak.Make(p))
		changes = append(changes, change.Change{Revision: r, Project: p})
	}
	return changes, f.head, nil
}

// alive counts the changes it has given that somebody still has.
func (f *fakeSource) alive() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	runtime.GC()
	for _, p := range f.made {
		if p.Value() != nil {
			n++
		}
	}
	return n
}

// message is what a watcher was sent, and when, since it began.
type message struct {
	first, last int64 // 0 in a bookmark
	revision    int64
	at          time.Duration
}

// watcher collects messages.
type watcher struct {
	mu    sync.Mutex
	got   []message
	begun time.Time
	ended chan error
	// gate, if not nil, holds every message until it is closed.
	gate chan struct{}
}

func begin(ctx context.Context, h *watch.Hub, cursor int64, gate chan struct{}) *watcher {
	w := &watcher{begun: time.Now(), ended: make(chan error, 1), gate: gate}
	go func() { w.ended <- h.Watch(ctx, resource.Position{Incarnation: incarnation, Revision: cursor}, w.take) }()
	return w
}

func (w *watcher) take(changes []change.Change, at resource.Position) error {
	if w.gate != nil {
		<-w.gate
	}
	m := message{revision: at.Revision, at: time.Since(w.begun)}
	for i, c := range changes {
		if i > 0 && c.Revision != changes[i-1].Revision+1 {
			return fmt.Errorf("revision %d after %d", c.Revision, changes[i-1].Revision)
		}
	}
	if len(changes) > 0 {
		m.first, m.last = changes[0].Revision, changes[len(changes)-1].Revision
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, m)
	return nil
}

// messages gives, and forgets, what has come.
func (w *watcher) messages() []message {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.got
	w.got = nil
	return got
}

const (
	poll     = 200 * time.Millisecond
	bookmark = 5 * time.Second
)

func hub(t *testing.T, source *fakeSource) *watch.Hub {
	t.Helper()
	h, err := watch.New(watch.Config{Source: source, Log: slog.New(slog.DiscardHandler), Poll: poll, Bookmark: bookmark})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// bubble runs a case with a running hub.
func bubble(t *testing.T, test func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := newSource()
		h := hub(t, source)
		ran := make(chan error)
		go func() { ran <- h.Run(ctx) }()
		synctest.Wait()
		test(t, ctx, source, h)
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("hub ended with %v", err)
		}
		synctest.Wait()
	})
}

func wantMessages(t *testing.T, w *watcher, want ...message) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, w.messages(), cmp.AllowUnexported(message{})); diff != "" {
		t.Fatalf("messages (-want +got):\n%s", diff)
	}
}

func wantEnd(t *testing.T, w *watcher, want error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-w.ended:
		if !errors.Is(err, want) {
			t.Fatalf("ended with %v, want %v", err, want)
		}
	default:
		t.Fatalf("did not end; want %v", want)
	}
}

func TestWatch_BookmarksAtOnceAndWhileIdle(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		w := begin(ctx, h, 0, nil)
		wantMessages(t, w, message{})
		time.Sleep(2*bookmark + time.Second)
		wantMessages(t, w, message{at: bookmark}, message{at: 2 * bookmark})
		source.grow(1, true)
		wantMessages(t, w, message{first: 1, last: 1, revision: 1, at: 2*bookmark + time.Second})
		// The bookmark is due a whole interval after the last message.
		time.Sleep(bookmark)
		wantMessages(t, w, message{revision: 1, at: 3*bookmark + time.Second})
	})
}

func TestWatch_FollowsFromTheCursor(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		source.grow(250, false)
		w := begin(ctx, h, 20, nil)
		wantMessages(t, w,
			message{first: 21, last: 120, revision: 120}, message{first: 121, last: 220, revision: 220},
			message{first: 221, last: 250, revision: 250}, message{revision: 250})
		// A change of this replica is told at once, one of another at the next poll.
		source.grow(2, true)
		wantMessages(t, w, message{first: 251, last: 252, revision: 252})
		source.grow(1, false)
		wantMessages(t, w)
		time.Sleep(poll)
		wantMessages(t, w, message{first: 253, last: 253, revision: 253, at: poll})
	})
}

func TestWatch_ReadsTheDatabaseOnceForAll(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		var all []*watcher
		for range 100 {
			all = append(all, begin(ctx, h, 0, nil))
		}
		synctest.Wait()
		var before, after int
		source.set(func(f *fakeSource) { before = f.reads })
		source.grow(3, true)
		synctest.Wait()
		source.set(func(f *fakeSource) { after = f.reads })
		for _, w := range all {
			if got := w.messages(); got[len(got)-1].last != 3 {
				t.Fatalf("a watcher got %+v", got)
			}
		}
		if after-before != 1 {
			t.Fatalf("%d reads for one change", after-before)
		}
	})
}

func TestWatch_SlowWatcherHoldsNobody(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		gate := make(chan struct{})
		slow := begin(ctx, h, 0, gate)
		fast := begin(ctx, h, 0, nil)
		synctest.Wait()
		fast.messages()
		// So many changes that the slow one's are not kept.
		for range 50 {
			source.grow(100, true)
			synctest.Wait()
		}
		var last int64
		for _, m := range fast.messages() {
			if m.first != last+1 {
				t.Fatalf("the fast one got %+v after %d", m, last)
			}
			last = m.last
		}
		if last != 5000 {
			t.Fatalf("the fast one is at %d", last)
		}
		close(gate)
		synctest.Wait()
		last = 0
		for _, m := range slow.messages() {
			if m.last == 0 {
				continue
			}
			if m.first != last+1 {
				t.Fatalf("the slow one got %+v after %d", m, last)
			}
			last = m.last
		}
		if last != 5000 {
			t.Fatalf("the slow one is at %d", last)
		}
	})
}

// TestWatch_Thousands has thousands of watchers, of whom one never takes anything: everybody else gets every change at once, in order, by as many reads of
// the database as there would be for one.
func TestWatch_Thousands(t *testing.T) {
	const watchers, rounds, each = 3000, 40, 25
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		never := make(chan struct{})
		stuck := begin(ctx, h, 0, never)
		// Only how far each has come is kept, and whether it came there in order.
		reached := make([]int64, watchers)
		ended := make(chan error, watchers)
		for i := range watchers {
			go func() {
				ended <- h.Watch(ctx, resource.Position{Incarnation: incarnation}, func(changes []change.Change, _ resource.Position) error {
					for _, c := range changes {
						if c.Revision != reached[i]+1 {
							return fmt.Errorf("watcher %d got %d after %d", i, c.Revision, reached[i])
						}
						reached[i] = c.Revision
					}
					return nil
				})
			}()
		}
		synctest.Wait()
		var before, after int
		source.set(func(f *fakeSource) { before = f.reads })
		began := time.Now()
		for round := range rounds {
			source.grow(each, true)
			synctest.Wait()
			for i := range watchers {
				if reached[i] != int64((round+1)*each) {
					t.Fatalf("watcher %d is at %d after round %d", i, reached[i], round)
				}
			}
		}
		source.set(func(f *fakeSource) { after = f.reads })
		if after-before != rounds || time.Since(began) != 0 {
			t.Errorf("%d reads and %v for %d rounds", after-before, time.Since(began), rounds)
		}
		if got := stuck.messages(); got != nil {
			t.Errorf("the stuck one got %+v", got)
		}
		close(never)
		synctest.Wait()
		if got := stuck.messages(); got[len(got)-1].revision != rounds*each {
			t.Errorf("the stuck one has come to %+v", got[len(got)-1])
		}
		select {
		case err := <-ended:
			t.Errorf("a watcher ended with %v", err)
		default:
		}
	})
}

// TestWatch_StuckWatchersKeepLittle has watchers get stuck one after another, each with what was new then.
func TestWatch_StuckWatchersKeepLittle(t *testing.T) {
	const stuck, meanwhile, batch, recent = 20, 1500, 100, 2000
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		never := make(chan struct{})
		var head int64
		for range stuck {
			go func() {
				// Its bookmark passes; the first message after that does not.
				_ = h.Watch(ctx, resource.Position{Incarnation: incarnation, Revision: head}, func(changes []change.Change, _ resource.Position) error {
					if len(changes) > 0 {
						<-never
					}
					return nil
				})
			}()
			synctest.Wait()
			source.grow(meanwhile, true)
			head += meanwhile
			synctest.Wait()
		}
		if got, most := source.alive(), recent+stuck*batch; got > most {
			t.Errorf("%d of %d changes are in memory, want at most %d", got, head, most)
		}
		close(never)
	})
}

// Whoever was behind when the changes after its cursor were compacted is told so; who was not goes on.
func TestWatch_CompactionUnderWatchers(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		gate := make(chan struct{})
		behind, current := begin(ctx, h, 0, gate), begin(ctx, h, 0, nil)
		synctest.Wait()
		for range 30 { // more than is in memory
			source.grow(100, true)
			synctest.Wait()
		}
		current.messages()
		source.set(func(f *fakeSource) { f.floor = 2900 })
		close(gate)
		wantEnd(t, behind, resource.ErrCursor)
		source.grow(1, true)
		wantMessages(t, current, message{first: 3001, last: 3001, revision: 3001})
	})
}

func TestWatch_CursorOutOfRange(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		source.grow(10, true)
		source.set(func(f *fakeSource) { f.floor = 5 })
		wantEnd(t, begin(ctx, h, 11, nil), resource.ErrCursor)
		wantEnd(t, begin(ctx, h, 4, nil), resource.ErrCursor)
		w := begin(ctx, h, 5, nil)
		wantMessages(t, w, message{first: 6, last: 10, revision: 10}, message{revision: 10})
	})
}

func TestWatch_DatabaseAway(t *testing.T) {
	away := fmt.Errorf("away: %w", resource.ErrUnavailable)
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		w := begin(ctx, h, 0, nil)
		wantMessages(t, w, message{})
		// For less than a bookmark's time nobody needs to know.
		source.set(func(f *fakeSource) { f.failure = away })
		time.Sleep(bookmark - time.Second)
		source.set(func(f *fakeSource) { f.failure = nil })
		source.grow(1, false)
		time.Sleep(time.Second - time.Millisecond)
		if got := w.messages(); len(got) != 1 || got[0].last != 1 {
			t.Fatalf("got %+v", got)
		}
		// For longer, a bookmark would be a lie.
		source.set(func(f *fakeSource) { f.failure = away })
		time.Sleep(2 * bookmark)
		wantEnd(t, w, resource.ErrUnavailable)
		wantEnd(t, begin(ctx, h, 1, nil), resource.ErrUnavailable)
		// And when it is back, all is well again.
		source.set(func(f *fakeSource) { f.failure = nil })
		time.Sleep(poll)
		again := begin(ctx, h, 1, nil)
		wantMessages(t, again, message{revision: 1})
		time.Sleep(bookmark)
		wantMessages(t, again, message{revision: 1, at: bookmark})
	})
}

func TestWatch_CompactionOvertakesTheReader(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		w := begin(ctx, h, 0, nil)
		wantMessages(t, w, message{})
		source.set(func(f *fakeSource) { f.head, f.floor = 10, 10 })
		time.Sleep(2 * poll)
		wantEnd(t, w, resource.ErrCursor)
		again := begin(ctx, h, 10, nil)
		wantMessages(t, again, message{revision: 10})
		source.grow(1, true)
		wantMessages(t, again, message{first: 11, last: 11, revision: 11})
	})
}

func TestWatch_DatabaseGoesBackInTime(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		source.grow(10, true)
		w := begin(ctx, h, 10, nil)
		wantMessages(t, w, message{revision: 10})
		source.set(func(f *fakeSource) { f.head = 4 })
		time.Sleep(2 * poll)
		wantEnd(t, w, resource.ErrCursor)
	})
}

// A database restored from a backup has another incarnation, and soon changes of the same revisions as those that were lost.
func TestWatch_DatabaseGetsAnotherIncarnation(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		source.grow(10, true)
		caughtUp, behind := begin(ctx, h, 10, nil), begin(ctx, h, 8, make(chan struct{}))
		wantMessages(t, caughtUp, message{revision: 10})
		source.set(func(f *fakeSource) { f.incarnation, f.head = "second", 9 })
		// Who comes with a cursor of the new one, before the reader has noticed, gets nothing of the old one's.
		next := &watcher{begun: time.Now(), ended: make(chan error, 1)}
		go func() { next.ended <- h.Watch(ctx, resource.Position{Incarnation: "second", Revision: 8}, next.take) }()
		wantMessages(t, next, message{first: 9, last: 9, revision: 9}, message{revision: 9})
		source.grow(3, false)
		time.Sleep(2 * poll)
		wantMessages(t, next, message{first: 10, last: 12, revision: 12, at: 2 * poll})
		wantEnd(t, caughtUp, resource.ErrCursor)
		close(behind.gate)
		wantEnd(t, behind, resource.ErrCursor)
		wantEnd(t, begin(ctx, h, 10, nil), resource.ErrCursor)
		time.Sleep(bookmark)
		wantMessages(t, next, message{revision: 12, at: 2*poll + bookmark})
	})
}

// TestWatch_AnotherIncarnationAtTheMomentOfABookmark has the reader begin anew at the very instant at which bookmarks are due: whichever a watcher sees first,
// it must not go on in a history that is over.
func TestWatch_AnotherIncarnationAtTheMomentOfABookmark(t *testing.T) {
	const rounds = 60 // who is first at an instant is chance
	for range rounds {
		bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
			var all []*watcher
			for range 300 {
				all = append(all, begin(ctx, h, 0, nil))
			}
			// The hub's reads and the watchers' bookmarks are both counted from now.
			// The read before finds that the revision cannot be followed, the one at that moment begins anew.
			time.Sleep(bookmark - 3*poll/2)
			source.set(func(f *fakeSource) { f.incarnation = "second" })
			time.Sleep(2 * bookmark)
			for _, w := range all {
				select {
				case err := <-w.ended:
					if !errors.Is(err, resource.ErrCursor) {
						t.Fatal(err)
					}
				default:
					t.Fatal("a watcher goes on in an incarnation that is over")
				}
			}
		})
	}
}

func TestWatch_BeforeTheHubRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := newSource()
		source.grow(3, false)
		h := hub(t, source)
		w := begin(ctx, h, 1, nil)
		wantMessages(t, w, message{first: 2, last: 3, revision: 3}, message{revision: 3})
		ran := make(chan error)
		go func() { ran <- h.Run(ctx) }()
		source.grow(1, true)
		wantMessages(t, w, message{first: 4, last: 4, revision: 4})
		cancel()
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
		wantEnd(t, w, context.Canceled)
	})
}

func TestWatch_EndsWithSend(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		gone := errors.New("the watcher is gone")
		if err := h.Watch(ctx, resource.Position{Incarnation: incarnation}, func([]change.Change, resource.Position) error { return gone }); !errors.Is(err, gone) {
			t.Fatalf("ended with %v", err)
		}
	})
}

// TestWatch_WithoutGaps watches from many cursors while changes come in irregular portions.
func TestWatch_WithoutGaps(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, source *fakeSource, h *watch.Hub) {
		var all []*watcher
		var cursors []int64
		var head int64
		for i, n := range []int64{1, 99, 100, 101, 1, 3000, 7, 0, 250} {
			all = append(all, begin(ctx, h, head, nil))
			cursors = append(cursors, head)
			source.grow(n, i%2 == 0)
			head += n
			time.Sleep(time.Duration(i) * 90 * time.Millisecond)
		}
		time.Sleep(poll)
		synctest.Wait()
		for i, w := range all {
			at := cursors[i]
			for _, m := range slices.DeleteFunc(w.messages(), func(m message) bool { return m.last == 0 }) {
				if m.first != at+1 || m.revision != m.last {
					t.Fatalf("watcher %d got %+v after %d", i, m, at)
				}
				at = m.last
			}
			if at != head {
				t.Fatalf("watcher %d is at %d of %d", i, at, head)
			}
		}
	})
}

// slowSource takes a while to read, and knows how many read at once.
type slowSource struct {
	*fakeSource
	now, most, pages int
}

func (s *slowSource) Changes(ctx context.Context, from resource.Position, limit int) ([]change.Change, int64, error) {
	s.set(func(*fakeSource) {
		s.now++
		s.pages++
		s.most = max(s.most, s.now)
	})
	time.Sleep(time.Millisecond)
	s.set(func(*fakeSource) { s.now-- })
	return s.fakeSource.Changes(ctx, from, limit)
}

// A thousand watchers that come back at once, each far behind, take one connection among them, and few reads.
func TestWatch_ManyComeBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &slowSource{fakeSource: newSource()}
		source.grow(5000, false)
		h, err := watch.New(watch.Config{Source: source, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		var watchers []*watcher
		for range 1000 {
			watchers = append(watchers, begin(ctx, h, 4000, nil))
		}
		time.Sleep(time.Second)
		source.set(func(*fakeSource) {
			if source.most > 2 {
				t.Errorf("%d read at once", source.most)
			}
			if source.pages > 100 {
				t.Errorf("%d pages were read for ten", source.pages)
			}
		})
		for i, w := range watchers {
			w.mu.Lock()
			if n := len(w.got); n == 0 || w.got[n-1].revision != 5000 {
				t.Errorf("watcher %d has %v", i, w.got)
			}
			w.mu.Unlock()
		}
		cancel()
		for _, w := range watchers {
			if err := <-w.ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
