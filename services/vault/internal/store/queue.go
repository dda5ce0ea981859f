package store

import (
	"context"
	"sync"
	"time"

	"phasekey.dev/pkg/caught"
	"phasekey.dev/pkg/sqldb"
)

const (
	// maxBatch is how much is done together: more makes each wait longer than the work that is saved, and SQLite finds a parameter by
	// going through all.
	maxBatch = 64
	// batchTimeout bounds a batch, which no single caller's context does.
	batchTimeout = 30 * time.Second
)

// queue has what is ordered done in batches. While one is being done others gather, and are the next batch: nobody waits for company, and whoever comes while
// the database is busy shares the next use of it.
type queue[T ordering] struct {
	// take picks what can be done together from what waits, in its order. What is in neither is given up.
	take func(waiting []T) (batch, rest []T)
	// do does a batch, and writes to each how that went. It must not panic.
	do func(ctx context.Context, batch []T)

	mu      sync.Mutex
	waiting []T
	running bool
}

// ordering is something that has been ordered: it embeds an order. Whoever has taken it from the queue writes to it, until it is done.
type ordering interface{ state() *order }

// order is what a queue has to know.
type order struct {
	ctx  context.Context //nolint:containedctx // of the caller who waits for it
	done chan struct{}
	// company is whom it is done for, once it has been taken; the queue's lock guards it.
	company *company
}

// company is those for whom a batch is done.
type company struct {
	here   int // how many still wait
	giveUp context.CancelFunc
}

func newOrder(ctx context.Context) order { return order{ctx: ctx, done: make(chan struct{})} }

func (o *order) state() *order { return o }

// wait has it done, by a goroutine that is gone when there is nothing left to do, and returns when it is, or the error of the order's context when that ends first.
func (q *queue[T]) wait(o T) error {
	q.add(o)
	select {
	case <-o.state().done:
		return nil
	case <-o.state().ctx.Done():
		q.leave(o)
		return o.state().ctx.Err()
	}
}

// leave notes that a caller is gone. A batch is given up when all are.
func (q *queue[T]) leave(o T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := o.state().company
	if c == nil {
		return // who takes it sees that its context has ended
	}
	if c.here--; c.here == 0 {
		c.giveUp()
	}
}

func (q *queue[T]) add(o T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, o)
	if q.running {
		return
	}
	q.running = true
	go func() {
		for {
			ctx, batch, giveUp := q.next()
			if batch == nil {
				return
			}
			q.do(ctx, batch)
			giveUp()
			for _, o := range batch {
				close(o.state().done)
			}
		}
	}()
}

// next is the next batch, with a context that is the first caller's without its end. With nothing left it says that nobody works any more.
func (q *queue[T]) next() (ctx context.Context, batch []T, giveUp context.CancelFunc) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, rest := q.take(q.waiting)
	q.waiting = rest
	q.running = len(batch) > 0
	if !q.running {
		return nil, nil, nil
	}
	ctx, giveUp = context.WithTimeout(context.WithoutCancel(batch[0].state().ctx), batchTimeout)
	all := &company{here: len(batch), giveUp: giveUp}
	for _, o := range batch {
		o.state().company = all
	}
	return ctx, batch, giveUp
}

// lookup reads values by their keys, as of a moment after they were asked for.
type lookup[K comparable, V any] struct {
	queue queue[*wanted[K, V]]
}

// wanted is a value that was asked for.
type wanted[K comparable, V any] struct {
	order
	key   K
	value V
	err   error
}

// newLookup makes a lookup. Read adds to a batch what reads the values of keys, each another one, and returns what gives them when that is done; what it does not find is missing.
func newLookup[K comparable, V any](db *sqldb.DB, missing error, read func(tx sqldb.Tx, b *sqldb.Batch, keys []K) func() map[K]V) *lookup[K, V] {
	do := func(ctx context.Context, batch []*wanted[K, V]) {
		asked := make(map[K]bool, len(batch))
		var keys []K
		for _, w := range batch {
			if !asked[w.key] {
				asked[w.key] = true
				keys = append(keys, w.key)
			}
		}
		var found map[K]V
		err := caught.Panic(func() error {
			var result func() map[K]V
			err := db.Read(ctx, func(tx sqldb.Tx, b *sqldb.Batch) {
				tx.ByIndex(b)
				result = read(tx, b, keys)
			})
			if err == nil {
				found = result()
			}
			return err
		})
		for _, w := range batch {
			value, ok := found[w.key]
			switch {
			case err != nil:
				w.err = err
			case !ok:
				w.err = missing
			default:
				w.value = value
			}
		}
	}
	return &lookup[K, V]{queue: queue[*wanted[K, V]]{take: takeWanted[K, V], do: do}}
}

// takeWanted takes the first of those whose callers are still there.
func takeWanted[K comparable, V any](waiting []*wanted[K, V]) (batch, rest []*wanted[K, V]) {
	for i, w := range waiting {
		if len(batch) == maxBatch {
			return batch, waiting[i:]
		}
		if w.ctx.Err() == nil {
			batch = append(batch, w)
		}
	}
	return batch, nil
}

// get reads the value of a key.
func (l *lookup[K, V]) get(ctx context.Context, key K) (V, error) {
	w := &wanted[K, V]{order: newOrder(ctx), key: key}
	if err := l.queue.wait(w); err != nil {
		var none V
		return none, err
	}
	return w.value, w.err
}
