package credential

import "time"

// AskedHome takes in what the home tenant said: any answer about secret or principal shows that it knows the application.
func (f Facts) AskedHome(now time.Time, t Timing, v Version, finding Finding) Change {
	a := f.Application
	a.HomeTime = now
	if finding == ConsentMissing {
		a.HomeProofs = 0
	} else {
		a.HomeProofs++
	}
	if a.HomeProofs >= t.Proofs {
		a.ReadyTime = now
	}
	v.Attempts, v.NextTime = 0, time.Time{}
	return Change{Application: &a, Moves: []Move{{From: v.State, Version: v}}}
}

// Proved takes in one proof, or its failure.
func (f Facts) Proved(now time.Time, t Timing, v Version, finding Finding, code, principal string) Change {
	c := f.heard(now, t, v, Probe{Finding: finding, Code: code, PrincipalObjectID: principal})
	if finding == Works {
		c.Moves[0].Version.Proofs++
	}
	return c
}

// Observed takes in the last answer of the customer's tenant, whoever asked.
func (f Facts) Observed(now time.Time, t Timing) Change {
	var asked Version
	for _, v := range f.Versions {
		if v.ID == f.Probe.VersionID && v.State.HasPassword() {
			asked = v
		}
	}
	var c Change
	if f.Probe.Finding == Unreadable && asked.ID != "" {
		c = f.Unreadable(now, t, asked)
	} else {
		c = f.heard(now, t, asked, f.Probe)
	}
	c.Application.SeenProbeTime = f.Probe.Time
	return c
}

// heard takes in an answer of the customer's tenant, about consent and about the version it was asked with. The time is the
// master's own: the clock of whoever asked may differ.
func (f Facts) heard(now time.Time, t Timing, v Version, p Probe) Change {
	a := f.Application
	a.ObserveTime, a.SeenWantTime = now, f.Probe.WantTime
	known := v.ID != ""
	v.ProbeTime, v.Attempts, v.NextTime = now, 0, time.Time{}
	switch p.Finding {
	case Works:
		if !a.Consented {
			a.Consented, a.ConsentTime = true, now
		}
		a.ConsentRefusals, a.ConsentRefusedSince, a.ConsentCode = 0, time.Time{}, ""
		if p.PrincipalObjectID != "" {
			a.PrincipalObjectID = p.PrincipalObjectID
		}
		if a.ReadyTime.IsZero() {
			a.ReadyTime = now
		}
		v.ProveTime, v.Refusals, v.RefusedSince = now, 0, time.Time{}
		if v.unreadable() {
			v.Reason = "" // the key is back
		}
	case ConsentMissing, PrincipalMissing:
		if a.ConsentRefusals == 0 {
			a.ConsentRefusedSince = now
		}
		a.ConsentRefusals++
		a.ConsentCode = reasonOf(p.Code)
		if a.Consented && a.ConsentRefusals >= t.ConsentFailures && now.Sub(a.ConsentRefusedSince) >= t.ConsentWindow {
			a.Consented, a.ConsentTime = false, now
		}
		if v.State == Propagating {
			v.refused(now)
		}
	case SecretRefused:
		v.refused(now)
		if v.State == Active && now.Sub(v.AddTime) < t.Settling {
			// So young, a refusal shows that not all of Entra knows it yet; another one would be younger still.
			v.Refusals = min(v.Refusals, t.RefusalLimit-1)
		}
	case SecretExpired:
		v.refused(now)
		v.Refusals = max(v.Refusals, t.RefusalLimit)
	case Unreadable, Unsure:
	}
	c := Change{Application: &a}
	if known {
		c.Moves = []Move{{From: v.State, Version: v}}
	}
	return c
}

func (v *Version) refused(at time.Time) {
	if v.Refusals == 0 {
		v.RefusedSince = at
	}
	v.Refusals++
	v.Proofs = 0
}

// Unproven takes in that a proof was refused for a reason that is neither the secret nor consent: one that nobody here knows, or that is the vault's own mistake.
// A version of which it is always said must come to its end as one whose secret is refused does.
func (f Facts) Unproven(now time.Time, t Timing, v Version, retryAfter time.Duration) Change {
	v.refused(now)
	return f.Postponed(now, t, v, retryAfter)
}

// Unreadable takes in that the text of a version's secret is stored and cannot be opened any more. To the vault it is as good as expired; nothing is learnt about
// what Entra thinks of it.
func (f Facts) Unreadable(now time.Time, t Timing, v Version) Change {
	a := f.Application
	a.SeenWantTime = f.Probe.WantTime
	if pending := v.State == Staged || v.State == Propagating; pending && !v.unreadable() {
		a.AddFailures++
		a.AddCode = reasonUnreadable
		a.AddNextTime = now.Add(f.retry(now, t, a.AddFailures, 0))
	}
	v.refused(now)
	v.Refusals, v.Reason = max(v.Refusals, t.RefusalLimit), reasonUnreadable
	v.ProbeTime, v.Attempts, v.NextTime = now, 0, now.Add(t.AwaitInterval)
	return Change{Application: &a, Moves: []Move{{From: v.State, Version: v}}}
}
