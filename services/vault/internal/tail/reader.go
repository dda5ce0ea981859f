package tail

import (
	"context"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/services/vault/internal/audit"
)

const (
	// clockMargin is how much later than a checkpoint's a record's time may be that it covers: clocks differ.
	clockMargin = 5 * time.Minute
	// checkpointsAtOnce is how many checkpoints are read in one page.
	checkpointsAtOnce = 100
)

// Request says what to tell of.
type Request struct {
	// Caller is by whom tails are counted.
	Caller string
	// From is behind what to go on; nil for Since, or, where that is zero, for what is recorded from now on.
	From *Position
	// Since is where to begin: no later than the records of that time.
	Since time.Time
	// Passes tells which events to send.
	Passes func(audit.Event) bool
}

// Tail gives send the events behind a position, in messages of one or more, and empty messages: one as soon as it has caught up, and one whenever nothing
// was sent for Bookmark. With each comes the position behind it. Both are send's until it returns. Tail returns send's error, ctx's, ErrTooMany, ErrPosition, or the database's when that
// does not answer: at first, or for as long as an empty message is due.
func (h *Hub) Tail(ctx context.Context, r Request, send func([]audit.Event, Position) error) error {
	if err := h.enter(r.Caller); err != nil {
		return err
	}
	defer h.leave(r.Caller)
	t := &reader{hub: h, request: r, send: send, sent: time.Now()}
	for {
		if err := t.catchUp(ctx); err != nil {
			return err
		}
		if err := t.listen(ctx); err != nil {
			return err
		}
	}
}

// reader is one tail.
type reader struct {
	hub     *Hub
	request Request
	send    func([]audit.Event, Position) error
	// at is the position of what was taken, heads how far each chain was, nil before the beginning.
	at    Position
	heads map[string]int64
	// events are those that were taken and not sent yet; sent is when something was sent last.
	events []audit.Event
	sent   time.Time
	// number is of the next item of the log, restarts as of when it was joined.
	number   int64
	restarts int
}

