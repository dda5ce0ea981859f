package credential_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// version returns one that is in the ordinary course of its life at epoch.
func version(id string, number int64, state credential.State, edit ...func(*credential.Version)) credential.Version {
	v := credential.Version{
		ID: id, IntegrationUID: "uid", Number: number, State: state, Name: credential.PasswordName("test", id), KeyID: "key-" + id,
		IntendTime: epoch.Add(-10 * time.Hour), AddTime: epoch.Add(-10 * time.Hour), StartTime: epoch.Add(-10 * time.Hour), EndTime: epoch.Add(62 * time.Hour),
		PropagateTime: epoch.Add(-10 * time.Hour), ActivateTime: epoch.Add(-10 * time.Hour), ProveTime: epoch.Add(-time.Minute),
	}
	if state == credential.Intended {
		v.KeyID = ""
	}
	for _, e := range edit {
		e(&v)
	}
	return v
}

// facts returns those of a healthy integration with these versions.
func facts(versions ...credential.Version) credential.Facts {
	f := credential.Facts{
		Wanted: credential.Wanted{UID: "uid", Present: true, Period: 24 * time.Hour, SpecDigest: "spec"},
		Application: credential.Application{
			IntegrationUID: "uid", ObjectID: "object", ClientID: "client", SpecDigest: "spec", EnsureSendTime: epoch.Add(-11 * time.Hour),
			EnsureTime: epoch.Add(-11 * time.Hour), ReadTime: epoch.Add(-5 * time.Minute), ReadyTime: epoch.Add(-10 * time.Hour),
			Consented: true, ConsentTime: epoch.Add(-10 * time.Hour), ActivateTime: epoch.Add(-10 * time.Hour), ObserveTime: epoch.Add(-5 * time.Minute),
			PrincipalObjectID: "principal",
		},
		Versions: versions,
	}
	for _, v := range versions {
		f.LastNumber = max(f.LastNumber, v.Number)
	}
	return f
}

func unreadable(v *credential.Version) { v.Refusals, v.Reason = 3, "SecretUnreadable" }

