package tail_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/notary"
	"phasekey.dev/services/vault/internal/store"
	"phasekey.dev/services/vault/internal/tail"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// world is a database in which replicas record, a notary signs, and hubs tell.
type world struct {
	*testing.T
	db       *sqldb.DB
	replicas []*store.Store
	notary   *notary.Notary
	now      time.Time
}

func newWorld(t *testing.T, db *sqldb.DB, replicas int) *world {
	w := &world{T: t, db: db, now: start}
	for range replicas {
		w.replicas = append(w.replicas, store.New(db, audittest.Keys(1)))
	}
	w.notary = notary.New(notary.Config{
		Store: w.replicas[0], Keys: audittest.Keys(1), Taken: store.ErrChanged, Retention: 40 * 24 * time.Hour, Log: slog.New(slog.DiscardHandler),
	})
	return w
}

func migrations(t *testing.T) fs.FS {
	t.Helper()
	out, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func onBoth(t *testing.T, replicas int, test func(w *world)) {
	t.Helper()
	sqldbtest.Run(t, migrations(t), func(t *testing.T, db *sqldb.DB) { test(newWorld(t, db, replicas)) })
}

// record has a replica record an event about an account.
func (w *world) record(replica int, account string) {
	w.Helper()
	if _, err := w.replicas[replica].FreezeAccount(w.Context(), w.now, account, "a reason", grant.Caller{}); err != nil {
		w.Error(err)
	}
}

// sign lets time pass, and has the notary sign.
func (w *world) sign(after time.Duration) {
	w.Helper()
	w.now = w.now.Add(after)
	if err := w.notary.Checkpoint(w.Context(), w.now); err != nil {
		w.Error(err)
	}
}

func (w *world) exec(query string, args ...any) {
	w.Helper()
	if err := w.db.Tx(w.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}); err != nil {
		w.Fatal(err)
	}
}

// hub is one that runs until the test ends.
func (w *world) hub() *tail.Hub {
	h := tail.New(tail.Config{Source: w.replicas[0], Log: slog.New(slog.DiscardHandler), Poll: time.Millisecond})
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
	return h
}

var errEnough = errors.New("enough")

