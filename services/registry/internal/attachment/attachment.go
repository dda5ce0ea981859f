// Package attachment says which integration a project gets for which access, and which access a phase needs. Planning
// never gets WRITE: AccessOf is the only place that turns a phase into an access.
package attachment

import (
	"errors"
	"slices"
	"strings"
	"time"

	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// The reasons for which an operation on an attachment is refused, besides those of package resource.
var (
	// ErrAccessTaken means that another attachment of the project is for this access.
	ErrAccessTaken = errors.New("the project has another attachment for this access")
	// ErrNothingAttached means that nothing gives the project the access.
	ErrNothingAttached = errors.New("nothing gives the project this access")
	// ErrNoSubscription means that neither the attachment nor the integration names a subscription.
	ErrNoSubscription = errors.New("no subscription is known")
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

// AccessOf is the access that a phase needs; it reports false for a phase there is not.
func AccessOf(phase Phase) (Access, bool) {
	switch phase {
	case Initializing, Planning:
		return Read, true
	case Applying, Destroying, Performing, Testing:
		return Write, true
	default:
		return "", false
	}
}

// Name is accounts/{account}/projects/{project}/attachments/{attachment}; its ID is the integration's.
type Name struct {
	Account, Project, ID string
}

// ParseName reads a name; it reports false when it is none.
func ParseName(name string) (Name, bool) {
	ids, ok := resource.SplitName(name, "accounts", "projects", "attachments")
	if !ok {
		return Name{}, false
	}
	return Name{Account: ids[0], Project: ids[1], ID: ids[2]}, true
}

func (n Name) String() string {
	return "accounts/" + n.Account + "/projects/" + n.Project + "/attachments/" + n.ID
}

// ProjectName is the name of the project it belongs to.
func (n Name) ProjectName() project.Name { return project.Name{Account: n.Account, ID: n.Project} }

// IntegrationName is the name of the integration it attaches, which is of the same account.
func (n Name) IntegrationName() integration.Name {
	return integration.Name{Account: n.Account, ID: n.ID}
}

// Spec is what is wanted of an attachment.
type Spec struct {
	// Accesses is what it is for.
	Accesses []Access
	// SubscriptionID replaces the integration's default; it may be empty.
	SubscriptionID string
}

// Normal is the one form of all specs that mean the same: no access means both, they are sorted, UUIDs are lower case.
func (s Spec) Normal() Spec {
	s.SubscriptionID = strings.ToLower(s.SubscriptionID)
	if len(s.Accesses) == 0 {
		s.Accesses = []Access{Read, Write}
		return s
	}
	s.Accesses = slices.Clone(s.Accesses)
	slices.Sort(s.Accesses)
	s.Accesses = slices.Compact(s.Accesses)
	return s
}

// Equal tells whether two normal specs want the same.
func (s Spec) Equal(other Spec) bool {
	return s.SubscriptionID == other.SubscriptionID && slices.Equal(s.Accesses, other.Accesses)
}

// Attachment gives a project an integration.
type Attachment struct {
	Name Name
	UID  string
	// Incarnation is that of the database it was read from; see resource.Position.
	Incarnation    string
	IntegrationUID string
	ProjectUID     string
	Spec           Spec
	Generation     int64
	CreateTime     time.Time
	UpdateTime     time.Time
}

// New is an attachment as it is created.
func New(now time.Time, name Name, uid string, spec Spec) Attachment {
	return Attachment{Name: name, UID: uid, Spec: spec.Normal(), Generation: 1, CreateTime: now, UpdateTime: now}
}

// ETag changes with every change.
func (a Attachment) ETag() string { return resource.ETag(a.Incarnation, a.UID, a.Generation) }

// Keys are what lists are ordered by.
func (a Attachment) Keys() resource.Keys {
	return resource.Keys{Name: a.Name.String(), CreateTime: a.CreateTime, UpdateTime: a.UpdateTime}
}

// Want changes the attachment; changed is false when it was so already.
func (a Attachment) Want(now time.Time, spec Spec) (next Attachment, changed bool) {
	spec = spec.Normal()
	if a.Spec.Equal(spec) {
		return a, false
	}
	a.Spec = spec
	a.Generation++
	a.UpdateTime = now
	return a, true
}

// AccessTaken is the refusal of an access for which the project has another attachment.
func AccessTaken(access Access, other Name) error {
	return &resource.Error{
		Reason:   ErrAccessTaken,
		Message:  other.String() + " gives the project " + string(access) + " already",
		Subject:  other.String(),
		Advice:   "take " + string(access) + " from that attachment first, or remove it",
		Metadata: map[string]string{"attachment": other.String(), "access": string(access)},
	}
}
