package year_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
)

// shown is the credential of an application that a token request shows: a secret's key ID, or the ID of the key that an assertion is signed by.
type shown struct{ application, key string }

// answer is what a tenant said to a master that asked it for a token.
type answer struct {
	sent, heard time.Time
	granted     bool
	// holder is whose mastership it was.
	holder string
}

// hearing is what masters were told about an application since it was last granted a token.
type hearing struct {
	since    time.Time
	refusals int
	// shaken: not all of it was heard by one master, and what another one heard may have died with it.
	holder string
	shaken bool
	// known is set once it is enough to say so.
	known bool
}

// showing reads of a token request what it shows; nothing when it is none. It returns the request with its body unread.
func (j *judge) showing(request *http.Request) (*http.Request, shown, error) {
	if !strings.HasSuffix(request.URL.Path, "/token") {
		return request, shown{}, nil
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, shown{}, err
	}
	request = request.Clone(request.Context())
	request.Body = io.NopCloser(strings.NewReader(string(body)))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, shown{}, err
	}
	out := shown{application: form.Get("client_id"), key: keyOf(form.Get("client_assertion"))}
	if out.key == "" {
		j.mu.Lock()
		defer j.mu.Unlock()
		out.key = j.keys[form.Get("client_secret")]
	}
	return request, out, nil
}

// The codes by which a tenant says that it does not know the application, or does not want it; and those by which it says so of what the application shows.
var (
	unwelcome = map[int]bool{700016: true, 7000229: true, 7000112: true}                                                                                     //nolint:gochecknoglobals // a table
	unproven  = map[int]bool{7000215: true, 7000222: true, 70021: true, 70025: true, 700211: true, 700212: true, 700213: true, 7002138: true, 7000272: true} //nolint:gochecknoglobals // a table
)

// heard takes in what a customer's tenant answered a life, if it asked as a master.
func (j *judge) heard(ctx context.Context, l *life, what shown, sent time.Time, status int, body []byte) {
	if what.key == "" || j.w.weather.is(noSQL) { // what cannot be stored is as if it had not been heard
		return
	}
	var refusal struct {
		Codes []int `json:"error_codes"`
	}
	if status != http.StatusOK && (json.Unmarshal(body, &refusal) != nil || len(refusal.Codes) == 0) {
		return
	}
	granted := status == http.StatusOK
	if !granted && !unwelcome[refusal.Codes[0]] && !unproven[refusal.Codes[0]] {
		return // it says nothing
	}
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	m, ok := ctx.Value(mastershipKey{}).(election.Mastership)
	if !ok {
		if !granted && unwelcome[refusal.Codes[0]] && !j.waiting[what.application] {
			j.waiting[what.application] = true
			j.watches.Go(func() { j.looksAfter(what.application, now) })
		}
		return
	}
	j.heardOf[what.application] = now
	j.answers[what] = append(j.answers[what], answer{sent: sent, heard: now, granted: granted, holder: m.Holder})
	h := j.hearings[what.application]
	switch {
	case granted:
		delete(j.hearings, what.application)
		return
	case !unwelcome[refusal.Codes[0]]:
		return
	case h == nil:
		h = &hearing{since: now, holder: m.Holder}
		j.hearings[what.application] = h
	}
	h.refusals++
	h.shaken = h.shaken || h.holder != m.Holder
	if !h.known && h.refusals >= j.w.timing.ConsentFailures && now.Sub(h.since) >= j.w.timing.ConsentWindow {
		h.known = true
		j.watches.Go(func() { j.notReady(l, m, what.application, now, h.shaken) })
	}
}

// proofs is how many token requests by a version of the application were granted in a row before it was ACTIVE, each at least the spacing after the one
// before. The lock is held.
func (j *judge) proofs(application string, v row) (n int) {
	key := v.keyID
	if v.signingKey != "" {
		key = v.signingKey
	}
	var last time.Time
	all := j.answers[shown{application, key}]
	for k, a := range all {
		switch {
		case a.sent.Before(v.add):
		case a.heard.Truncate(time.Microsecond).After(v.activate):
			return n
		case !a.granted:
			// A master that goes on with the version has stored it; with any other it may have died.
			if k+1 < len(all) && all[k+1].holder == a.holder {
				n = 0
			}
		case n == 0 || a.sent.Sub(last) >= j.w.timing.ProofSpacing:
			n, last = n+1, a.heard.Truncate(time.Microsecond) // as the vault has it
		}
	}
	return n
}

// notReady judges that the registry was told within a minute that an integration has no credential which is of use, of which its master knows since then.
func (j *judge) notReady(l *life, m election.Mastership, application string, since time.Time, shaken bool) {
	said := func() bool {
		i := j.w.registry.of(application)
		if i == nil || !j.leftAt(i.UID).IsZero() {
			return true // deleted
		}
		now := time.Now()
		return !ready(j.w.registry.reported(i.UID).Conditions) || j.saidUnreadySince(i.UID, since) || j.consented(i.UID, span{now, now})
	}
	sleep(j.w.ctx, time.Minute)
	if said() {
		j.count("credentials said to be of no use within a minute")
		return
	}
	now := time.Now()
	if !shaken && l.answers() && j.reigns(m) && j.w.weather.overlap(span{since.Add(-time.Minute), now}, noSQL, noRedis, noRegistry) == 0 {
		j.w.fail("the tenant of %s has refused it since %s, and nobody says so", application, since.UTC())
		return
	}
	sleep(j.w.ctx, 4*time.Hour)
	if !said() && j.w.ctx.Err() == nil && j.w.weather.overlap(span{since, time.Now()}, noSQL, noEntra, noRedis, noRegistry) < time.Hour {
		j.w.fail("the tenant of %s has refused it since %s, and nobody has said so for hours", application, since.UTC())
		return
	}
	j.count("credentials said to be of no use, later")
}

// saidUnready notes that the registry was told that an integration has no credential which is of use.
func (j *judge) saidUnready(uid string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unready[uid] = time.Now()
}

func (j *judge) saidUnreadySince(uid string, at time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.unready[uid].Before(at)
}

// looksAfter judges that a tenant which refused a token for a runner is asked by the integration's master soon.
func (j *judge) looksAfter(application string, since time.Time) {
	sleep(j.w.ctx, poll+time.Minute)
	j.mu.Lock()
	delete(j.waiting, application)
	asked := !j.heardOf[application].Before(since)
	j.mu.Unlock()
	switch i := j.w.registry.of(application); {
	case asked:
		j.count("tenants asked after they refused a token")
	case i == nil || !j.leftAt(i.UID).IsZero() || !j.w.calm(since.Add(-3*lockTTL)): // a shard that lost its master has another by then
	default:
		j.w.fail("the tenant of %s refused a token for a runner at %s, and its master has not asked since", i.Name, since.UTC())
	}
}

// ready tells whether the last report has it that the integration's credential is.
func ready(conditions []credential.Condition) bool {
	for _, c := range conditions {
		if c.Type == credential.CredentialReady {
			return c.True
		}
	}
	return false
}
