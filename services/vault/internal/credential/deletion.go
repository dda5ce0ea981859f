package credential

import "time"

// leaseEndPoll is how long after leases of what is being deleted were ended it is looked for more of them.
const leaseEndPoll = time.Minute

// dismantle takes an integration that is being deleted apart, in order: the leases end, so that what is handed out comes back, the
// passwords go, then the application, then its remains, then the registry is told.
func (p *plan) dismantle() Action {
	f, a := p.facts, p.facts.Application
	if a.LeaseEndTime.IsZero() {
		return EndLeases{}
	}
	waiting := false
	for _, v := range f.Versions {
		next := v
		next.Reason = reasonBeingDeleted
		switch v.State {
		case Intended:
			next.State = Abandoned
			return Apply{Change: Change{Moves: []Move{{From: Intended, Version: next}}}, Why: reasonBeingDeleted}
		case Staged, Propagating:
			return Apply{Change: revoke(p.now, v, reasonBeingDeleted), Why: reasonBeingDeleted}
		case Active:
			next.State, next.RetireTime = Retiring, p.now
			return Apply{Change: Change{Moves: []Move{{From: Active, Version: next}}}, Why: reasonBeingDeleted}
		case Retiring:
			if v.Holders == 0 {
				return Apply{Change: revoke(p.now, v, reasonBeingDeleted), Why: reasonBeingDeleted}
			}
			// By the clock of the replica that gave it away a grant was live that was over by the one of who ended the leases.
			if p.due(a.LeaseEndTime.Add(min(leaseEndPoll, p.t.Retiring))) {
				return EndLeases{}
			}
			waiting = true
		case Revoking:
			waiting = true
		case Revoked, Abandoned: // the application takes what is left with it
		}
	}
	if act := p.remove(); act != nil || waiting {
		return act
	}
	switch {
	case p.dismantled():
		if p.due(a.NextTime) {
			return Forget{}
		}
	case a.ObjectID == "":
		if p.due(a.NextTime) && (a.MissingTime.IsZero() || p.due(a.MissingTime.Add(p.t.PropagationLimit))) {
			return Read{}
		}
	case a.DeleteTime.IsZero():
		if p.retry(a.NextTime) && p.seek() && p.writable() {
			return Delete{}
		}
	default:
		if p.retry(a.NextTime) && p.due(a.DeleteTime.Add(p.t.RemoveDelay)) && p.seek() && p.writable() {
			return Purge{}
		}
	}
	return nil
}

// dismantled reports whether the integration was taken apart, and nothing is left but to tell so.
func (p *plan) dismantled() bool {
	a := p.facts.Application
	return !a.PurgeTime.IsZero() || !a.LeaseEndTime.IsZero() && a.ObjectID == "" && p.neverMade()
}

// seek reports whether an application that was not found when it was to go may be looked for again.
func (p *plan) seek() bool {
	a := p.facts.Application
	return a.AbsenceTime.IsZero() || p.due(a.AbsenceTime.Add(min(p.t.ReconcileInterval, p.t.PropagationLimit)))
}

// neverMade reports whether it is certain enough that there is no application: it was looked for, twice if making it was ever
// tried.
func (p *plan) neverMade() bool {
	a := p.facts.Application
	if a.EnsureSendTime.IsZero() {
		return a.MissingReads >= 1
	}
	return a.MissingReads >= 2
}

// wantedAgain forgets how far an integration was taken apart that the registry no longer deletes: it was restored from a backup. Should
// it be deleted again, that begins anew.
func (p *plan) wantedAgain() Action {
	a := p.facts.Application
	if a.LeaseEndTime.IsZero() && a.DeleteTime.IsZero() && a.AbsenceTime.IsZero() {
		return nil
	}
	a.LeaseEndTime, a.DeleteTime, a.PurgeTime, a.Absences, a.AbsenceTime = time.Time{}, time.Time{}, time.Time{}, 0, time.Time{}
	return Apply{Change: Change{Application: &a}, Why: "WantedAgain"}
}

// LeasesEnded takes in that no lease is open and none holds a secret.
func (f Facts) LeasesEnded(now time.Time) Change {
	a := f.Application
	a.LeaseEndTime = now
	return Change{Application: &a}
}

// Deleted takes in that the application is in the bin.
func (f Facts) Deleted(now time.Time) Change {
	a := f.Application
	a.DeleteTime, a.WriteTime = now, now
	a.Absences, a.AbsenceTime = 0, time.Time{}
	a.succeeded()
	return Change{Application: &a}
}

// DeleteFailed takes in that it may not be in the bin.
func (f Facts) DeleteFailed(now time.Time, t Timing, failure Failure) Change {
	return f.removalFailed(now, t, failure, f.Deleted)
}

// Purged takes in that it is gone for good.
func (f Facts) Purged(now time.Time) Change {
	a := f.Application
	a.PurgeTime, a.WriteTime = now, now
	a.succeeded()
	return Change{Application: &a}
}

// PurgeFailed takes in that it may be in the bin still.
func (f Facts) PurgeFailed(now time.Time, t Timing, failure Failure) Change {
	return f.removalFailed(now, t, failure, f.Purged)
}

// enoughAbsences is how often in a row, spaced, an application must not be found to be taken for gone: once may be a replica that
// has not heard of it.
const enoughAbsences = 2

// removalFailed takes in that the application was not removed from where it was; removed, that it is not there, once it was not found often enough.
func (f Facts) removalFailed(now time.Time, t Timing, failure Failure, removed func(now time.Time) Change) Change {
	if failure.Kind != Missing {
		return f.ApplicationFailed(now, t, failure)
	}
	a := f.Application
	a.Absences++
	a.AbsenceTime, a.WriteTime = now, now
	if a.Absences >= enoughAbsences {
		return removed(now)
	}
	a.succeeded()
	return Change{Application: &a}
}

// Forgotten takes in that the registry knows.
func (f Facts) Forgotten(now time.Time) Change {
	a := f.Application
	a.ForgetTime = now
	a.succeeded()
	return Change{Application: &a}
}
