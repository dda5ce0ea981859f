package audit

import (
	"time"

	"phasekey.dev/pkg/chain"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
)

// Kind is what an event records.
type Kind string

// Event is something that is recorded. It never holds a secret.
type Event struct {
	// Writer is the process that recorded it, Seq the number of its record among that writer's, from 1, without gaps; Place, from 0, tells events of one
	// record apart, which a credential is that went to many leases at once. They are given when it is stored.
	Writer string
	Seq    int64
	Place  int64

	Time   time.Time
	Kind   Kind
	Caller grant.Caller
	// Account is the account's ID; Integration and Project are resource names, empty where only the UID is known.
	Account        string
	GrantUID       string
	Run            string
	LeaseUID       string
	InstanceID     string
	Generation     int64
	Integration    string
	IntegrationUID string
	Project        string
	ProjectUID     string
	// VersionID, Material, Reason, Audience and ClientRequestID are a delivery's: the credential version it was made from, its
	// form, why it was sent, and of a token what it opens and the ID that the token request carried. Reason is also why a
	// lease was revoked.
	VersionID       string
	Material        lease.Material
	Reason          string
	Audience        string
	ClientRequestID string
	// ExpireTime is when what was delivered stops working, or the grant's end.
	ExpireTime time.Time
}

// Entry is the event as it is hashed and stored.
func (e Event) Entry() Entry {
	return Entry{
		Time: micros(e.Time), Kind: string(e.Kind), Actor: e.Caller.Identity, RequestID: e.Caller.RequestID, Account: e.Account,
		GrantUID: e.GrantUID, Run: e.Run, LeaseUID: e.LeaseUID, InstanceID: e.InstanceID, Generation: e.Generation,
		Integration: e.Integration, IntegrationUID: e.IntegrationUID, Project: e.Project, ProjectUID: e.ProjectUID, VersionID: e.VersionID,
		Material: string(e.Material), Reason: e.Reason, Audience: e.Audience, ClientRequestID: e.ClientRequestID,
		ExpireTime: micros(e.ExpireTime),
	}
}

// Events are what a record says happened.
func (r Record) Events() []Event {
	out := make([]Event, len(r.Entries))
	for i, e := range r.Entries {
		out[i] = r.EventAt(int64(i), e)
	}
	return out
}

// EventAt is what an entry says that stands at that place.
func (r Record) EventAt(place int64, e Entry) Event {
	return Event{
		Writer: r.Writer, Seq: r.Seq, Place: place, Time: timeOf(e.Time), Kind: Kind(e.Kind),
		Caller: grant.Caller{Identity: e.Actor, RequestID: e.RequestID}, Account: e.Account, GrantUID: e.GrantUID, Run: e.Run,
		LeaseUID: e.LeaseUID, InstanceID: e.InstanceID, Generation: e.Generation, Integration: e.Integration, IntegrationUID: e.IntegrationUID,
		Project: e.Project, ProjectUID: e.ProjectUID, VersionID: e.VersionID, Material: lease.Material(e.Material), Reason: e.Reason,
		Audience: e.Audience, ClientRequestID: e.ClientRequestID, ExpireTime: timeOf(e.ExpireTime),
	}
}

// micros is a time as entries have it: microseconds since 1970, 0 for none.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// Place is where an event stands among all: by time, and at one moment by writer, number and place.
type Place struct {
	Time   time.Time
	Writer string
	Seq    int64
	Place  int64
}

// At is where the event stands.
func (e Event) At() Place { return Place{Time: e.Time, Writer: e.Writer, Seq: e.Seq, Place: e.Place} }

// Query says which events to read.
type Query struct {
	// Account is the account's ID; empty for all.
	Account string
	// GrantUID is of the grant that all are about; empty for any.
	GrantUID string
	// From and Until bound the time: from the one, and before the other unless that is zero.
	From, Until time.Time
	// Before is where to go on, exclusively; the zero value begins at the newest.
	Before Place
	// Limit is how many to read.
	Limit int
}

// Checkpoint is a checkpoint as it is stored.
type Checkpoint struct {
	chain.Signed
	Number int64
	Time   time.Time
	Full   bool
	// KeyID is of the data key by whose key it is signed, NextID of the one for the next checkpoint.
	KeyID, NextID uint32
}

// Growth is a chain that has grown since the last checkpoint.
type Growth struct {
	// From is what that named, the zero value but for Writer where it named none; To is the newest record's number.
	From chain.Head
	To   int64
}

// State is how long the chains are at one moment.
type State struct {
	// Checkpoint is the newest; its number is 0 when there is none.
	Checkpoint Checkpoint
	Chains     []Extent
}

// Extent is how long a chain is: up to Covered the newest checkpoint that names it says so, and it ends with End.
type Extent struct {
	Writer       string
	Covered, End int64
}
