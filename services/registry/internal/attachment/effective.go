package attachment

import (
	"slices"
	"strings"

	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// Candidate is an integration that gives a project access unless something comes before it, and why it does: an explicit
// attachment, or labels.
type Candidate struct {
	Integration integration.Integration
	// Explicit is the attachment; nil when the integration is attached by itself.
	Explicit *Attachment
	// Labels are the project's by which it is attached by itself; none when it is explicit.
	Labels []string
}

// Accesses are those it is a candidate for.
func (c Candidate) Accesses() []Access {
	if c.Explicit != nil {
		return c.Explicit.Spec.Accesses
	}
	return []Access{Read, Write}
}

// SubscriptionID is the one to work in; empty when none is known.
func (c Candidate) SubscriptionID() string {
	if c.Explicit != nil && c.Explicit.Spec.SubscriptionID != "" {
		return c.Explicit.Spec.SubscriptionID
	}
	return c.Integration.Spec.DefaultSubscriptionID
}

// Place is where it stands among a project's candidates: places are in the order of their bytes.
func (c Candidate) Place() string {
	if c.Explicit != nil {
		return placeExplicit + c.Integration.Name.String()
	}
	return placeAutomatic + c.Integration.Name.String()
}

// The second sorts after the first.
const (
	placeExplicit  = "1 "
	placeAutomatic = "2 "
)

// AutomaticAfter is the name of the integration after which the automatic candidates begin that come after a place; empty for
// all of them.
func AutomaticAfter(place string) string {
	name, ok := strings.CutPrefix(place, placeAutomatic)
	if !ok {
		return ""
	}
	return name
}

// Candidates are those of a project, in their order: first its explicit attachments, then the integrations that are attached
// by themselves, each by the integration's name. Of holds the integrations of the attachments, and others that may be attached
// by themselves.
//
// An explicit attachment decides alone about its integration and project: who attached it for READ only does not want the
// labels to add WRITE. An integration that is being deleted gives nothing.
func Candidates(to project.Project, explicit []Attachment, of []integration.Integration) []Candidate {
	var all []Candidate
	for _, i := range of {
		if i.Deleting() {
			continue
		}
		at := slices.IndexFunc(explicit, func(a Attachment) bool { return a.IntegrationUID == i.UID })
		if at >= 0 {
			all = append(all, Candidate{Integration: i, Explicit: &explicit[at]})
			continue
		}
		if labels := common(to.Spec.Labels, i.Spec.AutoLabels()); len(labels) > 0 {
			all = append(all, Candidate{Integration: i, Labels: labels})
		}
	}
	slices.SortFunc(all, func(a, b Candidate) int { return strings.Compare(a.Place(), b.Place()) })
	return all
}

// common are the labels of a that are in b too.
func common(a, b []string) []string {
	var both []string
	for _, label := range a {
		if slices.Contains(b, label) {
			both = append(both, label)
		}
	}
	return both
}

// Effective is a candidate, and what comes of it.
type Effective struct {
	Candidate
	// Gives are the accesses that the project gets of it.
	Gives []Access
	// Outranked are the accesses for which another candidate comes first.
	Outranked []Outranked
}

// Outranked is an access that the project gets of another integration.
type Outranked struct {
	Access Access
	By     integration.Name
}

// Rank says what comes of each of a project's candidates, which are in their order.
func Rank(candidates []Candidate) []Effective {
	first := make(map[Access]integration.Integration)
	all := make([]Effective, len(candidates))
	for i, c := range candidates {
		all[i].Candidate = c
		for _, access := range c.Accesses() {
			winner, taken := first[access]
			if taken {
				all[i].Outranked = append(all[i].Outranked, Outranked{Access: access, By: winner.Name})
				continue
			}
			first[access] = c.Integration
			all[i].Gives = append(all[i].Gives, access)
		}
	}
	return all
}

// Resolution is what a project gets.
type Resolution struct {
	Access     Access
	ProjectUID string
	Candidate
}

// Resolve says what gives a project an access: the first of its candidates for it. That it names no subscription is no
// reason to take the next one, for a project would then work in another place than its attachment says.
func Resolve(access Access, to project.Project, candidates []Candidate) (Resolution, error) {
	first := slices.IndexFunc(candidates, func(c Candidate) bool { return slices.Contains(c.Accesses(), access) })
	if first < 0 {
		return Resolution{}, nothingAttached(access, to.Name)
	}
	c := candidates[first]
	if c.SubscriptionID() == "" {
		return Resolution{}, noSubscription(c)
	}
	return Resolution{Access: access, ProjectUID: to.UID, Candidate: c}, nil
}

// nothingAttached is the refusal of an access that nothing gives the project.
func nothingAttached(access Access, to project.Name) error {
	return &resource.Error{
		Reason:  ErrNothingAttached,
		Message: "nothing gives " + to.String() + " " + string(access) + " access",
		Subject: to.String(),
		Advice: "attach an integration to it for " + string(access) +
			", or give it a label that an integration with auto_attach names after " + resource.AutoAttachPrefix,
		Metadata: map[string]string{"access": string(access), "project": to.String()},
	}
}

func noSubscription(c Candidate) error {
	refusal := &resource.Error{
		Reason:   ErrNoSubscription,
		Message:  "no subscription is known",
		Subject:  c.Integration.Name.String(),
		Advice:   "give " + c.Integration.Name.String() + " a default",
		Metadata: map[string]string{"integration": c.Integration.Name.String()},
	}
	if c.Explicit != nil {
		refusal.Subject, refusal.Advice = c.Explicit.Name.String(), "give "+c.Explicit.Name.String()+" one, or "+c.Integration.Name.String()+" a default"
		refusal.Metadata["attachment"] = c.Explicit.Name.String()
	}
	return refusal
}
