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
)

// shown is the credential of an application that a token request shows: a secret's key ID, or the ID of the key that an assertion is signed by.
type shown struct{ Application, Key string }

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
func (w *world) showing(request *http.Request) (*http.Request, shown, error) {
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
	out := shown{Application: form.Get("client_id"), Key: keyOf(form.Get("client_assertion"))}
	if out.Key == "" {
		w.mu.Lock()
		defer w.mu.Unlock()
		out.Key = w.keyIDs[form.Get("client_secret")]
	}
	return request, out, nil
}

// The codes by which a tenant says that it does not know the application, or does not want it; and those by which it says so of what the application shows.
var (
	unwelcome = map[int]bool{700016: true, 7000229: true, 7000112: true}                                                                                     //nolint:gochecknoglobals // a table
	unproven  = map[int]bool{7000215: true, 7000222: true, 70021: true, 70025: true, 700211: true, 700212: true, 700213: true, 7002138: true, 7000272: true} //nolint:gochecknoglobals // a table
)

// hears tells what a customer's tenant answered a life.
func (l *life) hears(ctx context.Context, what shown, sent time.Time, status int, body []byte) {
	if what.Key == "" {
		return
	}
	e := heard{Life: l.name, Shown: what, Sent: sent}
	if status != http.StatusOK {
		var refusal struct {
			Codes []int `json:"error_codes"`
		}
		if json.Unmarshal(body, &refusal) != nil || len(refusal.Codes) == 0 {
			return
		}
		e.Code = refusal.Codes[0]
	}
	if m, ok := mastership(ctx); ok {
		e.Shard, e.Holder = int64(m.Shard), m.Holder
	}
	l.r.w.journal.tell(e)
}

// happen takes in what a customer's tenant answered a life, if it asked as a master.
func (e heard) happen(j *judge) {
	granted := e.Code == 0
	if granted {
		j.grants[e.Shown.Key]++
	}
	if j.weather.is(noSQL) { // what cannot be stored is as if it had not been heard
		return
	}
	if !granted && !unwelcome[e.Code] && !unproven[e.Code] {
		return // it says nothing
	}
	now, application := j.now, e.Shown.Application
	if e.Holder == "" {
		if unwelcome[e.Code] && !j.waiting[application] {
			j.waiting[application] = true
			j.after(poll+time.Minute, func() { j.looksAfter(application, now) })
		}
		return
	}
	j.heardOf[application] = now
	j.answers[e.Shown] = append(j.answers[e.Shown], answer{sent: e.Sent, heard: now, granted: granted, holder: e.Holder})
	h := j.hearings[application]
	switch {
	case granted:
		delete(j.hearings, application)
		return
	case !unwelcome[e.Code]:
		return
	case h == nil:
		h = &hearing{since: now, holder: e.Holder}
		j.hearings[application] = h
	}
	h.refusals++
	h.shaken = h.shaken || h.holder != e.Holder
	if !h.known && h.refusals >= j.timing.ConsentFailures && now.Sub(h.since) >= j.timing.ConsentWindow {
		h.known = true
		shaken := h.shaken
		j.after(time.Minute, func() { j.notReady(e, now, shaken) })
	}
}

// proofs is how many token requests by a version of the application were granted in a row before it was ACTIVE, each at least the spacing after the one
// before.
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
		case n == 0 || a.sent.Sub(last) >= j.timing.ProofSpacing:
			n, last = n+1, a.heard.Truncate(time.Microsecond) // as the vault has it
		}
	}
	return n
}

// notReady judges that the registry was told within a minute that an integration has no credential which is of use, of which its master knows since then, by what it heard.
func (j *judge) notReady(e heard, since time.Time, shaken bool) {
	application := e.Shown.Application
	if j.saidUnready(application, since) {
		j.counts["credentials said to be of no use within a minute"]++
		return
	}
	if !shaken && j.answering[e.Life] && j.masters[e.Shard] == e.Holder && j.weather.overlap(span{since.Add(-time.Minute), j.now}, noSQL, noRedis, noRegistry) == 0 {
		j.fail("the tenant of %s has refused it since %s, and nobody says so", application, since)
		return
	}
	j.after(4*time.Hour, func() {
		if !j.saidUnready(application, since) && j.weather.overlap(span{since, j.now}, noSQL, noEntra, noRedis, noRegistry) < time.Hour {
			j.fail("the tenant of %s has refused it since %s, and nobody has said so for hours", application, since)
			return
		}
		j.counts["credentials said to be of no use, later"]++
	})
}

// saidUnready tells whether the registry was told since a moment that an application's integration has no credential which is of use, or need not be told any more.
func (j *judge) saidUnready(application string, since time.Time) bool {
	uid := j.of(application)
	if uid == "" {
		return true // deleted
	}
	return !j.integrations[uid].ready || !j.unready[uid].Before(since) || j.consented(uid, span{j.now, j.now})
}

// looksAfter judges that a tenant which refused a token for a runner is asked by the integration's master soon.
func (j *judge) looksAfter(application string, since time.Time) {
	delete(j.waiting, application)
	switch uid := j.of(application); {
	case !j.heardOf[application].Before(since):
		j.counts["tenants asked after they refused a token"]++
	case uid == "" || !j.weather.calm(since.Add(-3*lockTTL), j.now): // a shard that lost its master has another by then
	default:
		j.fail("the tenant of %s refused a token for a runner at %s, and its master has not asked since", j.integrations[uid].name, since)
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
