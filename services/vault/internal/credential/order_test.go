package credential_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/credential"
)

// rotation returns one that is PENDING and replaces version 1.
func rotation(reason credential.RotationReason, edit ...func(*credential.Rotation)) credential.Rotation {
	r := credential.Rotation{ID: "r", Reason: reason, UpTo: 1, State: credential.RotationPending, CreateTime: epoch}
	for _, e := range edit {
		e(&r)
	}
	return r
}

func immediately(r *credential.Rotation) { r.Immediately = true }

func because(reason string) func(r *credential.Rotation) {
	return func(r *credential.Rotation) { r.StateReason = reason }
}

func in(state credential.RotationState) func(r *credential.Rotation) {
	return func(r *credential.Rotation) { r.State = state }
}

// asked adds rotations to facts.
func asked(f credential.Facts, all ...credential.Rotation) credential.Facts {
	f.Rotations = append(f.Rotations, all...)
	return f
}

func TestDecide_Rotations(t *testing.T) {
	timing := credential.Production()
	ago := func(d time.Duration) time.Time { return epoch.Add(-d) }
	held := func(v *credential.Version) { v.Holders = 3 }
	fresh := func(v *credential.Version) { v.AddTime, v.PropagateTime = ago(time.Minute), ago(time.Minute) }
	retired := func(v *credential.Version) { v.RetireTime = ago(time.Minute) }
	due := func(v *credential.Version) { v.ActivateTime = ago(40 * time.Hour) }
	first := version("a", 1, credential.Active)
	for _, tt := range []struct {
		name  string
		facts func() credential.Facts
		want  string
		check func(t *testing.T, a credential.Action)
	}{
		{name: "one that is asked for begins at once", want: "add_password", facts: func() credential.Facts {
			return asked(facts(first), rotation(credential.Scheduled))
		}},
		{name: "it joins what is under way", want: "apply Progress", facts: func() credential.Facts {
			return asked(facts(first, version("b", 2, credential.Propagating, fresh)), rotation(credential.Scheduled))
		}, check: func(t *testing.T, a credential.Action) {
			if r := a.(credential.Apply).Change.Rotations[0].Rotation; r.State != credential.RotationPropagating || r.New != 2 {
				t.Errorf("it becomes %+v", r)
			}
		}},
		{name: "where consent is lacking, that is what it waits for", want: "apply Progress", facts: func() credential.Facts {
			f := asked(facts(first, version("b", 2, credential.Staged, fresh)), rotation(credential.Scheduled))
			f.Application.Consented = false
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if r := a.(credential.Apply).Change.Rotations[0].Rotation; r.State != credential.RotationPropagating || r.StateReason != "AwaitingConsent" {
				t.Errorf("it becomes %+v", r)
			}
		}},
		{name: "once there is consent, it waits for nothing", want: "apply Progress", facts: func() credential.Facts {
			return asked(facts(first, version("b", 2, credential.Propagating, fresh)),
				rotation(credential.Scheduled, in(credential.RotationPropagating), func(r *credential.Rotation) { r.New, r.StateReason = 2, "AwaitingConsent" }))
		}, check: func(t *testing.T, a credential.Action) {
			if r := a.(credential.Apply).Change.Rotations[0].Rotation; r.State != credential.RotationPropagating || r.StateReason != "" {
				t.Errorf("it becomes %+v", r)
			}
		}},
		{name: "it does not wait for a back-off from before", want: "add_password", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Scheduled, func(r *credential.Rotation) { r.StateReason = "Policy" }))
			f.Application.AddNextTime, f.Application.WriteTime, f.Application.AddCode = epoch.Add(time.Hour), ago(time.Minute), "Policy"
			return f
		}},
		{name: "but for one from afterwards", want: "wait", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Scheduled, func(r *credential.Rotation) { r.StateReason, r.CreateTime = "Policy", ago(time.Hour) }))
			f.Application.AddNextTime, f.Application.WriteTime, f.Application.AddCode = epoch.Add(time.Hour), ago(time.Minute), "Policy"
			return f
		}},
		{name: "what a rotation by schedule replaces retires for an hour", want: "wait", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Retiring, retired), version("b", 2, credential.Active)),
				rotation(credential.Scheduled, in(credential.RotationActivated), func(r *credential.Rotation) { r.New = 2 }))
		}},
		{name: "what is compromised stays until a new one is there", want: "add_password", facts: func() credential.Facts {
			return asked(facts(first), rotation(credential.Compromised))
		}},
		{name: "and that one settles", want: "wait", facts: func() credential.Facts {
			return asked(facts(first, version("b", 2, credential.Propagating, fresh)),
				rotation(credential.Compromised, in(credential.RotationPropagating), func(r *credential.Rotation) { r.New = 2 }))
		}, check: func(t *testing.T, a credential.Action) {
			if w, want := a.(credential.Wait), epoch.Add(19*time.Minute-8*7*time.Second); !w.Until.Equal(want) {
				t.Errorf("waits until %s, want %s", w.Until, want)
			}
		}},
		{name: "then it goes at once, whoever holds it", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Retiring, retired, held), version("b", 2, credential.Active)), rotation(credential.Compromised))
		}, check: func(t *testing.T, a credential.Action) {
			m := a.(credential.Apply).Change.Moves[0]
			if m.Version.State != credential.Revoking || !m.DespiteHolders || m.Version.Reason != "Compromised" {
				t.Errorf("the move is %+v", m)
			}
		}},
		{name: "so do those that retired before", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Retiring, retired, held), version("b", 2, credential.Revoking), version("c", 3, credential.Active)),
				rotation(credential.Compromised, func(r *credential.Rotation) { r.UpTo = 2 }))
		}},
		{name: "its removal waits for nothing", want: "remove_password", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.RevokeTime = epoch }), version("b", 2, credential.Active)),
				rotation(credential.Compromised, in(credential.RotationActivated), func(r *credential.Rotation) { r.New = 2 }))
		}},
		{name: "that of another does", want: "apply Committed", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.RevokeTime = epoch }), version("b", 2, credential.Active)),
				rotation(credential.Scheduled, in(credential.RotationActivated), func(r *credential.Rotation) { r.New = 2 }))
		}},
		{name: "immediately, the old one goes first", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(first), rotation(credential.Compromised, immediately))
		}, check: func(t *testing.T, a credential.Action) {
			if got := a.(credential.Apply).Change.Moves[0].Version.State; got != credential.Retiring {
				t.Errorf("it becomes %s", got)
			}
		}},
		{name: "and right on", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Retiring, held)), rotation(credential.Compromised, immediately))
		}},
		{name: "its removal comes before the new one", want: "remove_password", facts: func() credential.Facts {
			return asked(facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.RevokeTime = epoch })), rotation(credential.Compromised, immediately))
		}},
		{name: "and that one need not settle", want: "prove", facts: func() credential.Facts {
			return asked(facts(version("b", 2, credential.Propagating, fresh)),
				rotation(credential.Compromised, immediately, in(credential.RotationPropagating), func(r *credential.Rotation) { r.New, r.RemoveTime = 2, epoch }))
		}},
		{name: "so does what nobody is served by, for the tenant lets nobody in", want: "apply Compromised", facts: func() credential.Facts {
			f := asked(facts(first, version("b", 2, credential.Staged, fresh)), rotation(credential.Compromised))
			f.Application.Consented = false
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if v := a.(credential.Apply).Change.Moves[0].Version; v.ID != "a" || v.State != credential.Retiring {
				t.Errorf("it becomes %s", v)
			}
		}},
		{name: "or by whose end has come", want: "apply Compromised", facts: func() credential.Facts {
			f := asked(facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch })), rotation(credential.Compromised))
			f.Application.AddCode, f.Application.AddNextTime = "Policy", epoch.Add(time.Hour)
			return f
		}},
		{name: "then right on, too", want: "apply Compromised", facts: func() credential.Facts {
			f := asked(facts(version("a", 1, credential.Retiring, held), version("b", 2, credential.Staged, fresh)), rotation(credential.Compromised))
			f.Application.Consented = false
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if m := a.(credential.Apply).Change.Moves[0]; m.Version.ID != "a" || m.Version.State != credential.Revoking || !m.DespiteHolders {
				t.Errorf("the move is %+v", m)
			}
		}},
		{name: "and the tenant is asked with the one that waits for consent", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.NextTime = epoch.Add(time.Minute) }), version("b", 2, credential.Staged, fresh))
			f = asked(f, rotation(credential.Compromised, in(credential.RotationPropagating), because("AwaitingConsent"), func(r *credential.Rotation) { r.New = 2 }))
			f.Application.Consented, f.Application.ObserveTime = false, ago(time.Hour)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if v := a.(credential.Ask).Version; v.ID != "b" {
				t.Errorf("it is asked with %s", v)
			}
		}},
		{name: "what was never given away goes at once", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(first, version("b", 2, credential.Propagating, fresh)), rotation(credential.Compromised, func(r *credential.Rotation) { r.UpTo = 2 }))
		}, check: func(t *testing.T, a credential.Action) {
			if v := a.(credential.Apply).Change.Moves[0].Version; v.ID != "b" || v.State != credential.Revoking {
				t.Errorf("%s goes", v)
			}
		}},
		{name: "an intent from before is given up without a penalty", want: "apply Compromised", facts: func() credential.Facts {
			return asked(facts(first, version("b", 2, credential.Intended)), rotation(credential.Compromised, func(r *credential.Rotation) { r.UpTo = 2 }))
		}, check: func(t *testing.T, a credential.Action) {
			if c := a.(credential.Apply).Change; c.Moves[0].Version.State != credential.Abandoned || c.Application != nil {
				t.Errorf("the change is %+v", c)
			}
		}},
		{name: "a pause puts off what is due", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "until it is over", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due))
			f.PauseEndTime = epoch
			return f
		}},
		{name: "it puts off what was asked for", want: "wait", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Scheduled))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "not what is compromised", want: "add_password", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Compromised))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "nor what is broken", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Refusals = timing.RefusalLimit }))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "nor what a restored database knows of", want: "add_password", facts: func() credential.Facts {
			f := facts(first)
			f.PauseEndTime, f.Recovery = epoch.Add(2*time.Hour), credential.Recovery{Number: 1, Time: epoch}
			return f
		}},
		{name: "nor beyond the last moment", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due, func(v *credential.Version) { v.StartTime, v.EndTime = ago(60*time.Hour), epoch.Add(12*time.Hour) }))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "which comes sooner where lives are short, for proving takes as long as ever", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due, func(v *credential.Version) {
				v.StartTime, v.EndTime = ago(9*time.Hour+50*time.Minute), epoch.Add(130*time.Minute)
			}))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "and so that Graph may be away for hours", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due, func(v *credential.Version) {
				v.StartTime, v.EndTime = ago(13*time.Hour+40*time.Minute), epoch.Add(4*time.Hour+20*time.Minute)
			}))
			f.PauseEndTime = epoch.Add(2 * time.Hour)
			return f
		}},
		{name: "which it waits for", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, due, func(v *credential.Version) { v.StartTime, v.EndTime = ago(59*time.Hour), epoch.Add(13*time.Hour) }))
			f.Application.ReadTime, f.Application.ObserveTime = epoch, epoch
			f.PauseEndTime = epoch.Add(7 * 24 * time.Hour)
			return f
		}},
		{name: "an integration that is deleted ends its rotations", want: "apply Progress", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Compromised))
			f.Wanted.Deleting = true
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if r := a.(credential.Apply).Change.Rotations[0].Rotation; r.State != credential.RotationAbandoned || r.StateReason != "IntegrationDeleting" || !r.EndTime.IsZero() {
				t.Errorf("it becomes %+v", r)
			}
		}},
		{name: "which are over when what they were to replace is gone", want: "apply Progress", facts: func() credential.Facts {
			f := asked(facts(), rotation(credential.Compromised, in(credential.RotationAbandoned), func(r *credential.Rotation) { r.StateReason = "IntegrationDeleting" }))
			f.Wanted.Deleting = true
			return f
		}, check: func(t *testing.T, a credential.Action) {
			r := a.(credential.Apply).Change.Rotations[0].Rotation
			if r.State != credential.RotationAbandoned || r.StateReason != "IntegrationDeleting" || !r.RemoveTime.Equal(epoch) || !r.EndTime.Equal(epoch) {
				t.Errorf("it becomes %+v", r)
			}
		}},
		{name: "or the application with it", want: "apply Progress", facts: func() credential.Facts {
			left := version("a", 1, credential.Abandoned, func(v *credential.Version) { v.KeyID = "k" })
			f := asked(facts(left), rotation(credential.Compromised, in(credential.RotationAbandoned)))
			f.Wanted.Deleting, f.Application.PurgeTime = true, epoch
			return f
		}},
		{name: "what is compromised goes although the deletion, which abandoned the rotation, is taken back", want: "add_password", facts: func() credential.Facts {
			return asked(facts(first), rotation(credential.Compromised, in(credential.RotationAbandoned)))
		}},
		{name: "nothing is made for what came to nothing otherwise", want: "wait", facts: func() credential.Facts {
			f := asked(facts(first), rotation(credential.Scheduled, in(credential.RotationAbandoned)))
			f.Application.ReadTime, f.Application.ObserveTime = epoch, epoch
			return f
		}},
		{name: "one whose deletion is taken back forgets how far that was", want: "apply WantedAgain", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Retiring, retired))
			f.Application.LeaseEndTime, f.Application.DeleteTime, f.Application.Absences, f.Application.AbsenceTime = epoch, epoch, 1, epoch
			return f
		}, check: func(t *testing.T, a credential.Action) {
			c := a.(credential.Apply).Change.Application
			if !c.LeaseEndTime.IsZero() || !c.DeleteTime.IsZero() || c.Absences != 0 || !c.AbsenceTime.IsZero() {
				t.Errorf("it is %+v", c)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := credential.Decide(epoch, tt.facts(), timing)
			got := a.Op()
			if apply, ok := a.(credential.Apply); ok {
				got += " " + apply.Why
			}
			if got != tt.want {
				t.Fatalf("decides %s (%+v), want %s", got, a, tt.want)
			}
			if tt.check != nil {
				tt.check(t, a)
			}
		})
	}
}

