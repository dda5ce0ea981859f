package consent

import (
	"crypto/rand"
	"strings"
	"time"

	"phasekey.dev/pkg/displayname"
)

// State is where a session is. The numbers are stored.
type State int

// The states. A session moves between the first two as its application does, and ends once. One that is completed stays so when consent is
// lost afterwards, see Session.Lost.
const (
	// WaitingForApplication means that Entra ID may not know the application everywhere yet.
	WaitingForApplication State = 1
	// AwaitingConsent means that the administrator can consent.
	AwaitingConsent State = 2
	// Completed means that consent is proven.
	Completed State = 3
	// Expired means that it ended without.
	Expired State = 4
)

// Open reports whether a session in this state has not ended.
func (s State) Open() bool { return s == WaitingForApplication || s == AwaitingConsent }

// Why a session's link ended before its deadline, as its LastRefusal says.
const (
	RefusalCancelled           = "CANCELLED"
	RefusalIntegrationGone     = "INTEGRATION_DELETED"
	RefusalIntegrationDeleting = "INTEGRATION_DELETING"
)

// Name names a session.
type Name struct {
	Account string
	ID      string
}

// String is the resource name.
func (n Name) String() string { return "accounts/" + n.Account + "/consentSessions/" + n.ID }

// Nonce is what distinguishes one link of a session from the next.
type Nonce [32]byte

// Session is one attempt to get an administrator to consent to one integration.
type Session struct {
	Name Name
	// Integration is the integration's resource name; IntegrationUID says which of all that ever had it.
	Integration    string
	IntegrationUID string
	TenantID       string
	Cloud          string
	// DisplayName and SubscriptionID are the integration's name for people and its default subscription, as of the session's
	// creation. The latter may be empty.
	DisplayName    string
	SubscriptionID string
	// ClientID is the application's, as last seen; empty before there is one.
	ClientID string
	// ApplicationName is what the application is called at Entra ID, as last seen together with ClientID.
	ApplicationName string
	// ReturnURI is where the page leads in the end; empty for nowhere.
	ReturnURI string
	State     State
	// PrincipalObjectID is the proof's, once completed.
	PrincipalObjectID string
	// Permissions are the principal's, as last seen; zero before it was completed and looked at.
	Permissions Permissions
	// LastRefusal is what the tenant last said, or why the link ended early.
	LastRefusal string
	// StandingTime is since when the standing is so that was last taken in. Loss is why consent did not hold as of it, though it did
	// before; empty once it was proven again.
	StandingTime time.Time
	Loss         string
	// LastCallback is CallbackApproved, or the code of what went wrong, as a browser last said; CallbackTime is when. Empty and
	// zero before.
	LastCallback string
	CallbackTime time.Time
	Nonce        Nonce
	// Version counts changes, so that watchers see that there was one.
	Version    int64
	CreateTime time.Time
	ExpireTime time.Time
	// EndTime is when it expired, or when consent was proven, the last time; zero before.
	EndTime time.Time
}

// Misnamed reports whether the application's name would mislead the administrator, to whom it is not shown then.
func (s Session) Misnamed() bool { return displayname.Check(s.ApplicationName) != nil }

// Request is what makes repeats of a creation safe. Without an ID nothing is remembered.
type Request struct {
	Account string
	ID      string
	// Fingerprint tells what was asked for from anything else.
	Fingerprint []byte
	// ExpireTime is when the ID is forgotten.
	ExpireTime time.Time
}

// Integration is what the registry says about one.
type Integration struct {
	Name            string
	UID             string
	TenantID        string
	Cloud           string
	DisplayName     string
	SubscriptionID  string
	ClientID        string
	ApplicationName string
	// Ready means that the application is known wherever the vault asked.
	Ready    bool
	Deleting bool
	Standing Standing
}

// New opens a session of an account for an integration. Its ID and nonce are random, so it differs at every call.
func New(now time.Time, account string, i Integration, expire time.Time) Session {
	s := Session{
		Name:           Name{Account: account, ID: strings.ToLower(rand.Text())},
		Integration:    i.Name,
		IntegrationUID: i.UID,
		TenantID:       i.TenantID,
		Cloud:          i.Cloud,
		DisplayName:    i.DisplayName,
		SubscriptionID: i.SubscriptionID,
		State:          WaitingForApplication,
		Version:        1,
		CreateTime:     stored(now),
		ExpireTime:     stored(expire),
	}
	_, _ = rand.Read(s.Nonce[:]) // never fails: crypto/rand crashes the program instead
	if next, changed := Decide(now, s, Observe(i)); changed {
		next.Version = s.Version
		return next
	}
	return s
}

// stored cuts a time to what the database keeps.
func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
