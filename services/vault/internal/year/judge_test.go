package year_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/lease"
)

// grace is how long after an integration's first activation, and after every renewed consent, nothing is demanded.
const grace = 20 * time.Minute

// judge watches the invariants. It is not for several at once.
type judge struct {
	knowledge

	// now is when the last event was.
	now      time.Time
	failures []string
	// due are what is to be judged later, in that order.
	due []due

	counts map[string]int
	kills  map[string]int
}

func newJudge() *judge {
	return &judge{knowledge: newKnowledge(), counts: map[string]int{}, kills: map[string]int{}}
}

// take judges what happened at a time, in nanoseconds of Unix time; before that, what was due before.
func (j *judge) take(at int64, e event) {
	now := time.Unix(0, at).UTC()
	for len(j.due) > 0 && j.due[0].at.Before(now) {
		next := j.due[0]
		j.due = j.due[1:]
		j.now = next.at
		next.judge()
	}
	j.now = now
	e.happen(j)
}

// due is something that is to be judged when all is known of a time.
type due struct {
	at    time.Time
	judge func()
}

// after has something judged after so long.
func (j *judge) after(d time.Duration, judge func()) {
	at := j.now.Add(d)
	n, _ := slices.BinarySearchFunc(j.due, at, func(next due, at time.Time) int {
		if next.at.After(at) {
			return 1
		}
		return -1 // behind those of the same time
	})
	j.due = slices.Insert(j.due, n, due{at, judge})
}

// fail notes what must not be. A world goes on for the rest of the hour, for what follows may explain it.
func (j *judge) fail(format string, args ...any) {
	if len(j.failures) < 20 {
		j.failures = append(j.failures, j.now.Format(time.RFC3339)+" "+fmt.Sprintf(format, args...))
	}
}

func (e broke) happen(j *judge) { j.fail("%s", e.What) }

func (e looked) happen(j *judge) { j.integration(e.Integration) }

func (e reported) happen(j *judge) {
	i := j.integrations[e.Integration]
	if e.Removed {
		j.gone(e.Integration, i.client)
		return
	}
	if i.client, i.ready = e.Client, e.Ready; !e.Ready {
		j.unready[e.Integration] = j.now
	}
}

// gone judges that an integration which the vault says is gone is so.
func (j *judge) gone(uid, client string) {
	switch {
	case j.left[uid].IsZero():
		j.fail("integration %s is said to be gone, and nobody has deleted it", uid)
	case !j.purged[client]:
		j.fail("integration %s is said to be gone, and its application is still there", uid)
	}
	if !j.removed[uid] {
		j.removed[uid] = true
		j.counts["integrations gone for good"]++
	}
}

// deletions judges that each integration that is being deleted is gone in a day in which everybody is there.
func (j *judge) deletions() {
	for _, uid := range slices.Sorted(maps.Keys(j.left)) {
		at := j.left[uid]
		allowed := 24*time.Hour + j.weather.overlap(span{at, j.now}, noSQL, noEntra, noGraph, throttled, lossy, noRedis, noRegistry)
		if !j.removed[uid] && j.now.Sub(at) > allowed {
			j.fail("integration %s has been deleted for %s, and is still there", uid, j.now.Sub(at))
		}
	}
}

// happen takes in what is new in the simulator's journal, and judges removals (I3).
func (e changed) happen(j *judge) {
	everywhere, anywhere := e.Time, e.Time // when the last replica of the token service comes to see it, and when the first
	for n, m := range e.Login {
		at := time.Unix(0, m).UTC()
		if everywhere = later(everywhere, at); n == 0 || at.Before(anywhere) {
			anywhere = at
		}
	}
	switch e.Kind {
	case "password.added":
		s := &secretLife{application: e.Application, added: e.Time, everywhere: everywhere}
		j.secrets[e.Key] = s
		if j.present[e.Application] == nil {
			j.present[e.Application] = map[string]*secretLife{}
		}
		j.present[e.Application][e.Key] = s
		j.counts["passwords made"]++
	case "password.removed":
		s := j.secrets[e.Key]
		s.removed, s.refused = e.Time, anywhere
		j.wasKnown(e.Key, s)
		delete(j.present[s.application], e.Key)
		j.counts["passwords removed"]++
		for _, h := range s.holds {
			if left := j.left[h.integration]; e.Time.Before(h.until) && (left.IsZero() || e.Time.Before(left)) && !j.excused(h.integration, h.number, e.Time) {
				j.fail("I3: secret %s was removed at %s, and %s may use it until %s", e.Key, e.Time.UTC(), h.job, h.until.UTC())
			}
		}
	case "federatedCredential.added":
		if j.trusts[e.Application] == nil {
			j.trusts[e.Application] = map[string]*trust{}
		}
		j.trusts[e.Application][e.Key] = &trust{from: everywhere}
		j.counts["federated credentials made"]++
	case "federatedCredential.removed":
		j.trusts[e.Application][e.Key].to = anywhere
		j.counts["federated credentials removed"]++
	case "application.purged":
		j.purged[e.Application] = true
	}
}

