package credential

import (
	"slices"
	"strings"
	"time"
	"unicode"
)

// Failure is why a request to Graph came to nothing, as far as the state machine needs to know.
type Failure struct {
	Kind FailureKind
	// Code is the service's, for people.
	Code string
	// RetryAfter is how long the service asks to wait; 0 when it does not say.
	RetryAfter time.Duration
}

// FailureKind says what may be done about a failure.
type FailureKind int

const (
	// Again: nothing was done; worth repeating as it is.
	Again FailureKind = iota
	// Lost: the request may have been carried out.
	Lost
	// Missing: no such object, or the replica that was asked does not know it yet.
	Missing
	// TooLong: the password's life is longer than a policy takes.
	TooLong
	// Refused: only people can mend it.
	Refused
)

// MadeApplication is an application as Graph has it.
type MadeApplication struct {
	ObjectID, ClientID, DisplayName string
	Passwords                       []MadePassword
	// ForeignTrusts counts its federated credentials that are none of ours, as far as is known which those are.
	ForeignTrusts int
}

// MadePassword is a password as Graph has it.
type MadePassword struct {
	KeyID, Name        string
	StartTime, EndTime time.Time
}

// Ensuring is stored before the application is ensured: from then on it may exist.
func (f Facts) Ensuring(now time.Time) Change {
	a := f.Application
	if a.EnsureSendTime.IsZero() {
		a.EnsureSendTime = now
	}
	a.WriteTime = now
	return Change{Application: &a}
}

// Ensured takes in the application, which is as it shall be.
func (f Facts) Ensured(now time.Time, made MadeApplication) Change {
	a := f.Application
	c := Change{Application: &a}
	if a.ObjectID != "" && a.ObjectID != made.ObjectID {
		c = f.Replaced(now, made)
	}
	found := c.Application
	found.ObjectID, found.ClientID, found.DisplayName = made.ObjectID, made.ClientID, made.DisplayName
	found.SpecDigest, found.EnsureTime, found.WriteTime = f.Wanted.SpecDigest, now, now
	found.succeeded()
	return c
}

// Replaced takes in that the application is another one than before, of whose properties nothing is known: somebody deleted that, and its passwords
// and consent went with it.
func (f Facts) Replaced(now time.Time, made MadeApplication) Change {
	a := f.Application
	c := Change{ReplaceStrays: true, Application: &Application{
		IntegrationUID: a.IntegrationUID, ObjectID: made.ObjectID, ClientID: made.ClientID, DisplayName: made.DisplayName,
		EnsureSendTime: a.EnsureSendTime, ActivateTime: a.ActivateTime, ReportDigest: a.ReportDigest, ReportTime: a.ReportTime,
		SeenProbeTime: f.Probe.Time, SeenWantTime: f.Probe.WantTime, LifeLimit: a.LifeLimit,
	}}
	for _, v := range f.Versions {
		next := v
		switch v.State {
		case Staged, Propagating:
			c.Moves = append(c.Moves, revoke(now, v, "ApplicationReplaced").Moves...)
		case Active:
			next.State, next.RetireTime, next.EndTime, next.Reason = Retiring, now, now, "ApplicationReplaced"
			c.Moves = append(c.Moves, Move{From: Active, Version: next})
		case Retiring:
			next.EndTime = now
			c.Moves = append(c.Moves, Move{From: Retiring, Version: next})
		case Intended, Revoking, Revoked, Abandoned:
		}
	}
	return c
}

// ApplicationFailed takes in that a request about the application as a whole failed.
func (f Facts) ApplicationFailed(now time.Time, t Timing, failure Failure) Change {
	a := f.Application
	a.Failures++
	a.FailureCode = failure.Code
	a.NextTime = now.Add(f.retry(now, t, a.Failures, failure.RetryAfter))
	return Change{Application: &a}
}

// reached notes in a that Graph answered about the application, which is not mended by that: whatever it lacks is put off as before.
func (f Facts) reached(a *Application) {
	// None are to be removed, or not before what stands on them.
	trusts := a.TrustSendTime.IsZero() || slices.ContainsFunc(f.Versions, Version.Federated)
	if f.Wanted.Federated {
		trusts = f.Trust.Digest == "" || f.trusted()
	}
	if trusts && a.SpecDigest == f.Wanted.SpecDigest {
		a.succeeded()
	}
}

func (a *Application) succeeded() {
	a.Failures, a.FailureCode, a.NextTime = 0, "", time.Time{}
}

