package credential

import (
	"slices"
	"time"
)

// plan collects when the things that cannot be done yet can be.
type plan struct {
	now   time.Time
	facts Facts
	t     Timing
	until time.Time
	// again is set once something is wanted of Graph that failed, and that is not tried again yet.
	again bool
}

// due reports whether at has come; if not, it is remembered.
func (p *plan) due(at time.Time) bool {
	if !at.After(p.now) {
		return true
	}
	if p.until.IsZero() || at.Before(p.until) {
		p.until = at
	}
	return false
}

// retry is due, of when what failed at Graph may be tried again.
func (p *plan) retry(at time.Time) bool {
	if p.due(at) {
		return true
	}
	p.again = true
	return false
}

// writable reports whether the application may be written to: its writes are spaced.
func (p *plan) writable() bool {
	at := p.facts.Application.WriteTime
	return at.IsZero() || p.due(at.Add(p.t.WriteSpacing))
}

// Decide names the one thing to do next for an integration. It is a function of its arguments alone.
func Decide(now time.Time, facts Facts, t Timing) Action {
	p := &plan{now: now, facts: facts, t: t}
	switch {
	case !facts.Application.ForgetTime.IsZero():
		return Wait{}
	case !facts.Wanted.Present && p.dismantled():
		// It was read as DELETING, and the registry was told that it is gone, if that was not stored before a crash.
		if p.due(facts.Application.NextTime) {
			return Forget{}
		}
	case !facts.Wanted.Present:
		// Absence is an alarm, see rotation's gauge. What works goes on working.
		return Wait{Until: now.Add(t.ReconcileInterval), Unlisted: true}
	case facts.Wanted.NoCloud:
		if a := p.progress(); a != nil {
			return a
		}
		return Wait{} // a configuration that names the cloud comes with another mastership
	case facts.Wanted.Deleting:
		for _, step := range []func() Action{p.progress, p.dismantle} {
			if a := step(); a != nil {
				return a
			}
		}
	default:
		for _, step := range []func() Action{
			p.wantedAgain, p.transition, p.progress, p.lookFirst, p.ensure, p.trust, p.remove, p.untrust, p.add, p.askHome, p.prove, p.ask, p.read, p.sweep,
		} {
			if a := step(); a != nil {
				return a
			}
		}
	}
	return p.wait()
}

// wait ends a plan that has nothing to do now. Times are stored in microseconds: rounded up, so that what is due by the store is
// due here too.
func (p *plan) wait() Wait {
	if active, ok := p.facts.ByState(Active); ok {
		p.due(active.EndTime) // what is said of it changes then
	}
	until := p.until
	if !until.IsZero() {
		until = until.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	}
	return Wait{Until: until, Again: p.again}
}

// transition finds what follows from the facts alone.
func (p *plan) transition() Action {
	f, a := p.facts, p.facts.Application
	if f.Probe.Time.After(a.SeenProbeTime) {
		return Apply{Change: f.Observed(p.now, p.t), Why: "Observed"}
	}
	for _, v := range f.Versions {
		if v.State == Intended && !v.SendTime.IsZero() {
			return Apply{Change: f.lost(p.now, p.t, v), Why: "AnswerLost"}
		}
	}
	if c, ok := p.takeBack(); ok {
		return Apply{Change: c, Why: reasonCompromised}
	}
	for _, v := range f.Versions {
		if c, ok := p.dropped(v); ok {
			return Apply{Change: c, Why: "SigningKeyDropped"}
		}
		if v.State == Intended && f.Wanted.Federated {
			next := v
			next.State, next.Reason = Abandoned, "KindChanged"
			return Apply{Change: Change{Moves: []Move{{From: Intended, Version: next}}}, Why: "KindChanged"}
		}
	}
	for _, v := range f.Versions {
		switch v.State {
		case Staged, Propagating:
			if c, why := p.pending(v); why != "" {
				return Apply{Change: c, Why: why}
			}
		case Retiring:
			if p.unneeded(v) {
				return Apply{Change: revoke(p.now, v, ""), Why: "Retired"}
			}
		case Intended, Active, Revoking, Revoked, Abandoned:
		}
	}
	return nil
}