// happen judges what a runner was given, at the moment it has it: that it was recorded before (I6), proven and settled (I2).
func (e receipt) happen(j *judge) {
	j.counts["deliveries of "+string(e.Material)]++
	b := j.runs[e.Job]
	if b == nil {
		b = &run{}
		j.runs[e.Job] = b
	}
	name := j.integrations[e.Integration].name
	var at time.Time
	records := 0
	for _, r := range j.deliveries[generation{e.Lease, e.Generation}] {
		if r.Grant != e.Grant {
			continue
		}
		if records, at = records+1, later(at, sqldb.Time(r.Time)); r.Together {
			j.counts["deliveries recorded with others"]++
		}
	}
	if records != 1 {
		j.fail("I6: %s has generation %d of lease %s, of which there are %d records", e.Job, e.Generation, e.Lease, records)
	}
	if left := j.left[e.Integration]; !left.IsZero() && at.After(left) {
		j.fail("%s was given something of %s, which was deleted %s before", e.Job, name, at.Sub(left))
	}
	j.gap(b, e)
	j.told(b, e, at)
	b.held = e.lasting(b.held)
	v, ok := j.version(e.Integration, e.Version)
	if !ok {
		return
	}
	s := j.secrets[v.keyID]
	switch {
	case s == nil && v.signingKey == "":
		j.fail("I2: %s was given version %d of %s, of which Entra knows nothing", e.Job, e.Version, name)
		return
	case j.proofs(e.Client, v) < j.timing.Proofs:
		j.fail("I2: %s was given version %d of %s after %d proofs in a row", e.Job, e.Version, name, j.proofs(e.Client, v))
	case j.now.Before(v.add.Add(j.timing.Settling)) && j.replacesWorking(e.Client, j.versions[e.Integration], v):
		j.fail("I2: %s was given version %d of %s %s after it was made", e.Job, e.Version, name, j.now.Sub(v.add))
	}
	if b.key = v.signingKey; e.Material == lease.FederatedToken && e.Key != b.key {
		j.fail("I2: %s was given an assertion of version %d of %s by a key that it was not proven with", e.Job, e.Version, name)
	}
	if e.Material == lease.ClientSecret {
		if !s.removed.IsZero() && !j.excused(e.Integration, e.Version, j.now) && j.left[e.Integration].IsZero() {
			j.fail("I3: %s was given the secret of version %d of %s, which was removed at %s", e.Job, e.Version, name, s.removed.UTC())
		}
		h := &hold{job: e.Job, integration: e.Integration, until: e.GrantExpire, number: e.Version}
		s.holds, b.holds = append(s.holds, h), append(b.holds, h)
	}
}

// replacesWorking tells whether a version took the place of one that worked everywhere.
func (j *judge) replacesWorking(application string, all []row, v row) bool {
	return slices.ContainsFunc(all, func(before row) bool {
		return before.number < v.number && before.retire.Equal(v.activate) && slices.ContainsFunc(j.works(application, before), func(s span) bool {
			return !s.from.After(v.activate) && v.activate.Before(s.to)
		})
	})
}

// happen ends what is claimed for a job.
func (e released) happen(j *judge) {
	b := j.runs[e.Job]
	if b == nil {
		return
	}
	j.reads(b)
	for _, h := range b.holds {
		h.until = earlier(h.until, j.now)
	}
}

// lasting is what a runner has then: it goes on with the token that it held, if that is as good and ends later, as pkg/runner does.
func (e receipt) lasting(held *receipt) *receipt {
	alike := held != nil && e.Material == lease.AccessToken && held.Lease == e.Lease && held.Version == e.Version && e.Reason != delivery.Compromised
	if alike && held.Expire.After(e.Expire) {
		e.Issue, e.Expire = held.Issue, held.Expire
	}
	return &e
}

