package credential_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

// TestDecide_LooksThoughARepairIsRefused has Graph refuse for a day what the application shall have, and find a password in it meanwhile that is nobody's.
func TestDecide_LooksThoughARepairIsRefused(t *testing.T) {
	timing := credential.Production()
	for name, lack := range map[string]func(*credential.Facts){
		"of its properties": func(f *credential.Facts) { f.Wanted.SpecDigest = "other" },
		"of its federated credentials": func(f *credential.Facts) {
			f.Wanted.Federated, f.Trust = true, credential.Trust{Digest: "trust", Key: "key", KeyTime: epoch.Add(-time.Hour), Usable: []string{"key"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime, v.EndTime = epoch, epoch.Add(72*time.Hour) }))
			lack(&f)
			now, reads, tries := epoch, 0, 0
			var swept time.Time
			for now.Before(epoch.Add(20 * time.Hour)) {
				switch a := credential.Decide(now, f, timing).(type) {
				case credential.Wait:
					now = a.Until
				case credential.Ensure:
					tries++
					f = f.With(f.Ensuring(now))
					f = f.With(f.ApplicationFailed(now, timing, credential.Failure{Kind: credential.Refused, Code: "Denied"}))
				case credential.EnsureTrust:
					tries++
					f = f.With(f.Trusting(now))
					f = f.With(f.ApplicationFailed(now, timing, credential.Failure{Kind: credential.Refused, Code: "Denied"}))
				case credential.Read:
					reads++
					made := credential.MadeApplication{ObjectID: "object", Passwords: []credential.MadePassword{{KeyID: "key-a", Name: credential.PasswordName("test", "a")}}}
					if swept.IsZero() {
						made.Passwords = append(made.Passwords, credential.MadePassword{KeyID: "lost", Name: credential.PasswordName("test", "lost")})
					}
					f = f.With(f.ReadFound(now, "test", made))
				case credential.Ask:
					f.Probe = credential.Probe{Time: now, VersionID: "a", Finding: credential.Works}
				case credential.Apply:
					f = f.With(a.Change)
				case credential.Sweep:
					swept = now
					f = f.With(f.Swept(now, a.Stray))
				default:
					t.Fatalf("at %s: %s", now, a.Op())
				}
			}
			if reads < 18 {
				t.Errorf("it was read %d times in 20 hours", reads)
			}
			if limit := epoch.Add(3*timing.ReconcileInterval + timing.RetryMax); swept.IsZero() || swept.After(limit) {
				t.Errorf("the password that is nobody's was removed at %s, want by %s", swept, limit)
			}
			// Doubling up to an hour, as if it was not looked.
			if tries < 15 || tries > 35 {
				t.Errorf("the repair was tried %d times", tries)
			}
		})
	}
}

