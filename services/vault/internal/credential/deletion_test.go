package credential_test

import (
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

func TestDeleteFailedAndPurgeFailed_TakeItForGoneOnlyWhenNotFoundTwice(t *testing.T) {
	timing := credential.Production()
	missing := credential.Failure{Kind: credential.Missing, Code: "Request_ResourceNotFound"}
	f := deleting(facts())
	for _, step := range []struct {
		name             string
		do               func(f credential.Facts, now time.Time) credential.Change
		deleted, purged  bool
		absences, failed int
	}{
		{name: "deletion does not find it", do: func(f credential.Facts, now time.Time) credential.Change { return f.DeleteFailed(now, timing, missing) }, absences: 1},
		{name: "deletion fails", do: func(f credential.Facts, now time.Time) credential.Change {
			return f.DeleteFailed(now, timing, credential.Failure{Kind: credential.Again})
		}, absences: 1, failed: 1},
		{name: "deletion does not find it again", do: func(f credential.Facts, now time.Time) credential.Change { return f.DeleteFailed(now, timing, missing) }, deleted: true},
		{name: "purge does not find it", do: func(f credential.Facts, now time.Time) credential.Change { return f.PurgeFailed(now, timing, missing) }, deleted: true, absences: 1},
		{name: "purge fails", do: func(f credential.Facts, now time.Time) credential.Change {
			return f.PurgeFailed(now, timing, credential.Failure{Kind: credential.Lost})
		}, deleted: true, absences: 1, failed: 1},
		{name: "purge does not find it again", do: func(f credential.Facts, now time.Time) credential.Change { return f.PurgeFailed(now, timing, missing) }, deleted: true, purged: true, absences: 1},
	} {
		f = f.With(step.do(f, epoch))
		a := f.Application
		if deleted, purged := !a.DeleteTime.IsZero(), !a.PurgeTime.IsZero(); deleted != step.deleted || purged != step.purged || a.Absences != step.absences || a.Failures != step.failed {
			t.Errorf("%s: deleted %t, purged %t, %d absences, %d failures", step.name, deleted, purged, a.Absences, a.Failures)
		}
	}
}
