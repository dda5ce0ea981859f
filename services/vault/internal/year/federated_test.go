package year_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/signer"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

const (
	issuerURL = "https://issuer.example"
	// keysRemembered is how long Entra goes by the keys that it has read of an issuer.
	keysRemembered = 3 * time.Hour
)

// keyTiming is production's, with keys that sign for some days only.
func keyTiming() signingkey.Timing {
	t := signingkey.Production()
	t.Period = 5 * 24 * time.Hour
	return t
}

// sign makes the life an issuer.
func (l *life) sign(config signer.Config) error {
	l.signer = signer.New(config)
	site, err := signer.NewSite(l.signer, config.Log, nil)
	if err != nil {
		return err
	}
	l.site = site
	l.keeper = &signer.Keeper{Store: l.store, Keyring: l.r.w.keyring, Timing: keyTiming(), Poll: poll, Log: config.Log}
	return nil
}

// serve does a master's work; that of the first shard keeps the keys too.
func (l *life) serve(worker *rotation.Worker) func(ctx context.Context, m election.Mastership) error {
	return func(ctx context.Context, m election.Mastership) error {
		ctx = l.r.w.as(ctx, m)
		if m.Shard != 0 {
			return worker.Serve(ctx, m)
		}
		both, ctx := errgroup.WithContext(ctx)
		both.Go(func() error { return worker.Serve(ctx, m) })
		both.Go(func() error { return l.keeper.Serve(ctx, m) })
		return both.Wait()
	}
}

// keys are read with a mutex, for which others wait; a bubble's time stands still for as long, so a pause does not hold that up.
type keys struct{ *store.Store }

type unpausedKey struct{}

func (k keys) SigningKeys(ctx context.Context) ([]signingkey.Key, error) {
	return k.Store.SigningKeys(context.WithValue(ctx, unpausedKey{}, true))
}

// issuers is how Entra reads the issuer: from any replica that answers, and seldom.
type issuers struct {
	w *world

	mu   sync.Mutex
	kept map[string]document // by path
}

type document struct {
	text string
	time time.Time
}

// RoundTrip implements http.RoundTripper.
func (i *issuers) RoundTrip(request *http.Request) (*http.Response, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := request.URL.Path
	if time.Since(i.kept[at].time) >= keysRemembered {
		for _, r := range i.w.replicas {
			l := r.current()
			if l == nil || !l.answers() {
				continue
			}
			w := httptest.NewRecorder()
			if l.site.ServeHTTP(w, request); w.Code == http.StatusOK {
				i.kept[at] = document{w.Body.String(), time.Now()}
				i.w.tellKeys(w.Body.Bytes())
				break
			}
		}
	}
	if i.kept[at].text == "" {
		return nil, errors.New("no replica answers")
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(i.kept[at].text)), Request: request}, nil
}

// answers tells whether the life is neither dead nor paused.
func (l *life) answers() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.dead && l.resume == nil
}

// materials are what an integration of the kind gives away.
func materials(federated bool) []lease.Material {
	if federated {
		return []lease.Material{lease.AccessToken, lease.FederatedToken}
	}
	return []lease.Material{lease.AccessToken, lease.ClientSecret}
}

// federated tells of which kind an integration is.
func (r *registry) federated(i *integration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return i.Federated
}

// changeKind makes an integration one of the other kind, unless it was deleted meanwhile.
func (r *registry) changeKind(ctx context.Context, i *integration) {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	r.mu.Lock()
	there := slices.Contains(r.all, i)
	if there {
		i.Federated = !i.Federated
		i.DeliveryMaterials = materials(i.Federated)
	}
	is := i.Integration
	r.mu.Unlock()
	if there {
		r.w.journal.tell(wanted{Integration: is.UID, Name: is.Name, Federated: is.Federated})
		r.tell(ctx, store.Wanted{Integrations: []store.Integration{is}})
	}
}

// kinds has now and then an integration get on without a secret, or get one.
func (w *world) kinds(ctx context.Context) {
	dice := w.luck.dice("kinds")
	for ctx.Err() == nil {
		sleep(ctx, 12*time.Hour+time.Duration(dice.Int64N(int64(48*time.Hour))))
		// Those without a secret are few, and have as many turns.
		without := dice.IntN(2) == 0
		all := slices.DeleteFunc(w.registry.living(), func(i *integration) bool {
			return w.registry.federated(i) != without
		})
		if len(all) > 0 {
			w.count("changes of kind")
			w.registry.changeKind(ctx, all[dice.IntN(len(all))])
		}
	}
}