// take takes in records, and sends the events among them when they make a message.
func (t *reader) take(records ...audit.Record) error {
	for _, r := range records {
		t.heads[r.Writer], t.at.ahead[r.Writer] = r.Seq, r.Seq
		for place, entry := range r.Entries {
			if e := r.EventAt(int64(place), entry); t.request.Passes(e) {
				t.events = append(t.events, e)
			}
		}
		if len(t.events) >= batch {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle sends what was taken, and nothing where nothing has been sent for long.
func (t *reader) settle() error {
	if len(t.events) > 0 || time.Since(t.sent) >= Bookmark {
		return t.flush()
	}
	return nil
}

func (t *reader) flush() error {
	err := t.send(t.events, t.at)
	t.events, t.sent = t.events[:0], time.Now()
	return err
}

// inTurn reads the database when it is the reader's turn.
func inTurn[T any](ctx context.Context, h *Hub, read func() (T, error)) (out T, err error) {
	select {
	case <-ctx.Done():
		return out, ctx.Err()
	case h.turn <- struct{}{}:
	}
	defer func() { <-h.turn }()
	return read()
}

func (t *reader) records(ctx context.Context, writer string, after, upTo int64) ([]audit.Record, error) {
	return inTurn(ctx, t.hub, func() ([]audit.Record, error) { return t.hub.cfg.Source.AuditRecords(ctx, writer, after, upTo) })
}

func (t *reader) checkpoints(ctx context.Context, after int64) ([]audit.Checkpoint, error) {
	return inTurn(ctx, t.hub, func() ([]audit.Checkpoint, error) {
		return t.hub.cfg.Source.Checkpoints(ctx, after, checkpointsAtOnce)
	})
}

// catchUp reads the database up to where the log ends, and joins it there.
func (t *reader) catchUp(ctx context.Context) error {
	to, err := t.hub.join(ctx)
	if err != nil {
		return err
	}
	switch {
	case t.heads != nil: // has fallen behind
	case t.request.From != nil:
		err = t.resume(ctx, *t.request.From)
	case !t.request.Since.IsZero():
		err = t.since(ctx, to.at.checkpoint)
	default:
		t.at, t.heads = to.at.clone(), to.heads
	}
	if err == nil {
		err = t.walk(ctx, to)
	}
	if err != nil {
		return err
	}
	t.at, t.number, t.restarts = to.at, to.number, to.restarts
	return t.flush()
}

// resume finds out how long the chains were at a position.
func (t *reader) resume(ctx context.Context, at Position) error {
	t.at, t.heads = at.clone(), map[string]int64{}
	if at.checkpoint > 0 {
		base, err := inTurn(ctx, t.hub, func() (audit.Checkpoint, error) { return t.hub.cfg.Source.CheckpointBase(ctx, at.checkpoint) })
		if err != nil {
			return err
		}
		for c, next := base, []audit.Checkpoint(nil); ; {
			if err := t.name(c, at.checkpoint); err != nil {
				return err
			}
			if c.Number == at.checkpoint {
				if positionAt(c).digest != at.digest {
					return fmt.Errorf("%w: checkpoint %d is another", ErrPosition, c.Number)
				}
				break
			}
			if len(next) == 0 {
				if next, err = t.checkpoints(ctx, c.Number); err != nil {
					return err
				}
				if len(next) == 0 {
					return fmt.Errorf("%w: there is no checkpoint %d", ErrPosition, at.checkpoint)
				}
			}
			c, next = next[0], next[1:]
		}
	}
	for writer, seq := range at.ahead {
		t.heads[writer] = max(t.heads[writer], seq)
	}
	return nil
}

// name takes in how long the chains are that a checkpoint, of at most that number, names.
func (t *reader) name(c audit.Checkpoint, upTo int64) error {
	said, err := c.Unverified()
	if err != nil || c.Number == 0 || c.Number > upTo {
		return fmt.Errorf("%w: there is no checkpoint %d", ErrPosition, upTo)
	}
	for _, h := range said.Heads {
		t.heads[h.Writer] = max(t.heads[h.Writer], h.Seq)
	}
	return nil
}

// since finds the newest checkpoint, up to that one, that covers nothing of the time on which events are wanted from. Where none is kept it is the oldest that
// is, or, as long as nothing was forgotten, the beginning.
func (t *reader) since(ctx context.Context, upTo int64) error {
	t.at, t.heads = positionAt(audit.Checkpoint{}), map[string]int64{}
	before := t.request.Since.Add(-clockMargin)
	base, err := inTurn(ctx, t.hub, func() (audit.Checkpoint, error) { return t.hub.cfg.Source.FullCheckpoint(ctx, before) })
	if err != nil || base.Number == 0 || base.Number == 1 && base.Time.After(before) {
		return err
	}
	for c, next := base, []audit.Checkpoint(nil); ; {
		if err := t.name(c, upTo); err != nil {
			return err
		}
		t.at = positionAt(c)
		if len(next) == 0 {
			if next, err = t.checkpoints(ctx, c.Number); err != nil {
				return err
			}
		}
		if len(next) == 0 || next[0].Number > upTo || next[0].Time.After(before) {
			return nil
		}
		c, next = next[0], next[1:]
	}
}

// walk takes what is between the reader and a joint, checkpoint by checkpoint, so that the order is about that of time.
func (t *reader) walk(ctx context.Context, to joint) error {
	for t.at.checkpoint < to.at.checkpoint {
		some, err := t.checkpoints(ctx, t.at.checkpoint)
		if err != nil {
			return err
		}
		if len(some) == 0 || some[0].Number != t.at.checkpoint+1 {
			return fmt.Errorf("%w: there is no checkpoint %d", ErrPosition, t.at.checkpoint+1)
		}
		for _, c := range some {
			if c.Number > to.at.checkpoint {
				break
			}
			if err := t.pass(ctx, c); err != nil {
				return err
			}
		}
	}
	if t.at.checkpoint > to.at.checkpoint || t.at.digest != to.at.digest {
		return fmt.Errorf("%w: there is no such checkpoint %d", ErrPosition, t.at.checkpoint)
	}
	var rest []stretch
	for writer, seq := range to.at.ahead {
		if seq > t.heads[writer] {
			rest = append(rest, stretch{writer: writer, after: t.heads[writer], upTo: seq})
		}
	}
	for writer, seq := range t.at.ahead {
		if seq > to.at.ahead[writer] {
			return fmt.Errorf("%w: there is no record %d of %s", ErrPosition, seq, writer)
		}
	}
	return t.follow(ctx, rest)
}

func (t *reader) follow(ctx context.Context, all []stretch) error {
	return follow(ctx, t.records, all, func(records []audit.Record) error {
		if err := t.take(records...); err != nil {
			return err
		}
		return t.settle()
	})
}

// pass takes what a checkpoint covers, and goes behind it.
func (t *reader) pass(ctx context.Context, c audit.Checkpoint) error {
	said, err := c.Unverified()
	if err != nil {
		return fmt.Errorf("%w: checkpoint %d: %w", ErrPosition, c.Number, err)
	}
	var covered []stretch
	for _, h := range said.Heads {
		if h.Seq > t.heads[h.Writer] {
			covered = append(covered, stretch{writer: h.Writer, after: t.heads[h.Writer], upTo: h.Seq})
		}
	}
	if err := t.follow(ctx, covered); err != nil {
		return err
	}
	ahead := t.at.ahead
	for _, h := range said.Heads {
		if ahead[h.Writer] <= h.Seq {
			delete(ahead, h.Writer)
		}
	}
	t.at = positionAt(c)
	t.at.ahead = ahead
	return nil
}

// listen takes what comes to the log, until it has fallen behind.
func (t *reader) listen(ctx context.Context) error {
	seen := int64(-1)
	idle := time.NewTimer(Bookmark)
	defer idle.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := t.hub.behind(t.number, t.restarts)
		if v.lost {
			return nil
		}
		for _, i := range v.items {
			t.number++
			if i.passed != nil {
				t.at = i.passed.clone()
			} else if err := t.take(i.record); err != nil {
				return err
			}
		}
		if len(v.items) > 0 {
			if err := t.settle(); err != nil {
				return err
			}
			continue
		}
		idle.Reset(time.Until(t.sent.Add(Bookmark)))
		select {
		case <-v.changed:
		case <-idle.C:
			if v.good == seen {
				return errors.Join(ErrUnavailable, v.failure)
			}
			seen = v.good
			if err := t.flush(); err != nil {
				return err
			}
		case <-ctx.Done():
		}
	}
}