func TestDecide(t *testing.T) {
	timing := credential.Production()
	ago := func(d time.Duration) time.Time { return epoch.Add(-d) }
	for _, tt := range []struct {
		name  string
		facts func() credential.Facts
		// want is the action's name, and for Apply also why.
		want string
		// check looks closer.
		check func(t *testing.T, a credential.Action)
	}{
		{name: "a new integration gets its application", want: "ensure_application", facts: func() credential.Facts {
			return credential.Facts{Wanted: credential.Wanted{UID: "uid", Present: true, SpecDigest: "spec"}}
		}},
		{name: "without an application nothing else is tried while making it is put off", want: "wait", facts: func() credential.Facts {
			return credential.Facts{Wanted: credential.Wanted{UID: "uid", Present: true, SpecDigest: "spec"}, Application: credential.Application{NextTime: epoch.Add(time.Minute)}}
		}},
		{name: "an integration that is not listed is left alone", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch }))
			f.Wanted.Present = false
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Unlisted {
				t.Error("the wait does not say so")
			}
		}},
		{name: "one that is not listed, half taken apart, is left alone", want: "wait", facts: func() credential.Facts {
			f := facts()
			f.Wanted.Present = false
			f.Application.LeaseEndTime, f.Application.DeleteTime = ago(time.Minute), ago(time.Minute)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Unlisted {
				t.Error("the wait does not say so")
			}
		}},
		{name: "one that is not listed since it was told to be gone is forgotten", want: "forget", facts: func() credential.Facts {
			f := facts()
			f.Wanted.Present = false
			f.Application.LeaseEndTime, f.Application.DeleteTime, f.Application.PurgeTime = ago(time.Minute), ago(time.Minute), ago(time.Minute)
			return f
		}},
		{name: "likewise one of which there never was an application", want: "forget", facts: func() credential.Facts {
			f := credential.Facts{Wanted: credential.Wanted{UID: "uid"}}
			f.Application.LeaseEndTime, f.Application.MissingReads = ago(time.Minute), 1
			return f
		}},
		{name: "but not one of which none was found yet", want: "wait", facts: func() credential.Facts {
			f := credential.Facts{Wanted: credential.Wanted{UID: "uid"}}
			f.Application.MissingReads = 1
			return f
		}},
		{name: "another name is given to the application", want: "ensure_application", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Wanted.SpecDigest = "other"
			return f
		}},
		{name: "an application that is not found is not made again in passing", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Wanted.SpecDigest = "other"
			f.Application.MissingReads, f.Application.MissingTime = 1, ago(time.Minute)
			return f
		}},
		{name: "the first password is made before anybody consented", want: "add_password", facts: func() credential.Facts {
			f := facts()
			f.Application.Consented, f.Application.ActivateTime = false, time.Time{}
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if end := a.(credential.Add).End; !end.Equal(epoch.Add(72 * time.Hour)) {
				t.Errorf("it ends at %s, want three periods later", end)
			}
		}},
		{name: "the end of what cannot be replaced is not missed", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.EndTime = epoch.Add(10 * time.Minute) }))
			f.Application.AddRefusal, f.Application.AddNextTime = "PolicyForbids", epoch.Add(30*time.Minute)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.Equal(epoch.Add(10 * time.Minute)) {
				t.Errorf("waits until %s, and the credential has ended before", w.Until)
			}
		}},
		{name: "writes to one application are spaced", want: "wait", facts: func() credential.Facts {
			f := facts()
			f.Application.WriteTime = ago(timing.WriteSpacing - time.Second)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.Equal(epoch.Add(time.Second)) {
				t.Errorf("waits until %s", w.Until)
			}
		}},
		{name: "an intent whose answer is lost is abandoned", want: "apply AnswerLost", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active), version("b", 2, credential.Intended, func(v *credential.Version) { v.SendTime = ago(time.Minute) }))
		}},
		{name: "an intent that was answered by a refusal is tried again", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active), version("b", 2, credential.Intended))
		}},
		{name: "the home tenant is asked before the customer's", want: "ask_home_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Staged))
			f.Application.ReadyTime, f.Application.Consented, f.Application.ActivateTime = time.Time{}, false, time.Time{}
			return f
		}},
		{name: "a staged version is kept for as long as nobody consents", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Staged, func(v *credential.Version) { v.Refusals = 50; v.PropagateTime = time.Time{} }))
			f.Application.Consented, f.Application.ObserveTime = false, ago(time.Second)
			return f
		}},
		{name: "a staged version is renewed when a third of its life is left", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Staged, func(v *credential.Version) { v.StartTime, v.EndTime = ago(48*time.Hour), epoch.Add(24*time.Hour) }))
			f.Application.Consented = false
			return f
		}},
		{name: "a staged version whose successor is there goes", want: "apply Superseded", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Staged), version("b", 2, credential.Staged))
			f.Application.Consented = false
			return f
		}},
		{name: "consent starts the proofs", want: "apply Consented", facts: func() credential.Facts { return facts(version("a", 1, credential.Staged)) }},
		{name: "consent that is lost ends them", want: "apply ConsentLost", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Propagating))
			f.Application.Consented = false
			return f
		}},
		{name: "a first version is proven at once", want: "prove", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.AddTime, v.PropagateTime = epoch, epoch }))
			f.Application.ActivateTime = time.Time{}
			return f
		}},
		{name: "one that replaces a working one is proven at the end of its settling", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active), version("b", 2, credential.Propagating, func(v *credential.Version) { v.AddTime, v.PropagateTime = epoch, epoch }))
		}, check: func(t *testing.T, a credential.Action) {
			if w, want := a.(credential.Wait), epoch.Add(20*time.Minute-8*7*time.Second); !w.Until.Equal(want) {
				t.Errorf("waits until %s, want %s", w.Until, want)
			}
		}},
		{name: "proofs are spaced", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.Proofs, v.ProbeTime = 3, ago(6*time.Second) }))
		}},
		{name: "seven proofs are not enough", want: "prove", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.Proofs = 7 }))
		}},
		{name: "eight are", want: "apply Proven", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.Proofs = 8 }))
		}, check: func(t *testing.T, a credential.Action) {
			if got := a.(credential.Apply).Change.Moves[0].Version.State; got != credential.Active {
				t.Errorf("it becomes %s", got)
			}
		}},
		{name: "promotion retires the one before in the same step", want: "apply Proven", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active), version("b", 2, credential.Propagating, func(v *credential.Version) { v.Proofs = 8; v.AddTime = ago(21 * time.Minute) }))
		}, check: func(t *testing.T, a credential.Action) {
			moves := a.(credential.Apply).Change.Moves
			if len(moves) != 2 || moves[0].Version.State != credential.Retiring || moves[1].Version.State != credential.Active {
				t.Errorf("moves are %v", moves)
			}
		}},
		{name: "what is refused too long is abandoned", want: "apply NeverProven", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.Refusals, v.PropagateTime = 9, ago(time.Hour) }))
		}},
		{name: "what only lacks answers is not", want: "prove", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Propagating, func(v *credential.Version) { v.PropagateTime = ago(9 * time.Hour) }))
		}},
		{name: "an ACTIVE version is replaced after its period", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime = ago(27 * time.Hour) }))
		}},
		{name: "and not long before", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime = ago(20 * time.Hour) }))
		}},
		{name: "a short-lived one with a third of its life left", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.StartTime, v.EndTime = ago(8*time.Hour), epoch.Add(4*time.Hour) }))
		}},
		{name: "a broken one at once", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Refusals = 3 }))
		}},
		{name: "a retiring version stays for an hour", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = ago(59 * time.Minute) }), version("b", 2, credential.Active))
		}},
		{name: "then it goes", want: "apply Retired", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = ago(time.Hour) }), version("b", 2, credential.Active))
		}},
		{name: "unless somebody holds it", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = ago(9 * time.Hour); v.Holders = 1 }), version("b", 2, credential.Active))
		}},
		{name: "or its successor was just refused", want: "ask_tenant", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.RetireTime = ago(9 * time.Hour) }), version("b", 2, credential.Active, func(v *credential.Version) { v.Refusals = 1 }))
		}},
		{name: "removal waits for ten seconds once its decision was read", want: "apply Committed", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.RevokeTime = ago(time.Minute) }), version("b", 2, credential.Active))
		}, check: func(t *testing.T, a credential.Action) {
			if at := a.(credential.Apply).Change.Moves[0].Version.NextTime; !at.Equal(epoch.Add(10 * time.Second)) {
				t.Errorf("it waits until %s", at)
			}
		}},
		{name: "while it waits", want: "wait", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.NextTime = epoch.Add(time.Second) }), version("b", 2, credential.Active))
		}},
		{name: "and no longer", want: "remove_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Revoking, func(v *credential.Version) { v.NextTime = epoch }), version("b", 2, credential.Active))
		}},
		{name: "a secret that cannot be opened is replaced at once", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, unreadable))
		}},
		{name: "also while nobody consents", want: "add_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Staged, unreadable))
			f.Application.Consented = false
			return f
		}},
		{name: "also while it is being proven", want: "add_password", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ActivateTime = ago(27 * time.Hour) }),
				version("b", 2, credential.Propagating, unreadable, func(v *credential.Version) { v.PropagateTime = epoch }))
		}},
		{name: "and goes when its successor is there", want: "apply Superseded", facts: func() credential.Facts {
			return facts(version("a", 1, credential.Active), version("b", 2, credential.Propagating, unreadable), version("c", 3, credential.Propagating))
		}},
		{name: "unless a restored database may not know who has it", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Recovery = 1 }), version("b", 2, credential.Propagating, unreadable),
				version("c", 3, credential.Propagating, func(v *credential.Version) { v.AddTime, v.Recovery = epoch, 1 }))
			f.Recovery = credential.Recovery{Number: 1, Time: ago(time.Hour)}
			return f
		}},
		{name: "a consented tenant is asked every hour", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Application.ObserveTime, f.Application.ReadTime = ago(time.Hour), ago(time.Minute)
			return f
		}},
		{name: "by the ACTIVE version while its successor is proven", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active), version("b", 2, credential.Propagating, func(v *credential.Version) { v.AddTime, v.PropagateTime = epoch, epoch }))
			f.Application.ObserveTime, f.Application.ReadTime = ago(time.Hour), ago(time.Minute)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if v := a.(credential.Ask).Version; v.ID != "a" {
				t.Errorf("it is asked by %s", v)
			}
		}},
		{name: "at once when somebody was refused a token", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Probe.WantTime = ago(time.Second)
			return f
		}},
		{name: "then too when nobody had answered before", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Attempts, v.NextTime = 9, epoch.Add(30*time.Minute) }))
			f.Probe.WantTime = ago(time.Second)
			return f
		}},
		{name: "later when nobody has answered since", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Attempts, v.NextTime = 2, epoch.Add(15*time.Second) }))
			f.Probe.WantTime = ago(10 * time.Second)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.Equal(epoch.Add(15 * time.Second)) {
				t.Errorf("waits until %s", w.Until)
			}
		}},
		{name: "the application is read every hour", want: "read_application", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Application.ReadTime = ago(time.Hour)
			return f
		}},
		{name: "a stray password seen twice goes", want: "sweep_password", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Strays = []credential.Stray{{KeyID: "k", FirstTime: ago(65 * time.Minute), LastTime: ago(5 * time.Minute)}}
			return f
		}},
		{name: "seen once it stays", want: "wait", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active))
			f.Strays = []credential.Stray{{KeyID: "k", FirstTime: ago(5 * time.Minute), LastTime: ago(5 * time.Minute)}}
			return f
		}},
		{name: "and while no version was proven since, which is seen to first", want: "ask_tenant", facts: func() credential.Facts {
			f := facts(version("a", 1, credential.Active, func(v *credential.Version) { v.ProveTime = ago(6 * time.Minute) }))
			f.Strays = []credential.Stray{{KeyID: "k", FirstTime: ago(65 * time.Minute), LastTime: ago(5 * time.Minute)}}
			return f
		}},
		{name: "a deleted integration's leases end first", want: "end_leases", facts: func() credential.Facts {
			f := deleting(facts(version("a", 1, credential.Active, func(v *credential.Version) { v.Holders = 2 }), version("b", 2, credential.Intended)))
			f.Application.LeaseEndTime = time.Time{}
			return f
		}},
		{name: "also when there is nothing else", want: "end_leases", facts: func() credential.Facts {
			f := deleting(credential.Facts{Wanted: credential.Wanted{UID: "uid", Present: true}})
			f.Application.LeaseEndTime = time.Time{}
			return f
		}},
		{name: "then it hands nothing out any more", want: "apply Deleting", facts: func() credential.Facts {
			return deleting(facts(version("a", 1, credential.Active)))
		}},
		{name: "waits for what is held nevertheless", want: "wait", facts: func() credential.Facts {
			return deleting(facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.Holders = 2 })))
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.Equal(epoch.Add(time.Second)) {
				t.Errorf("waits until %s", w.Until)
			}
		}},
		{name: "and ends leases again", want: "end_leases", facts: func() credential.Facts {
			f := deleting(facts(version("a", 1, credential.Retiring, func(v *credential.Version) { v.Holders = 2 })))
			f.Application.LeaseEndTime = ago(time.Minute)
			return f
		}},
		{name: "has its application deleted last", want: "delete_application", facts: func() credential.Facts { return deleting(facts()) }},
		{name: "then purged", want: "purge_application", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.DeleteTime = ago(10 * time.Second)
			return f
		}},
		{name: "not found where it is to be deleted it is looked for later", want: "wait", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.Absences, f.Application.AbsenceTime = 1, ago(59*time.Minute)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.Equal(epoch.Add(time.Minute)) {
				t.Errorf("waits until %s", w.Until)
			}
		}},
		{name: "once more", want: "delete_application", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.Absences, f.Application.AbsenceTime = 1, ago(time.Hour)
			return f
		}},
		{name: "not found in the bin likewise", want: "wait", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.DeleteTime, f.Application.Absences, f.Application.AbsenceTime = ago(time.Hour), 1, ago(59*time.Minute)
			return f
		}},
		{name: "and once more", want: "purge_application", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.DeleteTime, f.Application.Absences, f.Application.AbsenceTime = ago(2*time.Hour), 1, ago(time.Hour)
			return f
		}},
		{name: "then the registry told", want: "forget", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.DeleteTime, f.Application.PurgeTime = ago(20*time.Second), ago(10*time.Second)
			return f
		}},
		{name: "an application that may exist is looked for twice", want: "wait", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.ObjectID, f.Application.MissingReads, f.Application.MissingTime = "", 1, ago(time.Minute)
			return f
		}},
		{name: "what is gone is gone", want: "wait", facts: func() credential.Facts {
			f := deleting(facts())
			f.Application.ForgetTime = ago(time.Second)
			return f
		}, check: func(t *testing.T, a credential.Action) {
			if w := a.(credential.Wait); !w.Until.IsZero() {
				t.Errorf("it is looked at again at %s", w.Until)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := credential.Decide(epoch, tt.facts(), timing)
			name := got.Op()
			if a, ok := got.(credential.Apply); ok {
				name += " " + a.Why
			}
			if name != tt.want {
				t.Fatalf("decided %s, want %s", name, tt.want)
			}
			if tt.check != nil {
				tt.check(t, got)
			}
		})
	}
}

