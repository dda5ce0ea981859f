package credential

import "time"

// stretchEvery is how many versions are made by one limit of their lives before a longer life is tried again.
const stretchEvery = 8

// stretches reports whether a version is to try a longer life than a policy once took: that may have been loosened.
func (f Facts) stretches(v Version) bool {
	return f.Application.LifeLimit > 0 && v.Number%stretchEvery == 0 && v.Attempts == 0
}

// life is how long the password of a version that is INTENDED shall be valid.
func (f Facts) life(t Timing, v Version) time.Duration {
	limit := f.Application.LifeLimit
	if f.stretches(v) {
		limit *= 2
	}
	return t.Life(f.Wanted.period(), limit)
}