// told tails until enough, which gets the accounts of each message, and returns them all with the last position.
func (w *world) told(h *tail.Hub, r tail.Request, enough func(accounts []string) bool) (all []string, at *tail.Position, err error) {
	w.Helper()
	if r.Passes == nil {
		r.Passes = func(audit.Event) bool { return true }
	}
	err = h.Tail(w.Context(), r, func(events []audit.Event, p tail.Position) error {
		var accounts []string
		for _, e := range events {
			accounts = append(accounts, e.Account)
		}
		all = append(all, accounts...)
		parsed, err := tail.ParsePosition(p.Bytes())
		if err != nil {
			return err
		}
		at = &parsed
		if enough(accounts) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return all, at, err
}

// here is the position of the newest record.
func (w *world) here(h *tail.Hub) *tail.Position {
	w.Helper()
	_, at, err := w.told(h, tail.Request{}, func([]string) bool { return true })
	if err != nil {
		w.Fatal(err)
	}
	return at
}

// rest is what comes behind a position up to now.
func (w *world) rest(h *tail.Hub, at *tail.Position) ([]string, error) {
	w.Helper()
	got, _, err := w.told(h, tail.Request{From: at}, func(accounts []string) bool { return len(accounts) == 0 })
	return got, err
}

// Three writers record, while checkpoints are signed, and a reader goes on from each position in turn at one of two replicas: nothing is lost, nothing comes twice,
// and what one writer recorded comes in its order.
func TestTail_NothingIsLostAndNothingComesTwice(t *testing.T) {
	const writers, each = 3, 60
	onBoth(t, writers, func(w *world) {
		hubs := []*tail.Hub{w.hub(), w.hub()}
		at := w.here(hubs[0])
		var all sync.WaitGroup
		for writer := range writers {
			all.Go(func() {
				for i := range each {
					w.record(writer, fmt.Sprintf("w%d-%03d", writer, i))
				}
			})
		}
		signed := make(chan struct{})
		signs := notary.New(notary.Config{Store: w.replicas[1], Keys: audittest.Keys(1), Taken: store.ErrChanged, Log: slog.New(slog.DiscardHandler)})
		go func() {
			defer close(signed)
			for i := range 20 {
				if err := signs.Checkpoint(w.Context(), start.Add(time.Duration(i)*time.Minute)); err != nil {
					w.Error(err)
				}
			}
		}()
		var got []string
		for turn := 0; len(got) < writers*each; turn++ {
			some, next, err := w.told(hubs[turn%2], tail.Request{From: at}, func(accounts []string) bool { return len(accounts) > 0 })
			if err != nil {
				t.Fatal(err)
			}
			got, at = append(got, some...), next
		}
		all.Wait()
		<-signed
		last := map[string]string{}
		for _, account := range got {
			writer, n, _ := strings.Cut(account, "-")
			if n <= last[writer] {
				t.Errorf("%s came after %s", account, last[writer])
			}
			last[writer] = n
		}
		slices.Sort(got)
		if n := len(slices.Compact(got)); n != writers*each {
			t.Errorf("%d events, of which %d differ", len(got), n)
		}
		if rest, err := w.rest(hubs[0], at); err != nil || len(rest) > 0 {
			t.Errorf("and then %q, %v", rest, err)
		}
	})
}

// Who begins by time, or at a position of long ago, is told what checkpoints cover, and what none does yet.
func TestTail_BeginsAnywhere(t *testing.T) {
	onBoth(t, 2, func(w *world) {
		h := w.hub()
		beginning := w.here(h)
		var positions []*tail.Position
		var want []string
		for i := range 12 {
			for replica := range 2 {
				account := fmt.Sprintf("m%02d-%d", i, replica)
				w.record(replica, account)
				want = append(want, account)
			}
			positions = append(positions, w.here(h))
			if i < 10 {
				w.sign(10 * time.Minute)
			}
		}
		for i, at := range append([]*tail.Position{beginning}, positions...) {
			got, err := w.rest(h, at)
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want[2*i:]) {
				t.Errorf("from %d: %q, %v", i, got, err)
			}
		}
		for name, tt := range map[string]struct {
			since time.Time
			from  int
		}{
			"before all":  {start.Add(-time.Hour), 0},
			"at first":    {start, 0},
			"in between":  {start.Add(50*time.Minute + time.Second), 6},
			"at the end":  {w.now.Add(-time.Second), 10},
			"after a day": {w.now.Add(24 * time.Hour), 12},
		} {
			r := tail.Request{Since: tt.since, Passes: func(e audit.Event) bool { return !e.Time.Before(tt.since) }}
			got, _, err := w.told(h, r, func(accounts []string) bool { return len(accounts) == 0 })
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want[2*tt.from:]) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	})
}

// A record that gets its number first, and is committed last, is not passed over.
func TestTail_ALateCommitIsTold(t *testing.T) {
	w := newWorld(t, sqldbtest.Postgres(t, migrations(t)), 2)
	h := w.hub()
	at := w.here(h)
	numbered, commit := make(chan struct{}), make(chan struct{})
	ctx := sqldbtest.WithCount(w.Context(), func(query string) {
		if strings.HasPrefix(query, "UPDATE audit_writers") {
			close(numbered)
			<-commit
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := w.replicas[0].FreezeAccount(ctx, w.now, "late", "a reason", grant.Caller{})
		done <- err
	}()
	<-numbered
	w.now = w.now.Add(time.Second)
	w.record(1, "early")
	w.sign(time.Minute)
	got, at, err := w.told(h, tail.Request{From: at}, func(accounts []string) bool { return len(accounts) > 0 })
	if err != nil || !slices.Equal(got, []string{"early"}) {
		t.Errorf("%q, %v", got, err)
	}
	close(commit)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got, _, err = w.told(h, tail.Request{From: at}, func(accounts []string) bool { return len(accounts) > 0 })
	if err != nil || !slices.Equal(got, []string{"late"}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTail_AfterRetention(t *testing.T) {
	const day = 24 * time.Hour
	onBoth(t, 2, func(w *world) {
		h := w.hub()
		beginning := w.here(h)
		var positions []*tail.Position
		for i := range 60 {
			w.record(i%2, fmt.Sprintf("day%02d", i))
			w.sign(day)
			positions = append(positions, w.here(h))
		}
		if err := w.notary.Forget(w.Context(), w.now); err != nil {
			t.Fatal(err)
		}
		kept := 0
		for i, at := range append([]*tail.Position{beginning}, positions...) {
			switch got, err := w.rest(h, at); {
			case errors.Is(err, tail.ErrPosition) && kept == 0:
			case err != nil:
				t.Errorf("day %d: %v", i, err)
			default:
				kept++
				if len(got) != 60-i {
					t.Errorf("day %d: %q", i, got)
				}
			}
		}
		if kept < 40 || kept > 42 {
			t.Errorf("%d days are kept", kept)
		}
		got, _, err := w.told(h, tail.Request{Since: start}, func(accounts []string) bool { return len(accounts) == 0 })
		if err != nil || len(got) != kept-1 {
			t.Errorf("since the beginning: %q, %v", got, err)
		}
	})
}

// Where records or checkpoints are not those that there were, a reader is told so, and nothing else.
func TestTail_RefusesAnotherPast(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"a record that was removed": func(w *world) { w.exec(`DELETE FROM audit_events WHERE account = 'd0'`) },
		"the newest was cut off": func(w *world) {
			w.exec(`DELETE FROM audit_events WHERE seq > 2`)
			w.exec(`UPDATE audit_writers SET seq = 2`)
		},
		"a checkpoint of the future": func(w *world) { w.exec(`DELETE FROM audit_checkpoints WHERE number >= 2`) },
		"a checkpoint that is another": func(w *world) {
			w.exec(`UPDATE audit_checkpoints SET payload = '{"number":2,"heads":[]}' WHERE number = 2`)
		},
		"a checkpoint that is nothing": func(w *world) { w.exec(`UPDATE audit_checkpoints SET payload = 'x' WHERE number = 2`) },
		"no checkpoint to begin at":    func(w *world) { w.exec(`DELETE FROM audit_checkpoints WHERE number = 1`) },
		"no checkpoint to go on at": func(w *world) {
			w.sign(time.Minute)
			w.record(0, "e")
			w.sign(time.Minute)
			w.exec(`DELETE FROM audit_checkpoints WHERE number = 3`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, sqldbtest.SQLite(t, migrations(t)), 1)
			w.record(0, "a")
			w.sign(time.Minute)
			w.record(0, "b")
			w.sign(time.Minute)
			w.record(0, "c")
			h := w.hub()
			at := w.here(h)
			for i := range 3 {
				w.record(0, fmt.Sprint("d", i))
			}
			if got, err := w.rest(h, at); err != nil || len(got) != 3 {
				t.Fatalf("%q, %v", got, err)
			}
			change(w)
			got, err := w.rest(h, at)
			if !errors.Is(err, tail.ErrPosition) {
				t.Errorf("%q, %v", got, err)
			}
			if got, err = w.rest(w.hub(), at); !errors.Is(err, tail.ErrPosition) {
				t.Errorf("at another replica: %q, %v", got, err)
			}
		})
	}
}

// Who is there when the past becomes another is told so too, and does not wait for what will never come.
func TestTail_EndsWhereThePastIsAnother(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"the newest was cut off": func(w *world) {
			w.exec(`DELETE FROM audit_events WHERE seq > 3`)
			w.exec(`UPDATE audit_writers SET seq = 3`)
		},
		"all was cut off that no checkpoint covers": func(w *world) {
			w.exec(`DELETE FROM audit_events WHERE seq > 2`)
			w.exec(`UPDATE audit_writers SET seq = 2`)
		},
		"checkpoints were taken back": func(w *world) { w.exec(`DELETE FROM audit_checkpoints WHERE number >= 2`) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, sqldbtest.SQLite(t, migrations(t)), 1)
				for _, account := range []string{"a", "b"} {
					w.record(0, account)
					w.sign(time.Minute)
				}
				w.record(0, "c")
				w.record(0, "d")
				ended, leave := w.stay(w.hub())
				time.Sleep(time.Second)
				if len(ended) > 0 {
					t.Fatal(<-ended)
				}
				change(w)
				time.Sleep(time.Second)
				leave()
				if err := <-ended; !errors.Is(err, tail.ErrPosition) {
					t.Error(err)
				}
			})
		})
	}
}

