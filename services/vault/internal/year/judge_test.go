package year_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/lease"
)

// grace is how long after an integration's first activation, and after every renewed consent, nothing is demanded.
const grace = 20 * time.Minute

// judge watches the invariants. What it knows of Entra comes from the simulator's journal, what it knows of the vault from its
// rows, what it knows of runners from their receipts.
type judge struct {
	w *world
	federation
	masters masterships

	mu     sync.Mutex
	counts map[string]int
	kills  map[string]int
	// seq is how far the journal was followed.
	seq     uint64
	secrets map[string]*secretLife // by key ID
	// present are those that were not removed, by application and key ID.
	present  map[string]map[string]*secretLife
	consents map[string][]turn // by integration UID
	// compromises are by integration UID.
	compromises map[string][]compromise
	// left is since when integrations are being deleted, by UID; removed are those that the vault says are gone for good.
	left    map[string]time.Time
	removed map[string]bool
	// rotated are the numbers of the newest versions that others have taken the place of, by integration UID.
	rotated map[string]int64
	// keys are the key IDs of secrets by their texts; answers are what masters were told about each credential, hearings about each application.
	keys     map[string]string
	answers  map[shown][]answer
	hearings map[string]*hearing
	// heardOf is when masters last had an answer about an application; waiting are those about which others had a refusal, for which a master shall ask.
	heardOf map[string]time.Time
	waiting map[string]bool
	// unready is when a credential was last said not to be, by integration UID.
	unready map[string]time.Time
	// watches are those that look whether something comes in time.
	watches sync.WaitGroup
	// purged are the applications that Entra has deleted for good, by client ID.
	purged map[string]bool
}

// secretLife is what Entra made of a secret.
type secretLife struct {
	application string
	added       time.Time
	// everywhere is from when on every replica of the token service takes it; refused is when the first one stops to.
	everywhere, refused time.Time
	removed             time.Time
	// grants are token requests by it that were granted.
	grants int
	// holds are those who were given its text.
	holds []*hold
}

// hold is a runner that has a secret, and may use it until then.
type hold struct {
	job   *job
	until time.Time
	// number is the version's.
	number int64
}

// turn is a change of a customer's mind.
type turn struct {
	at    time.Time
	given bool
}

func newJudge(w *world) *judge {
	return &judge{
		w: w, federation: newFederation(), masters: newMasterships(), counts: map[string]int{}, kills: map[string]int{}, secrets: map[string]*secretLife{},
		present: map[string]map[string]*secretLife{}, consents: map[string][]turn{}, compromises: map[string][]compromise{},
		rotated: map[string]int64{}, left: map[string]time.Time{}, removed: map[string]bool{}, purged: map[string]bool{},
		keys: map[string]string{}, answers: map[shown][]answer{}, hearings: map[string]*hearing{}, heardOf: map[string]time.Time{}, waiting: map[string]bool{}, unready: map[string]time.Time{},
	}
}

func (j *judge) count(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[what]++
}

func (j *judge) killed(step string) {
	j.w.weather.anew()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.kills[step]++
}

func (j *judge) consent(uid string, given bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.consents[uid] = append(j.consents[uid], turn{time.Now(), given})
}

// leaves notes that an integration is being deleted from now on: nothing more is delivered, and what was is taken back.
func (j *judge) leaves(uid string) {
	j.count("integrations deleted")
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left[uid] = time.Now()
}

// leftAt is since when an integration is being deleted, zero when it is not.
func (j *judge) leftAt(uid string) time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.left[uid]
}

// gone judges that an integration which the vault says is gone is so.
func (j *judge) gone(uid, clientID string) {
	j.follow()
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.left[uid].IsZero():
		j.w.fail("integration %s is said to be gone, and nobody has deleted it", uid)
	case !j.purged[clientID]:
		j.w.fail("integration %s is said to be gone, and its application is still there", uid)
	}
	if !j.removed[uid] {
		j.removed[uid] = true
		j.counts["integrations gone for good"]++
	}
}

// deletions judges that each integration that is being deleted is gone in a day in which everybody is there.
func (j *judge) deletions(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for uid, at := range j.left {
		allowed := 24*time.Hour + j.w.weather.overlap(span{at, now}, noSQL, noEntra, noGraph, throttled, lossy, noRedis, noRegistry)
		if !j.removed[uid] && now.Sub(at) > allowed {
			j.w.fail("integration %s has been deleted for %s, and is still there", uid, now.Sub(at))
		}
	}
}