func TestAdmit(t *testing.T) {
	pending, compromised := rotation(credential.Scheduled), rotation(credential.Compromised)
	pending.ID, compromised.ID = "pending", "compromised"
	activated := rotation(credential.Scheduled, in(credential.RotationActivated))
	for _, tt := range []struct {
		name    string
		asked   credential.Rotation
		open    []credential.Rotation
		want    string // ID, up to, immediately
		changed string // ID, state, immediately of each
	}{
		{name: "by schedule", asked: credential.Rotation{Reason: credential.Scheduled}, want: "new 4 false"},
		{name: "compromised", asked: credential.Rotation{Reason: credential.Compromised, Immediately: true}, want: "new 7 true"},
		{name: "by schedule, again", asked: credential.Rotation{Reason: credential.Scheduled}, open: []credential.Rotation{pending}, want: "pending 1 false"},
		{name: "by schedule, after the new one is ACTIVE", asked: credential.Rotation{Reason: credential.Scheduled}, open: []credential.Rotation{activated}, want: "new 4 false"},
		{name: "by schedule, while it is compromised", asked: credential.Rotation{Reason: credential.Scheduled}, open: []credential.Rotation{compromised}, want: "compromised 1 false"},
		{name: "compromised, while by schedule", asked: credential.Rotation{Reason: credential.Compromised}, open: []credential.Rotation{activated, pending}, want: "new 7 false", changed: "pending ABANDONED false"},
		{name: "compromised, again", asked: credential.Rotation{Reason: credential.Compromised}, open: []credential.Rotation{compromised}, want: "compromised 1 false"},
		{name: "compromised, and now immediately", asked: credential.Rotation{Reason: credential.Compromised, Immediately: true}, open: []credential.Rotation{compromised}, want: "compromised 1 true", changed: "compromised PENDING true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer, changed, made := credential.Admit(epoch, "new", tt.asked, tt.open, 4, 7)
			if got := fmt.Sprint(answer.ID, " ", answer.UpTo, " ", answer.Immediately); got != tt.want || made != strings.HasPrefix(tt.want, "new") {
				t.Errorf("answered by %s, made %t; want %s", got, made, tt.want)
			}
			var all []string
			for _, c := range changed {
				all = append(all, fmt.Sprint(c.ID, " ", c.State, " ", c.Immediately))
				if !c.Open() {
					t.Errorf("%s ends at %s, before what it was to replace is gone", c.State, c.EndTime)
				}
			}
			if got := strings.Join(all, ", "); got != tt.changed {
				t.Errorf("changed are %s, want %s", got, tt.changed)
			}
		})
	}
}