// stay tails from now on, until leave is called; what it ended with comes by the channel. It returns when it has caught up.
func (w *world) stay(h *tail.Hub) (ended chan error, leave context.CancelFunc) {
	ctx, leave := context.WithCancel(w.Context())
	ended = make(chan error, 1)
	there := make(chan struct{})
	var once sync.Once
	go func() {
		ended <- h.Tail(ctx, tail.Request{Passes: func(audit.Event) bool { return true }}, func([]audit.Event, tail.Position) error {
			once.Do(func() { close(there) })
			return nil
		})
	}()
	<-there
	return ended, leave
}

// After a restore a checkpoint of the same number may be another. A replica that still has the one refuses a position at the other.
func TestTail_RefusesAPositionOfAnotherCheckpoint(t *testing.T) {
	onBoth(t, 1, func(w *world) {
		for _, account := range []string{"a", "b"} {
			w.record(0, account)
			w.sign(time.Minute)
		}
		old := w.hub()
		ended, leave := w.stay(old)
		last, err := w.replicas[0].LastCheckpoint(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		w.exec(`UPDATE audit_checkpoints SET payload = $1 WHERE number = $2`, append(slices.Clone(last.Payload), ' '), last.Number)
		at := w.here(w.hub())
		if got, err := w.rest(old, at); !errors.Is(err, tail.ErrPosition) {
			w.Errorf("%q, %v", got, err)
		}
		leave()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			w.Error(err)
		}
	})
}

