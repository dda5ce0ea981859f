package credential

import "time"

// Recovery is that the database was restored from a backup. Then Entra has passwords which the database does not know, and
// leases that it does not know either may use them, or versions that it believes unheld. Nothing that was there before is removed
// until the integration has a version that was begun since and is ACTIVE as long as any that is replaced, and until every
// lease that the database can have lost is over.
type Recovery struct {
	// Number counts the recoveries, from 1.
	Number int64
	// Time is when it was begun.
	Time time.Time
}

// recoverySkew is how far Entra's clock and that of whoever began a recovery may be apart.
const recoverySkew = 15 * time.Minute

// Before reports whether a stray may have been made before the recovery.
func (r Recovery) Before(s Stray) bool {
	return r.Number > 0 && !s.StartTime.After(r.Time.Add(recoverySkew))
}

// mayBeHeld reports whether a version may be used by somebody of whom the database knows nothing.
func (p *plan) mayBeHeld(v Version) bool {
	works := v.Works(p.now, p.t) || v.unreadable() && !v.ended(p.now) // whoever was given it can read it
	return works && (v.Recovery < p.facts.Recovery.Number && !p.recovered() || p.uncertain(v.IntendTime))
}

// uncertain reports whether something was made before the database's last fail-over, and may be held by a lease that was lost with it. Unlike after a restored
// backup nothing is replaced for that: mostly nothing was lost, and what was is found by looking at everything.
func (p *plan) uncertain(made time.Time) bool {
	at := p.facts.FailOverTime
	return !at.IsZero() && !made.After(at.Add(recoverySkew)) && !p.due(at.Add(p.t.LongestHold))
}

// missed reports whether what was last looked at then is to be looked at again, for the database has failed over since.
func (p *plan) missed(last time.Time) bool {
	at := p.facts.FailOverTime
	return last.Before(at) && p.due(at)
}

// recovered reports whether what is from before the last recovery may go. Where the customer's tenant says that there is no consent
// nobody can use any of it.
func (p *plan) recovered() bool {
	r, a := p.facts.Recovery, p.facts.Application
	if r.Number == 0 {
		return true
	}
	if !p.due(r.Time.Add(p.t.LongestHold)) {
		return false
	}
	if active, ok := p.facts.ByState(Active); ok && active.Recovery == r.Number {
		return p.due(active.ActivateTime.Add(p.t.Retiring))
	}
	return !a.Consented && a.ObserveTime.After(r.Time.Add(p.t.LongestHold))
}
