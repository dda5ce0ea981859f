package consent

import "time"

// Level is how much of an access a service principal's Azure roles give. The values are stored.
type Level string

// The levels there are. The zero value means that nobody has looked.
const (
	None    Level = "NONE"
	Partial Level = "PARTIAL"
	Full    Level = "FULL"
)

// Permissions are what the principal's roles give in the integration's default subscription, as last seen.
type Permissions struct {
	Read, Write Level
	// Denied means that they are less than the roles make them, because of deny assignments, or may be.
	Denied bool
}

// Any reports whether there is a role at all.
func (p Permissions) Any() bool {
	return p.Read == Partial || p.Read == Full || p.Write == Partial || p.Write == Full
}

// rolesTime is for how long after consent was proven a session's page looks for roles.
const rolesTime = 24 * time.Hour

// LooksForRoles reports whether it is of use to look which roles there are: for whoever has consented, until there is nothing more to
// be given.
func LooksForRoles(now time.Time, s Session) bool {
	return s.State == Completed && !s.Lost() && s.SubscriptionID != "" && s.Permissions.Write != Full && now.Before(s.EndTime.Add(rolesTime))
}
