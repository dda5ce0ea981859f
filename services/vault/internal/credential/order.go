package credential

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Rotation is what somebody asked for: that the versions up to a number be replaced.
type Rotation struct {
	// ID is a UUID.
	ID     string
	Reason RotationReason
	// Immediately: the old versions go before there is a new one.
	Immediately bool
	// UpTo is the number of the newest version that is to be replaced; all before it go too.
	UpTo int64
	// BatchID is that of the batch it is part of; empty when it was asked for by itself.
	BatchID string

	State RotationState
	// StateReason says why it is in its state, in one CamelCase word; empty for the ordinary course.
	StateReason string
	// New is the number of the version that replaces the others; 0 while there is none.
	New        int64
	CreateTime time.Time
	// AskTime is when somebody asked for it again, last; zero when nobody did.
	AskTime time.Time
	// ActivateTime is when the new version became ACTIVE, RemoveTime when the last of the old ones was gone from Entra, EndTime when
	// nothing was left to do: of one that is ABANDONED, when what it was to replace was gone.
	ActivateTime, RemoveTime, EndTime time.Time
}

// RotationReason is why versions are to be replaced.
type RotationReason string

// The reasons there are.
const (
	// Scheduled: as if the period were over.
	Scheduled RotationReason = "SCHEDULED"
	// Compromised: somebody may have a secret who should not. Whoever holds one loses it.
	Compromised RotationReason = "COMPROMISED"
)

// RotationState is how far a rotation is.
type RotationState string

// The states there are.
const (
	// RotationPending: there is no new secret yet.
	RotationPending RotationState = "PENDING"
	// RotationPropagating: the new secret is being proven, or waits for consent.
	RotationPropagating RotationState = "PROPAGATING"
	// RotationActivated: the new version is ACTIVE, and old ones are still there.
	RotationActivated RotationState = "ACTIVATED"
	// RotationCompleted: and they are gone.
	RotationCompleted RotationState = "COMPLETED"
	// RotationAbandoned: it came to nothing.
	RotationAbandoned RotationState = "ABANDONED"
)

// Why a rotation is ABANDONED.
const (
	reasonSuperseded = "Superseded"
	reasonDeleting   = "IntegrationDeleting"
)

// Open reports whether there is anything left to do for the rotation.
func (r Rotation) Open() bool { return r.EndTime.IsZero() }

// pursued reports whether a successor is to be made for the rotation, or was.
func (r Rotation) pursued() bool { return r.Open() && r.State != RotationAbandoned }

// Begun reports whether a rotation that is asked for now would come to nothing else than this one: it has no ACTIVE version yet.
func (r Rotation) Begun() bool { return r.State == RotationPending || r.State == RotationPropagating }

// RotationMove is a rotation's new row, and the state that the row must have before.
type RotationMove struct {
	From     RotationState
	Rotation Rotation
}

// Why a rotation is not taken on.
var (
	// ErrDeleting: the integration is being deleted.
	ErrDeleting = errors.New("integration is being deleted")
	// ErrNotAdopted: the vault has not begun with the integration.
	ErrNotAdopted = errors.New("vault has not begun with the integration")
	// ErrPaused is every PauseError.
	ErrPaused = errors.New("rotation is paused")
)

// Pause is that nothing is rotated by schedule for a while.
type Pause struct {
	// Scope is the resource name of an integration or of an account, or Everything.
	Scope string
	// Reason is for people; Creator is the identity of whoever paused.
	Reason, Creator        string
	CreateTime, ExpireTime time.Time
}

// Everything is the scope of a pause of the whole deployment.
const Everything = "accounts/-"

// LongestPause is how long a pause may last; it ends by itself.
const LongestPause = 7 * 24 * time.Hour

// PauseError says which pause keeps a rotation from being taken on. It is an ErrPaused.
type PauseError struct{ Pause Pause }

func (e *PauseError) Error() string {
	return fmt.Sprintf("%v: %s, until %s", ErrPaused, e.Pause.Scope, e.Pause.ExpireTime.UTC().Format(time.RFC3339))
}

// Is makes it an ErrPaused.
func (e *PauseError) Is(target error) bool { return target == ErrPaused }

