package credential_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

func TestRemoveFailed_TakesItForGoneOnlyWhereItsApplicationIs(t *testing.T) {
	timing := credential.Production()
	for _, tt := range []struct {
		name     string
		kind     credential.FailureKind
		missing  int // reads in a row that did not find the application
		deleting bool
		attempts int
		want     credential.State
	}{
		{name: "not found", kind: credential.Missing, want: credential.Revoking},
		{name: "not found, time and again", kind: credential.Missing, attempts: 50, want: credential.Revoking},
		{name: "a read did not find its application either", kind: credential.Missing, missing: 1, want: credential.Revoking},
		{name: "nor did a second one", kind: credential.Missing, missing: 2, want: credential.Revoked},
		{name: "refused, of an application that is not found", kind: credential.Again, missing: 2, want: credential.Revoking},
		{name: "not found while the integration is deleted", kind: credential.Missing, deleting: true, attempts: 2, want: credential.Revoking},
		{name: "four times", kind: credential.Missing, deleting: true, attempts: 3, want: credential.Revoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.Attempts, v.Sealed = tt.attempts, []byte("sealed") }))
			f.Application.MissingReads, f.Wanted.Deleting = tt.missing, tt.deleting
			v := f.RemoveFailed(epoch, timing, f.Versions[0], credential.Failure{Kind: tt.kind}).Moves[0].Version
			if v.State != tt.want || (v.State == credential.Revoked) == v.RemoveTime.IsZero() || (v.State == credential.Revoked) != (v.Sealed == nil) {
				t.Errorf("it is %s, removed at %s, with a text of %d bytes; want %s", v.State, v.RemoveTime, len(v.Sealed), tt.want)
			}
			if v.State == credential.Revoking && (v.Attempts != tt.attempts+1 || !v.NextTime.After(epoch)) {
				t.Errorf("after attempt %d the next is at %s", v.Attempts, v.NextTime)
			}
		})
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

// TestAddFailed_HalvesLivesDownToWhatRotationKeepsUpWith follows a policy that takes no life at all.
func TestAddFailed_HalvesLivesDownToWhatRotationKeepsUpWith(t *testing.T) {
	timing := credential.Production()
	floor := 3 * (timing.Settling + 2*8*timing.ProofSpacing)
	f := facts(version("a", 1, credential.Intended, func(v *credential.Version) { v.Attempts = 1 }))
	var lives []time.Duration
	for len(f.Versions) > 0 && len(lives) < 50 {
		lives = append(lives, timing.Life(24*time.Hour, f.Application.LifeLimit))
		f = f.With(f.AddFailed(epoch, timing, f.Versions[0], credential.Failure{Kind: credential.TooLong, Code: "CredentialInvalidLifetimeAsPerAppPolicy"}))
	}
	want := []time.Duration{72 * time.Hour, 36 * time.Hour, 18 * time.Hour, 9 * time.Hour, 270 * time.Minute, 135 * time.Minute, 4050 * time.Second, floor}
	if !slices.Equal(lives, want) {
		t.Errorf("lives tried are %v, want %v", lives, want)
	}
	if a := f.Application; a.LifeLimit != floor || a.AddFailures != 1 || !a.AddNextTime.After(epoch) {
		t.Errorf("then the limit is %s, and the next is made at %s after %d failures", a.LifeLimit, a.AddNextTime, a.AddFailures)
	}
}

// TestReplaced_GivesUpWhatWentWithTheApplication has another application of the name found, and returned by a repair.
func TestReplaced_GivesUpWhatWentWithTheApplication(t *testing.T) {
	another := credential.MadeApplication{ObjectID: "another", ClientID: "client-2", DisplayName: "name"}
	before := facts(
		version("a", 1, credential.Revoking), version("b", 2, credential.Retiring), version("c", 3, credential.Active),
		version("d", 4, credential.Propagating), version("e", 5, credential.Staged), version("f", 6, credential.Intended),
	)
	before.Strays = []credential.Stray{{KeyID: "stray"}}
	before.Application.ReadTime = epoch
	for how, change := range map[string]credential.Change{"found": before.Replaced(epoch, another), "repaired": before.Ensured(epoch, another)} {
		f := before.With(change)
		if a := f.Application; a.ObjectID != "another" || a.ClientID != "client-2" || a.Consented || !a.ReadyTime.IsZero() || !a.ReadTime.IsZero() || len(f.Strays) != 0 {
			t.Errorf("%s, it is %+v, with %d strays", how, a, len(f.Strays))
		}
		var got []string
		for _, v := range f.Versions {
			got = append(got, fmt.Sprint(v.ID, " ", v.State, " ", v.Works(epoch, credential.Production())))
		}
		want := []string{"a REVOKING false", "b RETIRING false", "c RETIRING false", "d REVOKING false", "e REVOKING false", "f INTENDED false"}
		if !slices.Equal(got, want) {
			t.Errorf("%s, versions are %q, want %q", how, got, want)
		}
	}
}

