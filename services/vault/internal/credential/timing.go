package credential

import (
	"errors"
	"fmt"
	"time"
)

// Timing is how patient the state machine is. Production is the zero value's replacement and the lower bound outside of
// development.
type Timing struct {
	// Proofs is how many token requests in a row must be granted before a version is handed out.
	Proofs int `yaml:"proofs"`
	// ProofSpacing lies between two of them; Entra takes identical requests in quick succession for a loop.
	ProofSpacing time.Duration `yaml:"proof_spacing"`
	// Settling is how long after its making a version that replaces a working one is ACTIVE at the earliest.
	Settling time.Duration `yaml:"settling"`
	// Retiring is how long a replaced version stays at least.
	Retiring time.Duration `yaml:"retiring"`
	// RemoveDelay lies between the decision to revoke, committed, and the removal at Entra.
	RemoveDelay time.Duration `yaml:"remove_delay"`
	// PropagationLimit is how long a version may take to be proven, while its secret or the application is refused.
	PropagationLimit time.Duration `yaml:"propagation_limit"`
	// WriteSpacing lies between two writes to one application.
	WriteSpacing time.Duration `yaml:"write_spacing"`
	// ConsentInterval is how often a consented tenant is asked whether it still is; AwaitInterval how often another is.
	ConsentInterval time.Duration `yaml:"consent_interval"`
	AwaitInterval   time.Duration `yaml:"await_interval"`
	// ProbeSpacing lies between two token requests to ask for consent, whoever wants them.
	ProbeSpacing time.Duration `yaml:"probe_spacing"`
	// Consent is lost after ConsentFailures refusals, none granted in between, over ConsentWindow.
	ConsentFailures int           `yaml:"consent_failures"`
	ConsentWindow   time.Duration `yaml:"consent_window"`
	// RefusalLimit is how many refusals in a row show that an ACTIVE version's secret is broken.
	RefusalLimit int `yaml:"refusal_limit"`
	// ReconcileInterval lies between two reads of an application, EnsureInterval between two repairs of its properties.
	ReconcileInterval time.Duration `yaml:"reconcile_interval"`
	EnsureInterval    time.Duration `yaml:"ensure_interval"`
	// RetryMin and RetryMax bound the back-off after failures.
	RetryMin time.Duration `yaml:"retry_min"`
	RetryMax time.Duration `yaml:"retry_max"`
	// LongestHold is how long after it was given to a lease a client secret may be held. Grants that would hold it longer are refused it, or
	// their extension.
	LongestHold time.Duration `yaml:"longest_hold"`
	// HoldMargin lies at least between the end of a grant that holds a client secret and the secret's own.
	HoldMargin time.Duration `yaml:"hold_margin"`
}

// Production is the timing without any configuration.
func Production() Timing {
	return Timing{
		Proofs:            8,
		ProofSpacing:      7 * time.Second,
		Settling:          20 * time.Minute,
		Retiring:          time.Hour,
		RemoveDelay:       10 * time.Second,
		PropagationLimit:  time.Hour,
		WriteSpacing:      10 * time.Second,
		ConsentInterval:   time.Hour,
		AwaitInterval:     2 * time.Minute,
		ProbeSpacing:      10 * time.Second,
		ConsentFailures:   5,
		ConsentWindow:     10 * time.Minute,
		RefusalLimit:      3,
		ReconcileInterval: time.Hour,
		EnsureInterval:    24 * time.Hour,
		RetryMin:          10 * time.Second,
		RetryMax:          time.Hour,
		LongestHold:       24 * time.Hour,
		HoldMargin:        5 * time.Minute,
	}
}

// Development is for a laptop whose Entra is simulated and lags by three seconds at most.
func Development() Timing {
	return Timing{
		Proofs:            8,
		ProofSpacing:      250 * time.Millisecond,
		Settling:          5 * time.Second,
		Retiring:          2 * time.Second,
		RemoveDelay:       time.Second,
		PropagationLimit:  20 * time.Second,
		WriteSpacing:      200 * time.Millisecond,
		ConsentInterval:   5 * time.Second,
		AwaitInterval:     2 * time.Second,
		ProbeSpacing:      500 * time.Millisecond,
		ConsentFailures:   5,
		ConsentWindow:     5 * time.Second,
		RefusalLimit:      3,
		ReconcileInterval: 5 * time.Second,
		EnsureInterval:    time.Minute,
		RetryMin:          250 * time.Millisecond,
		RetryMax:          5 * time.Second,
		LongestHold:       time.Hour,
		HoldMargin:        5 * time.Second,
	}
}

