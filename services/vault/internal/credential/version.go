package credential

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is where a version is in its life. Its text is what the database and the log have.
type State string

// The states there are.
const (
	// Intended: stored before Entra is asked for the password.
	Intended State = "INTENDED"
	// Staged: the password exists; nobody can use it yet, for the customer has not consented. Never given up, renewed.
	Staged State = "STAGED"
	// Propagating: being proven.
	Propagating State = "PROPAGATING"
	// Active: proven; what is delivered is made from it.
	Active State = "ACTIVE"
	// Retiring: replaced; still used where the ACTIVE one is refused, and by those who hold it.
	Retiring State = "RETIRING"
	// Revoking: its removal is decided for good.
	Revoking State = "REVOKING"
	// Revoked: removed at Entra.
	Revoked State = "REVOKED"
	// Abandoned: it came to nothing. Its password, if there is one, is removed.
	Abandoned State = "ABANDONED"
)

// States lists all states, in the order of a life.
func States() []State {
	return []State{Intended, Staged, Propagating, Active, Retiring, Revoking, Revoked, Abandoned}
}

// transitions is the whole table: what may follow a state.
var transitions = map[State][]State{ //nolint:gochecknoglobals // a constant, were maps allowed to be
	Intended:    {Staged, Propagating, Abandoned},
	Staged:      {Propagating, Revoking},               // consent; renewed, or the integration is deleted
	Propagating: {Active, Staged, Abandoned, Revoking}, // proven; consent withdrawn before; never proven; deleted
	Active:      {Retiring},                            // a successor, or the integration is deleted
	Retiring:    {Revoking},                            // unheld
	Revoking:    {Revoked},                             // removed
	Revoked:     nil,
	Abandoned:   nil,
}

// Allowed reports whether a version may go from one state to the other.
func Allowed(from, to State) bool { return slices.Contains(transitions[from], to) }

// Final reports whether nothing follows the state.
func (s State) Final() bool { return len(transitions[s]) == 0 }

// HasPassword reports whether Entra should have the password of a version in this state, and the vault its text; or whether a federated one is
// to work.
func (s State) HasPassword() bool {
	switch s {
	case Staged, Propagating, Active, Retiring:
		return true
	case Intended, Revoking, Revoked, Abandoned:
		return false
	}
	return false
}

// Version is one client secret of an integration, or its federated trust under one signing key, through its life. Times that have not come are zero.
type Version struct {
	// ID is a UUID, chosen with the intent.
	ID string
	// IntegrationUID is whose it is.
	IntegrationUID string
	// Number counts the integration's versions from 1.
	Number int64
	State  State
	// Name is the password's display name at Entra: unique, and it carries the deployment's ID (see PasswordName).
	Name string
	// KeyID is what Entra calls the password; empty while that is not known.
	KeyID string
	// Sealed is the secret's text, encrypted; empty when there is none.
	Sealed []byte
	// SigningKey is the ID of the key that a federated version's assertions are signed with; empty for a client secret.
	SigningKey string

	// Recovery is the number of the last recovery when it was intended: what was intended before may be in other hands than the
	// database says.
	Recovery int64
	// IntendTime is when the intent was stored, SendTime when the request for the password was sent whose answer is not
	// known: zero again once there was an answer.
	IntendTime, SendTime time.Time
	// AddTime is when the answer came, by the vault's clock; StartTime and EndTime are the password's, by Entra's. A federated version
	// has no end before it is over.
	AddTime, StartTime, EndTime time.Time
	// PropagateTime is when the proofs began; ProveTime when the version last worked.
	PropagateTime, ProveTime time.Time
	ActivateTime, RetireTime time.Time
	RevokeTime, RemoveTime   time.Time

	// Proofs counts token requests in a row that were granted while PROPAGATING.
	Proofs int
	// ProbeTime is when a token was last asked for with it.
	ProbeTime time.Time
	// Refusals counts token requests in a row that were refused because of the secret, from RefusedSince on.
	Refusals     int
	RefusedSince time.Time
	// Attempts counts what failed since the state began; before NextTime nothing is tried again.
	Attempts int
	NextTime time.Time
	// RemoveCode is the code of the last failure to remove the password, as one CamelCase word; empty since it was removed.
	RemoveCode string
	// Holders counts the leases that were given the secret itself and may still use it. Only store's methods for leases
	// change it.
	Holders int64
	// Reason says why it is in its state, in one CamelCase word; empty for the ordinary course.
	Reason string
}

// Life is how long the password is valid in all.
func (v Version) Life() time.Duration { return v.EndTime.Sub(v.StartTime) }

// Works reports whether the version is believed to work: not expired and not refused time and again.
func (v Version) Works(now time.Time, t Timing) bool {
	return v.State.HasPassword() && !v.ended(now) && v.Refusals < t.RefusalLimit
}

// stuck reports whether the version's password is to go, and could not be removed time and again.
func (v Version) stuck() bool {
	return (v.State == Revoking || v.State == Abandoned) && v.Attempts >= StuckAttempts
}

// reasonUnreadable is why a version does not work whose text the vault cannot open any more.
const reasonUnreadable = "SecretUnreadable"

func (v Version) unreadable() bool { return v.Reason == reasonUnreadable }

// UnreadableSince reports whether the version's text is found unreadable that could be opened as far as was known before.
func (v Version) UnreadableSince(before Version) bool { return v.unreadable() && !before.unreadable() }

// jitter is a number in [-1, 1) that depends on the version's ID alone.
func (v Version) jitter() float64 {
	sum := sha256.Sum256([]byte(v.ID))
	return float64(binary.BigEndian.Uint64(sum[:])>>11)/(1<<52) - 1
}

// RotateTime is when the successor of an ACTIVE version is begun: a period after its activation, give or take a tenth,
// less what proving will take; and with a third of the password's life left at the latest.
func (v Version) RotateTime(period time.Duration, t Timing) time.Time {
	jittered := period + time.Duration(v.jitter()*float64(period)/10)
	lead := min(t.proving()+t.Settling, period/2)
	at := v.ActivateTime.Add(jittered - lead)
	if latest := v.renewTime(); latest.Before(at) {
		return latest
	}
	return at
}

// renewTime is when a third of the password's life is left.
func (v Version) renewTime() time.Time { return v.EndTime.Add(-v.Life() / 3) }

// HoldLimit is when a grant that holds the version's secret must have ended.
func (v Version) HoldLimit(margin time.Duration) time.Time { return v.EndTime.Add(-margin) }

// SealedAs is the identity under which a version's text is encrypted.
func SealedAs(versionID string) string { return "credential_version/" + versionID }

const namePrefix = "phasekey/"

// PasswordName is the display name of a version's password at Entra.
func PasswordName(deployment, versionID string) string {
	return namePrefix + deployment + "/" + versionID
}

// OwnName reports whether a password of this display name was made by this deployment.
func OwnName(deployment, name string) bool {
	return strings.HasPrefix(name, namePrefix+deployment+"/")
}

// String names the version in errors; it has no secret in it.
func (v Version) String() string {
	return fmt.Sprintf("version %d (%s, %s)", v.Number, v.ID, v.State)
}
