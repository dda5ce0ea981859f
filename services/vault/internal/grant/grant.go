// Package grant knows what a grant is: the permission for one run, project and phase, shown by the runner as an opaque
// bearer token.
//
// It guarantees that access follows from the phase and from nothing else (planning is READ, always), that a grant never
// lasts longer than MaxAhead from when that was decided, and that what it says about a grant is a function of the facts
// and of now. It stores and asks nothing.
//
// The tricky idea is the order of Standing.Check. A copy of the registry that is older than the grant may lack the very
// attachment that the grant rests on: as long as it is behind, nothing final can be concluded from what is missing in it.
package grant

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

// What is wrong with a grant. The first group is final: whoever holds something by this grant stops using it.
var (
	ErrRevoked            = errors.New("grant was revoked")
	ErrExpired            = errors.New("grant has expired")
	ErrDetached           = errors.New("integration no longer gives the project this access")
	ErrIntegrationDeleted = errors.New("integration or project was deleted")
	ErrCertificate        = errors.New("grant is bound to another client certificate")

	// ErrUnknown: no such token. Nothing more is said to whoever showed it.
	ErrUnknown = errors.New("unknown grant token")
	// ErrBehind: the copy of the registry is older than the grant, or lacks labels that the grant may rest on.
	ErrBehind = errors.New("copy of the registry is behind the grant")
	// ErrStale: the registry has not been heard of for longer than MaxSilence.
	ErrStale = errors.New("copy of the registry is too old")

	// ErrNotFound: no grant of that name.
	ErrNotFound = errors.New("grant not found")
	// ErrInUse: the grant of this request ID has been used; its token cannot be shown again.
	ErrInUse = errors.New("grant has been used")
	// ErrRequestIDReused: the request ID was used before with other contents.
	ErrRequestIDReused = errors.New("request id was used with other contents")
	// ErrPast: the end asked for is over.
	ErrPast = errors.New("must be in the future")
	// ErrTooFar: the end asked for is more than MaxAhead away.
	ErrTooFar = errors.New("must be at most 24 hours ahead")
)

const (
	// DefaultLife is how long a grant lasts when nobody says.
	DefaultLife = time.Hour
	// MaxAhead is how far ahead a grant's end may be.
	MaxAhead = 24 * time.Hour
	// MaxSilence is for how long new things are delivered without hearing of the registry.
	MaxSilence = 15 * time.Minute
	// RequestIDLife is for how long a request ID is remembered.
	RequestIDLife = 24 * time.Hour

	// clockMargin is how far callers' clocks may be ahead. What lies within it is cut to MaxAhead.
	clockMargin = 5 * time.Minute
)

// Access is the strength of a credential.
type Access string

// The accesses there are.
const (
	Read  Access = "READ"
	Write Access = "WRITE"
)

// Phase is what a run is doing.
type Phase string

// The phases there are.
const (
	Initializing Phase = "INITIALIZING"
	Planning     Phase = "PLANNING"
	Applying     Phase = "APPLYING"
	Destroying   Phase = "DESTROYING"
	Performing   Phase = "PERFORMING"
	Testing      Phase = "TESTING"
)

// Access is what the phase may have; empty for a phase that there is not.
func (p Phase) Access() Access {
	switch p {
	case Initializing, Planning:
		return Read
	case Applying, Destroying, Performing, Testing:
		return Write
	default:
		return ""
	}
}

// State is where a grant is in its life.
type State int

// The states there are.
const (
	Active State = iota + 1
	Expired
	Revoked
)

// Request is what the platform asks for.
type Request struct {
	// Account is the account's ID, without `accounts/`.
	Account string
	// Project is the project's resource name.
	Project string
	Phase   Phase
	Run     string
	// ExpireTime is zero when not said.
	ExpireTime time.Time
	// CertificateSHA256 is in lower-case hexadecimal; empty means any.
	CertificateSHA256 string
}

// Fingerprint tells requests of different contents apart, for the sake of request IDs.
func (r Request) Fingerprint() [sha256.Size]byte {
	var end int64
	if !r.ExpireTime.IsZero() {
		end = r.ExpireTime.UnixNano()
	}
	// None of the fields can hold a zero byte.
	return sha256.Sum256([]byte(strings.Join([]string{
		r.Account, r.Project, string(r.Phase), r.Run, fmt.Sprint(end), r.CertificateSHA256,
	}, "\x00")))
}

// Resolution is what the registry said that the project gets in the phase.
type Resolution struct {
	// Integration is the integration's resource name when it was resolved; only the UID counts.
	Integration    string
	IntegrationUID string
	ProjectUID     string
	SubscriptionID string
	// Incarnation is the registry database's, Revision the one at which this was true.
	Incarnation string
	Revision    int64
}