// deleting has the integration deleted, its leases ended already.
func deleting(f credential.Facts) credential.Facts {
	f.Wanted.Deleting = true
	f.Application.LeaseEndTime = epoch.Add(-time.Minute + time.Second)
	return f
}

func TestVersion_RotateTimeIsSpreadByATenth(t *testing.T) {
	timing := credential.Production()
	var early, late bool
	for _, id := range strings.Split("a b c d e f g h i j k l m n o p q r s t u v w x y z", " ") {
		v := version(id, 1, credential.Active)
		lead := timing.Settling + 56*time.Second
		off := v.RotateTime(24*time.Hour, timing).Add(lead).Sub(v.ActivateTime.Add(24 * time.Hour))
		if off < -144*time.Minute || off > 144*time.Minute {
			t.Errorf("%s is %s off its period", id, off)
		}
		if again := v.RotateTime(24*time.Hour, timing); !again.Equal(v.ActivateTime.Add(24*time.Hour + off - lead)) {
			t.Error("it changes from one look to the next")
		}
		early, late = early || off < -time.Hour, late || off > time.Hour
	}
	if !early || !late {
		t.Error("it is not spread")
	}
}

func TestTiming_Validate(t *testing.T) {
	if err := credential.Production().Validate(false); err != nil {
		t.Errorf("production: %v", err)
	}
	if err := credential.Development().Validate(true); err != nil {
		t.Errorf("development: %v", err)
	}
	err := credential.Development().Validate(false)
	for _, field := range []string{"settling", "retiring", "remove_delay", "proof_spacing", "consent_window", "propagation_limit"} {
		if err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("development's %s is taken for production: %v", field, err)
		}
	}
	impatient := credential.Production()
	impatient.Proofs, impatient.PropagationLimit = 7, time.Minute
	if err := impatient.Validate(true); err == nil || !strings.Contains(err.Error(), "propagation_limit") {
		t.Errorf("a limit that no version can keep is taken: %v", err)
	}
	if err := impatient.Validate(false); err == nil || !strings.Contains(err.Error(), "proofs") {
		t.Errorf("seven proofs are taken: %v", err)
	}
	wide := credential.Production()
	if wide.HoldMargin = 15 * time.Minute; wide.Validate(false) != nil {
		t.Errorf("a margin of a quarter of an hour is refused: %v", wide.Validate(false))
	}
	wide.HoldMargin++
	if err := wide.Validate(true); err == nil || !strings.Contains(err.Error(), "hold_margin: must be at most 15m0s") {
		t.Errorf("a wider margin is taken: %v", err)
	}
}

