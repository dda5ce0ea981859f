package delivery

import (
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/limit"
)

// ErrTooManyCalls is every RateError.
var ErrTooManyCalls = errors.New("too many calls")

// RateError says when to come back. It is an ErrTooManyCalls.
type RateError struct {
	// Wait is how long until the next call is let through.
	Wait time.Duration
}

func (e *RateError) Error() string {
	return fmt.Sprintf("%v: try again in %s", ErrTooManyCalls, e.Wait)
}

// Is makes it an ErrTooManyCalls.
func (e *RateError) Is(target error) bool { return target == ErrTooManyCalls }

// Nobody guesses 256 bits. What these rates keep is the database: from whoever shows tokens that are none, each of which costs a place among what is delivered, and from a
// runner that asks without end, each of whose deliveries is recorded. Many runners may stand behind one address.
const (
	// guessesPerSecond and guessBurst are how many tokens that are of no grant, or of one that is bound to another certificate, one source may
	// show.
	guessesPerSecond = 10
	guessBurst       = 600
	// callsPerSecond and callBurst are how many calls may be made by one grant, all of its runners together.
	callsPerSecond = 10
	callBurst      = 300
)

// guard limits how often calls are made. It is the replica's own.
type guard struct {
	guesses *limit.Buckets[string] // by source
	calls   *limit.Buckets[string] // by grant
}

func newGuard() guard {
	shared := func(string) string { return "" }
	return guard{guesses: limit.NewBuckets(shared), calls: limit.NewBuckets(shared)}
}

// mayGuess is a RateError for a source that has guessed wrong too often of late.
func (g guard) mayGuess(now time.Time, source string) error {
	if wait, ok := g.guesses.Left(now, source, guessesPerSecond); !ok {
		return &RateError{Wait: wait}
	}
	return nil
}

// guessed notes that a source has guessed wrong.
func (g guard) guessed(now time.Time, source string) {
	g.guesses.Take(now, source, guessesPerSecond, guessBurst)
}

// mayCall is a RateError for a grant by which too many calls were made of late.
func (g guard) mayCall(now time.Time, grantUID string) error {
	if wait, ok := g.calls.Take(now, grantUID, callsPerSecond, callBurst); !ok {
		return &RateError{Wait: wait}
	}
	return nil
}
