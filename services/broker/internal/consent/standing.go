package consent

import "time"

// Standing is how an integration's consent stands, as the vault last reported it. The zero value means that nothing is known.
type Standing struct {
	// Time is since when, by the registry's clock: it is compared with itself alone, and shown.
	Time time.Time
	// Holds means that the tenant takes the application; PrincipalObjectID is its principal there.
	Holds             bool
	PrincipalObjectID string
	// Loss is why it does not any more, such as AADSTS7000112; empty while it holds, and before it first did.
	Loss string
}

// Lost reports whether consent was lost after the session was completed.
func (s Session) Lost() bool { return s.State == Completed && s.Loss != "" }

// Awaits reports whether an administrator can still consent by the session's link.
func (s Session) Awaits(now time.Time) bool {
	return (s.State.Open() || s.Lost()) && now.Before(s.ExpireTime)
}

// Outlives reports whether a session's integration, of which the registry says this, is deleted or about to be: nobody is led to consent to it
// then. Another one may have its name.
func (s Session) Outlives(i Integration) bool { return i.Deleting || i.UID != s.IntegrationUID }

// Stand returns what becomes of a completed session, given its integration and, if the tenant was asked meanwhile, what it said; and
// whether that is a change. A session stays completed when consent is lost: it says so until consent is proven again, by whichever way.
func Stand(now time.Time, s Session, i Integration, p *Proof) (Session, bool) {
	is, at := i.Standing, stored(i.Standing.Time)
	switch {
	case s.State != Completed:
		return s, false
	case s.Outlives(i):
		return s.end(now, i)
	case Observe(i).Finding != Ready || is.Time.IsZero():
		return s, false
	case s.Loss == "" && at.Equal(s.StandingTime):
		return s, false // what was lost then was proven again since, which the vault has not reported yet
	}
	next := s
	next.StandingTime = at
	switch {
	case p != nil && p.Consented:
		next.prove(now, p.PrincipalObjectID)
	case is.Loss != "":
		next.Loss, next.ClientID, next.ApplicationName = is.Loss, i.ClientID, i.ApplicationName
		if s.Loss == "" {
			// What a browser said was about the consent that was lost.
			next.LastCallback, next.CallbackTime = "", time.Time{}
		}
	case is.Holds && (s.Loss != "" || is.PrincipalObjectID != s.PrincipalObjectID):
		next.prove(is.Time, is.PrincipalObjectID)
	}
	return counted(s, next)
}

// end is what becomes of a completed session that outlives its integration, as the registry has it now.
func (s Session) end(now time.Time, i Integration) (Session, bool) {
	next := s
	next.LastRefusal = RefusalIntegrationGone
	if i.Deleting {
		next.LastRefusal = RefusalIntegrationDeleting
	}
	if now.Before(s.ExpireTime) {
		next.ExpireTime = stored(now)
	}
	return counted(s, next)
}

// Bereft reports whether a session's integration was deleted, as far as is known: nothing it says of it holds any more.
func (s Session) Bereft() bool {
	return s.LastRefusal == RefusalIntegrationGone || s.LastRefusal == RefusalIntegrationDeleting
}

// prove completes a session by a proof. What was seen of another principal's roles says nothing about this one's.
func (s *Session) prove(at time.Time, principal string) {
	if principal != s.PrincipalObjectID {
		s.Permissions = Permissions{}
	}
	s.State, s.LastRefusal, s.Loss = Completed, "", ""
	s.PrincipalObjectID, s.EndTime = principal, stored(at)
}

// counted returns what became of a session, and whether that is a change. Those who look at it are told of what they can see.
func counted(s, next Session) (Session, bool) {
	seen := next
	if next.Loss == "" {
		seen.StandingTime = s.StandingTime
	}
	if seen != s {
		next.Version++
	}
	return next, next != s
}
