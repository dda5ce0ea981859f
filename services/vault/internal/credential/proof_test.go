package credential_test

import (
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

func TestObserved_LosesConsentOnlyAfterRefusalsOverTheWindow(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Active))
	hear := func(at time.Time, finding credential.Finding) {
		f.Probe = credential.Probe{Time: at, VersionID: "a", Finding: finding, Code: "AADSTS700016"}
		f = f.With(f.Observed(at, timing))
	}
	for i := range 9 {
		hear(epoch.Add(time.Duration(i)*time.Minute), credential.ConsentMissing)
	}
	if !f.Application.Consented {
		t.Fatal("consent is lost after nine refusals in eight minutes")
	}
	hear(epoch.Add(9*time.Minute), credential.Works)
	hear(epoch.Add(11*time.Minute), credential.ConsentMissing)
	if !f.Application.Consented {
		t.Fatal("a grant in between does not count")
	}
	for i := range 3 {
		hear(epoch.Add(time.Duration(13+4*i)*time.Minute), credential.ConsentMissing)
	}
	if !f.Application.Consented {
		t.Fatal("consent is lost after four refusals in ten minutes")
	}
	hear(epoch.Add(22*time.Minute), credential.ConsentMissing)
	if f.Application.Consented {
		t.Fatal("consent is not lost after five refusals in eleven minutes")
	}
	for _, c := range credential.Conditions(epoch.Add(23*time.Minute), f, timing) {
		switch {
		case c.Type == credential.Consented && (c.True || c.Reason != "AADSTS700016"):
			t.Errorf("Consented is %v", c)
		case c.Type == credential.CredentialReady && (c.True || c.Reason != "ConsentLost"):
			t.Errorf("CredentialReady is %v", c)
		}
	}
	hear(epoch.Add(30*time.Minute), credential.Works)
	if !f.Application.Consented {
		t.Error("it does not heal")
	}
}

func TestProved_CountsInARow(t *testing.T) {
	f := facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.Proofs = 6 }))
	c := f.Proved(epoch, credential.Production(), f.Versions[0], credential.Works, "", "principal")
	if got := c.Moves[0].Version.Proofs; got != 7 {
		t.Errorf("%d proofs after a grant, want 7", got)
	}
	for _, finding := range []credential.Finding{credential.SecretRefused, credential.ConsentMissing, credential.PrincipalMissing, credential.SecretExpired} {
		c := f.Proved(epoch, credential.Production(), f.Versions[0], finding, "AADSTS1", "")
		if got := c.Moves[0].Version.Proofs; got != 0 {
			t.Errorf("%d proofs after %s, want 0", got, finding)
		}
	}
}

func TestObserved_ARefusalIsHeldAgainstAVersionThatHasSettled(t *testing.T) {
	timing := credential.Production()
	for _, tt := range []struct {
		name    string
		age     time.Duration // of the ACTIVE version
		finding credential.Finding
		answers int
		works   bool
	}{
		{name: "while it settles", age: timing.Settling - time.Minute, finding: credential.SecretRefused, answers: 10, works: true},
		{name: "once it has, it may be chance", age: timing.Settling, finding: credential.SecretRefused, answers: timing.RefusalLimit - 1, works: true},
		{name: "or not", age: timing.Settling, finding: credential.SecretRefused, answers: timing.RefusalLimit},
		{name: "that it is over is told once", age: timing.Settling, finding: credential.SecretExpired, answers: 1},
		{name: "nothing is told by no answer", age: timing.Settling, finding: credential.Unsure, answers: 10, works: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.AddTime = epoch.Add(-tt.age) }))
			for i := range tt.answers {
				now := epoch.Add(time.Duration(i) * time.Second)
				f.Probe = credential.Probe{Time: now, VersionID: "a", Finding: tt.finding, Code: "AADSTS7000215"}
				f = f.With(f.Observed(now, timing))
			}
			if v := f.Versions[0]; v.Works(epoch, timing) != tt.works {
				t.Errorf("after %d refusals it works: %t", v.Refusals, !tt.works)
			}
		})
	}
}

func TestProved_RefusalsAreSinceTheFirst(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Propagating))
	for n, step := range []struct {
		finding credential.Finding
		since   time.Duration // -1: not refused
	}{{credential.SecretRefused, 0}, {credential.SecretRefused, 0}, {credential.Works, -1}, {credential.SecretRefused, 3}, {credential.SecretExpired, 3}} {
		now := epoch.Add(time.Duration(n) * time.Minute)
		f = f.With(f.Proved(now, timing, f.Versions[0], step.finding, "AADSTS7000215", "principal"))
		want := epoch.Add(step.since * time.Minute)
		if step.since < 0 {
			want = time.Time{}
		}
		if got := f.Versions[0].RefusedSince; !got.Equal(want) {
			t.Errorf("after answer %d, %s, it is refused since %s, want %s", n, step.finding, got, want)
		}
	}
}

// TestAskedHome_IsPatientUntilItIsKnown has the home tenant not know an application for ten minutes, then know it: the longer it did not, the longer it is left alone, and
// from then on it is asked as a version is proven.
func TestAskedHome_IsPatientUntilItIsKnown(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Staged, func(v *credential.Version) { v.AddTime, v.EndTime = epoch, epoch.Add(72*time.Hour) }))
	f.Application.Consented, f.Application.ReadyTime, f.Application.ActivateTime = false, time.Time{}, time.Time{}
	var last time.Time
	for now := epoch; f.Application.ReadyTime.IsZero(); {
		switch a := credential.Decide(now, f, timing).(type) {
		case credential.AskHome:
			want := timing.ProofSpacing
			if f.Application.HomeProofs == 0 {
				want = max(want, min(last.Sub(epoch)/10, time.Minute))
			}
			if waited := now.Sub(last); !last.IsZero() && (waited < want || waited > want+time.Second) {
				t.Errorf("after %s, with %d proofs, it was asked again after %s, want %s", now.Sub(epoch), f.Application.HomeProofs, waited, want)
			}
			last = now
			finding := credential.ConsentMissing
			if now.Sub(epoch) > 10*time.Minute {
				finding = credential.PrincipalMissing
			}
			f = f.With(f.AskedHome(now, timing, a.Version, finding))
		case credential.Wait:
			now = a.Until
		default:
			t.Fatalf("after %s: %s", now.Sub(epoch), a.Op())
		}
	}
	if n := f.Application.HomeProofs; n != timing.Proofs {
		t.Errorf("it is ready after %d proofs", n)
	}
}

func TestUnreadable_IsAsGoodAsExpired(t *testing.T) {
	timing := credential.Production()
	for _, state := range []credential.State{credential.Propagating, credential.Active, credential.Retiring} {
		f := facts(version("a", 1, state))
		f = f.With(f.Unreadable(epoch, timing, f.Versions[0]))
		v := f.Versions[0]
		if v.Works(epoch, timing) || v.Refusals < timing.RefusalLimit || v.Reason != "SecretUnreadable" || !v.ProbeTime.Equal(epoch) || !v.NextTime.After(epoch) {
			t.Errorf("%s: %+v", state, v)
		}
		if failed := f.Application.AddFailures; failed != map[credential.State]int{credential.Propagating: 1}[state] {
			t.Errorf("%s: %d versions came to nothing", state, failed)
		}
		if again := f.With(f.Unreadable(epoch.Add(time.Hour), timing, v)); again.Application.AddFailures != f.Application.AddFailures {
			t.Errorf("%s: it came to nothing twice", state)
		}
	}
}
