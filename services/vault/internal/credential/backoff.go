package credential

import "time"

// backoff is how long to wait after so many failures in a row: RetryMin, doubled each time, RetryMax at most, and at
// least what the service asked for, which is capped too.
func (t Timing) backoff(failures int, asked time.Duration) time.Duration {
	d := t.RetryMin
	for i := 1; i < failures && d < t.RetryMax; i++ {
		d *= 2
	}
	return max(min(d, t.RetryMax), min(asked, t.RetryMax))
}

// retry is how long to wait after so many failures in a row of what the next version needs: backoff, but the less the sooner it has to be ACTIVE, unless the service
// asks for more. Whatever was in the way may be over at any moment, and what works must not end while only the wait goes on.
func (f Facts) retry(now time.Time, t Timing, failures int, asked time.Duration) time.Duration {
	return max(min(t.backoff(failures, 0), f.longestWait(now, t)), t.backoff(1, asked))
}

// longestWait is an eighth of the time that is left to make and prove another version before the ACTIVE one ends, RetryMax/12 at least, also once nothing works any more (but see lost).
// Before there ever was one, without consent, while the integration is being deleted, and where only people can mend what is in the way and nothing is left to lose, it is RetryMax.
func (f Facts) longestWait(now time.Time, t Timing) time.Duration {
	a := f.Application
	active, works := f.usable(now, t)
	switch {
	case f.Wanted.Deleting, a.ActivateTime.IsZero(), !a.Consented, works && active.Federated(), !works && a.AddRefusal != "":
		return t.RetryMax
	case !works:
		return t.RetryMax / 12
	}
	return max(t.RetryMax/12, active.EndTime.Sub(now.Add(t.Settling+t.proving()))/8)
}
