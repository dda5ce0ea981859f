package consent

import "time"

// Target is an integration that sessions wait for: the unit of work, so that twenty sessions cost as much as one.
type Target struct {
	IntegrationUID string
	Integration    string
	// DueTime is when there is something to do; zero means never, because no session is open.
	DueTime time.Time
	// LookTime is when the registry and the vault may be asked again. A deadline may make a target due before.
	LookTime time.Time
	// ProbeTime is when the vault was last asked.
	ProbeTime time.Time
	// Failures counts the rounds in a row in which somebody did not answer.
	Failures int
}

// Claim is one replica's right to settle a round of work for a target.
type Claim struct {
	Target Target
	// Open are the sessions that were open when the claim was made.
	Open []Session
	// Word is random; whoever settles must know it.
	Word string
}

// Round is what a replica did for a target, apart from what it found out.
type Round struct {
	// Looked means that the registry was asked.
	Looked bool
	// ProbeTime is when the vault was asked; zero if it was not.
	ProbeTime time.Time
	// Failed means that one of them did not answer.
	Failed bool
}

// Pace says how often who is asked.
type Pace struct {
	// Probe is the least time between two questions to the vault about one integration.
	Probe time.Duration
	// Poll is the time between two questions to the registry while an application is being prepared.
	Poll time.Duration
	// MaxBackoff bounds the wait after failures.
	MaxBackoff time.Duration
}

// backoffSteps bounds the doublings, so that the wait cannot overflow.
const backoffSteps = 16

// LooksNow reports whether the registry may be asked about a target, and is worth asking: somebody waits.
func LooksNow(now time.Time, t Target, open []Session) bool {
	if now.Before(t.LookTime) {
		return false
	}
	for _, s := range open {
		if now.Before(s.ExpireTime) {
			return true
		}
	}
	return false
}

// ProbesNow reports whether the vault may be asked too, given the registry's answer. A session that has just become
// ready goes first, so that its link shows while the tenant is asked.
func (p Pace) ProbesNow(now time.Time, t Target, o Observation, open []Session) bool {
	if o.Finding != Ready || now.Before(t.ProbeTime.Add(p.Probe)) {
		return false
	}
	for _, s := range open {
		if s.State == WaitingForApplication {
			return false
		}
	}
	return true
}

// Next returns the target after a round, given the sessions that are still open after it. Spread, from 0 up to 1, is
// random: it keeps integrations that failed together from coming back together.
func (p Pace) Next(now time.Time, t Target, r Round, o Observation, open []Session, spread float64) Target {
	if !r.ProbeTime.IsZero() {
		t.ProbeTime = stored(r.ProbeTime)
	}
	switch {
	case r.Failed:
		t.Failures++
		longest := min(p.MaxBackoff, p.Probe<<min(t.Failures, backoffSteps))
		t.LookTime = now.Add(p.Probe + time.Duration(spread*float64(max(longest-p.Probe, 0))))
	case !r.Looked:
		// Only a deadline was due.
	case o.Finding == Preparing:
		t.Failures = 0
		t.LookTime = now.Add(p.Poll)
	default:
		t.Failures = 0
		t.LookTime = t.ProbeTime.Add(p.Probe)
		if t.LookTime.Before(now) {
			t.LookTime = now
		}
	}
	t.LookTime = stored(t.LookTime)
	t.DueTime = time.Time{}
	for i, s := range open {
		due := t.LookTime
		if s.ExpireTime.Before(due) {
			due = s.ExpireTime
		}
		if i == 0 || due.Before(t.DueTime) {
			t.DueTime = due
		}
	}
	return t
}