// TestDecide_NothingThatIsRefusedForGoodKeepsTheRestAway has an application lack three things, of which some are refused whenever they are tried.
func TestDecide_NothingThatIsRefusedForGoodKeepsTheRestAway(t *testing.T) {
	timing := credential.Production()
	const ensure, read, sweep = "ensure_application", "read_application", "sweep_password first"
	for _, federated := range []bool{true, false} {
		trust := "remove_federated_credentials"
		if federated {
			trust = "ensure_federated_credentials"
		}
		for _, refused := range [][]string{{ensure}, {trust}, {sweep}, {ensure, trust}, {ensure, sweep}, {trust, sweep}, {ensure, trust, sweep}, {read}, {ensure, read}, {trust, read}, {ensure, trust, read}} {
			t.Run(fmt.Sprint(refused), func(t *testing.T) {
				f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime, v.EndTime = epoch, epoch.Add(72*time.Hour) }))
				f.Wanted.SpecDigest, f.Application.TrustSendTime = "other", epoch.Add(-2*time.Hour)
				if f.Wanted.Federated = federated; federated {
					f.Trust = credential.Trust{Digest: "trust", Key: "key", KeyTime: epoch.Add(time.Hour), Usable: []string{"key"}}
				}
				if slices.Contains(refused, read) {
					f.Application.ReadTime, f.Application.Failures = epoch.Add(-2*time.Hour), 1
				}
				for _, id := range []string{"first", "second", "third"} {
					f.Strays = append(f.Strays, credential.Stray{KeyID: id, FirstTime: f.Application.ReadTime.Add(-2 * time.Hour), LastTime: f.Application.ReadTime})
				}
				tried, done := map[string]int{}, map[string]time.Time{}
				end := epoch.Add(10 * time.Hour)
				for now := epoch; now.Before(end); {
					action := credential.Decide(now, f, timing)
					op, failed := action.Op(), f.ApplicationFailed
					var ok func() credential.Change
					switch a := action.(type) {
					case credential.Wait:
						now = a.Until
						continue
					case credential.Ensure:
						f = f.With(f.Ensuring(now))
						ok = func() credential.Change {
							return f.Ensured(now, credential.MadeApplication{ObjectID: "object", ClientID: "client"})
						}
					case credential.EnsureTrust:
						f = f.With(f.Trusting(now))
						ok = func() credential.Change { return f.Trusted(now, 1-min(1, tried[op]-1)) }
					case credential.Untrust:
						ok = func() credential.Change { return f.Untrusted(now, 0) }
					case credential.Sweep:
						op += " " + a.Stray.KeyID
						ok = func() credential.Change { return f.Swept(now, a.Stray) }
						failed = func(now time.Time, t credential.Timing, failure credential.Failure) credential.Change {
							return f.SweepFailed(now, t, a.Stray, failure)
						}
					case credential.Read:
						made := credential.MadeApplication{ObjectID: "object"}
						for _, s := range f.Strays {
							made.Passwords = append(made.Passwords, credential.MadePassword{KeyID: s.KeyID, Name: credential.PasswordName("test", s.KeyID)})
						}
						ok = func() credential.Change { return f.ReadFound(now, "test", made) }
					case credential.Ask:
						f.Probe = credential.Probe{Time: now, VersionID: "a", Finding: credential.Works}
						continue
					case credential.Apply:
						f = f.With(a.Change)
						continue
					case credential.Begin, credential.Prove:
						// The trust is there: nothing is left to see of it.
						f.Wanted.Federated, f.Application.TrustSendTime = false, time.Time{}
						continue
					default:
						t.Fatalf("at %s: %s", now, op)
					}
					tried[op]++
					if slices.Contains(refused, op) {
						f = f.With(failed(now, timing, credential.Failure{Kind: credential.Refused, Code: "Denied"}))
						continue
					}
					f = f.With(ok())
					done[op] = now
				}
				least, looks := 8, 7
				if slices.Contains(refused, read) {
					looks = 5 // an attempt in three
					if len(refused) == 3 {
						least = 5
					}
				}
				for _, op := range []string{ensure, trust, sweep, "sweep_password second", "sweep_password third"} {
					if slices.Contains(refused, op) {
						// Doubling up to an hour, or two, or three, where they take turns.
						if n := tried[op]; n < least || n > 20 {
							t.Errorf("%s, which is refused, was tried %d times in ten hours", op, n)
						}
					} else if at := done[op]; at.IsZero() || at.After(epoch.Add(2*time.Hour)) {
						t.Errorf("%s was done at %s, want within two hours", op, at)
					}
				}
				if n := tried[read]; n < looks || n > 25 {
					t.Errorf("it was looked up %d times in ten hours", n)
				}
			})
		}
	}
}

// TestDecide_WhenTheTenantIsAskedNext has questions go unanswered for as long as they are put off, and not a moment longer.
func TestDecide_WhenTheTenantIsAskedNext(t *testing.T) {
	timing := credential.Production()
	for name, tt := range map[string]struct {
		facts credential.Facts
		op    string
		in    time.Duration
	}{
		"while refusals add up to the loss of consent": {func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime = epoch }))
			f.Application.ConsentRefusals, f.Application.ObserveTime = 1, epoch
			return f
		}(), "ask_tenant", timing.ConsentWindow / 4},
		"once consent is lost": {func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime = epoch }))
			f.Application.Consented, f.Application.ConsentTime, f.Application.ObserveTime = false, epoch, epoch
			return f
		}(), "ask_tenant", timing.AwaitInterval},
		"at home, when it did not answer": {func() credential.Facts {
			f := facts(version("a", 1, credential.Staged, func(v *credential.Version) { v.NextTime = epoch.Add(40*time.Second + 1) }))
			f.Application.Consented, f.Application.ReadyTime, f.Application.ActivateTime = false, time.Time{}, time.Time{}
			return f
		}(), "ask_home_tenant", 40*time.Second + time.Microsecond}, // as the store has times
	} {
		wait, ok := credential.Decide(epoch, tt.facts, timing).(credential.Wait)
		if !ok || !wait.Until.Equal(epoch.Add(tt.in)) {
			t.Errorf("%s: it waits (%t) until %s, want %s", name, ok, wait.Until, epoch.Add(tt.in))
		}
		if op := credential.Decide(epoch.Add(tt.in), tt.facts, timing).Op(); op != tt.op {
			t.Errorf("%s: then it is %s, want %s", name, op, tt.op)
		}
	}
}
