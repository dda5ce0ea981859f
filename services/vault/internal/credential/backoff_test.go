package credential_test

import (
	"cmp"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

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
		{name: "of what has no end", want: time.Hour, edit: func(f *credential.Facts) {
			f.Versions[0].EndTime, f.Versions[0].SigningKey, f.Trust.Digest = time.Time{}, "key", "trust"
		}},
		{name: "of what cannot be used without an issuer", want: 5 * time.Minute, lost: time.Hour, edit: func(f *credential.Facts) {
			f.Versions[0].EndTime, f.Versions[0].SigningKey, f.Trust.Digest = time.Time{}, "key", ""
		}},
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
