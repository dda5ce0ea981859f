// Package project says what a project is: a stack or a module of the platform, to which integrations can be attached.
package project

import (
	"errors"
	"slices"
	"time"

	"phasekey.dev/services/registry/internal/resource"
)

// ErrAttached means that the project cannot be deleted while it has attachments.
var ErrAttached = errors.New("the project has attachments")

// Name is accounts/{account}/projects/{project}.
type Name struct {
	Account, ID string
}

// ParseName reads a name; it reports false when it is none.
func ParseName(name string) (Name, bool) {
	ids, ok := resource.SplitName(name, "accounts", "projects")
	if !ok {
		return Name{}, false
	}
	return Name{Account: ids[0], ID: ids[1]}, true
}

func (n Name) String() string { return "accounts/" + n.Account + "/projects/" + n.ID }

// Kind is what the platform calls it.
type Kind string

// The kinds there are.
const (
	// Stack is planned and applied.
	Stack Kind = "STACK"
	// Module is tested and published.
	Module Kind = "MODULE"
)

// Spec is what the platform says of a project.
type Spec struct {
	Kind        Kind
	DisplayName string
	// Labels are the platform's own; integrations can be attached by them.
	Labels []string
}

// Normal is the one form of all specs that mean the same: the labels are sorted.
func (s Spec) Normal() Spec {
	s.Labels = resource.Set(s.Labels)
	return s
}

// Equal tells whether two normal specs want the same.
func (s Spec) Equal(other Spec) bool {
	return s.Kind == other.Kind && s.DisplayName == other.DisplayName && slices.Equal(s.Labels, other.Labels)
}

// Check finds what the normal spec of a new project cannot be, beyond the constraints of single fields in the proto.
func (s Spec) Check() []resource.Violation {
	bad := s.CheckChange(Spec{})
	if s.Kind == "" {
		bad = append(bad, resource.Violation{Field: "kind", Description: "is required"})
	}
	return bad
}

// CheckChange finds what the normal spec cannot be that was another before.
func (s Spec) CheckChange(before Spec) []resource.Violation {
	if slices.Equal(s.Labels, before.Labels) {
		// There may be some from before there was such a rule.
		return nil
	}
	return resource.CheckLabels(s.Labels)
}

// Project is a stack or a module.
type Project struct {
	Name Name
	UID  string
	// Incarnation is that of the database it was read from; see resource.Position.
	Incarnation string
	Spec        Spec
	Generation  int64
	CreateTime  time.Time
	UpdateTime  time.Time
}

// New is a project as it is created.
func New(now time.Time, name Name, uid string, spec Spec) Project {
	return Project{Name: name, UID: uid, Spec: spec.Normal(), Generation: 1, CreateTime: now, UpdateTime: now}
}

// ETag changes with every change.
func (p Project) ETag() string { return resource.ETag(p.Incarnation, p.UID, p.Generation) }

// Keys are what lists are ordered by.
func (p Project) Keys() resource.Keys {
	return resource.Keys{Name: p.Name.String(), DisplayName: p.Spec.DisplayName, CreateTime: p.CreateTime, UpdateTime: p.UpdateTime}
}

// Want changes the project; changed is false when it was so already.
func (p Project) Want(now time.Time, spec Spec) (next Project, changed bool) {
	spec = spec.Normal()
	if p.Spec.Equal(spec) {
		return p, false
	}
	p.Spec = spec
	p.Generation++
	p.UpdateTime = now
	return p, true
}
