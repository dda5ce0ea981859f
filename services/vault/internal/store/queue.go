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
}

func newOrder(ctx context.Context) order { return order{ctx: ctx, done: make(chan struct{})} }

func (o *order) state() *order { return o }

// wait has it done, by a goroutine that is gone when there is nothing left to do, and returns when it is, or ctx's error when that ends first.
func (q *queue[T]) wait(ctx context.Context, o T) error {
	q.add(o)
	select {
	case <-o.state().done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
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
			batch := q.next()
			if batch == nil {
				return
			}
			ctx, stop := contextOf(batch)
			q.do(ctx, batch)
			stop()
			for _, o := range batch {
				close(o.state().done)
			}
		}
	}()
}

// next is the next batch. With nothing left it says that nobody works any more.
func (q *queue[T]) next() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, rest := q.take(q.waiting)
	q.waiting = rest
	q.running = len(batch) > 0
	return batch
}

// contextOf is the first caller's without its end: the batch is given up when all callers are gone.
func contextOf[T ordering](batch []T) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(batch[0].state().ctx), batchTimeout)
	var mu sync.Mutex
	here := len(batch)
	var stops []func() bool
	for _, o := range batch {
		stops = append(stops, context.AfterFunc(o.state().ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if here--; here == 0 {
				cancel()
			}
		}))
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
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
	if err := l.queue.wait(ctx, w); err != nil {
		var none V
		return none, err
	}
	return w.value, w.err
}