// Admit decides on a request for a rotation: open are the integration's rotations that have not ended, active is the number of its
// ACTIVE version and newest that of the newest there ever was, 0 without one. It returns the rotation that answers the request,
// and what is to be written before: changed are rows that are there already, made says that the rotation is new. Of one that is not, AskTime is to be written.
//
// A request joins the rotation that has no ACTIVE version yet. That one is of a compromise replaces one that is not, for it
// replaces more.
func Admit(now time.Time, id string, asked Rotation, open []Rotation, active, newest int64) (answer Rotation, changed []Rotation, made bool) {
	i := slices.IndexFunc(open, Rotation.Begun)
	if i >= 0 {
		begun := open[i]
		switch {
		case begun.Reason == Compromised && asked.Immediately && !begun.Immediately:
			begun.Immediately, begun.AskTime = true, now
			return begun, []Rotation{begun}, false
		case begun.Reason == asked.Reason, begun.Reason == Compromised:
			begun.AskTime = now
			return begun, nil, false
		}
		begun.State, begun.StateReason = RotationAbandoned, reasonSuperseded
		changed = append(changed, begun)
	}
	r := Rotation{
		ID: id, Reason: asked.Reason, Immediately: asked.Immediately, BatchID: asked.BatchID, State: RotationPending, UpTo: active, CreateTime: now,
	}
	if r.Reason == Compromised {
		r.UpTo = newest
	}
	return r, changed, true
}

// reasonCompromised is why versions go that somebody may have who should not.
const reasonCompromised = "Compromised"

// upTo is the number of the newest version that an open rotation of the kind is to replace; 0 when there is none.
func (f Facts) upTo(kind func(Rotation) bool) (number int64) {
	for _, r := range f.Rotations {
		if kind(r) {
			number = max(number, r.UpTo)
		}
	}
	return number
}

func (r Rotation) compromising() bool       { return r.Reason == Compromised }
func (r Rotation) compromisingAtOnce() bool { return r.Reason == Compromised && r.Immediately }

// compromised reports whether somebody may have the version's secret who should not.
func (f Facts) compromised(v Version) bool { return v.Number <= f.upTo(Rotation.compromising) }

// Batched reports whether the next version is made for the sake of a batch alone: it may wait for the others.
func (f Facts) Batched() bool {
	begun := slices.DeleteFunc(slices.Clone(f.Rotations), func(r Rotation) bool { return !r.Begun() })
	return len(begun) > 0 && !slices.ContainsFunc(begun, func(r Rotation) bool { return r.BatchID == "" })
}

// askTime is when somebody last asked for a version that is not there yet.
func (f Facts) askTime() (last time.Time) {
	for _, r := range f.Rotations {
		if r.Begun() {
			last = latest(last, latest(r.CreateTime, r.AskTime))
		}
	}
	return last
}

// replaceTime is when the successor of an ACTIVE client secret that works is begun, of which nothing more urgent is known. A pause puts it
// off for as long as the password's life allows.
func (p *plan) replaceTime(active Version) time.Time {
	f := p.facts
	var at time.Time
	if active.Number > f.upTo(Rotation.pursued) {
		at = active.RotateTime(f.Wanted.period(), p.t)
	}
	if last := active.lastTime(p.t); p.now.Before(f.PauseEndTime) && at.Before(last) {
		at = latest(at, earliest(f.PauseEndTime, last))
	}
	return at
}

// lastTime is when the successor of a version is begun although rotation is paused: Graph may be away for hours then, and
// proving fail once, before the password ends.
func (v Version) lastTime(t Timing) time.Time {
	reserve := max(v.Life()/6, 4*t.PropagationLimit+t.Settling+t.proving())
	return v.EndTime.Add(-min(reserve, v.Life()/3))
}