// pending finds what follows for a version that is not ACTIVE yet.
func (p *plan) pending(v Version) (Change, string) {
	f, a := p.facts, p.facts.Application
	if newest, _ := f.ByState(Staged, Propagating, Active); newest.Number > v.Number {
		if p.mayBeHeld(v) {
			return Change{}, ""
		}
		return revoke(p.now, v, "Superseded"), "Superseded"
	}
	switch {
	case p.unwanted(v) && !p.mayBeHeld(v):
		return revoke(p.now, v, "KindChanged"), "KindChanged"
	case v.State == Staged && a.Consented:
		next := v
		next.State, next.PropagateTime = Propagating, p.now
		next.Proofs, next.Refusals, next.RefusedSince = 0, 0, time.Time{}
		return Change{Moves: []Move{{From: Staged, Version: next}}}, "Consented"
	case v.State == Staged:
		return Change{}, ""
	case !a.Consented:
		next := v
		next.State, next.Proofs = Staged, 0
		return Change{Moves: []Move{{From: Propagating, Version: next}}}, "ConsentLost"
	case v.Proofs >= p.t.Proofs:
		if !p.due(p.settled(v)) {
			return Change{}, ""
		}
		return f.promoted(p.now, v), "Proven"
	case v.ended(p.now):
		return f.abandoned(p.now, p.t, v, "Expired"), "Expired"
	case v.Refusals > 0 && p.due(v.PropagateTime.Add(p.t.PropagationLimit)):
		// Only a refusal counts: while Entra does not answer nothing is known against the version.
		return f.abandoned(p.now, p.t, v, "NeverProven"), "NeverProven"
	}
	return Change{}, ""
}

// settled is when a version may be ACTIVE, for all that proofs say: one that replaces a working one can wait for all of
// Entra to know it.
func (p *plan) settled(v Version) time.Time {
	if _, ok := p.facts.usable(p.now, p.t); ok {
		return v.AddTime.Add(p.t.Settling)
	}
	return v.AddTime
}

// unneeded reports whether a RETIRING version may go: it had its time, nobody holds it, and nothing could have to fall back
// to it.
func (p *plan) unneeded(v Version) bool {
	if !p.due(v.RetireTime.Add(p.t.Retiring)) {
		return false
	}
	if v.Holders > 0 {
		// Whoever lets go of it makes the integration due.
		return false
	}
	if p.mayBeHeld(v) {
		return false
	}
	active, ok := p.facts.ByState(Active)
	return ok && active.Works(p.now, p.t) && active.Refusals == 0 || !v.Works(p.now, p.t)
}

// lookFirst has the application looked up before what failed is tried again: that may fail for good, and puts everything about the application off each
// time. Its properties and its federated credentials fail each by themselves, so they take turns; and with looking, where that is what fails.
func (p *plan) lookFirst() Action {
	a := p.facts.Application
	if a.ObjectID == "" || a.Failures == 0 {
		return nil
	}
	var act Action
	if a.Failures%3 == 0 || !p.looksFail() {
		act = p.read()
	}
	if act != nil || a.Failures%2 == 0 {
		return act
	}
	if act := p.trust(); act != nil {
		return act
	}
	return p.untrust()
}

// looksFail reports whether looking the application up has failed since that was due: it is later than whatever else failed before then could have put it off.
func (p *plan) looksFail() bool {
	a := p.facts.Application
	return !p.lookTime().Add(p.t.ReconcileInterval + p.t.backoff(a.Failures, 0)).After(p.now)
}

// ensure has the application made, and its properties repaired.
func (p *plan) ensure() Action {
	a := p.facts.Application
	missing := a.ObjectID == ""
	if !missing && a.SpecDigest == p.facts.Wanted.SpecDigest && !p.due(a.EnsureTime.Add(p.t.EnsureInterval)) {
		return nil
	}
	// One that was there and is not found is left alone: its return can still be had from the bin.
	if missing || a.MissingReads == 0 {
		if p.retry(a.NextTime) && p.writable() {
			return Ensure{}
		}
	}
	if missing {
		return p.wait()
	}
	return nil
}

