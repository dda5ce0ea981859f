package credential_test

import (
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

// TestConditions_APasswordThatStays has the removal of passwords fail time and again.
func TestConditions_APasswordThatStays(t *testing.T) {
	failed := func(state credential.State, attempts int) credential.Facts {
		return facts(version("a", 1, state, func(v *credential.Version) { v.Attempts = attempts }), version("b", 2, credential.Active))
	}
	stray := facts(version("b", 2, credential.Active))
	stray.Strays = []credential.Stray{{KeyID: "a", Attempts: credential.StuckAttempts}}
	for name, tt := range map[string]struct {
		facts credential.Facts
		want  string
	}{
		"of nobody's":                     {stray, "StrayCredentials"},
		"of one that was replaced":        {failed(credential.Revoking, credential.StuckAttempts), "StrayCredentials"},
		"of one that was given up":        {failed(credential.Abandoned, credential.StuckAttempts), "StrayCredentials"},
		"not often enough":                {failed(credential.Revoking, credential.StuckAttempts-1), "Replicated"},
		"what failed is another thing":    {failed(credential.Retiring, credential.StuckAttempts), "Replicated"},
		"none was asked for, for so long": {failed(credential.Intended, credential.StuckAttempts), "Replicated"},
	} {
		if c := credential.Conditions(epoch, tt.facts, credential.Production())[0]; c.Reason != tt.want || !c.True {
			t.Errorf("%s: %+v, want %s", name, c, tt.want)
		}
	}
}