// ReadFound takes in what reading the application found; deployment is the ID in the names of our own passwords.
func (f Facts) ReadFound(now time.Time, deployment string, made MadeApplication) Change {
	a := f.Application
	if a.ObjectID == "" {
		a.ObjectID, a.ClientID, a.DisplayName = made.ObjectID, made.ClientID, made.DisplayName
	}
	a.ReadTime, a.MissingReads, a.MissingTime = now, 0, time.Time{}
	a.ForeignPasswords, a.ForeignTrusts, a.UnknownTrusts = 0, made.ForeignTrusts, 0
	if f.mayTrust() && f.Trust.Digest == "" {
		a.ForeignTrusts, a.UnknownTrusts = 0, made.ForeignTrusts
	}
	f.reached(&a)
	var strays []Stray
	for _, p := range made.Passwords {
		switch {
		case !OwnName(deployment, p.Name):
			a.ForeignPasswords++
			continue
		case slices.ContainsFunc(f.Versions, func(v Version) bool { return v.KeyID == p.KeyID }):
			continue // in use, or about to be removed
		}
		s := Stray{KeyID: p.KeyID, Name: p.Name, StartTime: p.StartTime, FirstTime: now, LastTime: now}
		if i := slices.IndexFunc(f.Strays, func(o Stray) bool { return o.KeyID == p.KeyID }); i >= 0 {
			s.FirstTime, s.Attempts, s.NextTime = f.Strays[i].FirstTime, f.Strays[i].Attempts, f.Strays[i].NextTime
		}
		strays = append(strays, s)
	}
	return Change{Application: &a, Strays: strays, ReplaceStrays: true}
}

// ReadMissed takes in that reading did not find the application.
func (f Facts) ReadMissed(now time.Time) Change {
	a := f.Application
	a.MissingReads++
	a.MissingTime = now
	a.succeeded()
	return Change{Application: &a}
}

// Intending is stored before a password is asked for: id is the new version's.
func (f Facts) Intending(now time.Time, deployment, id string) (Change, Version) {
	a := f.Application
	a.WriteTime = now
	v := Version{
		ID: id, IntegrationUID: f.Wanted.UID, Number: f.LastNumber + 1, State: Intended,
		Name: PasswordName(deployment, id), Recovery: f.Recovery.Number, IntendTime: now, SendTime: now,
	}
	return Change{Application: &a, Intent: &v}, v
}

// Resending is stored before a password is asked for again, after an answer that nothing was done.
func (f Facts) Resending(now time.Time, v Version) (Change, Version) {
	a := f.Application
	a.WriteTime = now
	v.SendTime = now
	return Change{Application: &a, Moves: []Move{{From: Intended, Version: v}}}, v
}

// Added takes in the password of an INTENDED version, its text already encrypted.
func (f Facts) Added(now time.Time, v Version, made MadePassword, sealed []byte) Change {
	a := f.Application
	a.WriteTime = now
	a.AddCode, a.AddRefusal = "", ""
	stretched := f.stretches(v)
	v.State, v.SendTime, v.AddTime = Staged, time.Time{}, now
	v.KeyID, v.StartTime, v.EndTime, v.Sealed = made.KeyID, made.StartTime, made.EndTime, sealed
	if v.StartTime.IsZero() {
		v.StartTime = now
	}
	if stretched {
		a.LifeLimit = max(a.LifeLimit, v.Life())
	}
	v.Attempts, v.NextTime = 0, time.Time{}
	if a.Consented {
		v.State, v.PropagateTime = Propagating, now
	} else {
		a.AddFailures = 0
	}
	return Change{Application: &a, Moves: []Move{{From: Intended, Version: v}}}
}

// AddFailed takes in that there is no password, or none whose text is known.
func (f Facts) AddFailed(now time.Time, t Timing, v Version, failure Failure) Change {
	a := f.Application
	a.WriteTime = now
	a.AddCode = reasonOf(failure.Code)
	again := func(delay time.Duration) Change {
		v.SendTime = time.Time{}
		v.NextTime = now.Add(delay)
		return Change{Application: &a, Moves: []Move{{From: Intended, Version: v}}}
	}
	life := t.Life(f.Wanted.period(), a.LifeLimit)
	switch {
	case failure.Kind == Again, failure.Kind == Missing:
		v.Attempts++
		return again(f.retry(now, t, v.Attempts, failure.RetryAfter))
	case failure.Kind == TooLong && f.stretches(v):
		v.Attempts++ // the policy is as it was
		return again(t.WriteSpacing)
	case failure.Kind == TooLong && life > t.shortestLife():
		a.LifeLimit = max(life/2, t.shortestLife())
		return again(t.WriteSpacing)
	case failure.Kind == Lost:
		return f.With(Change{Application: &a}).lost(now, t, v)
	}
	v.SendTime = time.Time{}
	a.AddRefusal = reasonOf(failure.Code)
	return f.With(Change{Application: &a}).abandoned(now, t, v, a.AddRefusal)
}

// lost gives up a version whose password may exist and whose text is not known. Reading will find it, if it does; but it stays for as long as no version works, and
// Entra lets an application have only so many. So then there is no hurry: the next one waits as long as after any failure.
func (f Facts) lost(now time.Time, t Timing, v Version) Change {
	c := f.abandoned(now, t, v, "AnswerLost")
	if _, ok := f.usable(now, t); !ok {
		c.Application.AddNextTime = now.Add(t.backoff(c.Application.AddFailures, 0))
	}
	return c
}