// overhear learns the secrets in an answer, which must never be found in the log.
func (j *judge) overhear(body []byte) {
	if !bytes.Contains(body, []byte("secretText")) && !bytes.Contains(body, []byte("access_token")) {
		return
	}
	var answer struct {
		KeyID       string `json:"keyId"`
		SecretText  string `json:"secretText"`
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return
	}
	if answer.SecretText != "" {
		j.mu.Lock()
		j.keys[answer.SecretText] = answer.KeyID
		j.mu.Unlock()
	}
	for _, text := range []string{answer.SecretText, answer.AccessToken} {
		if text != "" {
			j.w.log.know(text)
		}
	}
}

// follow takes in what is new in the simulator's journal, and judges removals (I3).
func (j *judge) follow() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.w.sim.Journal(entrasim.Query{After: j.seq}) {
		j.seq = e.Seq
		switch {
		case e.Kind == "password.added":
			s := &secretLife{application: e.Application, added: e.Time, everywhere: e.Time}
			for _, m := range e.Visible.Login {
				s.everywhere = later(s.everywhere, time.Unix(0, m))
			}
			j.secrets[e.KeyID] = s
			if j.present[e.Application] == nil {
				j.present[e.Application] = map[string]*secretLife{}
			}
			j.present[e.Application][e.KeyID] = s
			j.counts["passwords made"]++
		case e.Kind == "password.removed":
			s := j.secrets[e.KeyID]
			s.removed, s.refused = e.Time, e.Time
			delete(j.present[s.application], e.KeyID)
			for i, m := range e.Visible.Login {
				if i == 0 || time.Unix(0, m).Before(s.refused) {
					s.refused = time.Unix(0, m)
				}
			}
			j.counts["passwords removed"]++
			for _, h := range s.holds {
				if left := j.left[h.job.integration.UID]; e.Time.Before(h.until) && (left.IsZero() || e.Time.Before(left)) && !j.excused(h.job.integration.UID, h.number, e.Time) {
					j.w.fail("I3: secret %s was removed at %s, and %s may use it until %s", e.KeyID, e.Time.UTC(), h.job.name, h.until.UTC())
				}
			}
		case e.Kind == "federatedCredential.added", e.Kind == "federatedCredential.removed":
			j.followTrust(e)
		case e.Kind == "application.purged":
			j.purged[e.Application] = true
		case e.Kind == entrasim.KindRequest && e.Operation == "login.token" && e.Status == 200 && e.Tenant != j.w.platform.Tenant:
			if s := j.secrets[e.KeyID]; s != nil {
				s.grants++
			}
		}
	}
}

// row is a version as the vault has it.
type row struct {
	id, keyID, signingKey, state               string
	number                                     int64
	add, activate, retire, revoke, remove, end time.Time
}

func (j *judge) rows(ctx context.Context, where string, args ...any) []row {
	var out []row
	err := j.w.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) (err error) {
		out, err = sqldb.Collect(ctx, tx, func(r sqldb.Row) (v row, err error) {
			var add, activate, retire, revoke, remove, end int64
			err = r.Scan(&v.id, &v.keyID, &v.signingKey, &v.state, &v.number, &add, &activate, &retire, &revoke, &remove, &end)
			v.add, v.activate, v.retire, v.revoke, v.remove, v.end = sqldb.Time(add), sqldb.Time(activate), sqldb.Time(retire), sqldb.Time(revoke), sqldb.Time(remove), sqldb.Time(end)
			return v, err
		}, `SELECT id, key_id, signing_key, state, number, add_time, activate_time, retire_time, revoke_time, remove_time, end_time FROM credential_versions WHERE `+where+` ORDER BY number`, args...)
		return err
	})
	if err != nil && ctx.Err() == nil {
		j.w.fail("read versions: %v", err)
	}
	return out
}