func TestAllowed_LetsNothingReturn(t *testing.T) {
	order := credential.States()
	for i, from := range order {
		for _, to := range order[:i+1] {
			back := from == credential.Propagating && to == credential.Staged // consent withdrawn
			if credential.Allowed(from, to) != back {
				t.Errorf("%s to %s is %t", from, to, !back)
			}
		}
	}
	for _, s := range order {
		if s.Final() != slices.Contains([]credential.State{credential.Revoked, credential.Abandoned}, s) {
			t.Errorf("%s final: %t", s, s.Final())
		}
		if s != credential.Propagating && credential.Allowed(s, credential.Active) {
			t.Errorf("%s becomes ACTIVE unproven", s)
		}
	}
}

func TestAllowed_IsWhatTheDiagramShows(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, diagram, _ := strings.Cut(string(text), "[*] --> INTENDED")
	diagram, _, _ = strings.Cut(diagram, "```")
	shown := map[[2]string]bool{}
	for line := range strings.Lines(diagram) {
		if words := strings.Fields(line); len(words) >= 3 && words[1] == "-->" {
			shown[[2]string{words[0], strings.TrimSuffix(words[2], ":")}] = true
		}
	}
	for _, from := range credential.States() {
		for _, to := range credential.States() {
			if arrow := [2]string{string(from), string(to)}; shown[arrow] != credential.Allowed(from, to) {
				t.Errorf("%s to %s is shown: %t", from, to, shown[arrow])
			}
		}
	}
}