// TestFailures_ArePutOffForAsLongAsTheServiceAsks looks at whatever one integration may try again.
func TestFailures_ArePutOffForAsLongAsTheServiceAsks(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Revoking), version("b", 2, credential.Intended))
	for name, next := range map[string]func(failure credential.Failure) time.Time{
		"the application": func(failure credential.Failure) time.Time {
			return f.ApplicationFailed(epoch, timing, failure).Application.NextTime
		},
		"a password to be made": func(failure credential.Failure) time.Time {
			return f.AddFailed(epoch, timing, f.Versions[1], failure).Moves[0].Version.NextTime
		},
		"one to be removed": func(failure credential.Failure) time.Time {
			return f.RemoveFailed(epoch, timing, f.Versions[0], failure).Moves[0].Version.NextTime
		},
		"a question": func(failure credential.Failure) time.Time {
			return f.Postponed(epoch, timing, f.Versions[0], failure.RetryAfter).Moves[0].Version.NextTime
		},
	} {
		for _, tt := range []struct{ asked, want time.Duration }{
			{0, timing.RetryMin}, {timing.RetryMin / 2, timing.RetryMin}, {7 * time.Minute, 7 * time.Minute}, {30 * time.Hour, timing.RetryMax},
		} {
			if got := next(credential.Failure{Kind: credential.Again, RetryAfter: tt.asked}).Sub(epoch); got != tt.want {
				t.Errorf("asked for %s, %s is tried again after %s, want %s", tt.asked, name, got, tt.want)
			}
		}
	}
}

// TestFailures_AreNotWaitedForWhileTheLastSecretEnds looks at whatever the next version needs, which has failed for so long that the wait is an hour.
func TestFailures_AreNotWaitedForWhileTheLastSecretEnds(t *testing.T) {
	timing := credential.Production()
	const reserve = 20*time.Minute + 56*time.Second // for the next one to settle and be proven
	again := credential.Failure{Kind: credential.Again}
	for _, tt := range []struct {
		name string
		left time.Duration
		edit func(f *credential.Facts)
		want time.Duration
		lost time.Duration // with a password that may have been made, if that is not the same
	}{
		{name: "with much time", left: 20 * time.Hour, want: time.Hour},
		{name: "with little", left: 2*time.Hour + reserve, want: 15 * time.Minute},
		{name: "with too little", left: reserve, want: 5 * time.Minute},
		{name: "with none", left: -time.Hour, want: 5 * time.Minute, lost: time.Hour},
		{name: "with none, as long as people do not mend what forbids one", left: -time.Hour, want: time.Hour, edit: func(f *credential.Facts) {
			f.Application.AddRefusal = "CredentialTypeNotAllowedAsPerAppPolicy"
		}},
		{name: "with little, whatever forbids one", left: 2*time.Hour + reserve, want: 15 * time.Minute, edit: func(f *credential.Facts) {
			f.Application.AddRefusal = "CredentialTypeNotAllowedAsPerAppPolicy"
		}},
		{name: "of what is refused", left: 20 * time.Hour, want: 5 * time.Minute, lost: time.Hour, edit: func(f *credential.Facts) {
			f.Versions[0].Refusals = timing.RefusalLimit
		}},
		{name: "of what has no end", want: time.Hour, edit: func(f *credential.Facts) { f.Versions[0].EndTime, f.Versions[0].SigningKey = time.Time{}, "key" }},
		{name: "without consent", left: reserve, want: time.Hour, edit: func(f *credential.Facts) { f.Application.Consented = false }},
		{name: "while it is being deleted", want: time.Hour, edit: func(f *credential.Facts) { f.Wanted.Deleting, f.Versions = true, f.Versions[1:] }},
		{name: "before there was one", want: time.Hour, edit: func(f *credential.Facts) { f.Application.ActivateTime, f.Versions = time.Time{}, f.Versions[1:] }},
		{name: "after one was taken away", want: 5 * time.Minute, lost: time.Hour, edit: func(f *credential.Facts) { f.Versions = f.Versions[1:] }},
	} {
		f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch.Add(tt.left) }),
			version("b", 2, credential.Propagating, func(v *credential.Version) { v.Attempts = 20 }), version("c", 3, credential.Intended, func(v *credential.Version) { v.Attempts = 20 }))
		f.Application.Failures, f.Application.AddFailures = 20, 20
		if tt.edit != nil {
			tt.edit(&f)
		}
		proven, intended := f.Versions[len(f.Versions)-2], f.Versions[len(f.Versions)-1]
		for what, next := range map[string]time.Time{
			"the application": f.ApplicationFailed(epoch, timing, again).Application.NextTime,
			"a password":      f.AddFailed(epoch, timing, intended, again).Moves[0].Version.NextTime,
			"a proof":         f.Postponed(epoch, timing, proven, 0).Moves[0].Version.NextTime,
			"an unknown code": f.Unproven(epoch, timing, proven, 0).Moves[0].Version.NextTime,
			"a lost key":      f.Unreadable(epoch, timing, proven).Application.AddNextTime,
		} {
			if got := next.Sub(epoch); got != tt.want {
				t.Errorf("%s: %s is tried again after %s, want %s", tt.name, what, got, tt.want)
			}
		}
		lost := f.AddFailed(epoch, timing, intended, credential.Failure{Kind: credential.Lost}).Application.AddNextTime
		if got, want := lost.Sub(epoch), cmp.Or(tt.lost, tt.want); got != want {
			t.Errorf("%s: another one is made %s after an answer was lost, want %s", tt.name, got, want)
		}
		if got := f.ApplicationFailed(epoch, timing, credential.Failure{RetryAfter: 30 * time.Minute}).Application.NextTime.Sub(epoch); got < 30*time.Minute {
			t.Errorf("%s: asked for half an hour, it waits %s", tt.name, got)
		}
		revoking := version("d", 4, credential.Revoking, func(v *credential.Version) { v.Attempts = 20 })
		if got := f.RemoveFailed(epoch, timing, revoking, again).Moves[0].Version.NextTime.Sub(epoch); got != time.Hour {
			t.Errorf("%s: a removal is tried again after %s, want an hour", tt.name, got)
		}
	}
}

