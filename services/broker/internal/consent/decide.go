package consent

import "time"

// Finding is what is known about a session's integration.
type Finding int

// The findings. The zero value changes nothing but what the clock changes.
const (
	// Unknown means that nobody was asked, or the registry did not answer.
	Unknown Finding = iota
	// Gone means that the integration was deleted; another one may have its name.
	Gone
	// Deleting means that it is about to be.
	Deleting
	// Preparing means that its application has not replicated.
	Preparing
	// Ready means that the administrator can consent.
	Ready
)

// Proof is the vault's answer.
type Proof struct {
	Consented         bool
	PrincipalObjectID string
	// Time is when the tenant was asked, by the vault's clock.
	Time time.Time
	// Age is how long that was before the vault was asked; zero if it was then.
	Age time.Duration
	// Refusal is what the tenant said instead of a token.
	Refusal string
}

// Cancel returns what becomes of a session that is withdrawn, and whether that is a change. What was proven stays so, and is not given again by
// the same link, should it be lost.
func Cancel(now time.Time, s Session) (Session, bool) {
	switch {
	case s.State.Open():
		s.State, s.LastRefusal, s.EndTime = Expired, RefusalCancelled, stored(now)
	case s.State == Completed && now.Before(s.ExpireTime):
		s.ExpireTime = stored(now)
	default:
		return s, false
	}
	s.Version++
	return s, true
}

// Observation is what one round found out.
type Observation struct {
	Finding Finding
	// ClientID and ApplicationName are the application's, when Ready.
	ClientID        string
	ApplicationName string
	// Standing is the integration's; zero when nothing is known of it.
	Standing Standing
	// Proof is nil when the vault was not asked, or did not answer; AskTime is when it was asked.
	Proof   *Proof
	AskTime time.Time
}

// proofFor is what is proven for a session. An answer from before it was opened, such as the last one to another session, says nothing about
// what an administrator does with this one.
func (o Observation) proofFor(s Session) *Proof {
	if o.Proof == nil || o.AskTime.Add(-o.Proof.Age).Before(s.CreateTime) {
		return nil
	}
	return o.Proof
}

// Observe turns the registry's answer into an observation.
func Observe(i Integration) Observation {
	switch {
	case i.Deleting:
		return Observation{Finding: Deleting}
	case i.Ready && i.ClientID != "":
		return Observation{Finding: Ready, ClientID: i.ClientID, ApplicationName: i.ApplicationName, Standing: i.Standing}
	default:
		return Observation{Finding: Preparing, Standing: i.Standing}
	}
}

// Decide returns what becomes of a session, and whether that is a change. The deadline comes first: a session is never
// completed after it, even if the proof was on its way; nor by a proof from before it was opened.
func Decide(now time.Time, s Session, o Observation) (Session, bool) {
	if !s.State.Open() {
		return s, false
	}
	next, proof := s, o.proofFor(s)
	if !o.Standing.Time.IsZero() {
		next.StandingTime, next.Loss = stored(o.Standing.Time), o.Standing.Loss
	}
	switch {
	case !now.Before(s.ExpireTime):
		next.State = Expired
	case o.Finding == Gone:
		next.State, next.LastRefusal = Expired, RefusalIntegrationGone
	case o.Finding == Deleting:
		next.State, next.LastRefusal = Expired, RefusalIntegrationDeleting
	case proof != nil && proof.Consented:
		next.prove(now, proof.PrincipalObjectID)
	case o.Finding == Ready:
		if s.ClientID != "" && o.ClientID != s.ClientID {
			// It was made anew: what a browser said was about another one, and must not keep the button away.
			next.LastCallback, next.CallbackTime = "", time.Time{}
		}
		next.State, next.ClientID, next.ApplicationName = AwaitingConsent, o.ClientID, o.ApplicationName
		if proof != nil {
			next.LastRefusal = proof.Refusal
		}
	case o.Finding == Preparing:
		// Also from AwaitingConsent: an application that was lost and is made anew has another client ID, and
		// whoever followed the old link would be told that it does not exist.
		next.State = WaitingForApplication
	}
	if next.State == Expired {
		next.EndTime = stored(now)
	}
	return counted(s, next)
}
