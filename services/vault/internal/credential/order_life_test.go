package credential_test

import (
	"fmt"
	"slices"

	"phasekey.dev/services/vault/internal/credential"
)

// ask is somebody's request for a rotation, at any moment.
func (w *world) ask(asked credential.Rotation) {
	active, _ := w.facts.ByState(credential.Active)
	answer, changed, made := credential.Admit(w.now, fmt.Sprint("rotation-", w.rand.Uint64()), asked, w.facts.Rotations, active.Number, w.facts.LastNumber)
	var moves []credential.RotationMove
	for _, c := range changed {
		moves = append(moves, credential.RotationMove{Rotation: c})
	}
	w.facts = w.facts.With(credential.Change{Rotations: moves})
	if made {
		w.facts.Rotations = append(w.facts.Rotations, answer)
	}
	w.trace = append(w.trace, fmt.Sprintf("asked for %+v, made %t", answer, made))
	begun := 0
	for _, r := range w.facts.Rotations {
		if r.Begun() {
			begun++
		}
	}
	if begun != 1 {
		w.failf("%d rotations have no ACTIVE version yet after one was asked for", begun)
	}
}

func (w *world) compromised(v credential.Version) bool {
	return slices.ContainsFunc(w.facts.Rotations, func(r credential.Rotation) bool {
		return r.Reason == credential.Compromised && v.Number <= r.UpTo
	})
}

// inGap reports whether somebody accepted that nothing works.
func (w *world) inGap() bool {
	return slices.ContainsFunc(w.facts.Rotations, func(r credential.Rotation) bool { return r.Immediately && r.Begun() })
}

// judgeTakingBack holds that what is in use and compromised goes when a successor is ACTIVE, unless a gap was accepted, or nobody can be served by it.
func (w *world) judgeTakingBack(v credential.Version) {
	active, ok := w.facts.ByState(credential.Active)
	served := w.facts.Application.Consented && w.now.Before(v.EndTime)
	if served && !w.inGap() && (!ok || w.compromised(active)) {
		w.failf("%s is taken back before there is another one", v)
	}
}

// judgeRotation holds that what is said to be over is.
func (w *world) judgeRotation(r credential.Rotation) {
	if r.State != credential.RotationCompleted {
		return
	}
	for _, v := range w.rows {
		if v.Number <= r.UpTo && v.Open() {
			w.failf("rotation %+v is completed, and not so %s", r, v)
		}
	}
	active, ok := w.facts.ByState(credential.Active)
	if w.facts.Application.Consented && (!ok || active.Number <= r.UpTo) && r.ActivateTime.IsZero() {
		w.failf("rotation %+v is completed, and nothing has replaced what is gone", r)
	}
}
