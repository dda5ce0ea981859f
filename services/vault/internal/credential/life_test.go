package credential_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"phasekey.dev/services/vault/internal/credential"
)

const deployment = "test"

// world is an integration's life against an Entra that lags, flaps, errs and loses answers, with masters that die between
// any two steps. Whatever is decided is judged at once.
type world struct {
	t       *testing.T
	rand    *rand.Rand
	now     time.Time
	timing  credential.Timing
	facts   credential.Facts
	rows    map[string]credential.Version // all versions ever, as stored
	entra   map[string]*atEntra
	consent bool
	deleted bool
	purged  bool
	// binned is when every replica knows that the application was deleted.
	binned time.Time
	object string
	keys   int
	// streak counts, per version, real grants in a row, as the tenant saw them.
	streak map[string]int
	// faults is how many requests in a hundred go wrong.
	faults int
	// policy is the longest life of a password that Entra takes; 0 means any.
	policy time.Duration
	// withdrawn is set once consent was withdrawn: then nothing need work.
	withdrawn bool
	trace     []string
}

// atEntra is a password as Entra has it.
type atEntra struct {
	name    string
	visible time.Time // when every replica knows it
	end     time.Time
	removed bool
}

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	timing := credential.Production()
	w := &world{
		t: t, rand: r, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), timing: timing,
		rows: map[string]credential.Version{}, entra: map[string]*atEntra{}, streak: map[string]int{},
		faults: []int{0, 5, 30}[r.IntN(3)], consent: r.IntN(2) == 0,
		policy: []time.Duration{0, 0, 12 * time.Hour}[r.IntN(3)],
	}
	w.facts.Wanted = credential.Wanted{UID: "uid", Present: true, Period: []time.Duration{time.Hour, 6 * time.Hour, 24 * time.Hour}[r.IntN(3)], SpecDigest: "a"}
	w.facts.Application.IntegrationUID = "uid"
	// Somebody else's password on our application: never ours to remove.
	w.entra["foreign"] = &atEntra{name: "phasekey/other/x", end: w.now.AddDate(10, 0, 0)}
	return w
}

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace[max(0, len(w.trace)-40):] {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

// commit stores a change, and judges it.
func (w *world) commit(c credential.Change) {
	w.t.Helper()
	for _, m := range c.Moves {
		before, ok := w.rows[m.Version.ID]
		switch {
		case !ok || before.State != m.From:
			w.failf("move from %s of a version that is %s", m.From, before.State)
		case m.From != m.Version.State && !credential.Allowed(m.From, m.Version.State):
			w.failf("no transition from %s to %s", m.From, m.Version.State)
		case m.From != credential.Revoking && m.Version.State == credential.Revoking && before.Holders > 0 && (!m.DespiteHolders || !w.compromised(before)):
			w.failf("%s is revoked while it is held", before)
		case m.From != m.Version.State && w.facts.Wanted.Deleting && w.facts.Application.LeaseEndTime.IsZero():
			w.failf("%s is taken back before the leases have ended", before)
		case m.From == credential.Retiring && m.Version.State == credential.Revoking && m.DespiteHolders:
			w.judgeTakingBack(before)
		case m.From == credential.Retiring && m.Version.State == credential.Revoking && !w.facts.Wanted.Deleting && w.now.Sub(before.RetireTime) < w.timing.Retiring:
			w.failf("%s retired for %s only", before, w.now.Sub(before.RetireTime))
		case m.From == credential.Propagating && m.Version.State == credential.Active:
			w.judgePromotion(before)
		}
		w.rows[m.Version.ID] = m.Version
	}
	if c.Intent != nil {
		w.rows[c.Intent.ID] = *c.Intent
	}
	for _, m := range c.Rotations {
		w.judgeRotation(m.Rotation)
	}
	active := 0
	for _, v := range w.rows {
		if v.State == credential.Active {
			active++
		}
	}
	if active > 1 {
		w.failf("%d versions are ACTIVE", active)
	}
	w.facts = w.facts.With(c)
	w.judgeUsable()
}

func (w *world) judgePromotion(v credential.Version) {
	if w.streak[v.ID] < w.timing.Proofs {
		w.failf("%s is promoted after %d grants in a row", v, w.streak[v.ID])
	}
	if old, ok := w.facts.ByState(credential.Active); ok && old.Works(w.now, w.timing) && w.now.Sub(v.AddTime) < w.timing.Settling {
		w.failf("%s is promoted %s after its making although another one works", v, w.now.Sub(v.AddTime))
	}
}

// judgeUsable holds that once there was an ACTIVE version something that may be delivered from works at Entra, unless the
// customer took that away.
func (w *world) judgeUsable() {
	if w.withdrawn || w.facts.Wanted.Deleting || w.facts.Application.ActivateTime.IsZero() || w.inGap() {
		return
	}
	for _, v := range w.facts.Versions {
		if v.State == credential.Active || v.State == credential.Retiring {
			if p := w.entra[v.KeyID]; p != nil && !p.removed && w.now.Before(p.end) {
				return
			}
		}
	}
	w.failf("nothing works at Entra any more")
}

// breaks reports whether a request goes wrong, and how.
func (w *world) breaks() (credential.Failure, bool) {
	if w.rand.IntN(100) >= w.faults {
		return credential.Failure{}, false
	}
	kinds := []credential.FailureKind{credential.Again, credential.Lost, credential.Missing, credential.Refused}
	return credential.Failure{Kind: kinds[w.rand.IntN(len(kinds))], Code: "Some_Code", RetryAfter: time.Duration(w.rand.IntN(3)) * time.Minute}, true
}

// crashes reports whether the master dies here: what it was about to write is never written.
func (w *world) crashes() bool { return w.rand.IntN(200) < w.faults }

func (w *world) do(action credential.Action) {
	w.t.Helper()
	f := func() credential.Facts { return w.facts }
	w.trace = append(w.trace, fmt.Sprintf("%s %s", w.now.Format(time.RFC3339), action.Op()))
	switch a := action.(type) {
	case credential.Wait:
		w.wait(a)
	case credential.Apply:
		w.trace[len(w.trace)-1] += " " + a.Why
		w.commit(a.Change)
	case credential.Ensure:
		w.commit(f().Ensuring(w.now))
		failure, broken := w.breaks()
		if !broken || failure.Kind == credential.Lost {
			if w.object == "" || w.purged {
				w.object = "object"
			}
		}
		if w.crashes() {
			return
		}
		if broken {
			w.commit(f().ApplicationFailed(w.now, w.timing, failure))
			return
		}
		w.commit(f().Ensured(w.now, credential.MadeApplication{ObjectID: w.object, ClientID: "client", DisplayName: "name"}))
	case credential.Read:
		w.read()
	case credential.Add:
		w.add(a)
	case credential.AskHome:
		finding := []credential.Finding{credential.ConsentMissing, credential.PrincipalMissing, credential.SecretRefused}[min(2, w.rand.IntN(10))]
		w.commit(f().AskedHome(w.now, w.timing, a.Version, finding))
	case credential.Prove:
		before := w.streak[a.Version.ID]
		finding, oid := w.token(a.Version)
		if w.crashes() {
			w.streak[a.Version.ID] = before // nobody will ever know
			return
		}
		if finding == credential.Unsure {
			w.commit(f().Postponed(w.now, w.timing, a.Version, 0))
			return
		}
		w.commit(f().Proved(w.now, w.timing, a.Version, finding, "AADSTS1", oid))
	case credential.Ask:
		finding, oid := w.token(a.Version)
		if finding == credential.Unsure {
			w.commit(f().Postponed(w.now, w.timing, a.Version, 0))
			return
		}
		w.facts.Probe.Time, w.facts.Probe.VersionID, w.facts.Probe.Finding, w.facts.Probe.PrincipalObjectID = w.now, a.Version.ID, finding, oid
	case credential.Remove:
		if a.Version.State != credential.Revoking && a.Version.State != credential.Abandoned {
			w.failf("password of %s is removed", a.Version)
		}
		w.remove(a.Version.KeyID, func() credential.Change { return f().Removed(w.now, a.Version) },
			func(failure credential.Failure) credential.Change {
				return f().RemoveFailed(w.now, w.timing, a.Version, failure)
			})
	case credential.Sweep:
		for _, v := range w.rows {
			if v.KeyID == a.Stray.KeyID && v.State.HasPassword() {
				w.failf("password of %s is swept", v)
			}
		}
		w.remove(a.Stray.KeyID, func() credential.Change { return f().Swept(w.now, a.Stray) },
			func(failure credential.Failure) credential.Change {
				return f().ApplicationFailed(w.now, w.timing, failure)
			})
	case credential.EndLeases:
		w.endLeases()
	case credential.Delete:
		w.judgeDeletion()
		w.away(&w.deleted, w.now, f().Deleted, f().DeleteFailed)
	case credential.Purge:
		if !w.deleted {
			w.failf("purged before it was deleted")
		}
		w.away(&w.purged, w.binned, f().Purged, f().PurgeFailed)
	case credential.Forget:
		if w.object != "" && !w.purged {
			w.failf("forgotten while it exists")
		}
		w.commit(f().Forgotten(w.now))
	}
}

// endLeases releases what is held. A delivery that was under way may still come through.
func (w *world) endLeases() {
	if !w.facts.Wanted.Deleting {
		w.failf("the leases of an integration end that is wanted")
	}
	if w.crashes() {
		return
	}
	again := !w.facts.Application.LeaseEndTime.IsZero()
	for id, v := range w.rows {
		w.hold(id, -v.Holders)
	}
	w.commit(w.facts.LeasesEnded(w.now))
	if active, ok := w.facts.ByState(credential.Active); ok && !again && w.rand.IntN(3) == 0 {
		w.hold(active.ID, 1)
	}
}

// away is a request to delete or purge the application. A replica that has not heard of what came before does not find it, and
// neither does anybody once it is done.
func (w *world) away(done *bool, visible time.Time, did func(time.Time) credential.Change,
	failed func(time.Time, credential.Timing, credential.Failure) credential.Change,
) {
	failure, broken := w.breaks()
	if failure.Kind == credential.Missing {
		broken = false // that is judged by what is there
	}
	missing := *done || w.now.Before(visible) && w.rand.IntN(2) == 0
	switch {
	case missing && !broken:
		failure, broken = credential.Failure{Kind: credential.Missing}, true
	case !missing && (!broken || failure.Kind == credential.Lost && w.rand.IntN(2) == 0):
		*done = true
		if w.binned.IsZero() {
			w.binned = w.now.Add(time.Duration(w.rand.IntN(1200)) * time.Second)
		}
	}
	if w.crashes() {
		return
	}
	if broken {
		w.commit(failed(w.now, w.timing, failure))
		return
	}
	w.commit(did(w.now))
}

func (w *world) judgeDeletion() {
	if !w.facts.Wanted.Deleting {
		w.failf("an application is deleted that is wanted")
	}
	for _, v := range w.rows {
		if v.State.HasPassword() || v.State == credential.Revoking {
			w.failf("the application is deleted before the password of %s", v)
		}
	}
}

func (w *world) wait(a credential.Wait) {
	if a.Until.IsZero() {
		if w.facts.Application.ForgetTime.IsZero() {
			w.failf("waits for ever")
		}
		return
	}
	if !a.Until.After(w.now) {
		w.failf("waits for %s, which has come", a.Until)
	}
	// Time is looked at in small steps, for something may happen in between.
	w.now = w.now.Add(min(a.Until.Sub(w.now), 10*time.Minute))
}

func (w *world) read() {
	failure, broken := w.breaks()
	switch {
	case broken && failure.Kind == credential.Missing, w.object == "", w.deleted:
		w.commit(w.facts.ReadMissed(w.now))
	case broken:
		w.commit(w.facts.ApplicationFailed(w.now, w.timing, failure))
	default:
		made := credential.MadeApplication{ObjectID: w.object, ClientID: "client", DisplayName: "name"}
		for _, key := range slices.Sorted(maps.Keys(w.entra)) {
			if p := w.entra[key]; !p.removed && (!w.now.Before(p.visible) || w.rand.IntN(2) == 0) {
				made.Passwords = append(made.Passwords, credential.MadePassword{KeyID: key, Name: p.name, EndTime: p.end})
			}
		}
		w.commit(w.facts.ReadFound(w.now, deployment, made))
	}
}

func (w *world) add(a credential.Add) {
	var c credential.Change
	v := a.Version
	if v.ID == "" {
		c, v = w.facts.Intending(w.now, deployment, fmt.Sprintf("version-%d-%d", w.facts.LastNumber+1, w.rand.Uint32()))
	} else {
		c, v = w.facts.Resending(w.now, v)
	}
	w.commit(c)
	if w.crashes() {
		return
	}
	if w.policy > 0 && a.End.Sub(w.now) > w.policy {
		w.commit(w.facts.AddFailed(w.now, w.timing, v, credential.Failure{Kind: credential.TooLong}))
		return
	}
	failure, broken := w.breaks()
	if !broken || failure.Kind == credential.Lost && w.rand.IntN(2) == 0 {
		w.keys++
		key := fmt.Sprintf("key-%d", w.keys)
		w.entra[key] = &atEntra{name: v.Name, visible: w.now.Add(time.Duration(w.rand.IntN(1200)) * time.Second), end: a.End}
		if w.crashes() {
			return
		}
		if !broken {
			w.commit(w.facts.Added(w.now, v, credential.MadePassword{KeyID: key, Name: v.Name, StartTime: w.now, EndTime: a.End}, []byte("sealed")))
			return
		}
	}
	w.commit(w.facts.AddFailed(w.now, w.timing, v, failure))
}

// token is what the customer's tenant says; until a password is visible everywhere, the replicas disagree.
func (w *world) token(v credential.Version) (credential.Finding, string) {
	if _, broken := w.breaks(); broken {
		return credential.Unsure, ""
	}
	p := w.entra[v.KeyID]
	finding := credential.Works
	switch {
	case !w.consent:
		finding = credential.ConsentMissing
	case p == nil || p.removed || w.now.Before(p.visible) && w.rand.IntN(3) > 0:
		finding = credential.SecretRefused
	case !w.now.Before(p.end):
		finding = credential.SecretExpired
	}
	if finding != credential.Works {
		w.streak[v.ID] = 0
		return finding, ""
	}
	w.streak[v.ID]++
	return finding, "principal"
}

func (w *world) remove(key string, done func() credential.Change, failed func(credential.Failure) credential.Change) {
	failure, broken := w.breaks()
	if !broken || failure.Kind == credential.Lost {
		if p := w.entra[key]; p != nil {
			if !credential.OwnName(deployment, p.name) {
				w.failf("somebody else's password is removed")
			}
			p.removed = true
		}
	}
	if w.crashes() {
		return
	}
	if broken {
		w.commit(failed(failure))
		return
	}
	w.commit(done())
}

// event has something happen that nobody decided.
func (w *world) event() {
	active, ok := w.facts.ByState(credential.Active)
	switch w.rand.IntN(40) {
	case 0:
		w.consent = true
	case 1:
		if w.rand.IntN(20) == 0 {
			w.consent, w.withdrawn = false, true
		}
	case 2, 3:
		if ok {
			w.hold(active.ID, 1)
		}
	case 4, 5, 6:
		for _, v := range w.facts.Versions {
			if v.Holders > 0 {
				w.hold(v.ID, -1)
			}
		}
	case 7:
		w.facts.Wanted.SpecDigest = fmt.Sprint(w.rand.IntN(3))
	case 8:
		w.facts.Probe.WantTime = w.now
	case 9:
		// The answer of another replica, asked a moment ago by its own clock.
		if v, ok := w.facts.ProbeVersion(w.now, w.timing); ok && v.State != credential.Propagating {
			if finding, oid := w.token(v); finding != credential.Unsure {
				w.facts.Probe.Time, w.facts.Probe.VersionID = w.now.Add(time.Duration(w.rand.IntN(120)-60)*time.Second), v.ID
				w.facts.Probe.Finding, w.facts.Probe.PrincipalObjectID = finding, oid
			}
		}
	case 10:
		w.ask(credential.Rotation{Reason: credential.Scheduled})
	case 11:
		if w.rand.IntN(4) == 0 {
			w.ask(credential.Rotation{Reason: credential.Compromised, Immediately: w.rand.IntN(2) == 0})
		}
	case 12:
		if w.rand.IntN(4) == 0 {
			w.facts.PauseEndTime = w.now.Add(time.Duration(1 + w.rand.Int64N(int64(credential.LongestPause))))
		}
	case 13:
		w.facts.PauseEndTime = time.Time{}
	}
}

func (w *world) hold(id string, n int64) {
	v := w.rows[id]
	v.Holders += n
	w.rows[id] = v
	for i := range w.facts.Versions {
		if w.facts.Versions[i].ID == id {
			w.facts.Versions[i].Holders += n
		}
	}
}

func (w *world) run(until time.Time, events bool) {
	for steps := 0; w.now.Before(until); steps++ {
		if steps > 200_000 {
			w.failf("no end of steps")
		}
		action := credential.Decide(w.now, w.facts, w.timing)
		w.do(action)
		if wait, ok := action.(credential.Wait); ok {
			if wait.Until.IsZero() {
				return
			}
			if events {
				w.event()
			}
		} else {
			w.now = w.now.Add(time.Duration(w.rand.IntN(2000)) * time.Millisecond)
		}
	}
}

// live runs a life: ten days of trouble, then peace, in which everything must come right; then deletion while its secret is held, a
// day of it in trouble and a day in peace.
func live(t *testing.T, seed uint64) {
	w := newWorld(t, seed)
	trouble := w.faults
	w.run(w.now.Add(10*24*time.Hour), true)
	w.faults, w.consent, w.facts.PauseEndTime = 0, true, time.Time{}
	for id, v := range w.rows {
		w.hold(id, -v.Holders)
	}
	w.run(w.now.Add(2*24*time.Hour), false)

	if _, ok := w.facts.ByState(credential.Active); !ok {
		w.failf("after two days of peace nothing is ACTIVE")
	}
	if len(w.facts.Rotations) > 0 {
		w.failf("after two days of peace a rotation has not ended: %+v", w.facts.Rotations)
	}
	known := map[string]bool{}
	for _, v := range w.rows {
		if v.State.HasPassword() || v.State == credential.Revoking {
			known[v.KeyID] = true
		}
	}
	for key, p := range w.entra {
		switch {
		case key == "foreign" && p.removed:
			w.failf("somebody else's password is gone")
		case key != "foreign" && !p.removed && !known[key]:
			w.failf("password %s stays at Entra and nobody knows it", key)
		}
	}
	for _, c := range credential.Conditions(w.now, w.facts, w.timing) {
		if !c.True {
			w.failf("after two days of peace %s does not hold: %s", c.Type, c.Reason)
		}
	}

	w.facts.Wanted.Deleting = true
	active, _ := w.facts.ByState(credential.Active)
	w.hold(active.ID, 2)
	w.faults = trouble
	w.run(w.now.Add(24*time.Hour), false)
	w.faults = 0
	w.run(w.now.Add(24*time.Hour), false)
	if w.facts.Application.ForgetTime.IsZero() || !w.purged {
		w.failf("the integration is not gone two days after its deletion")
	}
}

func TestLife_KeepsItsInvariants(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			live(t, seed)
		})
	}
}

func FuzzLife(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(live)
}
