package runner

import (
	"math/rand/v2"
	"time"
)

// The first return after a failure comes within backoffBase, later ones within twice as much each time, up to backoffMax.
const (
	backoffBase = 200 * time.Millisecond
	backoffMax  = 30 * time.Second
)

// backoffCeiling is the longest that the n-th return in a row (from 0) waits.
func backoffCeiling(n int) time.Duration {
	if n > 10 {
		return backoffMax
	}
	return min(backoffBase<<n, backoffMax)
}

// backoffDelay draws the wait before the n-th return: anything up to the ceiling, so that thousands of runners which lost
// the same server do not come back together.
func backoffDelay(n int) time.Duration {
	return rand.N(backoffCeiling(n)) //nolint:gosec // spreading load, not hiding anything
}