// remove has the passwords removed whose versions are through.
func (p *plan) remove() Action {
	for _, v := range p.facts.Versions {
		switch v.State {
		case Revoking:
			if v.Federated() {
				// Its key signs for others too, and its federated credentials for versions to come.
				return Apply{Change: p.facts.Removed(p.now, v), Why: "Removed"}
			}
			if v.NextTime.IsZero() && !p.facts.compromised(v) && p.t.RemoveDelay > 0 {
				return Apply{Change: p.facts.revocable(p.now, p.t, v), Why: "Committed"}
			}
			if p.retry(v.NextTime) && p.writable() {
				return Remove{Version: v}
			}
		case Abandoned: // with a password that is known, or it would not be among the facts
			if p.retry(v.NextTime) && p.writable() {
				return Remove{Version: v}
			}
		case Intended, Staged, Propagating, Active, Retiring, Revoked:
		}
	}
	return nil
}

// add has a password made when a version is wanted.
func (p *plan) add() Action {
	f, a := p.facts, p.facts.Application
	if v, ok := f.ByState(Intended); ok {
		if p.retry(v.NextTime) && p.writable() {
			return Add{Version: v, End: p.now.Add(f.life(p.t, v))}
		}
		return nil
	}
	at, wanted := p.successor()
	again := a.AddNextTime
	if asked := f.askTime(); asked.After(a.WriteTime) && !f.Wanted.Federated {
		// Whoever asks may have mended what was in the way. Once: by the clock of the replica that was asked that may be in a while.
		again = earliest(again, asked)
	}
	switch {
	case !wanted, !p.due(at), !p.retry(again):
		return nil
	case f.Wanted.Federated:
		if f.trusted() && f.Trust.Key != "" {
			return Begin{}
		}
		return nil
	case p.writable():
		end := p.now.Add(f.life(p.t, Version{Number: f.LastNumber + 1}))
		return Add{End: end}
	}
	return nil
}

// successor is when a version is wanted besides those that there are, false while none is.
func (p *plan) successor() (at time.Time, wanted bool) {
	f := p.facts
	if v, ok := f.ByState(Propagating); ok && !v.unreadable() && (f.fits(v) || v.Federated() && f.Wanted.Federated) {
		return time.Time{}, false
	}
	v, ok := f.ByState(Staged)
	if !ok || v.unreadable() {
		if v, ok = f.ByState(Active); !ok || !v.Works(p.now, p.t) {
			return time.Time{}, true
		}
		if v.Recovery < f.Recovery.Number || f.compromised(v) {
			return time.Time{}, true // only one that was begun since shows what may go
		}
	}
	switch {
	case v.Federated() != f.Wanted.Federated:
		return time.Time{}, true
	case v.Federated() && v.Number <= f.upTo(Rotation.pursued):
		return time.Time{}, true
	case v.Federated():
		return f.Trust.KeyTime.Add(v.spread(f.Wanted.period())), !f.fits(v)
	case v.State == Staged:
		return v.renewTime(), true
	}
	return p.replaceTime(v), true
}

// askHome has the application's replication watched in the home tenant, until it has been seen often enough.
func (p *plan) askHome() Action {
	a := p.facts.Application
	if !a.ReadyTime.IsZero() {
		return nil
	}
	v, ok := p.facts.ByState(Staged, Propagating)
	if !ok || v.unreadable() || p.facts.mute(v) || !p.due(v.NextTime) {
		return nil
	}
	spacing := p.t.ProofSpacing
	if a.HomeProofs == 0 {
		spacing = p.patience(v.AddTime, a.HomeTime)
	}
	if a.HomeTime.IsZero() || p.due(a.HomeTime.Add(spacing)) {
		return AskHome{Version: v}
	}
	return nil
}

// prove has the version that is PROPAGATING proven. One that has to settle is proven at the end of that time: the later a
// proof, the more it says.
func (p *plan) prove() Action {
	v, ok := p.facts.ByState(Propagating)
	if !ok || v.unreadable() || p.facts.mute(v) || v.Proofs >= p.t.Proofs {
		return nil
	}
	spacing := p.t.ProofSpacing
	if v.Refusals > 0 {
		spacing = p.patience(v.PropagateTime, v.ProbeTime)
	}
	left := time.Duration(p.t.Proofs-v.Proofs) * p.t.ProofSpacing
	if p.due(p.settled(v).Add(-left)) && p.due(v.NextTime) && (v.ProbeTime.IsZero() || p.due(v.ProbeTime.Add(spacing))) {
		return Prove{Version: v}
	}
	return nil
}

