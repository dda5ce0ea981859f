package credential_test

import (
	"fmt"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

// restored is what a database from a backup says, an hour and more after it was made, of an integration with these versions; Entra
// has a password of ours that it does not know, seen by two reads.
func restored(versions ...credential.Version) credential.Facts {
	f := facts(versions...)
	f.Recovery = credential.Recovery{Number: 1, Time: epoch.Add(-time.Minute)}
	f.Strays = []credential.Stray{{
		KeyID: "unknown", Name: credential.PasswordName("test", "unknown"), StartTime: epoch.Add(-2 * time.Hour),
		FirstTime: epoch.Add(-2 * time.Hour), LastTime: epoch.Add(-5 * time.Minute),
	}}
	return f
}

// do carries out what is decided, at an Entra where everything works, until there is nothing to do before the given time.
// It returns when each password was removed.
func drive(t *testing.T, f credential.Facts, timing credential.Timing, until time.Time) (removed map[string]time.Time, activated map[string]time.Time, after credential.Facts) {
	t.Helper()
	removed, activated = map[string]time.Time{}, map[string]time.Time{}
	now, n := epoch, 0
	for range 100_000 {
		var c credential.Change
		switch a := credential.Decide(now, f, timing).(type) {
		case credential.Wait:
			if a.Until.IsZero() || !a.Until.Before(until) {
				return removed, activated, f
			}
			if a.Until.After(now) {
				now = a.Until
			}
			continue
		case credential.Apply:
			c = a.Change
		case credential.Ensure:
			c = f.Ensured(now, credential.MadeApplication{ObjectID: "object", ClientID: "client"})
		case credential.Read:
			made := credential.MadeApplication{ObjectID: "object", ClientID: "client"}
			for _, s := range f.Strays {
				made.Passwords = append(made.Passwords, credential.MadePassword{KeyID: s.KeyID, Name: s.Name, StartTime: s.StartTime})
			}
			c = f.ReadFound(now, "test", made)
		case credential.Add:
			n++
			var v credential.Version
			c, v = f.Intending(now, "test", fmt.Sprint("new-", n))
			f = f.With(c)
			c = f.Added(now, v, credential.MadePassword{KeyID: "key-" + v.ID, StartTime: now, EndTime: a.End}, []byte("sealed"))
		case credential.AskHome:
			c = f.AskedHome(now, timing, a.Version, credential.Works)
		case credential.Ask:
			f.Probe = credential.Probe{Time: now, VersionID: a.Version.ID, Finding: credential.Works}
			c = f.Observed(now, timing)
		case credential.Prove:
			c = f.Proved(now, timing, a.Version, credential.Works, "", "principal")
		case credential.Remove:
			removed[a.Version.KeyID] = now
			c = f.Removed(now, a.Version)
		case credential.Sweep:
			removed[a.Stray.KeyID] = now
			c = f.Swept(now, a.Stray)
		default:
			t.Fatalf("%s at %s", a.Op(), now)
		}
		for _, m := range c.Moves {
			if m.Version.State == credential.Active && m.From != credential.Active {
				activated[m.Version.ID] = now
			}
		}
		f = f.With(c)
	}
	t.Fatal("there is no end")
	return nil, nil, f
}

func TestRecovery_RotatesBeforeItRemoves(t *testing.T) {
	timing := credential.Production()
	for _, tt := range []struct {
		name  string
		facts credential.Facts
	}{
		{"an ACTIVE version that may have been replaced since", restored(version("old", 1, credential.Active))},
		{"one whose ACTIVE version somebody may hold, unknown", restored(version("older", 1, credential.Retiring), version("old", 2, credential.Active))},
		{"no version at all", func() credential.Facts {
			f := restored()
			f.Application.Consented, f.Application.ActivateTime = true, time.Time{}
			return f
		}()},
		{"a version that was being proven", func() credential.Facts {
			f := restored(version("old", 1, credential.Propagating))
			f.Application.ActivateTime = time.Time{}
			return f
		}()},
		{"an answer that is lost", restored(version("old", 1, credential.Active), version("intended", 2, credential.Intended, func(v *credential.Version) { v.SendTime = epoch.Add(-time.Hour) }))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			removed, activated, after := drive(t, tt.facts, timing, epoch.Add(30*time.Hour))
			hold := tt.facts.Recovery.Time.Add(timing.LongestHold)
			var first time.Time
			for id, at := range activated {
				if id != "old" && (first.IsZero() || at.Before(first)) {
					first = at
				}
			}
			if first.IsZero() || first.After(epoch.Add(2*time.Hour)) {
				t.Errorf("the first version since is ACTIVE at %s", first)
			}
			for _, key := range []string{"unknown", "key-old", "key-older"} {
				at, gone := removed[key]
				if gone && (at.Before(hold) || at.Before(first.Add(timing.Retiring))) {
					t.Errorf("%s was removed at %s: a lease that was lost with the database may use it until %s", key, at, hold)
				}
			}
			if removed["unknown"].IsZero() || removed["unknown"].After(hold.Add(2*time.Hour)) {
				t.Errorf("the unknown password went at %s, want it soon after %s", removed["unknown"], hold)
			}
			if len(after.Strays) > 0 {
				t.Errorf("left are %v", after.Strays)
			}
			if v, ok := after.ByState(credential.Retiring); ok && v.Recovery == 0 {
				t.Errorf("%s is there still", v)
			}
		})
	}
}