// A reader may be ahead of a checkpoint that it passes: it was told a record that the notary did not sign yet. The positions behind that checkpoint say so.
func TestTail_ARecordAheadOfACheckpointIsToldOnce(t *testing.T) {
	onBoth(t, 2, func(w *world) {
		h := w.hub()
		w.record(0, "a1")
		w.sign(time.Minute)
		w.record(0, "a2")
		w.record(0, "a3")
		at := w.here(h)
		w.exec(`UPDATE audit_events SET seq = 1003 WHERE account = 'a3'`) // the notary does not find it
		w.record(1, "b1")
		w.sign(time.Minute)
		w.exec(`UPDATE audit_events SET seq = 3 WHERE account = 'a3'`)
		w.record(1, "b2")
		w.sign(time.Minute)
		got, behind, err := w.told(h, tail.Request{From: at}, func(accounts []string) bool { return slices.Contains(accounts, "b2") })
		if err != nil || !slices.Equal(got, []string{"b1", "b2"}) {
			w.Errorf("%q, %v", got, err)
		}
		if got, err := w.rest(h, behind); err != nil || len(got) > 0 {
			w.Errorf("and again %q, %v", got, err)
		}
	})
}

// A record is of the time of the replica that made it. By a clock that is fast it is later than the checkpoint that covers it, and told all the same to who begins
// between the two.
func TestTail_BeginsBeforeWhatAFastClockRecorded(t *testing.T) {
	onBoth(t, 1, func(w *world) {
		w.record(0, "earlier")
		w.now = start.Add(4 * time.Minute)
		w.record(0, "fast")
		w.now = start
		w.sign(0)
		since := start.Add(2 * time.Minute)
		r := tail.Request{Since: since, Passes: func(e audit.Event) bool { return !e.Time.Before(since) }}
		got, _, err := w.told(w.hub(), r, func(accounts []string) bool { return len(accounts) == 0 })
		if err != nil || !slices.Equal(got, []string{"fast"}) {
			w.Errorf("%q, %v", got, err)
		}
	})
}