// TestDecide_RotationProgress follows one rotation through its states, by what happens to the versions.
func TestDecide_RotationProgress(t *testing.T) {
	timing := credential.Production()
	f := facts(version("a", 1, credential.Active), version("b", 2, credential.Intended))
	f = asked(f, rotation(credential.Scheduled))
	f.Application.AddCode = "QuotaExceeded"
	next := func(want string, change credential.Change) {
		t.Helper()
		f = f.With(change)
		rows := f.Rotations
		if a, ok := credential.Decide(epoch, f, timing).(credential.Apply); ok && a.Why == "Progress" {
			rows = nil
			for _, m := range a.Change.Rotations {
				rows = append(rows, m.Rotation)
			}
			f = f.With(a.Change)
		}
		var got string
		for _, r := range rows {
			got += fmt.Sprint(r.State, " ", r.StateReason, " ", r.New)
			if (r.State == credential.RotationCompleted) == (r.EndTime.IsZero() || r.RemoveTime.IsZero()) {
				t.Errorf("%s ends at %s, removed at %s", r.State, r.EndTime, r.RemoveTime)
			}
		}
		if got != want {
			t.Fatalf("it is %q, want %q", got, want)
		}
	}
	to := func(from credential.State, v credential.Version) credential.Change {
		return credential.Change{Moves: []credential.Move{{From: from, Version: v}}}
	}
	next("PENDING QuotaExceeded 2", credential.Change{})
	next("PROPAGATING  2", to(credential.Intended, version("b", 2, credential.Propagating, func(v *credential.Version) { v.AddTime = epoch })))
	retiring := version("a", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = epoch })
	next("ACTIVATED  2", credential.Change{Moves: []credential.Move{
		{From: credential.Active, Version: retiring}, {From: credential.Propagating, Version: version("b", 2, credential.Active)},
	}})
	gone := retiring
	gone.State, gone.RevokeTime = credential.Revoking, epoch
	next("ACTIVATED  2", to(credential.Retiring, gone))
	gone.State, gone.RemoveTime = credential.Revoked, epoch
	next("COMPLETED  2", to(credential.Revoking, gone))
	next("", credential.Change{})
}

