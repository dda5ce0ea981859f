// Package signingkey is the life of the keys by which the vault signs assertions, as a state machine: what is known goes in as Facts, Decide
// names the one thing to do next. Nothing here talks to anybody, makes a key or reads a clock.
//
// What it guarantees: a key that takes another's place was published for as long as Timing says, for token services remember an issuer's
// keys; a key that signs is published, and stays so for as long after its last assertion; and there is always a next key published
// already, so that a change of keys, wanted or forced, does not wait for it. What it does not: a key that is dropped as
// compromised leaves at once, whatever was signed with it.
//
// The tricky idea: which key signs for an integration is not decided here. An integration's credential version names its key, and is
// replaced as any version is, proven first. So two keys sign for a while, and the older is RETIRED only when no version names it any
// more: from then on nothing signs with it.
package signingkey

import (
	"errors"
	"slices"
	"time"
)

// State is where a key is in its life. Its text is what the database and the log have.
type State string

// The states there are.
const (
	// Published: token services can read it; nothing is signed with it yet.
	Published State = "PUBLISHED"
	// Signing: versions are proven and used under it. Of several the newest is for new versions, the others for those that are
	// being replaced.
	Signing State = "SIGNING"
	// Retired: nothing is signed with it any more; what was is still good for some minutes.
	Retired State = "RETIRED"
	// Removed: not published any more. Its private half is gone.
	Removed State = "REMOVED"
)

// States lists all states, in the order of a life.
func States() []State { return []State{Published, Signing, Retired, Removed} }

// Allowed reports whether a key may go from one state to the other. Any may be removed at once, as compromised.
func Allowed(from, to State) bool {
	switch from {
	case Published:
		return to == Signing || to == Removed
	case Signing:
		return to == Retired || to == Removed
	case Retired:
		return to == Removed
	case Removed:
	}
	return false
}

// Key is one signing key. Times that have not come are zero.
type Key struct {
	// ID is its `kid`: the thumbprint of its public half (RFC 7638).
	ID string
	// Number counts the keys from 1.
	Number int64
	State  State
	// Public is its public half, PKIX.
	Public []byte
	// Sealed is its private half, encrypted; empty once it is REMOVED.
	Sealed []byte

	PublishTime, SignTime, RetireTime, RemoveTime time.Time
	// ReplaceTime is when somebody wanted another key in its place.
	ReplaceTime time.Time
	// Reason says why it was removed, in one CamelCase word; empty for the ordinary course.
	Reason string
}

// ErrNotFound means that there is no such key, or none that signs.
var ErrNotFound = errors.New("no such signing key")

// Compromised is the Reason of a key that was dropped because somebody may have it.
const Compromised = "Compromised"

// SealedAs is the identity under which a key's private half is encrypted.
func SealedAs(keyID string) string { return "signing_key/" + keyID }

// Timing is how long keys take.
type Timing struct {
	// Period is how long a key signs for new versions.
	Period time.Duration `yaml:"period"`
	// Publish is how long a key has been published at least when it takes another's place.
	Publish time.Duration `yaml:"publish"`
	// Keep is how long a key stays published after the last assertion that it signed has ended.
	Keep time.Duration `yaml:"keep"`
}

// Production is the timing without any configuration, and what production must have at least but for Period.
func Production() Timing {
	return Timing{Period: 30 * 24 * time.Hour, Publish: 24 * time.Hour, Keep: 24 * time.Hour}
}

// Development is for a laptop, whose simulated Entra reads an issuer's keys anew when it misses one.
func Development() Timing {
	return Timing{Period: 24 * time.Hour, Publish: 5 * time.Second, Keep: 10 * time.Second}
}

// AssertionLife is how long an assertion is good. Entra ID asks for it at once, or a runner's tool within its refresh.
const AssertionLife = 10 * time.Minute

// MaxAge is how old a replica's knowledge of the keys may be by which it signs. So long after a key was RETIRED some replica
// may sign with it.
const MaxAge = time.Minute

// Facts is everything that a decision is made from.
type Facts struct {
	// Keys are all that are known, in any order; those REMOVED need not be among them.
	Keys []Key
	// Used are the IDs of those that a credential version names which is not at its end.
	Used []string
	// LastNumber is the highest number that any key ever had.
	LastNumber int64
}

// newest returns the newest key in a state; its ID is empty when there is none.
func (f Facts) newest(s State) Key {
	var found Key
	for _, k := range f.Keys {
		if k.State == s && k.Number > found.Number {
			found = k
		}
	}
	return found
}

// Current returns the key under which new versions are made, false while there is none.
func Current(keys []Key) (Key, bool) {
	k := Facts{Keys: keys}.newest(Signing)
	return k, k.ID != ""
}

// Action is the one thing to do next.
type Action interface {
	// Op names the action in logs.
	Op() string
}

// Wait: nothing to do before Until.
type Wait struct{ Until time.Time }

// Make: make a key and publish it.
type Make struct{ Number int64 }

// Move: write the key's new row, over one in the state From.
type Move struct {
	From State
	Key  Key
}

// Op implements Action.
func (Wait) Op() string { return "wait" }

// Op implements Action.
func (Make) Op() string { return "make" }

// Op implements Action.
func (Move) Op() string { return "move" }

// checkEvery is how often it is looked whether a replaced key is still used.
const checkEvery = time.Minute

// Decide names the one thing to do next. It is a function of its arguments alone.
func Decide(now time.Time, f Facts, t Timing) Action {
	until := now.Add(checkEvery)
	due := func(at time.Time) bool {
		if at.After(now) && at.Before(until) {
			until = at
		}
		return !at.After(now)
	}
	next, current := f.newest(Published), f.newest(Signing)
	if next.ID == "" {
		return Make{Number: f.LastNumber + 1}
	}
	if due(begin(next, current, t)) {
		next.State, next.SignTime = Signing, now
		return Move{From: Published, Key: next}
	}
	for _, k := range f.Keys {
		switch k.State {
		case Signing:
			if k.ID != current.ID && !slices.Contains(f.Used, k.ID) {
				k.State, k.RetireTime = Retired, now
				return Move{From: Signing, Key: k}
			}
		case Retired:
			if due(RemoveTime(k, t)) {
				k.State, k.RemoveTime, k.Sealed = Removed, now, nil
				return Move{From: Retired, Key: k}
			}
		case Published, Removed:
		}
	}
	return Wait{Until: until}
}

// begin is when the next key is to sign: when the current one's time is over, or it is to be replaced, but not before it was published
// long enough. Where nothing signs there is nothing to gain by waiting: the proofs will show when token services know it.
func begin(next, current Key, t Timing) time.Time {
	if current.ID == "" {
		return next.PublishTime
	}
	at := current.SignTime.Add(t.Period)
	if !current.ReplaceTime.IsZero() {
		at = current.ReplaceTime
	}
	if published := next.PublishTime.Add(t.Publish); published.After(at) {
		at = published
	}
	return at
}

// SignTime is when the next key will sign for new versions, as far as the keys tell; zero while there is no next key.
func SignTime(keys []Key, t Timing) time.Time {
	f := Facts{Keys: keys}
	next := f.newest(Published)
	if next.ID == "" {
		return time.Time{}
	}
	return begin(next, f.newest(Signing), t)
}

// RemoveTime is when a RETIRED key is not published any more: some replica may have signed with it a moment longer, and what it signed
// is good for a while.
func RemoveTime(k Key, t Timing) time.Time {
	return k.RetireTime.Add(MaxAge + AssertionLife + t.Keep)
}