// keysInHand has the signing keys replaced out of turn, now and then because somebody may have them.
func (w *world) keysInHand(ctx context.Context) {
	dice := w.luck.dice("keys in hand")
	who := grant.Caller{Identity: "operator"}
	for ctx.Err() == nil {
		sleep(ctx, 24*time.Hour+time.Duration(dice.Int64N(int64(48*time.Hour))))
		all, err := w.store.SigningKeys(ctx)
		lost := map[signingkey.State]bool{}
		switch dice.IntN(5) {
		case 0, 1: // the one that new versions are made under
			lost[signingkey.Signing] = true
		case 2: // whatever there is
			lost[signingkey.Signing], lost[signingkey.Published] = true, true
		default:
			if err == nil {
				w.count("signing keys replaced out of turn")
				err = w.store.WantSigningKey(ctx, time.Now(), who)
			}
		}
		for _, k := range all {
			if lost[k.State] {
				w.journal.tell(dropped{k.ID})
				err = errors.Join(err, w.store.DropSigningKey(ctx, time.Now(), k.ID, who))
			}
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, signingkey.ErrNotFound) {
			w.fail("operator of keys: %v", err)
		}
	}
}

// federation is what is known of assertions, and of what they stand on.
type federation struct {
	// trusts are applications' federated credentials, by client ID and Entra's ID.
	trusts map[string]map[string]*trust
	// known are the spans in which Entra knew a signing key, the last without an end where it does; dropped is when somebody said that it is in other hands.
	known   map[string][]span
	dropped map[string]time.Time
}

// trust is what Entra made of a federated credential: from when on, and until when, every replica of the token service goes by it.
type trust struct{ from, to time.Time }

func newFederation() federation {
	return federation{trusts: map[string]map[string]*trust{}, known: map[string][]span{}, dropped: map[string]time.Time{}}
}

// tellKeys tells that Entra has read a document of the issuer's, if it is the one with the keys.
func (w *world) tellKeys(text []byte) {
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if json.Unmarshal(text, &set) != nil || set.Keys == nil {
		return
	}
	var read issuerRead
	for _, k := range set.Keys {
		read.Keys = append(read.Keys, k.ID)
	}
	w.journal.tell(read)
}

func (e issuerRead) happen(j *judge) {
	for _, id := range e.Keys {
		all := j.known[id]
		if len(all) == 0 {
			j.counts["signing keys"]++
		}
		if n := len(all); n == 0 || !all[n-1].to.IsZero() {
			j.known[id] = append(all, span{from: j.now})
		}
	}
	for id, all := range j.known {
		if last := &all[len(all)-1]; !slices.Contains(e.Keys, id) && last.to.IsZero() {
			last.to = j.now
		}
	}
}

func (e dropped) happen(j *judge) {
	j.counts["signing keys dropped"]++
	j.dropped[e.SigningKey] = j.now
}

