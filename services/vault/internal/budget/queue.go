package budget

import "time"

const (
	// longestTurn is how long one is told to wait at most, so that an estimate that was wrong is put right.
	longestTurn = 5 * time.Minute
	// forgotten is how long after its turn one who did not come is still remembered.
	forgotten = 10 * time.Minute
	// memory is over about how long it is judged how fast permits are had.
	memory = time.Minute
	// slowest bounds that.
	slowest = 100
)

// queue are those of one class that were told to ask again, in order. Nobody is woken, so each has a turn on a clock of the
// queue's own, one after the other's as fast as permits could come. That clock stands still while there are none. How
// much slower than real time it has been going says when to ask again. Those who never come hold nobody up, and those whose
// turn is over come one after the other too.
type queue struct {
	waiting map[string]waiter
	// spacing lies between two turns.
	spacing time.Duration
	// behind is how far the queue's clock is behind the real one; last is the last turn by it.
	behind time.Duration
	last   time.Time
	// open is when anybody may ask again; late is how many were told to come after that whose turn is over.
	open time.Time
	late int
	// began and beganClock are a time since somebody waits, by both clocks.
	began, beganClock time.Time
	swept             time.Time
}

type waiter struct {
	// turn is by the queue's clock; until is when it was told to ask.
	turn         time.Time
	since, until time.Time
}

// clock is the queue's.
func (q *queue) clock(now time.Time) time.Time { return now.Add(-q.behind) }

// mayAsk reports whether it is an integration's turn, which it is when nobody waits.
func (q *queue) mayAsk(now time.Time, uid string) bool {
	if now.Before(q.open) {
		return false
	}
	w, waits := q.waiting[uid]
	return waits && !q.clock(now).Before(w.turn) || len(q.waiting) == 0
}

// tell says when an integration is to ask again; one that does not wait yet joins.
func (q *queue) tell(now time.Time, uid string) time.Time {
	w, waits := q.waiting[uid]
	if !waits {
		w = waiter{since: now, turn: q.clock(later(now, q.open))}
		if len(q.waiting) > 0 {
			w.turn = later(w.turn, q.last.Add(q.spacing))
		} else {
			q.began, q.beganClock = now, q.clock(now)
		}
		q.last = w.turn
	}
	at := later(now, q.open)
	ahead := w.turn.Sub(q.clock(at))
	if ahead <= 0 {
		ahead = time.Duration(q.late) * q.spacing
		q.late++
	}
	w.until = whole(at.Add(min(longestTurn, time.Duration(float64(ahead)*q.slowness(now)))))
	q.waiting[uid] = w
	return w.until
}

// slowness is how much longer than by the queue's clock it takes.
func (q *queue) slowness(now time.Time) float64 {
	real, own := now.Sub(q.began), q.clock(now).Sub(q.beganClock)
	if real > memory {
		real, own = real/2, own/2
		q.began, q.beganClock = now.Add(-real), q.clock(now).Add(-own)
	}
	if real < 10*q.spacing {
		return 1
	}
	return min(slowest, max(1, float64(real)/float64(max(q.spacing, own))))
}

// pause has nobody ask before until.
func (q *queue) pause(now, until time.Time) {
	if d := until.Sub(later(now, q.open)); d > 0 {
		q.behind += d
		q.began = q.began.Add(d) // which says nothing about how fast permits are had
		q.open, q.late = until, 0
	}
}

// refused notes that there was no permit, nor will be before until.
func (q *queue) refused(now, until time.Time) {
	if d := until.Sub(later(now, q.open)); d > 0 {
		q.behind += d
		q.open, q.late = until, 0
	}
}

// served notes that an integration got its permit, and whether there was another. It returns how long it waited, if it did.
func (q *queue) served(now time.Time, uid string, left bool) (waited time.Duration, ok bool) {
	w, ok := q.waiting[uid]
	if !ok {
		return 0, false
	}
	delete(q.waiting, uid)
	if left && q.last.After(q.clock(now)) {
		q.behind -= q.spacing
	}
	return now.Sub(w.since), true
}

// sweep forgets, now and then, those who did not come: the registry forgot them, or they are another replica's now.
func (q *queue) sweep(now time.Time) {
	if now.Sub(q.swept) < forgotten/10 {
		return
	}
	q.swept = now
	for uid, w := range q.waiting {
		if now.Sub(w.until) >= forgotten {
			delete(q.waiting, uid)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// whole rounds up to a millisecond, which is what Redis and the store can both tell.
func whole(t time.Time) time.Time {
	if down := t.Truncate(time.Millisecond); down.Before(t) {
		return down.Add(time.Millisecond)
	}
	return t
}
