package year_test

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// knowledge is all that the judge knows: the events that it takes, of Entra what the simulator's journal has, of the vault its rows, of runners their receipts.
type knowledge struct {
	federation
	weather *weather
	timing  credential.Timing

	// integrations are by UID; order has the UIDs of those that are wanted, as they came.
	integrations map[string]*integrationKnown
	order        []string
	// versions are the vault's rows by integration UID, by number; rotations those that were asked for, by ID; deliveries what the audit has of them.
	versions   map[string][]row
	rotations  map[string]asked
	deliveries map[generation][]recorded
	// masters are who has taken shards last: their holders.
	masters map[int64]string
	// answering are the lives that do.
	answering map[string]bool
	// runs are what runners have, by job.
	runs    map[string]*run
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
	// answers are what masters were told about each credential, hearings about each application.
	answers  map[shown][]answer
	hearings map[string]*hearing
	// heardOf is when masters last had an answer about an application; waiting are those about which others had a refusal, for which a master shall ask.
	heardOf map[string]time.Time
	waiting map[string]bool
	// unready is when a credential was last said not to be, by integration UID.
	unready map[string]time.Time
	// purged are the applications that Entra has deleted for good, by client ID.
	purged map[string]bool
	// grants are the token requests that were granted to lives, by secrets' key IDs, and those of keys.
	grants map[string]int
}

func newKnowledge() knowledge {
	return knowledge{
		federation: newFederation(), weather: newWeather(), integrations: map[string]*integrationKnown{}, versions: map[string][]row{}, rotations: map[string]asked{},
		deliveries: map[generation][]recorded{}, masters: map[int64]string{}, answering: map[string]bool{}, runs: map[string]*run{}, secrets: map[string]*secretLife{},
		present: map[string]map[string]*secretLife{}, consents: map[string][]turn{}, compromises: map[string][]compromise{},
		rotated: map[string]int64{}, left: map[string]time.Time{}, removed: map[string]bool{}, purged: map[string]bool{}, grants: map[string]int{},
		answers: map[shown][]answer{}, hearings: map[string]*hearing{}, heardOf: map[string]time.Time{}, waiting: map[string]bool{}, unready: map[string]time.Time{},
	}
}

// secretLife is what Entra made of a secret.
type secretLife struct {
	application string
	added       time.Time
	// everywhere is from when on every replica of the token service takes it; refused is when the first one stops to.
	everywhere, refused time.Time
	removed             time.Time
	// holds are those who were given its text.
	holds []*hold
}

// hold is that a job has a secret, and may use it until then.
type hold struct {
	job, integration string
	until            time.Time
	// number is the version's.
	number int64
}

// run is what is known of a job.
type run struct {
	// held is its last receipt, and key the signing key that it stands on, if it does.
	held  *receipt
	key   string
	holds []*hold
}

// generation is one of a lease's.
type generation struct {
	lease  string
	number int64
}

// integrationKnown is what the registry knows of one.
type integrationKnown struct {
	name      string
	federated bool
	// kindTime is when its kind was last changed.
	kindTime time.Time
	// client and ready are of the last report.
	client string
	ready  bool
}

// turn is a change of a customer's mind.
type turn struct {
	at    time.Time
	given bool
}

func (e begun) happen(j *judge) {
	j.timing = e.Timing
	clouds{nobody, true}.happen(j)
}

func (e counted) happen(j *judge) { j.counts[e.What]++ }

func (e killed) happen(j *judge) {
	j.weather.ended = j.now
	j.kills[e.Step]++
}

func (e wanted) happen(j *judge) {
	i := j.integrations[e.Integration]
	if i == nil {
		j.integrations[e.Integration] = &integrationKnown{name: e.Name, federated: e.Federated}
		j.order = append(j.order, e.Integration)
		return
	}
	i.federated, i.kindTime = e.Federated, j.now
}

func (e left) happen(j *judge) {
	j.counts["integrations deleted"]++
	j.left[e.Integration] = j.now
	j.order = slices.DeleteFunc(j.order, func(uid string) bool { return uid == e.Integration })
}

func (e consented) happen(j *judge) {
	j.consents[e.Integration] = append(j.consents[e.Integration], turn{j.now, e.Given})
}

func (e version) happen(j *judge) {
	all := j.versions[e.Integration]
	n, known := slices.BinarySearchFunc(all, e.Number, func(v row, number int64) int { return cmp.Compare(v.number, number) })
	switch {
	case e.Gone && known:
		all = slices.Delete(all, n, n+1)
	case e.Gone:
	case known:
		all[n] = e.row()
	default:
		all = slices.Insert(all, n, e.row())
	}
	if j.versions[e.Integration] = all; len(all) == 0 {
		delete(j.versions, e.Integration)
	}
}

func (e asked) happen(j *judge) {
	if j.rotations[e.ID] = e; e.Gone {
		delete(j.rotations, e.ID)
	}
}

func (e recorded) happen(j *judge) {
	g := generation{e.Lease, e.Generation}
	all := slices.DeleteFunc(j.deliveries[g], func(r recorded) bool { return r.Record == e.Record }) // it was one with others
	j.deliveries[g] = append(all, e)
}

// of is the UID of the integration that has an application, empty when none has that is not being deleted.
func (k *knowledge) of(application string) string {
	for _, uid := range k.order {
		if k.integrations[uid].client == application {
			return uid
		}
	}
	return ""
}

// version is the vault's row of one.
func (k *knowledge) version(uid string, number int64) (row, bool) {
	n := slices.IndexFunc(k.versions[uid], func(v row) bool { return v.number == number })
	if n < 0 {
		return row{}, false
	}
	return k.versions[uid][n], true
}

// consented tells whether consent was there all the time of a span.
func (k *knowledge) consented(uid string, in span) bool {
	given := false
	for _, t := range k.consents[uid] {
		if t.at.After(in.from) && t.at.Before(in.to) {
			return false
		}
		if !t.at.After(in.from) {
			given = t.given
		}
	}
	return given
}

// consentedSince is when consent was last given that holds, false when none does.
func (k *knowledge) consentedSince(uid string) (since time.Time, holds bool) {
	for _, t := range k.consents[uid] {
		if t.given && !holds {
			since = t.at
		}
		holds = t.given
	}
	return since, holds
}

const (
	// forgetAfter is how long after its removal a secret is remembered: for longer than the vault keeps the row of its version.
	forgetAfter = 35 * 24 * time.Hour
	// deliversFor is how long after its record something may be received.
	deliversFor = 2 * 24 * time.Hour
)

func (j *judge) forget() {
	maps.DeleteFunc(j.secrets, func(key string, s *secretLife) bool {
		over := !s.removed.IsZero() && j.now.Sub(s.removed) > forgetAfter
		if over {
			delete(j.grants, key)
			delete(j.answers, shown{s.application, key})
		}
		return over
	})
	maps.DeleteFunc(j.deliveries, func(_ generation, all []recorded) bool {
		return j.now.Sub(sqldb.Time(all[len(all)-1].Time)) > deliversFor
	})
}
