package task

import (
	"testing"
	"time"
)

// Nobody looked for longer than the grace, and the task has ended meanwhile: it is not to blame.
func TestAwait_WhatHasEndedHasNotOutlivedItsGrace(t *testing.T) {
	for range 100 { // of two that are ready either is chosen
		ended := make(chan outcome, 1)
		ended <- outcome{}
		r := running{tasks: []Task{{Name: "slow", Grace: time.Nanosecond}}, ended: ended, done: make([]bool, 1)}
		r.await(0)
		if len(r.failures) > 0 {
			t.Fatal(r.failures)
		}
	}
}
