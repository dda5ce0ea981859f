package web

// Log keys of this package.
const (
	keyPage    = "page"
	keyStatus  = "status"
	keyOutcome = "outcome"
	keyAttempt = "attempt"
	keySaid    = "said"
)