// receive judges what a runner was given, at the moment it has it: that it was recorded before (I6), proven and settled (I2).
func (j *judge) receive(ctx context.Context, b *job, d delivery.Delivery) {
	j.count("deliveries of " + string(d.Material))
	j.follow()
	now := time.Now()
	recorded, at, err := j.recorded(ctx, d)
	if err != nil {
		return // the world ends
	}
	if recorded != 1 {
		j.w.fail("I6: %s has generation %d of lease %s, of which there are %d records", b.name, d.Generation, d.LeaseUID, recorded)
	}
	if left := j.leftAt(b.integration.UID); !left.IsZero() && sqldb.Time(at).After(left) {
		j.w.fail("%s was given something of %s, which was deleted %s before", b.name, b.integration.Name, sqldb.Time(at).Sub(left))
	}
	j.gap(ctx, b, now)
	j.told(b, d, sqldb.Time(at))
	// It, and what it took the place of.
	all := j.rows(ctx, `integration_uid = $1 AND (number = $2 OR number < $2 AND retire_time > 0 AND retire_time =
		(SELECT activate_time FROM credential_versions WHERE integration_uid = $1 AND number = $2))`, b.integration.UID, d.Version)
	if len(all) == 0 {
		return
	}
	v := all[len(all)-1]
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.secrets[v.keyID]
	switch {
	case v.number != d.Version || s == nil && v.signingKey == "":
		j.w.fail("I2: %s was given version %d of %s, of which Entra knows nothing", b.name, d.Version, b.integration.Name)
		return
	case j.proofs(d.ClientID, v) < j.w.timing.Proofs:
		j.w.fail("I2: %s was given version %d of %s after %d proofs in a row", b.name, d.Version, b.integration.Name, j.proofs(d.ClientID, v))
	case now.Before(v.add.Add(j.w.timing.Settling)) && j.replacesWorking(d.ClientID, all, v):
		j.w.fail("I2: %s was given version %d of %s %s after it was made", b.name, d.Version, b.integration.Name, now.Sub(v.add))
	}
	if b.key = v.signingKey; d.Material == lease.FederatedToken && keyOf(d.Token.Expose()) != b.key {
		j.w.fail("I2: %s was given an assertion of version %d of %s by a key that it was not proven with", b.name, d.Version, b.integration.Name)
	}
	if d.Material == lease.ClientSecret {
		h := &hold{job: b, until: d.GrantExpireTime, number: d.Version}
		s.holds, b.holds = append(s.holds, h), append(b.holds, h)
	}
}