func (e over) happen(j *judge) {
	if b := j.runs[e.Job]; b != nil {
		j.reads(b)
	}
	delete(j.runs, e.Job)
}

// reads judges what a runner has that reads no longer.
func (j *judge) reads(b *run) {
	if b.held != nil && j.now.Sub(b.held.Expire) > onItsWay {
		j.gap(b, *b.held)
	}
	b.held = nil
}

// onItsWay is how long after its token a runner may be given the next one.
const onItsWay = 3 * time.Minute

// gap judges that a runner which reads, and whose job goes on, always has a token that is valid, but for as long as there was nobody to ask for one, or to give it, and ten minutes.
func (j *judge) gap(b *run, e receipt) {
	if b.held == nil || e.Slow || !j.left[e.Integration].IsZero() || e.Material != lease.AccessToken || !b.held.Expire.Before(j.now) {
		return
	}
	j.counts["runners without a token"]++
	window := span{b.held.Issue, j.now}
	rain := j.weather.overlap(window, noEntra, noSQL, noRegistry, nobody)
	if rain > 10*time.Minute && j.now.Sub(b.held.Expire) <= rain+10*time.Minute || !j.consented(e.Integration, window) || j.gapped(e.Integration, window) {
		return
	}
	j.fail("%s had no token from %s to %s; it rained: %s\n%s", e.Job, b.held.Expire.UTC(), j.now, j.weather.in(window), j.table(j.versions[e.Integration]))
}

// demanded are the spans in which the integration has to have a version that works.
func (j *judge) demanded(uid string, first time.Time) []span {
	var out []span
	from := time.Time{}
	for _, t := range j.consents[uid] {
		switch {
		case t.given && from.IsZero():
			from = later(t.at, first).Add(grace)
		case !t.given && !from.IsZero():
			if from.Before(t.at) {
				out = append(out, span{from, t.at})
			}
			from = time.Time{}
		}
	}
	if !from.IsZero() && from.Before(j.now) {
		out = append(out, span{from, j.now})
	}
	return out
}

// happen judges what the last day has left: I1 and I4 by what all three have written down.
func (day) happen(j *judge) {
	for _, uid := range j.order {
		j.integration(uid)
	}
	j.deletions()
	j.forget()
}

// integration judges what has become of one up to now.
func (j *judge) integration(uid string) {
	i, rows := j.integrations[uid], j.versions[uid]
	j.countRotations(uid, rows)
	j.oneActive(i, rows)
	j.oneWorks(uid, i, rows)
	j.replaced(uid, i, rows)
	j.noneUnknown(uid, i, rows)
	j.untrusted(i, rows)
}

// countRotations counts the versions that others have taken the place of.
func (j *judge) countRotations(uid string, rows []row) {
	for _, v := range rows {
		if !v.retire.IsZero() && v.number > j.rotated[uid] {
			j.rotated[uid] = v.number
			j.counts["rotations"]++
		}
	}
}

func (j *judge) oneActive(i *integrationKnown, rows []row) {
	for k, a := range rows {
		for _, b := range rows[k+1:] {
			if a.activate.IsZero() || b.activate.IsZero() {
				continue
			}
			if a.retire.IsZero() && b.retire.IsZero() || !a.retire.IsZero() && a.activate.Before(b.activate) && a.retire.After(b.activate) {
				j.fail("I1: versions %d and %d of %s were ACTIVE at the same time", a.number, b.number, i.name)
			}
		}
	}
}

// oneWorks judges that at every moment which counts a version that the vault holds works at every replica.
func (j *judge) oneWorks(uid string, i *integrationKnown, rows []row) {
	var first time.Time
	var works []span
	for _, v := range rows {
		if !v.activate.IsZero() && (first.IsZero() || v.activate.Before(first)) {
			first = v.activate
		}
		works = append(works, j.works(i.client, v)...)
	}
	if first.IsZero() {
		if consent := j.demanded(uid, time.Time{}); len(consent) > 0 && consent[0].from.Add(6*time.Hour).Before(j.now) && j.weather.overlap(consent[0], noSQL, noEntra, noGraph, throttled, lossy, noRedis, noSecrets) < time.Hour {
			j.fail("%s has no version that is ACTIVE, %s after consent", i.name, j.now.Sub(consent[0].from))
		}
		return
	}
	slices.SortFunc(works, func(a, b span) int { return a.from.Compare(b.from) })
	var demanded []span
	gaps := j.gaps(uid)
	for _, d := range j.demanded(uid, first) {
		demanded = append(demanded, without(d, gaps)...)
	}
	for _, d := range demanded {
		at := d.from
		for _, s := range works {
			if s.from.After(at) && !j.policyTook(rows, at, s.from) && !j.customerTook(uid, rows, at, s.from) {
				break
			}
			at = later(at, s.to)
		}
		if at.Before(d.to) && !j.policyTook(rows, at, d.to) && !j.customerTook(uid, rows, at, d.to) {
			j.fail("I1: %s had no version that works everywhere from %s on\n%s", i.name, at.UTC(), j.table(rows))
			return
		}
	}
}