// putOff reports whether a pause until then is why a version that works was not replaced, be it due. Its successor, begun at the last time, takes a while too.
func (v Version) putOff(now, pauseEnd time.Time, t Timing) bool {
	return now.Before(pauseEnd) && now.Before(v.lastTime(t).Add(t.PropagationLimit))
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// takeBack finds what follows for a version that is compromised: what nobody was given goes at once; what may be in use, when its
// successor is ACTIVE, or before, where the gap was accepted. Where nobody is served by it, for its end has come or the customer's tenant lets the
// application in no more, there is no gap, and whoever else has it may be let in any moment: it is of use to nobody but them.
func (p *plan) takeBack() (Change, bool) {
	f := p.facts
	active, ok := f.ByState(Active)
	for _, v := range f.Versions {
		if !f.compromised(v) {
			continue
		}
		atOnce := !f.Application.Consented || v.ended(p.now) || v.Number <= f.upTo(Rotation.compromisingAtOnce)
		next := v
		next.Reason = reasonCompromised
		switch v.State {
		case Intended: // no password was asked for, or its answer would have been found lost before
			next.State = Abandoned
			return Change{Moves: []Move{{From: Intended, Version: next}}}, true
		case Staged, Propagating:
			return revoke(p.now, v, reasonCompromised), true
		case Active:
			if atOnce {
				next.State, next.RetireTime = Retiring, p.now
				return Change{Moves: []Move{{From: Active, Version: next}}}, true
			}
		case Retiring:
			if atOnce || ok && !f.compromised(active) {
				c := revoke(p.now, v, reasonCompromised)
				c.Moves[0].DespiteHolders = true
				return c, true
			}
		case Revoking, Revoked, Abandoned:
		}
	}
	return Change{}, false
}

// compromisedRetry is the longest wait between two tries to remove what is compromised.
const compromisedRetry = time.Minute

// progress notes how far the rotations are that somebody asked for.
func (p *plan) progress() Action {
	var moves []RotationMove
	for _, r := range p.facts.Rotations {
		if next := p.facts.progressed(p.now, r); next != r {
			moves = append(moves, RotationMove{From: r.State, Rotation: next})
		}
	}
	if moves == nil {
		return nil
	}
	return Apply{Change: Change{Rotations: moves}, Why: "Progress"}
}

// progressed is how far a rotation is by the facts.
func (f Facts) progressed(now time.Time, r Rotation) Rotation {
	// An application that is gone for good took what was left with it.
	gone := !f.Application.PurgeTime.IsZero() || !slices.ContainsFunc(f.Versions, func(v Version) bool { return v.Number <= r.UpTo })
	if gone && r.RemoveTime.IsZero() {
		r.RemoveTime = now
	}
	if f.Wanted.Deleting && r.State != RotationAbandoned {
		r.State, r.StateReason = RotationAbandoned, reasonDeleting
	}
	if r.State == RotationAbandoned {
		if gone {
			r.EndTime = now
		}
		return r
	}
	var successor Version
	if active, ok := f.ByState(Active); ok && active.Number > r.UpTo {
		successor = active
	} else if v, ok := f.ByState(Intended, Staged, Propagating); ok && v.Number > r.UpTo {
		successor = v
	}
	if r.Begun() {
		r.New = successor.Number
		switch successor.State {
		case Active:
			r.State, r.ActivateTime = RotationActivated, successor.ActivateTime
		case Staged, Propagating:
			r.State = RotationPropagating
		default:
			r.State = RotationPending
		}
	}
	r.StateReason = f.inTheWay(r, successor)
	switch {
	case gone && (r.State == RotationActivated || successor.State == Staged):
		// Without consent nobody can use the new one yet, nor anything else.
		r.State, r.EndTime = RotationCompleted, now
	case f.Wanted.NoCloud && (r.Reason != Scheduled || r.StateReason != reasonAwaitingConsent):
		// Consent is what one by schedule waits for first, with its cloud or without.
		r.StateReason = reasonNoCloud
	}
	return r
}

// inTheWay is what keeps a rotation from coming further, in one CamelCase word; empty while all goes its way, as far as is known. What keeps the new version from
// being made comes before what keeps the old ones from being removed.
func (f Facts) inTheWay(r Rotation, successor Version) string {
	a := f.Application
	if r.State == RotationPending {
		switch {
		case f.Wanted.Federated && f.Trust.Digest == "":
			return reasonIssuerMissing
		case a.Failures > 0 && (a.ObjectID == "" || f.Wanted.Federated && !f.trusted()):
			return reasonOf(a.FailureCode)
		case a.AddCode != "":
			return a.AddCode
		}
	}
	waits := ""
	switch {
	case r.State != RotationPropagating:
	case !a.Consented:
		waits = reasonAwaitingConsent
	case f.mute(successor):
		waits = reasonIssuerMissing
	}
	if waits != "" && r.Reason == Scheduled {
		return waits
	}
	// For a compromise the old ones need not wait for the new one as long as that waits.
	for _, v := range f.Versions {
		if v.Number <= r.UpTo && v.RemoveCode != "" {
			return v.RemoveCode
		}
	}
	return waits
}

// removalFails reports whether what is in the way is that an old version could not be removed.
func (r Rotation) removalFails() bool {
	switch r.State {
	case RotationActivated, RotationPropagating:
		return !slices.Contains([]string{"", reasonNoCloud, reasonIssuerMissing, reasonAwaitingConsent}, r.StateReason)
	case RotationPending, RotationCompleted, RotationAbandoned:
	}
	return false
}