// recorded is how many records there are of a delivery, and when the newest is of. One to many at once is a row of its own at first.
func (j *judge) recorded(ctx context.Context, d delivery.Delivery) (n int, at int64, err error) {
	const kind, grants = `'CredentialDelivered'`, `(SELECT grant_uid FROM leases WHERE uid = $1)`
	var alone int
	err = j.w.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(SUM(alone), 0), COUNT(*), COALESCE(MAX(time), 0) FROM (
			SELECT 1 AS alone, time FROM audit_events WHERE lease_uid = $1 AND generation = $2 AND kind = `+kind+` AND grant_uid IN `+grants+`
			UNION ALL SELECT 0, e.value ->> 'time' FROM audit_fanouts f, json_each(CAST(f.content AS TEXT)) e
				WHERE e.value ->> 'lease_uid' = $1 AND e.value ->> 'generation' = $2 AND e.value ->> 'kind' = `+kind+` AND e.value ->> 'grant_uid' IN `+grants+`)`,
			d.LeaseUID, d.Generation).Scan(&alone, &n, &at)
	})
	if n > alone {
		j.count("deliveries recorded with others")
	}
	return n, at, err
}

// replacesWorking tells whether a version took the place of one that worked everywhere. The lock is held.
func (j *judge) replacesWorking(application string, all []row, v row) bool {
	return slices.ContainsFunc(all, func(before row) bool {
		return before.number < v.number && before.retire.Equal(v.activate) && slices.ContainsFunc(j.works(application, before, time.Now()), func(s span) bool {
			return !s.from.After(v.activate) && v.activate.Before(s.to)
		})
	})
}

// release ends what is claimed for a job.
func (j *judge) release(b *job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	for _, h := range b.holds {
		h.until = earlier(h.until, now)
	}
}

// gap judges that a runner which reads, and whose job goes on, always has a token that is valid.
func (j *judge) gap(ctx context.Context, b *job, now time.Time) {
	if b.held == nil || b.slow || !j.leftAt(b.integration.UID).IsZero() || b.request.Material != lease.AccessToken || !b.held.ExpireTime.Before(now) {
		return
	}
	j.count("runners without a token")
	window := span{b.held.IssueTime, now}
	if j.w.weather.overlap(window, noEntra, noSQL, noRegistry) > 10*time.Minute || !j.consented(b.integration.UID, window) || j.gapped(ctx, b.integration.UID, window) {
		return
	}
	rows := j.rows(ctx, `integration_uid = $1`, b.integration.UID)
	j.w.fail("%s had no token from %s to %s; it rained: %s\n%s", b.name, b.held.ExpireTime.UTC(), now.UTC(), j.w.weather.in(window), j.table(rows))
}

// consented tells whether consent was there all the time of a span.
func (j *judge) consented(uid string, in span) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	given := false
	for _, t := range j.consents[uid] {
		if t.at.After(in.from) && t.at.Before(in.to) {
			return false
		}
		if !t.at.After(in.from) {
			given = t.given
		}
	}
	return given
}

// demanded are the spans in which the integration has to have a version that works.
func (j *judge) demanded(uid string, first, now time.Time) []span {
	j.mu.Lock()
	defer j.mu.Unlock()
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
	if !from.IsZero() && from.Before(now) {
		out = append(out, span{from, now})
	}
	return out
}

// day judges what the last day has left: I1 and I4 by what all three have written down.
func (j *judge) day() {
	ctx := j.w.ctx
	j.follow()
	now := time.Now()
	for _, i := range j.w.registry.living() {
		j.integration(ctx, i, now)
	}
	j.deletions(now)
	j.forget(now)
	j.w.log.mu.Lock()
	defer j.w.log.mu.Unlock()
	for _, line := range j.w.log.leaks {
		j.w.fail("I7: a secret is in the log: %.200s", line)
	}
}

// forgetAfter is how long after its removal a secret is remembered: for longer than the vault keeps the row of its version.
const forgetAfter = 35 * 24 * time.Hour

func (j *judge) forget(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	maps.DeleteFunc(j.secrets, func(_ string, s *secretLife) bool { return !s.removed.IsZero() && now.Sub(s.removed) > forgetAfter })
}

// integration judges what has become of one up to now.
func (j *judge) integration(ctx context.Context, i *integration, now time.Time) {
	rows := j.rows(ctx, `integration_uid = $1`, i.UID)
	j.rotations(i, rows)
	j.oneActive(i, rows)
	j.oneWorks(ctx, i, rows, now)
	j.compromised(ctx, i, rows, now)
	j.noneUnknown(i, rows, now)
	j.untrusted(i, rows, now)
}

// rotations counts the versions that others have taken the place of.
func (j *judge) rotations(i *integration, rows []row) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, v := range rows {
		if !v.retire.IsZero() && v.number > j.rotated[i.UID] {
			j.rotated[i.UID] = v.number
			j.counts["rotations"]++
		}
	}
}

func (j *judge) oneActive(i *integration, rows []row) {
	for k, a := range rows {
		for _, b := range rows[k+1:] {
			if a.activate.IsZero() || b.activate.IsZero() {
				continue
			}
			if a.retire.IsZero() && b.retire.IsZero() || !a.retire.IsZero() && a.activate.Before(b.activate) && a.retire.After(b.activate) {
				j.w.fail("I1: versions %d and %d of %s were ACTIVE at the same time", a.number, b.number, i.Name)
			}
		}
	}
}

// oneWorks judges that at every moment which counts a version that the vault holds works at every replica.
func (j *judge) oneWorks(ctx context.Context, i *integration, rows []row, now time.Time) {
	var first time.Time
	var works []span
	client := j.w.registry.reported(i.UID).ClientID
	j.mu.Lock()
	for _, v := range rows {
		if !v.activate.IsZero() && (first.IsZero() || v.activate.Before(first)) {
			first = v.activate
		}
		works = append(works, j.works(client, v, now)...)
	}
	j.mu.Unlock()
	if first.IsZero() {
		if consent := j.demanded(i.UID, time.Time{}, now); len(consent) > 0 && consent[0].from.Add(6*time.Hour).Before(now) && j.w.weather.overlap(consent[0], noSQL, noEntra, noGraph, throttled, lossy, noRedis, noSecrets) < time.Hour {
			j.w.fail("%s has no version that is ACTIVE, %s after consent", i.Name, now.Sub(consent[0].from))
		}
		return
	}
	slices.SortFunc(works, func(a, b span) int { return a.from.Compare(b.from) })
	var demanded []span
	gaps := j.gaps(ctx, i.UID, now)
	for _, d := range j.demanded(i.UID, first, now) {
		demanded = append(demanded, without(d, gaps)...)
	}
	for _, d := range demanded {
		at := d.from
		for _, s := range works {
			if s.from.After(at) && !j.policyTook(rows, at, s.from) {
				break
			}
			at = later(at, s.to)
		}
		if at.Before(d.to) && !j.policyTook(rows, at, d.to) {
			j.w.fail("I1: %s had no version that works everywhere from %s on\n%s", i.Name, at.UTC(), j.table(rows))
			return
		}
	}
}

// policyTook tells whether a version came to its end because there could be no other: the policy forbade secrets, until not long before the next one works.
func (j *judge) policyTook(rows []row, from, to time.Time) bool {
	// How long it takes, at most, until it is tried again, and the new one has reached all of Entra; but for what else is in the way.
	const recovery = 2 * time.Hour
	other := j.w.weather.overlap(span{from, to}, noSQL, noEntra, noGraph, throttled, lossy, noRedis)
	ended := slices.ContainsFunc(rows, func(v row) bool { return v.end.Equal(from) })
	took := ended && j.w.weather.near(noSecrets, from, recovery) && j.w.weather.near(noSecrets, to, recovery+other)
	if took {
		j.count("integrations without a secret because of a policy")
	}
	return took
}

// noneUnknown judges that no secret stays at Entra which the vault does not know (I4).
func (j *judge) noneUnknown(i *integration, rows []row, now time.Time) {
	client := j.w.registry.reported(i.UID).ClientID
	known := map[string]bool{}
	for _, v := range rows {
		known[v.keyID] = v.remove.IsZero() && v.state != "REVOKED"
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for key, s := range j.present[client] {
		if known[key] {
			continue
		}
		since, consented := j.consentedSince(i.UID)
		if !consented {
			continue // a sweep waits for a sign that the ACTIVE version works
		}
		since = later(since, s.added)
		allowed := 3*j.w.timing.ReconcileInterval + 3*time.Hour + j.w.weather.overlap(span{since, now}, noSQL, noEntra, noGraph, throttled, lossy, noRedis)
		if now.Sub(since) > allowed {
			j.w.fail("I4: %s has had a secret (%s) since %s that the vault does not know\n%s", i.Name, key, s.added.UTC(), j.tableLocked(rows))
		}
	}
}

// consentedSince is when consent was last given that holds, false when none does. The lock is held.
func (j *judge) consentedSince(uid string) (since time.Time, holds bool) {
	for _, t := range j.consents[uid] {
		if t.given && !holds {
			since = t.at
		}
		holds = t.given
	}
	return since, holds
}

// table shows the newest versions.
func (j *judge) table(rows []row) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tableLocked(rows)
}

func (j *judge) tableLocked(rows []row) string {
	var out strings.Builder
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format("01-02T15:04:05")
	}
	for _, v := range rows[max(0, len(rows)-6):] {
		fmt.Fprintf(&out, "  version %d %s%s: added %s, active %s, retired %s, revoked %s, ends %s", v.number, v.state, v.signingKey, at(v.add), at(v.activate), at(v.retire), at(v.revoke), at(v.end))
		if s := j.secrets[v.keyID]; s != nil {
			fmt.Fprintf(&out, "; at Entra: everywhere %s, removed %s, refused %s, %d grants", at(s.everywhere), at(s.removed), at(s.refused), s.grants)
		}
		out.WriteString("\n")
	}
	return out.String()
}

// deaths is how many there were; at is at how many different steps.
func (j *judge) deaths() (total, at int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.kills {
		total += n
	}
	return total, len(j.kills)
}

// counted is how often any of these happened.
func (j *judge) counted(what ...string) (total int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, w := range what {
		total += j.counts[w]
	}
	return total
}

// report says what the world has been through.
func (j *judge) report() string {
	total, at := j.deaths()
	j.mu.Lock()
	defer j.mu.Unlock()
	var out strings.Builder
	fmt.Fprintf(&out, "%d kills, at %d different steps", total, at)
	for _, what := range slices.Sorted(maps.Keys(j.counts)) {
		fmt.Fprintf(&out, "\n  %-40s %d", what, j.counts[what])
	}
	out.WriteString("\n  kills by step:")
	for _, step := range slices.Sorted(maps.Keys(j.kills)) {
		fmt.Fprintf(&out, "\n    %-60s %d", step, j.kills[step])
	}
	return out.String()
}