func TestRecovery_HoldsUpNothingElse(t *testing.T) {
	timing := credential.Production()
	// What was made since is certainly nobody's.
	f := restored(version("old", 1, credential.Active))
	f.Strays[0].StartTime = epoch.Add(20 * time.Minute)
	if removed, _, _ := drive(t, f, timing, epoch.Add(2*time.Hour)); removed["unknown"].IsZero() {
		t.Error("a stray that was made since stays")
	}
	// One rotation is enough.
	_, activated, _ := drive(t, restored(version("old", 1, credential.Active)), timing, epoch.Add(12*time.Hour))
	if len(activated) != 1 {
		t.Errorf("activated %v", activated)
	}
	// Each recovery counts.
	f = restored(version("old", 1, credential.Active, func(v *credential.Version) { v.Recovery = 1 }))
	f.Recovery.Number = 2
	if _, activated, _ = drive(t, f, timing, epoch.Add(12*time.Hour)); len(activated) != 1 {
		t.Errorf("after a second one activated %v", activated)
	}
}

// Where there is no consent there is nobody who could use a password, and nothing to wait for.
func TestRecovery_WithoutConsent(t *testing.T) {
	timing := credential.Production()
	f := restored(version("old", 1, credential.Staged))
	f.Application.Consented, f.Application.ActivateTime = false, time.Time{}
	after := f.Recovery.Time.Add(timing.LongestHold)
	for _, tt := range []struct {
		now, observed time.Time
		sweeps        bool
	}{
		{after.Add(-time.Minute), after.Add(-2 * time.Minute), false},
		{after.Add(time.Minute), after.Add(-time.Minute), false},
		{after.Add(2 * time.Minute), after.Add(time.Minute), true},
	} {
		g := f
		g.Application.ObserveTime, g.Application.ReadTime, g.Application.EnsureTime = tt.observed, tt.now.Add(-time.Minute), tt.now.Add(-time.Hour)
		_, sweeps := credential.Decide(tt.now, g, timing).(credential.Sweep)
		if sweeps != tt.sweeps {
			t.Errorf("at %s, refused at %s: sweeps %v", tt.now, tt.observed, sweeps)
		}
	}
}

// After a fail-over, mostly nothing was lost: everything is looked at, and nothing that somebody may hold is removed before a day has passed.
func TestFailOver_LooksAtEverythingAndRemovesNothingForADay(t *testing.T) {
	timing := credential.Production()
	const failedOver = time.Minute
	f := facts(version("old", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = epoch.Add(-2 * time.Hour) }), version("new", 2, credential.Active))
	f.Strays = []credential.Stray{{
		KeyID: "unknown", Name: credential.PasswordName("test", "unknown"), FirstTime: epoch.Add(-2 * time.Hour), LastTime: epoch.Add(-5 * time.Minute),
		StartTime: epoch.Add(failedOver + 10*time.Minute), // by Entra's clock, which is ahead
	}}
	f.FailOverTime = epoch.Add(failedOver)
	now := epoch.Add(failedOver)
	for _, want := range []string{"ask_tenant", "read_application", "wait"} {
		a := credential.Decide(now, f, timing)
		if got := a.Op(); got != want {
			t.Fatalf("it decides to %s, want %s", got, want)
		}
		switch a.(type) {
		case credential.Ask:
			f.Probe = credential.Probe{Time: now, VersionID: "new", Finding: credential.Works}
			f = f.With(f.Observed(now, timing))
		case credential.Read:
			f = f.With(f.ReadFound(now, "test", credential.MadeApplication{ObjectID: "object", ClientID: "client", Passwords: []credential.MadePassword{
				{KeyID: "unknown", Name: f.Strays[0].Name, StartTime: f.Strays[0].StartTime}}}))
		}
	}
	removed, _, after := drive(t, f, timing, epoch.Add(30*time.Hour))
	for _, key := range []string{"key-old", "unknown"} {
		if at := removed[key].Sub(f.FailOverTime); at < timing.LongestHold || at > timing.LongestHold+2*time.Hour {
			t.Errorf("%s is removed %s after the fail-over", key, at)
		}
	}
	if _, ok := after.ByState(credential.Active); !ok {
		t.Errorf("there are %v", after.Versions)
	}
}