func TestReadFound_KnowsItsOwn(t *testing.T) {
	f := facts(version("a", 1, credential.Active), version("b", 2, credential.Revoking))
	f.Strays = []credential.Stray{
		{KeyID: "old", FirstTime: epoch.Add(-time.Hour), LastTime: epoch.Add(-time.Hour)},
		{KeyID: "unseen", FirstTime: epoch.Add(-time.Hour), LastTime: epoch.Add(-time.Hour)}, // by this read: it does not agree
	}
	c := f.ReadFound(epoch, "test", credential.MadeApplication{ObjectID: "object", Passwords: []credential.MadePassword{
		{KeyID: "key-a", Name: credential.PasswordName("test", "a")},
		{KeyID: "key-b", Name: credential.PasswordName("test", "b")},
		{KeyID: "old", Name: credential.PasswordName("test", "z")},
		{KeyID: "new", Name: credential.PasswordName("test", "a")}, // a second one of the same name
		{KeyID: "other", Name: credential.PasswordName("test2", "a")},
		{KeyID: "hand", Name: "made by hand"},
	}})
	want := []credential.Stray{
		{KeyID: "old", Name: credential.PasswordName("test", "z"), FirstTime: epoch.Add(-time.Hour), LastTime: epoch},
		{KeyID: "new", Name: credential.PasswordName("test", "a"), FirstTime: epoch, LastTime: epoch},
	}
	if !slices.Equal(c.Strays, want) {
		t.Errorf("strays are %v, want %v", c.Strays, want)
	}
	if c.Application.ForeignPasswords != 2 {
		t.Errorf("%d foreign passwords, want 2", c.Application.ForeignPasswords)
	}
	f = f.With(c)
	for _, trusts := range []int{1, 0} {
		f = f.With(f.ReadFound(epoch.Add(time.Hour), "test", credential.MadeApplication{ObjectID: "object", ForeignTrusts: trusts}))
		if a := f.Application; a.ForeignPasswords != 0 || a.ForeignTrusts != trusts {
			t.Errorf("of %d foreign trusts and nothing else, %d and %d passwords are counted", trusts, a.ForeignTrusts, a.ForeignPasswords)
		}
	}
}

