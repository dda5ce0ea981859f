// Package permission says what Azure roles amount to: how much of reading and of changing things they give in a scope, and what
// would give the rest.
//
// It judges by patterns of actions, as roles and deny assignments have them, and not by trying. FULL is what Reader and Contributor give,
// of the control plane; a role of somebody's own that allows less may well be all that is needed. It does not know policies, locks, deny
// assignments below a scope, or what a platform's configurations really touch; data actions it knows of and does not count.
package permission

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// Level is how much of an access there is. The values are stored.
type Level string

// The levels there are. The zero value means that it is not known.
const (
	None    Level = "NONE"
	Partial Level = "PARTIAL"
	Full    Level = "FULL"
)

// Visibility is how much could be seen.
type Visibility int

// What could be seen.
const (
	// Assignments could be read.
	Assignments Visibility = iota + 1
	// Actions alone could be read: what is allowed, not by which role.
	Actions
	// Denied: nothing.
	Denied
)

// Permission is what a role allows: patterns of actions, without what its NotActions match.
type Permission struct {
	Actions    []string
	NotActions []string
}

// Assignment is a role that somebody holds.
type Assignment struct {
	// Role is its name, or its ID where that cannot be read.
	Role  string
	Scope string
	// Conditional means that it holds only under a condition.
	Conditional bool
	// Above means that it is of a management group above the scope, which their names do not tell.
	Above bool
	// Data means that the role allows data actions too.
	Data        bool
	Permissions []Permission
}

// Denial is a deny assignment that concerns a principal. It overrides roles.
type Denial struct {
	Name        string
	Scope       string
	Permissions []Permission
}

// Seen is what a principal sees of itself in a scope.
type Seen struct {
	Visibility Visibility
	// Assignments are at, above and below the scope.
	Assignments []Assignment
	// Allowed is what it may do there, where only that can be seen.
	Allowed []Permission
	// Denials are in force in the scope.
	Denials []Denial
	// Hidden means that it is not known whether there are more of them.
	Hidden bool
}

// Verdict is what that amounts to.
type Verdict struct {
	Scope       string
	Visibility  Visibility
	Assignments []Assignment
	Read, Write Level
	// ReadCommand and WriteCommand assign the role that is missing; empty when none is.
	ReadCommand, WriteCommand string
	Denials                   []Taken
	// Denied means that deny assignments take away from what roles give, or may.
	Denied bool
}

// Taken is a deny assignment with what it takes away.
type Taken struct {
	Name, Scope string
	Read, Write Level
}

// Check is what was found in an integration's default subscription.
type Check struct {
	// Time is when it was looked; zero if it never was.
	Time              time.Time
	SubscriptionID    string
	PrincipalObjectID string
	Read, Write       Level
	// Denied means that deny assignments take away from what roles give, or may.
	Denied bool
}

// Subscription is a subscription's scope.
func Subscription(id string) string { return "/subscriptions/" + id }

var scopes = regexp.MustCompile(`^(/subscriptions/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(/resourceGroups/[A-Za-z0-9_().-]{0,89}[A-Za-z0-9_()-])?|` +
	`/providers/Microsoft\.Management/managementGroups/[A-Za-z0-9_().-]{1,90})$`)

// IsScope reports whether something is a scope that can be looked at, and stands in a command as it is.
func IsScope(text string) bool {
	return scopes.MatchString(text) && !strings.HasSuffix(text, "/.") && !strings.HasSuffix(text, "/..")
}

// Judge says what was seen amounts to, for a principal.
func Judge(scope, principal string, seen Seen) Verdict {
	v := Verdict{Scope: scope, Visibility: seen.Visibility, Assignments: seen.Assignments, Read: None, Write: None}
	for _, a := range seen.Assignments {
		read, write := levels(a.Permissions)
		if a.Conditional || !a.Above && !covers(a.Scope, scope) {
			read, write = some(read), some(write)
		}
		v.Read, v.Write = more(v.Read, read), more(v.Write, write)
	}
	read, write := levels(seen.Allowed)
	v.Read, v.Write = more(v.Read, read), more(v.Write, write)
	if v.Read != Full {
		v.ReadCommand = command(principal, "Reader", scope)
	}
	if v.Write != Full {
		v.WriteCommand = command(principal, "Contributor", scope)
	}
	v.deny(seen)
	return v
}