// Grant is one grant, without its token.
type Grant struct {
	// UID is the last segment of the name.
	UID string
	Request
	Resolution
	CreateTime time.Time
	// RevokeTime is zero unless it was revoked.
	RevokeTime time.Time
	// UseTime is when its token was first shown; zero before.
	UseTime time.Time
}

// New makes a grant of what was asked and resolved. Its end is DefaultLife from now when none was asked for.
func New(now time.Time, uid string, asked Request, resolved Resolution) (Grant, error) {
	end, err := Limit(now, asked.ExpireTime)
	if err != nil {
		return Grant{}, err
	}
	asked.ExpireTime = end
	return Grant{UID: uid, Request: asked, Resolution: resolved, CreateTime: now}, nil
}

// Limit is the end that a grant gets when asked is asked for: ErrPast, ErrTooFar, or the time to take, in whole microseconds.
func Limit(now, asked time.Time) (time.Time, error) {
	asked = asked.Truncate(time.Microsecond)
	switch {
	case asked.IsZero():
		return now.Add(DefaultLife), nil
	case !asked.After(now):
		return time.Time{}, ErrPast
	case asked.After(now.Add(MaxAhead + clockMargin)):
		return time.Time{}, ErrTooFar
	case asked.After(now.Add(MaxAhead)):
		return now.Add(MaxAhead), nil
	default:
		return asked, nil
	}
}

// Name is the resource name.
func (g Grant) Name() string { return "accounts/" + g.Account + "/grants/" + g.UID }

// Access is what the grant's phase may have.
func (g Grant) Access() Access { return g.Phase.Access() }

// State is where the grant is in its life. Revoked wins: it says more than that the time is over.
func (g Grant) State(now time.Time) State {
	switch {
	case !g.RevokeTime.IsZero():
		return Revoked
	case !now.Before(g.ExpireTime):
		return Expired
	default:
		return Active
	}
}

// Check is nil for an active grant, else ErrRevoked or ErrExpired.
func (g Grant) Check(now time.Time) error {
	switch g.State(now) {
	case Revoked:
		return ErrRevoked
	case Expired:
		return ErrExpired
	default:
		return nil
	}
}

// CheckCertificate compares the SHA-256 (lower-case hexadecimal) of the client certificate that the grant was shown with,
// empty for none, with the one it is bound to.
func (g Grant) CheckCertificate(sha256Hex string) error {
	if g.CertificateSHA256 != "" && g.CertificateSHA256 != sha256Hex {
		return ErrCertificate
	}
	return nil
}

// Extend is the end that the grant has when asked is asked for: never earlier than the one it has. Only an active grant
// can be extended.
func (g Grant) Extend(now, asked time.Time) (time.Time, error) {
	if err := g.Check(now); err != nil {
		return time.Time{}, err
	}
	end, err := Limit(now, asked)
	if errors.Is(err, ErrPast) {
		// Earlier than the grant's end, so it changes nothing.
		return g.ExpireTime, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	if end.Before(g.ExpireTime) {
		return g.ExpireTime, nil
	}
	return end, nil
}

// Standing is all that decides whether something may be delivered by a grant at a moment.
type Standing struct {
	Grant Grant
	// Incarnation, Revision and BookmarkTime say which registry's copy the vault has, up to where, and when it was last
	// heard of.
	Incarnation  string
	Revision     int64
	BookmarkTime time.Time
	// IntegrationLives: the integration is in that copy, and not being deleted.
	IntegrationLives bool
	// ProjectLives: the project is in that copy.
	ProjectLives bool
	// Attached: an attachment of both, or labels, give the grant's access.
	Attached bool
	// Unlabelled: labels might give it, but the copy lacks them.
	Unlabelled bool
	// Frozen: its account is.
	Frozen bool
}

// Check is nil when something may be delivered, else the most telling reason why not.
func (s Standing) Check(now time.Time) error {
	if err := s.Grant.Check(now); err != nil {
		return err
	}
	switch {
	case s.Frozen:
		return ErrAccountFrozen
	// Revisions of different incarnations cannot be compared; a new incarnation's copy is always a whole one.
	case s.Incarnation == "" || (s.Incarnation == s.Grant.Incarnation && s.Revision < s.Grant.Revision):
		return ErrBehind
	case !s.IntegrationLives || !s.ProjectLives:
		return ErrIntegrationDeleted
	case !s.Attached && s.Unlabelled:
		return ErrBehind
	case !s.Attached:
		return ErrDetached
	case !s.BookmarkTime.After(now.Add(-MaxSilence)):
		return ErrStale
	default:
		return nil
	}
}