func TestDecide_RotationSaysWhatIsInTheWay(t *testing.T) {
	first, second := version("a", 1, credential.Active), version("b", 2, credential.Active)
	going := version("a", 1, credential.Revoking, func(v *credential.Version) {
		v.RemoveCode, v.Attempts, v.NextTime = "Denied", 3, epoch.Add(time.Minute)
	})
	staged := version("b", 2, credential.Staged)
	federated := version("b", 2, credential.Propagating, func(v *credential.Version) { v.SigningKey = "k1" })
	activated := func(r *credential.Rotation) { r.State, r.New = credential.RotationActivated, 2 }
	noCloud := func(f *credential.Facts) { f.Wanted.NoCloud = true }
	for _, tt := range []struct {
		name     string
		versions []credential.Version
		edit     func(f *credential.Facts)
		was      func(r *credential.Rotation)
		want     string
	}{
		{name: "nothing", versions: []credential.Version{first}, was: because("before"), want: "PENDING "},
		{name: "no secret can be made", versions: []credential.Version{first}, edit: func(f *credential.Facts) { f.Application.AddCode = "Policy" }, want: "PENDING Policy"},
		{name: "nor one be removed", versions: []credential.Version{going}, edit: func(f *credential.Facts) { f.Application.AddCode = "Policy" }, want: "PENDING Policy"},
		{name: "one cannot be removed before there is another", versions: []credential.Version{going}, was: immediately, want: "PENDING Denied"},
		{name: "no issuer", versions: []credential.Version{first}, edit: func(f *credential.Facts) {
			f.Wanted.Federated, f.Application.AddCode = true, "Policy"
		}, want: "PENDING IssuerMissing"},
		{name: "no issuer any more", versions: []credential.Version{first, federated}, edit: func(f *credential.Facts) { f.Wanted.Federated, f.Trust.Usable = true, []string{"k1"} }, want: "PROPAGATING IssuerMissing"},
		{name: "no trust", versions: []credential.Version{first}, edit: func(f *credential.Facts) {
			f.Wanted.Federated, f.Trust.Digest = true, "trust"
			f.Application.Failures, f.Application.FailureCode, f.Application.NextTime = 2, "QuotaExceeded", epoch.Add(time.Hour)
		}, want: "PENDING QuotaExceeded"},
		{name: "a repair fails, which keeps no secret from being made", versions: []credential.Version{first}, edit: func(f *credential.Facts) {
			f.Application.Failures, f.Application.FailureCode, f.Application.NextTime = 2, "QuotaExceeded", epoch.Add(time.Hour)
		}, was: because("before"), want: "PENDING "},
		{name: "no application", edit: func(f *credential.Facts) {
			f.Application.ObjectID, f.Application.Failures, f.Application.FailureCode = "", 2, "QuotaExceeded"
		}, want: "PENDING QuotaExceeded"},
		{name: "no consent", versions: []credential.Version{staged, going}, edit: func(f *credential.Facts) { f.Application.Consented = false }, want: "PROPAGATING Denied"},
		{name: "no consent, which one by schedule waits for first", versions: []credential.Version{staged, going}, edit: func(f *credential.Facts) { f.Application.Consented = false }, was: func(r *credential.Rotation) {
			r.Reason = credential.Scheduled
		}, want: "PROPAGATING AwaitingConsent"},
		{name: "no cloud", versions: []credential.Version{first}, edit: noCloud, want: "PENDING CloudUnknown"},
		{name: "no cloud, and neither could be removed before", versions: []credential.Version{second, going}, edit: noCloud, was: activated, want: "ACTIVATED CloudUnknown"},
		{name: "no cloud, and what it replaces is gone", edit: noCloud, want: "PENDING CloudUnknown"},
		{name: "no cloud to prove the next one in", versions: []credential.Version{version("b", 2, credential.Propagating)}, edit: noCloud, want: "PROPAGATING CloudUnknown"},
		{name: "no cloud, and no consent, which one by schedule waits for first", versions: []credential.Version{first, staged}, edit: func(f *credential.Facts) {
			f.Wanted.NoCloud, f.Application.Consented = true, false
		}, was: func(r *credential.Rotation) { r.Reason = credential.Scheduled }, want: "PROPAGATING AwaitingConsent"},
		{name: "no cloud to remove it from, and no consent", versions: []credential.Version{first, staged}, edit: func(f *credential.Facts) {
			f.Wanted.NoCloud, f.Application.Consented = true, false
		}, want: "PROPAGATING CloudUnknown"},
		{name: "no cloud, and deleted", versions: []credential.Version{first}, edit: func(f *credential.Facts) {
			f.Wanted.NoCloud, f.Wanted.Deleting = true, true
		}, want: "ABANDONED IntegrationDeleting"},
		{name: "no cloud, when all was done", versions: []credential.Version{second}, edit: noCloud, was: activated, want: "COMPLETED "},
		{name: "a cloud again", versions: []credential.Version{first}, was: because("CloudUnknown"), want: "PENDING "},
		{name: "the old one cannot be removed", versions: []credential.Version{second, going}, was: activated, want: "ACTIVATED Denied"},
		{name: "an attempt that fails gets its code", versions: []credential.Version{second, version("a", 1, credential.Revoking)}, was: activated, edit: func(f *credential.Facts) {
			*f = f.With(f.RemoveFailed(epoch, credential.Production(), f.Versions[1], credential.Failure{Kind: credential.Refused, Code: "Authorization_RequestDenied"}))
		}, want: "ACTIVATED AuthorizationRequestDenied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := rotation(credential.Compromised)
			if tt.was != nil {
				tt.was(&r)
			}
			f := asked(facts(tt.versions...), r)
			if tt.edit != nil {
				tt.edit(&f)
			}
			a, ok := credential.Decide(epoch, f, credential.Production()).(credential.Apply)
			if !ok || a.Why != "Progress" {
				t.Fatalf("decides %+v", a)
			}
			if r := a.Change.Rotations[0].Rotation; string(r.State)+" "+r.StateReason != tt.want {
				t.Errorf("it is %s %s, want %s", r.State, r.StateReason, tt.want)
			}
		})
	}
}