// deny takes away what deny assignments do. Where they could not be read, nobody knows that nothing is missing.
func (v *Verdict) deny(seen Seen) {
	read, write := v.Read, v.Write
	for _, d := range seen.Denials {
		taken := Taken{Name: d.Name, Scope: d.Scope, Read: None, Write: None}
		for _, p := range d.Permissions {
			taken.Read, taken.Write = more(taken.Read, p.spare(p.read(), reads)), more(taken.Write, p.spare(p.write(), writes))
		}
		v.Denials = append(v.Denials, taken)
		v.Read, v.Write = without(v.Read, taken.Read), without(v.Write, taken.Write)
	}
	if seen.Hidden {
		v.Read, v.Write = some(v.Read), some(v.Write)
	}
	v.Denied = v.Read != read || v.Write != write || seen.Hidden && seen.Visibility == Denied
}

// spare is at most a part where something of the kind is excepted.
func (p Permission) spare(level Level, kind func(action string) bool) Level {
	if slices.ContainsFunc(p.NotActions, kind) {
		return some(level)
	}
	return level
}

func reads(action string) bool {
	a := strings.ToLower(action)
	return strings.HasSuffix(a, "/read") || strings.HasSuffix(a, "*")
}
func writes(action string) bool { return !strings.HasSuffix(strings.ToLower(action), "/read") }

// without is what is left of a level.
func without(level, taken Level) Level {
	switch taken {
	case Full:
		return None
	case Partial:
		return some(level)
	default:
		return level
	}
}

// command assigns a role. With the type named, a principal that has not replicated is no error.
func command(principal, role, scope string) string {
	quoted := scope
	if strings.ContainsAny(scope, "()") {
		quoted = "'" + scope + "'" // a scope has no quotes
	}
	return "az role assignment create --assignee-object-id " + principal + " --assignee-principal-type ServicePrincipal --role " + role + " --scope " + quoted
}

// covers reports whether what is assigned for one scope holds in another. A management group's subscriptions are not in its name: what is
// assigned for one and shows in a subscription's list holds there.
func covers(assigned, scope string) bool {
	assigned, scope = strings.ToLower(strings.TrimSuffix(assigned, "/")), strings.ToLower(scope)
	return assigned == scope || strings.HasPrefix(scope, assigned+"/") ||
		strings.HasPrefix(assigned, "/providers/microsoft.management/managementgroups/") && strings.HasPrefix(scope, "/subscriptions/")
}

func levels(all []Permission) (read, write Level) {
	read, write = None, None
	for _, p := range all {
		read, write = more(read, p.read()), more(write, p.write())
	}
	return read, write
}

func (p Permission) read() Level {
	level := None
	for _, action := range p.Actions {
		switch a := strings.ToLower(action); {
		case a == "*", a == "*/read":
			level = more(level, Full)
		case reads(a):
			level = more(level, Partial)
		}
	}
	return p.less(level, "*/read")
}

func (p Permission) write() Level {
	level := None
	for _, action := range p.Actions {
		switch a := strings.ToLower(action); {
		case a == "*":
			level = more(level, Full)
		case writes(a):
			level = more(level, Partial)
		}
	}
	return p.less(level, "*/write", "*/delete", "*/action")
}

// less takes from a level what is excepted from it as a whole. What is excepted of one provider, as Contributor has it for
// authorization, is not.
func (p Permission) less(level Level, kinds ...string) Level {
	for _, action := range p.NotActions {
		a := strings.ToLower(action)
		if a == "*" {
			return None
		}
		for _, kind := range kinds {
			if a == kind && len(kinds) == 1 {
				return None
			}
			if a == kind {
				level = some(level)
			}
		}
	}
	return level
}

// some is at most a part.
func some(l Level) Level {
	if l == Full {
		return Partial
	}
	return l
}

func more(a, b Level) Level {
	rank := map[Level]int{None: 1, Partial: 2, Full: 3}
	if rank[b] > rank[a] {
		return b
	}
	return a
}
