package entrasim

import (
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
)

// Plane is one of the simulator's four faces.
type Plane string

// The planes.
const (
	PlaneLogin Plane = "login"
	PlaneGraph Plane = "graph"
	PlaneARM   Plane = "arm"
	PlaneAdmin Plane = "admin"
)

// Moments holds, for each replica of one plane, when it shows a change, in
// nanoseconds of Unix time. A missing entry means at once.
type Moments []int64

// At tells whether the replica shows the change at that time.
func (m Moments) At(replica int, now time.Time) bool {
	return replica >= len(m) || m[replica] <= now.UnixNano()
}

// Everywhere tells whether all replicas show the change at that time.
func (m Moments) Everywhere(now time.Time) bool {
	for i := range m {
		if !m.At(i, now) {
			return false
		}
	}
	return true
}

// Visibility says when the replicas of each plane show a change.
type Visibility struct {
	Login Moments `json:"login,omitempty"`
	Graph Moments `json:"graph,omitempty"`
	ARM   Moments `json:"arm,omitempty"`
}

func (v Visibility) of(plane Plane) Moments {
	switch plane {
	case PlaneLogin:
		return v.Login
	case PlaneGraph:
		return v.Graph
	case PlaneARM:
		return v.ARM
	case PlaneAdmin:
	}
	return nil
}

func (v Visibility) everywhere(now time.Time) bool {
	return v.Login.Everywhere(now) && v.Graph.Everywhere(now) && v.ARM.Everywhere(now)
}

// draw makes the moments of a change made now, none when it is seen at once.
func (s *Simulator) draw(dice *chance.Dice, now time.Time, r Range) Moments {
	if r == (Range{}) {
		return nil
	}
	m := make(Moments, s.config.Replicas)
	for i := range m {
		m[i] = now.Add(dice.Between(r.Min, r.Max)).UnixNano()
	}
	return m
}

// version is one state of a thing; a nil value means it does not exist.
type version[T any] struct {
	value   *T
	visible Visibility
}

// history is a thing as the replicas know it: its versions in the order in
// which they were committed. A replica shows the last one that has reached it,
// so a version never un-happens by an earlier one arriving late.
type history[T any] struct {
	versions []version[T]
}

// add commits a version and forgets those that no replica can show any more.
func (h *history[T]) add(now time.Time, value *T, visible Visibility) {
	keep := 0
	for i := len(h.versions) - 1; i > 0; i-- {
		if h.versions[i].visible.everywhere(now) {
			keep = i
			break
		}
	}
	h.versions = append(h.versions[keep:len(h.versions):len(h.versions)], version[T]{value: value, visible: visible})
}

// follow keeps a change's visibility behind that of the version before: a
// replica gets the changes of one thing in the order they were made, and a
// plane that the change does not concern gets it with the last one that did.
func (h *history[T]) follow(now time.Time, v Visibility) Visibility {
	if h == nil || len(h.versions) == 0 {
		return v
	}
	last := h.versions[len(h.versions)-1].visible
	return Visibility{
		Login: last.Login.follow(now, v.Login),
		Graph: last.Graph.follow(now, v.Graph),
		ARM:   last.ARM.follow(now, v.ARM),
	}
}

func (m Moments) follow(now time.Time, next Moments) Moments {
	if m.Everywhere(now) {
		return next
	}
	out := make(Moments, max(len(m), len(next)))
	for i := range out {
		out[i] = now.UnixNano()
		if i < len(m) {
			out[i] = max(out[i], m[i])
		}
		if i < len(next) {
			out[i] = max(out[i], next[i])
		}
	}
	return out
}

// seen returns what the replica shows, nil when that is nothing.
func (h *history[T]) seen(plane Plane, replica int, now time.Time) *T {
	if h == nil {
		return nil
	}
	for i := len(h.versions) - 1; i >= 0; i-- {
		if h.versions[i].visible.of(plane).At(replica, now) {
			return h.versions[i].value
		}
	}
	return nil
}

// latest returns what has been committed, whoever shows it by now.
func (h *history[T]) latest() *T {
	if h == nil || len(h.versions) == 0 {
		return nil
	}
	return h.versions[len(h.versions)-1].value
}