// A reader that does not read holds up neither others nor what is recorded, and has missed nothing when it reads again; by then it is far behind what
// is kept in memory.
func TestTail_SlowReader(t *testing.T) {
	const records = 2500
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sqldbtest.SQLite(t, migrations(t)), 1)
		h := w.hub()
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		got := map[string][]string{}
		ended := make(chan error, 2)
		stuck := make(chan struct{})
		reads := func(name string, before func()) {
			ended <- h.Tail(ctx, tail.Request{Passes: func(audit.Event) bool { return true }}, func(events []audit.Event, _ tail.Position) error {
				before()
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events {
					got[name] = append(got[name], e.Account)
				}
				return nil
			})
		}
		began := false
		go reads("slow", func() {
			if began {
				<-stuck
			}
			began = true
		})
		go reads("quick", func() {})
		synctest.Wait()
		time.Sleep(time.Second)
		var want []string
		for i := range records {
			account := fmt.Sprintf("a%04d", i)
			w.record(0, account)
			want = append(want, account)
			if i%500 == 0 {
				w.sign(time.Minute)
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Second)
		mu.Lock()
		if !slices.Equal(got["quick"], want) || len(got["slow"]) > 0 {
			t.Errorf("quick got %d, slow %d", len(got["quick"]), len(got["slow"]))
		}
		mu.Unlock()
		close(stuck)
		time.Sleep(time.Second)
		mu.Lock()
		if !slices.Equal(got["slow"], want) {
			t.Errorf("slow got %d", len(got["slow"]))
		}
		mu.Unlock()
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

// broken is a database that does not answer for a while.
type broken struct {
	*store.Store
	err atomic.Pointer[error]
}

func (b *broken) AuditState(ctx context.Context, known int64) (audit.State, error) {
	if err := b.err.Load(); err != nil {
		return audit.State{}, *err
	}
	return b.Store.AuditState(ctx, known)
}

// As long as nothing passes, a reader hears in time that it has missed nothing; and that the database does not answer, when that is so.
func TestTail_Bookmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sqldbtest.SQLite(t, migrations(t)), 1)
		source := &broken{Store: w.replicas[0]}
		h := tail.New(tail.Config{Source: source, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Run(ctx) }()
		begin := time.Now()
		var at *tail.Position
		var marks []time.Duration
		ended := make(chan error, 1)
		go func() {
			ended <- h.Tail(ctx, tail.Request{Passes: func(e audit.Event) bool { return e.Account == "mine" }}, func(events []audit.Event, p tail.Position) error {
				if len(events) > 0 {
					t.Errorf("got %v", events)
				}
				marks = append(marks, time.Since(begin).Round(time.Second))
				parsed, err := tail.ParsePosition(p.Bytes())
				at = &parsed
				return err
			})
		}()
		for range 35 {
			w.record(0, "other")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}; !slices.Equal(marks, want) && !slices.Equal(marks, []time.Duration{1e9, 11e9, 21e9, 31e9}) {
			t.Errorf("bookmarks after %v", marks)
		}
		gone := errors.New("gone")
		source.err.Store(&gone)
		if err := <-ended; !errors.Is(err, tail.ErrUnavailable) || !errors.Is(err, gone) {
			t.Errorf("ended with %v", err)
		}
		if _, err := w.rest(h, at); !errors.Is(err, tail.ErrUnavailable) {
			t.Errorf("a new one: %v", err)
		}
		source.err.Store(nil)
		if got, err := w.rest(h, at); err != nil || len(got) > 5 {
			t.Errorf("the last bookmark leads to %q, %v", got, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTail_AsManyAsThereMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sqldbtest.SQLite(t, migrations(t)), 1)
		h := w.hub()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 200)
		begin := func(caller string) {
			go func() {
				ended <- h.Tail(ctx, tail.Request{Caller: caller, Passes: func(audit.Event) bool { return true }}, func([]audit.Event, tail.Position) error { return nil })
			}()
			synctest.Wait()
		}
		for range tail.PerCaller {
			begin("a")
		}
		begin("a")
		if err := <-ended; !errors.Is(err, tail.ErrTooMany) {
			t.Errorf("one more: %v", err)
		}
		others := 0
		for len(ended) == 0 {
			begin(fmt.Sprint("b", others))
			others++
		}
		if err := <-ended; !errors.Is(err, tail.ErrTooMany) || others != 100-tail.PerCaller+1 {
			t.Errorf("%d others, then %v", others, err)
		}
		cancel()
		for range tail.PerCaller + others - 1 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		ctx = t.Context()
		if got, _, err := w.told(h, tail.Request{Caller: "a"}, func([]string) bool { return true }); err != nil || len(got) > 0 {
			t.Errorf("when all have left: %v", err)
		}
	})
}

// FuzzEventPosition: bytes are refused, or are a position's, which says the same when it is written again.
func FuzzEventPosition(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x05abcdefgh"))
	f.Add([]byte("\x05abcdefgh0123456789abcdef\x07"))
	f.Add([]byte("\x05abcdefgh0123456789abcdef\x000123456789abcdeg\xff"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abcdefgh"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := tail.ParsePosition(raw)
		if err != nil {
			return
		}
		again, err := tail.ParsePosition(p.Bytes())
		if err != nil || string(again.Bytes()) != string(p.Bytes()) || len(p.Bytes()) > len(raw) {
			t.Errorf("%x became %x, %v", raw, p.Bytes(), err)
		}
	})
}
