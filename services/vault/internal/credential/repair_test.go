package credential_test

import (
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

// TestDecide_ARemovalThatIsRefusedTakesTurnsWithARepair has both fail: neither may keep the other away for good.
func TestDecide_ARemovalThatIsRefusedTakesTurnsWithARepair(t *testing.T) {
	for failures, want := range map[int]string{1: "sweep_password", 2: "ensure_application", 3: "sweep_password"} {
		f := facts(version("a", 1, credential.Active))
		f.Wanted.SpecDigest, f.Application.Failures = "other", failures
		f.Strays = []credential.Stray{{KeyID: "lost", FirstTime: epoch.Add(-2 * time.Hour), LastTime: f.Application.ReadTime}}
		if got := credential.Decide(epoch, f, credential.Production()).Op(); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
}