func TestVersion_HoldLimitIsBeforeItsEnd(t *testing.T) {
	v := version("a", 1, credential.Active)
	if got, want := v.HoldLimit(5*time.Minute), v.EndTime.Add(-5*time.Minute); !got.Equal(want) {
		t.Errorf("it may be held until %s, want %s", got, want)
	}
}

func TestConditions_SayWhyNothingIsMade(t *testing.T) {
	noCloud := func(f *credential.Facts) { f.Wanted.NoCloud = true }
	deleting := func(f *credential.Facts) { f.Wanted.Deleting = true }
	for _, tt := range []struct {
		name                    string
		edit                    []func(f *credential.Facts)
		application, credential string
	}{
		{"nothing is wrong", nil, "Replicated true", "Proven true"},
		{"its cloud is not configured", []func(f *credential.Facts){noCloud}, "Replicated true", "CloudUnknown false"},
		{"nor was when it was new", []func(f *credential.Facts){noCloud, func(f *credential.Facts) {
			f.Application, f.Versions = credential.Application{}, nil
		}}, "CloudUnknown false", "CloudUnknown false"},
		{"it is being deleted", []func(f *credential.Facts){deleting}, "Replicated true", "Deleting false"},
		{"its application is in the bin", []func(f *credential.Facts){deleting, func(f *credential.Facts) {
			f.Application.DeleteTime, f.Versions = epoch.Add(-time.Minute), nil
		}}, "Deleting false", "Deleting false"},
		{"its application was gone before", []func(f *credential.Facts){deleting, func(f *credential.Facts) { f.Application.MissingReads = 2 }}, "Deleting false", "Deleting false"},
		{"it cannot be deleted", []func(f *credential.Facts){deleting, noCloud}, "Replicated true", "CloudUnknown false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := facts(version("a", 1, credential.Active))
			for _, edit := range tt.edit {
				edit(&f)
			}
			all := credential.Conditions(epoch, f, credential.Production())
			if got := fmt.Sprint(all[0].Reason, " ", all[0].True); got != tt.application {
				t.Errorf("%s: %s, want %s", all[0].Type, got, tt.application)
			}
			if got := fmt.Sprint(all[2].Reason, " ", all[2].True); got != tt.credential {
				t.Errorf("%s: %s, want %s", all[2].Type, got, tt.credential)
			}
		})
	}
}