// TestAddFailed_LeavesFewPasswordsBehind has the answers of a day be lost, each of whose passwords was made: nothing of its own works for the vault to know by that
// what it finds is nobody's.
func TestAddFailed_LeavesFewPasswordsBehind(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch }))
	var made []credential.MadePassword
	for now := epoch; now.Before(epoch.Add(24 * time.Hour)); {
		switch a := credential.Decide(now, f, timing).(type) {
		case credential.Wait:
			now = a.Until
		case credential.Add:
			id := fmt.Sprint("lost ", len(made))
			c, v := f.Intending(now, "test", id)
			f = f.With(c)
			made = append(made, credential.MadePassword{KeyID: id, Name: v.Name, StartTime: now, EndTime: a.End})
			f = f.With(f.AddFailed(now, timing, v, credential.Failure{Kind: credential.Lost}))
		case credential.Ensure:
			f = f.With(f.Ensured(now, credential.MadeApplication{ObjectID: "object", ClientID: "client"}))
		case credential.Read:
			f = f.With(f.ReadFound(now, "test", credential.MadeApplication{ObjectID: "object", Passwords: made}))
		case credential.Ask:
			f.Probe = credential.Probe{Time: now, VersionID: "a", Finding: credential.SecretExpired}
		case credential.Apply:
			f = f.With(a.Change)
		default:
			t.Fatalf("at %s: %s", now, a.Op())
		}
	}
	// Nine while the wait doubles, then one an hour.
	if n := len(made); n < 24 || n > 33 {
		t.Errorf("%d passwords were made in a day whose text is not known", n)
	}
}

// TestDecide_WhatIsNeverProvenIsReplacedSoon has it leave no password behind: that one's text is known, and it is removed.
func TestDecide_WhatIsNeverProvenIsReplacedSoon(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch }),
		version("b", 2, credential.Propagating, func(v *credential.Version) { v.Refusals = 1 }))
	f.Application.AddFailures = 20
	a, ok := credential.Decide(epoch, f, timing).(credential.Apply)
	if !ok || a.Why != "NeverProven" || !a.Change.Application.AddNextTime.Equal(epoch.Add(5*time.Minute)) {
		t.Errorf("it is %+v, want another one in five minutes", a)
	}
}