// policyTook tells whether a version came to its end because there could be no other: the policy forbade secrets, until not long before the next one works.
func (j *judge) policyTook(rows []row, from, to time.Time) bool {
	// How long it takes, at most, until it is tried again, and the new one has reached all of Entra; but for what else is in the way.
	const recovery = 2 * time.Hour
	other := j.weather.overlap(span{from, to}, noSQL, noEntra, noGraph, throttled, lossy, noRedis)
	ended := slices.ContainsFunc(rows, func(v row) bool { return v.end.Equal(from) })
	took := ended && j.weather.near(noSecrets, from, recovery) && j.weather.near(noSecrets, to, recovery+other)
	if took {
		j.counts["integrations without a secret because of a policy"]++
	}
	return took
}

// customerTook tells whether the last version that worked came to its end while consent was withdrawn, or just after: no other could be proven before that.
func (j *judge) customerTook(uid string, rows []row, from, to time.Time) bool {
	// How long it takes, at most, until the tenant is asked again after hours in which it refused, and the next version is proven, by a master who may die over either; but for what else is in the way.
	const recovery = time.Hour
	var given time.Time
	for _, t := range j.consents[uid] {
		if t.given && !t.at.Add(grace).After(from) {
			given = t.at
		}
	}
	if !given.Add(grace).Equal(from) {
		return false
	}
	var last row // the one that was ACTIVE when consent came back
	for _, v := range rows {
		if !v.activate.IsZero() && v.activate.Before(given) {
			last = v
		}
	}
	ended := !last.end.IsZero() && !last.end.After(from)
	took := ended && to.Sub(given) <= recovery+j.weather.overlap(span{given, to}, noSQL, noEntra, noRedis, nobody)
	if took {
		j.counts["integrations without a secret because consent was away"]++
	}
	return took
}

// noneUnknown judges that no secret stays at Entra which the vault does not know (I4).
func (j *judge) noneUnknown(uid string, i *integrationKnown, rows []row) {
	known := map[string]bool{}
	for _, v := range rows {
		known[v.keyID] = v.remove.IsZero() && v.state != "REVOKED"
	}
	for _, key := range slices.Sorted(maps.Keys(j.present[i.client])) {
		s := j.present[i.client][key]
		if !known[key] && j.tooLong(uid, s) {
			j.fail("I4: %s has had a secret (%s) since %s that the vault does not know\n%s", i.name, key, s.added.UTC(), j.table(rows))
		}
	}
}

// wasKnown judges a secret that is removed, if no version of the vault's ever had it: a look may have missed it.
func (j *judge) wasKnown(key string, s *secretLife) {
	for uid, i := range j.integrations {
		theirs := i.client == s.application && j.left[uid].IsZero()
		if theirs && !slices.ContainsFunc(j.versions[uid], func(v row) bool { return v.keyID == key }) && j.tooLong(uid, s) {
			j.fail("I4: %s had a secret (%s) from %s to %s that the vault did not know", i.name, key, s.added.UTC(), s.removed.UTC())
		}
	}
}

// tooLong tells whether a secret that nobody knows has been at Entra for longer than it may.
func (j *judge) tooLong(uid string, s *secretLife) bool {
	since, consented := j.consentedSince(uid)
	if !consented {
		return false // a sweep waits for a sign that the ACTIVE version works
	}
	since = later(since, s.added)
	return j.now.Sub(since) > 3*j.timing.ReconcileInterval+3*time.Hour+j.weather.overlap(span{since, j.now}, noSQL, noEntra, noGraph, throttled, lossy, noRedis)
}