// Validate returns all problems at once. Outside of development nothing may be less patient than Production.
func (t Timing) Validate(development bool) error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	floor := Production()
	if development {
		floor = Timing{Proofs: 1, ConsentFailures: 1, RefusalLimit: 1}
	}
	for _, n := range []struct {
		name       string
		have, want int
	}{
		{"proofs", t.Proofs, floor.Proofs},
		{"consent_failures", t.ConsentFailures, min(floor.ConsentFailures, 3)},
		{"refusal_limit", t.RefusalLimit, min(floor.RefusalLimit, 2)},
	} {
		if n.have < n.want {
			add("%s: must be at least %d", n.name, n.want)
		}
	}
	for _, d := range []struct {
		name       string
		have, want time.Duration
	}{
		{"proof_spacing", t.ProofSpacing, min(floor.ProofSpacing, time.Second)},
		{"settling", t.Settling, floor.Settling},
		{"retiring", t.Retiring, floor.Retiring},
		{"remove_delay", t.RemoveDelay, floor.RemoveDelay},
		{"propagation_limit", t.PropagationLimit, floor.PropagationLimit},
		{"write_spacing", t.WriteSpacing, min(floor.WriteSpacing, time.Second)},
		{"consent_window", t.ConsentWindow, floor.ConsentWindow},
		{"probe_spacing", t.ProbeSpacing, floor.ProbeSpacing},
		{"reconcile_interval", t.ReconcileInterval, min(floor.ReconcileInterval, time.Minute)},
		{"ensure_interval", t.EnsureInterval, min(floor.EnsureInterval, time.Hour)},
		{"consent_interval", t.ConsentInterval, min(floor.ConsentInterval, time.Minute)},
		{"await_interval", t.AwaitInterval, min(floor.AwaitInterval, 10*time.Second)},
		{"retry_min", t.RetryMin, min(floor.RetryMin, time.Second)},
		{"hold_margin", t.HoldMargin, floor.HoldMargin},
	} {
		switch {
		case d.have < d.want:
			add("%s: must be at least %s", d.name, d.want)
		case d.have <= 0 && d.name != "settling" && d.name != "remove_delay":
			add("%s: must be positive", d.name)
		}
	}
	if t.ConsentInterval > time.Hour {
		add("consent_interval: must be at most %s", time.Hour)
	}
	if t.RetryMax < t.RetryMin {
		add("retry_max: must be at least retry_min")
	}
	if t.HoldMargin > maxHoldMargin {
		add("hold_margin: must be at most %s", maxHoldMargin)
	}
	if t.LongestHold < 0 {
		add("longest_hold: must not be negative")
	}
	if least := t.Settling + 2*t.proving(); t.PropagationLimit < least {
		add("propagation_limit: must be at least settling and twice the proofs, %s", least)
	}
	return errors.Join(problems...)
}

// maxHoldMargin leaves a good part of the shortest lives for the secret to be held.
const maxHoldMargin = 15 * time.Minute

// proving is how long the proofs of a version take when none fails.
func (t Timing) proving() time.Duration { return time.Duration(t.Proofs) * t.ProofSpacing }

// Life is how long a password shall be valid for an integration of this period; limit, when positive, is the longest
// that the home tenant's policy was found to take.
func (t Timing) Life(period, limit time.Duration) time.Duration {
	life := max(3*period, period+2*t.PropagationLimit+t.LongestHold)
	if limit > 0 {
		life = min(life, limit)
	}
	return life
}

// shortestLife is the life below which rotation could not keep up; a policy that wants less needs another kind of
// credential.
func (t Timing) shortestLife() time.Duration { return 3 * (t.Settling + 2*t.proving()) }