// TestReadFound_ForgetsFailuresThatItMends has nothing be lacking but what cannot be done yet.
func TestReadFound_ForgetsFailuresThatItMends(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(f *credential.Facts)
		want int
	}{
		{name: "of an application that is as it shall be"},
		{name: "of one without the properties it shall have", want: 8, edit: func(f *credential.Facts) { f.Wanted.SpecDigest = "other" }},
		{name: "of one with federated credentials that nothing stands on", want: 8, edit: func(f *credential.Facts) {
			f.Application.TrustSendTime = epoch.Add(-24 * time.Hour)
		}},
		{name: "of one whose federated credentials are still in use", edit: func(f *credential.Facts) {
			f.Application.TrustSendTime = epoch.Add(-24 * time.Hour)
			f.Versions = append(f.Versions, version("b", 2, credential.Retiring, func(v *credential.Version) { v.SigningKey = "key" }))
		}},
	} {
		f := facts(version("a", 1, credential.Active))
		f.Application.Failures = 8
		if tt.edit != nil {
			tt.edit(&f)
		}
		if got := f.ReadFound(epoch, "test", credential.MadeApplication{ObjectID: "object"}).Application.Failures; got != tt.want {
			t.Errorf("%s: %d failures are remembered, want %d", tt.name, got, tt.want)
		}
	}
}

func TestTiming_ALifeOutlastsEveryHold(t *testing.T) {
	timing := credential.Production() // a hold of a day, and two hours for two replacements to be proven
	for _, tt := range []struct{ period, limit, want time.Duration }{
		{24 * time.Hour, 0, 72 * time.Hour},
		{13 * time.Hour, 0, 39 * time.Hour},
		{12 * time.Hour, 0, 38 * time.Hour},
		{time.Hour, 0, 27 * time.Hour},
		{24 * time.Hour, 40 * time.Hour, 40 * time.Hour},
		{time.Hour, 40 * time.Hour, 27 * time.Hour},
	} {
		if got := timing.Life(tt.period, tt.limit); got != tt.want {
			t.Errorf("with a period of %s and a limit of %s it is %s, want %s", tt.period, tt.limit, got, tt.want)
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

func TestReadMissed_CountsInARow(t *testing.T) {
	f := facts(version("a", 1, credential.Active))
	for n := 1; n <= 3; n++ {
		now := epoch.Add(time.Duration(n) * time.Hour)
		f.Application.Failures, f.Application.NextTime = 2, now
		f = f.With(f.ReadMissed(now))
		if a := f.Application; a.MissingReads != n || !a.MissingTime.Equal(now) || a.Failures != 0 || !a.NextTime.IsZero() {
			t.Errorf("after %d reads: %+v", n, a)
		}
	}
	f = f.With(f.ReadFound(epoch.Add(4*time.Hour), "test", credential.MadeApplication{ObjectID: "object"}))
	if a := f.Application; a.MissingReads != 0 || !a.MissingTime.IsZero() {
		t.Errorf("once it is found: %+v", a)
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

func TestBegun_ForgetsWhyNoSecretCouldBeMade(t *testing.T) {
	for _, consented := range []bool{true, false} {
		f := trusting()
		f.Application.Consented, f.Application.AddFailures, f.Application.AddCode, f.Application.AddRefusal = consented, 3, "CredentialTypeNotAllowedAsPerAppPolicy", "CredentialTypeNotAllowedAsPerAppPolicy"
		f = f.With(f.Begun(epoch, "a"))
		if a := f.Application; a.AddCode != "" || a.AddRefusal != "" {
			t.Errorf("consented %t: %+v", consented, a)
		}
		want, left := credential.Staged, 0
		if consented {
			want, left = credential.Propagating, 3 // until it is proven
		}
		if v := f.Versions[0]; v.State != want || f.Application.AddFailures != left {
			t.Errorf("consented %t: it is %s, after %d that came to nothing", consented, v.State, f.Application.AddFailures)
		}
	}
}

// TestConditions_AReasonIsOneWord has people read what a service calls it, as far as that is a word.
func TestConditions_AReasonIsOneWord(t *testing.T) {
	for code, want := range map[string]string{
		"AADSTS700016": "AADSTS700016", "Authorization_RequestDenied": "AuthorizationRequestDenied", "invalidRequest": "InvalidRequest", "429": "Code429",
		"": "NoAnswer", "élan vital": "Lanvital", strings.Repeat("long", 20): "L" + strings.Repeat("long", 20)[1:60],
	} {
		f := credential.Facts{Wanted: credential.Wanted{UID: "uid", Present: true}}
		f = f.With(f.ApplicationFailed(epoch, credential.Production(), credential.Failure{Kind: credential.Refused, Code: code}))
		if c := credential.Conditions(epoch, f, credential.Production())[0]; c.True || c.Reason != want {
			t.Errorf("%q is told as %q, want %q", code, c.Reason, want)
		}
	}
}