// patience is how long to wait after a refusal that is no surprise: the longer it had lasted already at the last one, the
// longer. It does not grow while it is waited for.
func (p *plan) patience(since, last time.Time) time.Duration {
	return max(p.t.ProofSpacing, min(last.Sub(since)/10, time.Minute))
}

// ask has the customer's tenant asked whether consent and credential still hold.
func (p *plan) ask() Action {
	f, a := p.facts, p.facts.Application
	v, ok := f.ProbeVersion(p.now, p.t)
	if !ok || v.State == Propagating || a.ReadyTime.IsZero() {
		return nil // a version that is PROPAGATING is being asked with already
	}
	if f.mute(v) {
		return nil
	}
	var interval time.Duration
	switch {
	case !f.Probe.WantTime.Equal(a.SeenWantTime), v.State == Active && v.Refusals > 0 && v.Works(p.now, p.t), p.sweepWaits(), p.missed(a.ObserveTime):
		interval = p.t.ProbeSpacing
	case a.Consented && a.ConsentRefusals > 0:
		interval = max(p.t.ProbeSpacing, p.t.ConsentWindow/time.Duration(max(1, p.t.ConsentFailures-1)))
	case a.Consented:
		interval = p.t.ConsentInterval - time.Duration(float64(p.t.ConsentInterval)*(1+v.jitter())/20)
	default:
		since := a.ReadyTime
		if a.ConsentTime.After(since) {
			since = a.ConsentTime
		}
		interval = max(p.t.AwaitInterval, min(a.ObserveTime.Sub(since)/20, p.t.ConsentInterval))
	}
	if (p.answersAgain(v) || p.due(v.NextTime)) && (a.ObserveTime.IsZero() || p.due(a.ObserveTime.Add(interval))) {
		return Ask{Version: v}
	}
	return nil
}

// answersAgain reports whether the tenant, which did not answer the last question with the version, has refused somebody a token since.
func (p *plan) answersAgain(v Version) bool {
	asked := v.NextTime.Add(-p.t.backoff(v.Attempts, 0))
	return p.facts.Probe.WantTime.After(asked) && !p.facts.Probe.WantTime.Equal(p.facts.Application.SeenWantTime)
}

// read has the application looked up.
func (p *plan) read() Action {
	a, last := p.facts.Application, p.lookTime()
	known := a.UnknownTrusts > 0 && p.facts.Trust.Digest != "" // now that the vault is an issuer again
	if p.due(a.NextTime) && (known || p.missed(last) || last.IsZero() || p.due(last.Add(p.t.ReconcileInterval))) {
		return Read{}
	}
	return nil
}

// lookTime is when the application was last looked up, whether or not it was found.
func (p *plan) lookTime() time.Time {
	a := p.facts.Application
	if a.MissingTime.After(a.ReadTime) {
		return a.MissingTime
	}
	return a.ReadTime
}

// sweep has a password removed that two reads found, an interval apart, and that is nobody's.
func (p *plan) sweep() Action {
	if !p.sweepSafe() {
		return nil
	}
	for _, s := range p.facts.Strays {
		if p.nobodys(s) && p.retry(s.NextTime) && p.writable() {
			return Sweep{Stray: s}
		}
	}
	return nil
}

func (p *plan) nobodys(s Stray) bool {
	return s.LastTime.Sub(s.FirstTime) >= p.t.ReconcileInterval && (!p.facts.Recovery.Before(s) || p.recovered()) && !p.uncertain(s.StartTime)
}

// sweepSafe reports whether the vault certainly has a version of its own that works, so that what it does not know is not
// what everybody uses: after a restored backup it could be. Before the first activation nobody can use anything.
func (p *plan) sweepSafe() bool {
	if p.facts.Application.ActivateTime.IsZero() {
		return true
	}
	active, ok := p.facts.ByState(Active)
	return ok && active.Works(p.now, p.t) && active.ProveTime.After(p.facts.Application.ReadTime)
}

// sweepWaits reports whether a sweep only waits for a sign that the ACTIVE version works.
func (p *plan) sweepWaits() bool {
	return !p.sweepSafe() && slices.ContainsFunc(p.facts.Strays, p.nobodys)
}