func TestFacts_BatchedIsWhatNobodyElseAskedFor(t *testing.T) {
	batch := func(r *credential.Rotation) { r.BatchID = "batch" }
	for _, tt := range []struct {
		name string
		open []credential.Rotation
		want bool
	}{
		{name: "nothing asked for"},
		{name: "of a batch", open: []credential.Rotation{rotation(credential.Scheduled, batch)}, want: true},
		{name: "by itself", open: []credential.Rotation{rotation(credential.Scheduled)}},
		{name: "by itself, after one of a batch", open: []credential.Rotation{rotation(credential.Scheduled, batch, in(credential.RotationActivated)), rotation(credential.Scheduled)}},
		{name: "only activated", open: []credential.Rotation{rotation(credential.Scheduled, batch, in(credential.RotationActivated))}},
	} {
		if got := asked(facts(), tt.open...).Batched(); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestConditions_Rotations(t *testing.T) {
	due := func(v *credential.Version) { v.ActivateTime = epoch.Add(-40 * time.Hour) }
	last := func(f credential.Facts) string {
		c := credential.Conditions(epoch, f, credential.Production())[2]
		return fmt.Sprint(c.Reason, " ", c.True)
	}
	paused := facts(version("a", 1, credential.Active, due))
	paused.PauseEndTime = epoch.Add(time.Minute)
	refusing := func(s credential.State, edit ...func(*credential.Version)) credential.Facts {
		f := facts(version("a", 1, s, edit...))
		f.Application.AddRefusal = "CredentialTypeNotAllowed"
		return f
	}
	short := func(left time.Duration) credential.Facts {
		return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.StartTime, v.EndTime = epoch.Add(left-12*time.Hour), epoch.Add(left) }))
	}
	for name, tt := range map[string]struct {
		facts credential.Facts
		want  string
	}{
		"paused when due": {paused, "RotationPaused true"},
		"paused before": {func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.PauseEndTime = paused.PauseEndTime
			return f
		}(), "Proven true"},
		"paused, with a sixth of its life left, and being replaced": {func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) {
				v.EndTime = epoch.Add(11*time.Hour + time.Second)
				v.StartTime = v.EndTime.Add(-72 * time.Hour)
			}))
			f.PauseEndTime = paused.PauseEndTime
			return f
		}(), "RotationPaused true"},
		"paused, and not replaced all the same": {func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) {
				v.EndTime = epoch.Add(11 * time.Hour)
				v.StartTime = v.EndTime.Add(-72 * time.Hour)
			}))
			f.PauseEndTime = paused.PauseEndTime
			return f
		}(), "RotationLate true"},
		"refused by a policy":      {refusing(credential.Active), "CredentialTypeNotAllowed true"},
		"refused, and over by now": {refusing(credential.Active, func(v *credential.Version) { v.EndTime = epoch }), "CredentialTypeNotAllowed false"},
		"refused from the start":   {refusing(credential.Revoking), "CredentialTypeNotAllowed false"},
		"refused, and then federated": {func() credential.Facts {
			f := refusing(credential.Active)
			f.Wanted.Federated, f.Trust.Digest = true, "trust"
			return f
		}(), "Proven true"},
		"in the gap":                   {asked(facts(version("a", 1, credential.Revoking)), rotation(credential.Compromised, immediately)), "Compromised false"},
		"a short life, a third left":   {short(4 * time.Hour), "Proven true"},
		"a short life, a quarter left": {short(3*time.Hour - time.Second), "RotationLate true"},
		"an ordinary life, a day left": {facts(version("a", 1, credential.Active, func(v *credential.Version) {
			v.EndTime = epoch.Add(24*time.Hour - 1)
			v.StartTime = v.EndTime.Add(-72 * time.Hour)
		})), "RotationLate true"},
		"an ordinary life, a bit more": {facts(version("a", 1, credential.Active, func(v *credential.Version) {
			v.EndTime = epoch.Add(24 * time.Hour)
			v.StartTime = v.EndTime.Add(-72 * time.Hour)
		})), "Proven true"},
	} {
		if got := last(tt.facts); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestExposureOf(t *testing.T) {
	end := epoch.Add(40 * time.Hour)
	removed := func(r *credential.Rotation) {
		r.RemoveTime, r.State = epoch.Add(-time.Hour), credential.RotationCompleted
	}
	for _, tt := range []struct {
		name     string
		rotation credential.Rotation
		oldEnd   time.Time
		key      string
		now      time.Time
		want     time.Time
		remedy   string // in the first one; empty for none
	}{
		{name: "nothing was replaced", rotation: credential.Rotation{}, now: epoch},
		{name: "by schedule", rotation: rotation(credential.Scheduled), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "COMPROMISED"},
		{name: "compromised", rotation: rotation(credential.Compromised), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "immediately"},
		{name: "immediately", rotation: rotation(credential.Compromised, immediately), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "disable"},
		{name: "superseded", rotation: rotation(credential.Scheduled, in(credential.RotationAbandoned), because("Superseded")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "took this one's place"},
		{name: "superseded, and removed", rotation: rotation(credential.Scheduled, removed, in(credential.RotationAbandoned), because("Superseded")), now: epoch.Add(50 * time.Minute), want: epoch.Add(50 * time.Minute)},
		{name: "of an integration that is being deleted", rotation: rotation(credential.Compromised, in(credential.RotationAbandoned), because("IntegrationDeleting")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "disable"},
		{name: "the new one is ACTIVE", rotation: rotation(credential.Compromised, in(credential.RotationActivated)), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "disable"},
		{name: "the new one waits for consent", rotation: rotation(credential.Compromised, immediately, in(credential.RotationPropagating), because("AwaitingConsent")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "disable"},
		{name: "it waits, and the old one cannot be removed", rotation: rotation(credential.Compromised, in(credential.RotationPropagating), because("AuthorizationRequestDenied")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "AuthorizationRequestDenied: its key ID"},
		{name: "the old one cannot be removed", rotation: rotation(credential.Compromised, in(credential.RotationActivated), because("AuthorizationRequestDenied")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "AuthorizationRequestDenied: its key ID"},
		{name: "the cloud is not configured", rotation: rotation(credential.Compromised, because("CloudUnknown")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "Name the integration's cloud"},
		{name: "nor is it for one that is ACTIVE", rotation: rotation(credential.Compromised, in(credential.RotationActivated), because("CloudUnknown")), oldEnd: end, now: epoch, want: end.Add(90 * time.Minute), remedy: "Name the integration's cloud"},
		{name: "removed", rotation: rotation(credential.Compromised, removed), now: epoch, want: epoch.Add(50 * time.Minute), remedy: "disable"},
		{name: "federated", rotation: rotation(credential.Compromised), key: "k1", now: epoch, remedy: "RotateSigningKeys with the reason COMPROMISED, of signingKeys/k1"},
		{name: "federated, by schedule, and removed long ago", rotation: rotation(credential.Scheduled, removed), key: "k1", now: epoch.Add(24 * time.Hour), remedy: "RotateSigningKeys"},
		{name: "over", rotation: rotation(credential.Compromised, removed), now: epoch.Add(50 * time.Minute), want: epoch.Add(50 * time.Minute)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := credential.ExposureOf(tt.now, credential.RotationStatus{Rotation: tt.rotation, OldEndTime: tt.oldEnd, SigningKey: tt.key})
			if !e.EndTime.Equal(tt.want) || e.RemovalLag != 20*time.Minute || e.TokenLife != 90*time.Minute {
				t.Errorf("it ends at %s, want %s (%+v)", e.EndTime, tt.want, e)
			}
			if tt.remedy == "" != (len(e.Remedies) == 0) || tt.remedy != "" && !strings.Contains(e.Remedies[0], tt.remedy) {
				t.Errorf("remedies are %q", e.Remedies)
			}
		})
	}
}

func TestPauseError_SaysWhichPause(t *testing.T) {
	err := error(&credential.PauseError{Pause: credential.Pause{Scope: "accounts/a", ExpireTime: epoch}})
	if !errors.Is(err, credential.ErrPaused) || !strings.Contains(err.Error(), "accounts/a, until 2026-03-01T12:00:00Z") {
		t.Errorf("it says %v", err)
	}
}

// TestLimit_IsTriedBeyondNowAndThen follows a limit that a policy set, was loosened, and is no more.
func TestLimit_IsTriedBeyondNowAndThen(t *testing.T) {
	timing := credential.Production()
	policy := 5 * time.Hour
	now := epoch
	f := facts()
	f.Application.LifeLimit = 4 * time.Hour
	var asked []time.Duration
	made := func() (life time.Duration) {
		for {
			now = now.Add(timing.WriteSpacing)
			a, ok := credential.Decide(now, f, timing).(credential.Add)
			if !ok {
				t.Fatalf("decides %+v", credential.Decide(now, f, timing))
			}
			c, v := f.Intending(now, deployment, fmt.Sprint("v", f.LastNumber))
			if a.Version.ID != "" {
				c, v = f.Resending(now, a.Version)
			}
			f = f.With(c)
			life = a.End.Sub(now)
			asked = append(asked, life)
			if life > policy {
				f = f.With(f.AddFailed(now, timing, v, credential.Failure{Kind: credential.TooLong, Code: "Policy"}))
				continue
			}
			f = f.With(f.Added(now, v, credential.MadePassword{KeyID: v.ID, StartTime: now, EndTime: a.End}, []byte("sealed")))
			f.Versions = nil // what becomes of it is another matter
			return life
		}
	}
	for range 7 {
		made()
	}
	if slices.ContainsFunc(asked, func(d time.Duration) bool { return d != 4*time.Hour }) {
		t.Errorf("seven versions were to live for %v", asked)
	}
	asked = nil
	if life := made(); life != 4*time.Hour || !cmp.Equal(asked, []time.Duration{8 * time.Hour, 4 * time.Hour}) {
		t.Errorf("the eighth lives for %s; asked for were %v", life, asked)
	}
	policy = 1000 * time.Hour
	for range 8 {
		made()
	}
	if f.Application.LifeLimit != 8*time.Hour {
		t.Errorf("with a looser policy the limit is %s", f.Application.LifeLimit)
	}
	for range 5 * 8 {
		made()
	}
	if life := made(); life != 72*time.Hour {
		t.Errorf("in the end one lives for %s", life)
	}
}