// abandoned gives a version up, and puts the next one off: the longer, the more came to nothing.
func (f Facts) abandoned(now time.Time, t Timing, v Version, reason string) Change {
	a := f.Application
	a.AddFailures++
	a.AddCode = reason
	a.AddNextTime = now.Add(f.retry(now, t, a.AddFailures, 0))
	from := v.State
	v.State, v.Reason, v.Attempts, v.NextTime = Abandoned, reason, 0, time.Time{}
	return Change{Application: &a, Moves: []Move{{From: from, Version: v}}}
}

// promoted makes a proven version ACTIVE, and the one before it RETIRING, in one.
func (f Facts) promoted(now time.Time, v Version) Change {
	a := f.Application
	a.AddFailures, a.AddCode, a.AddNextTime = 0, "", time.Time{}
	if a.ActivateTime.IsZero() {
		a.ActivateTime = now
	}
	c := Change{Application: &a}
	if old, ok := f.ByState(Active); ok {
		old.State, old.RetireTime = Retiring, now
		c.Moves = append(c.Moves, Move{From: Active, Version: old})
	}
	v.State, v.ActivateTime = Active, now
	c.Moves = append(c.Moves, Move{From: Propagating, Version: v})
	return c
}

// revoke decides a version's removal for good.
func revoke(now time.Time, v Version, reason string) Change {
	from := v.State
	v.State, v.RevokeTime, v.Attempts, v.NextTime = Revoking, now, 0, time.Time{}
	if reason != "" {
		v.Reason = reason
	}
	return Change{Moves: []Move{{From: from, Version: v}}}
}

// revocable takes in that a version was read as REVOKING: that is committed, and whoever still asks with it has RemoveDelay to end.
func (f Facts) revocable(now time.Time, t Timing, v Version) Change {
	v.NextTime = now.Add(t.RemoveDelay)
	return Change{Moves: []Move{{From: Revoking, Version: v}}}
}

// Removed takes in that a version's password is gone.
func (f Facts) Removed(now time.Time, v Version) Change {
	a := f.Application
	a.WriteTime = now
	from := v.State
	if from == Revoking {
		v.State = Revoked
	}
	v.RemoveTime, v.RemoveCode, v.Sealed, v.NextTime = now, "", nil, time.Time{}
	return Change{Application: &a, Moves: []Move{{From: from, Version: v}}}
}

// RemoveFailed takes in that it may still be there. Where the application itself is gone, or about to go, its not being found is
// good enough.
func (f Facts) RemoveFailed(now time.Time, t Timing, v Version, failure Failure) Change {
	a := f.Application
	if failure.Kind == Missing && (a.MissingReads >= 2 || f.Wanted.Deleting && v.Attempts >= 3) {
		return f.Removed(now, v)
	}
	a.WriteTime = now
	v.RemoveCode = reasonOf(failure.Code)
	moves := f.Postponed(now, t, v, failure.RetryAfter).Moves
	if soon := now.Add(max(compromisedRetry, min(failure.RetryAfter, t.RetryMax))); f.compromised(v) {
		moves[0].Version.NextTime = earliest(moves[0].Version.NextTime, soon)
	}
	return Change{Application: &a, Moves: moves}
}

// Postponed takes in that nothing was learnt about a version, and puts it off.
func (f Facts) Postponed(now time.Time, t Timing, v Version, retryAfter time.Duration) Change {
	v.Attempts++
	wait := t.backoff(v.Attempts, retryAfter)
	if v.State == Propagating {
		wait = f.retry(now, t, v.Attempts, retryAfter)
	}
	v.NextTime = now.Add(wait)
	return Change{Moves: []Move{{From: v.State, Version: v}}}
}

// Swept takes in that a stray password is gone.
func (f Facts) Swept(now time.Time, s Stray) Change {
	a := f.Application
	a.WriteTime = now
	f.reached(&a)
	rest := slices.DeleteFunc(slices.Clone(f.Strays), func(o Stray) bool { return o.KeyID == s.KeyID })
	return Change{Application: &a, Strays: rest, ReplaceStrays: true}
}

// SweepFailed takes in that a stray password may still be there. It alone is put off: its removal may fail for good.
func (f Facts) SweepFailed(now time.Time, t Timing, s Stray, failure Failure) Change {
	a := f.Application
	a.WriteTime = now
	strays := slices.Clone(f.Strays)
	for i := range strays {
		if strays[i].KeyID == s.KeyID {
			strays[i].Attempts++
			strays[i].NextTime = now.Add(t.backoff(strays[i].Attempts, failure.RetryAfter))
		}
	}
	return Change{Application: &a, Strays: strays, ReplaceStrays: true}
}

// Reported takes in that the registry accepted a report.
func (f Facts) Reported(now time.Time, digest string) Change {
	a := f.Application
	a.ReportDigest, a.ReportTime = digest, now
	return Change{Application: &a}
}

// reasonOf makes a service's code one CamelCase word.
func reasonOf(code string) string {
	word := strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return r
		}
		return -1
	}, code)
	if word == "" {
		return "NoAnswer"
	}
	if !unicode.IsUpper(rune(word[0])) {
		word = strings.ToUpper(word[:1]) + word[1:]
	}
	if word[0] < 'A' || word[0] > 'Z' {
		word = "Code" + word
	}
	return word[:min(len(word), 60)]
}