// keyOf is the ID of the key that an assertion says it was signed by.
func keyOf(assertion string) string {
	head, _, _ := strings.Cut(assertion, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	var header struct {
		Key string `json:"kid"`
	}
	if err != nil || json.Unmarshal(text, &header) != nil {
		return ""
	}
	return header.Key
}

// stood are the spans in which an application had both of its federated credentials, everywhere.
func (j *judge) stood(application string) (out []span) {
	type edge struct {
		at  time.Time
		add int
	}
	var edges []edge
	for _, t := range j.trusts[application] {
		edges = append(edges, edge{t.from, 1})
		if !t.to.IsZero() {
			edges = append(edges, edge{later(t.from, t.to), -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	n := 0
	for k, e := range edges {
		end := j.now
		if k+1 < len(edges) {
			end = earlier(j.now, edges[k+1].at)
		}
		if n += e.add; n >= 2 && e.at.Before(end) {
			out = append(out, span{e.at, end})
		}
	}
	return out
}

// works are the spans in which a version of the application that was ACTIVE once works everywhere and is the vault's.
func (j *judge) works(application string, v row) (out []span) {
	if v.activate.IsZero() {
		return nil
	}
	whole := span{later(v.add, v.activate), j.now}
	limit := func(end time.Time) {
		if !end.IsZero() {
			whole.to = earlier(whole.to, end)
		}
	}
	limit(v.end)
	limit(v.revoke)
	if v.signingKey == "" {
		s := j.secrets[v.keyID]
		if s == nil {
			return nil
		}
		whole.from = later(whole.from, s.everywhere)
		limit(s.refused)
		if whole.from.Before(whole.to) {
			return []span{whole}
		}
		return nil
	}
	limit(j.dropped[v.signingKey])
	for _, known := range j.known[v.signingKey] {
		if known.to.IsZero() {
			known.to = j.now
		}
		for _, s := range j.stood(application) {
			if s = (span{later(later(s.from, known.from), whole.from), earlier(earlier(s.to, known.to), whole.to)}); s.from.Before(s.to) {
				out = append(out, s)
			}
		}
	}
	return out
}

// dropGaps are the spans in which an integration has nothing that works because its signing key was dropped: until the next version is ACTIVE, and has had time
// to settle.
func (j *judge) dropGaps(rows []row) (out []span) {
	for _, v := range rows {
		at := j.dropped[v.signingKey]
		// A replica that has yet to hear of it may sign a last proof.
		if at.IsZero() || v.activate.IsZero() || v.activate.After(at.Add(2*poll)) || !v.retire.IsZero() && v.retire.Before(at) {
			continue
		}
		gap := span{at, j.now}
		for _, next := range rows {
			if next.activate.After(at) && next.activate.Add(grace).Before(gap.to) && j.dropped[next.signingKey].IsZero() {
				gap.to = next.activate.Add(grace)
			}
		}
		out = append(out, gap)
	}
	return out
}

// inOtherHands tells whether a job's version stood on a key that was dropped before a moment; sure is false about a moment too close to tell.
func (j *judge) inOtherHands(b *run, at time.Time) (lost, sure bool) {
	dropped := j.dropped[b.key]
	return !dropped.IsZero() && dropped.Before(at), dropped.IsZero() || at.Sub(dropped).Abs() > time.Minute
}

// untrusted judges that an integration which has a secret again is not trusted without one for ever.
func (j *judge) untrusted(i *integrationKnown, rows []row) {
	if i.federated {
		return
	}
	since := i.kindTime
	for _, v := range rows {
		if v.signingKey == "" {
			continue
		}
		if v.state != "REVOKED" && v.state != "ABANDONED" {
			return
		}
		since = later(since, later(v.revoke, v.remove))
	}
	allowed := 6*time.Hour + j.weather.overlap(span{since, j.now}, noSQL, noEntra, noGraph, throttled, lossy, noRedis)
	for _, id := range slices.Sorted(maps.Keys(j.trusts[i.client])) {
		if t := j.trusts[i.client][id]; t.to.IsZero() && j.now.Sub(later(since, t.from)) > allowed {
			j.fail("I4: %s has had a secret again for %s, and is still trusted without (%s)\n%s", i.name, j.now.Sub(since), id, j.table(rows))
		}
	}
}

// use has a runner exchange what it was given for a token, as its tools do, which nothing but what people did may keep it from.
func (b *job) use(ctx context.Context, d *delivery.Delivery) {
	if d == nil || d.Material != lease.FederatedToken || !time.Now().Before(d.ExpireTime) {
		return
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "scope": {"https://management.azure.com/.default"}, "client_id": {d.ClientID},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {d.Token.Expose()},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, b.w.sim.Endpoints().Login+"/"+d.TenantID+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	must(b.w.t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := b.w.sim.Transport().RoundTrip(request)
	if err != nil {
		return // the world ends
	}
	text, err := io.ReadAll(response.Body)
	must(b.w.t, err)
	said := exchange{Job: b.name, Integration: b.integration.UID, Client: d.ClientID, Version: d.Version}
	if response.StatusCode != http.StatusOK {
		said.Refusal = fmt.Sprintf("%d %.300s", response.StatusCode, text)
		b.w.follow()
	}
	b.w.journal.tell(said)
}

// happen judges how the token service has answered a runner's assertion.
func (e exchange) happen(j *judge) {
	if e.Refusal == "" {
		j.counts["assertions exchanged"]++
		return
	}
	if j.weather.is(noEntra) || !j.left[e.Integration].IsZero() || !j.consented(e.Integration, span{j.now.Add(-grace), j.now}) {
		return
	}
	v, ok := j.version(e.Integration, e.Version)
	if !ok {
		return
	}
	v.revoke, v.end = time.Time{}, time.Time{} // what is given away lives on
	everywhere := slices.ContainsFunc(j.works(e.Client, v), func(s span) bool { return s.to.Equal(j.now) })
	if !j.dropped[v.signingKey].IsZero() || !everywhere && j.now.Before(v.activate.Add(grace)) { // as the first one may be
		j.counts["assertions refused, as they may be"]++
		return
	}
	j.fail("%s was given an assertion of version %d of %s, which was refused: %s", e.Job, e.Version, j.integrations[e.Integration].name, e.Refusal)
}
