package year_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/redistest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/entra"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/keyring"
	"phasekey.dev/services/vault/internal/keyring/keystore"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

const (
	deployment  = "year"
	redirectURI = "https://broker.example/consent/callback"
	account     = "acme"
)

// settings are what a world is made by.
type settings struct {
	seed         uint64
	integrations int
	// federated: one of so many integrations has no secret.
	federated int
	leases    int
	days      int
	replicas  int
	// killChance is that of a death at each write and each request; pauseChance that of a pause with a request on its way, and masterPauseChance with one
	// of a master's, who then learns an answer for which he may not be master any more.
	killChance, pauseChance, masterPauseChance float64
	// proofs are demanded, unless it is 0 and the vault's own number is.
	proofs int
}

// world is one seed's.
type world struct {
	t     *testing.T
	ctx   context.Context //nolint:containedctx // its end is the world's
	set   settings
	luck  *luck
	start time.Time

	sim      *entrasim.Simulator
	platform entrasim.Platform
	// secretFile has the platform's own secret.
	secretFile string
	timing     credential.Timing
	db         *sqldb.DB
	store      *store.Store // the harness' own
	keyring    *keyring.Keyring
	registry   *registry
	journal    *journal
	log        *log
	replicas   []*replica

	// days are those that were lived through.
	days int

	// followed is how far the simulator's journal was.
	following sync.Mutex
	followed  uint64

	mu sync.Mutex
	// keyIDs are those of secrets, by their texts.
	keyIDs map[string]string
}

// fail notes what must not be.
func (w *world) fail(format string, args ...any) { w.journal.tell(broke{fmt.Sprintf(format, args...)}) }

func (w *world) count(what string) { w.journal.tell(counted{what}) }

// leaving tells whether an integration is being deleted.
func (w *world) leaving(uid string) (is bool) {
	w.journal.ask(func(j *judge) { is = !j.left[uid].IsZero() })
	return is
}

// overhear learns the secrets in an answer, which must never be found in the log.
func (w *world) overhear(body []byte) {
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
		w.mu.Lock()
		w.keyIDs[answer.SecretText] = answer.KeyID
		w.mu.Unlock()
	}
	for _, text := range []string{answer.SecretText, answer.AccessToken} {
		if text != "" {
			w.log.know(text)
		}
	}
}

// timing is production's, asked less often.
func stretched() credential.Timing {
	t := credential.Production()
	t.ReconcileInterval, t.ConsentInterval = 3*time.Hour, 3*time.Hour
	return t
}

// newWorld is to be called in a bubble.
func newWorld(t *testing.T, set settings, told *journal) *world {
	t.Helper()
	w := &world{t: t, set: set, luck: newLuck(set.seed), start: time.Now(), timing: stretched(), journal: told, log: newLog(), keyIDs: map[string]string{}}
	demanded := w.timing
	demanded.Proofs = cmp.Or(set.proofs, demanded.Proofs)
	told.tell(begun{set.seed, demanded})
	var err error
	w.sim, err = entrasim.New(entrasim.Config{
		Seed: set.seed,
		Lags: entrasim.Lags{
			Graph: entrasim.Range{Max: time.Minute}, Application: entrasim.Range{Max: 5 * time.Minute}, Secret: entrasim.Range{Max: 20 * time.Minute},
			Principal: entrasim.Range{Max: 5 * time.Minute}, Removal: entrasim.Range{Max: 10 * time.Minute},
		},
		Issuers: &issuers{w: w, kept: map[string]document{}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, w.sim.Close()) })
	home, err := w.sim.CreateTenant(entrasim.NewTenant{DisplayName: "Platform", Verified: true})
	must(t, err)
	w.platform, err = w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID, SecretLife: 2 * 366 * 24 * time.Hour})
	must(t, err)

	w.secretFile = filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(w.secretFile, []byte(w.platform.ClientSecret), 0o600))

	migrations, err := store.Migrations()
	must(t, err)
	w.db = sqldbtest.Watch(t, migrations, watched, func(changes []sqldbtest.Change) { w.journal.tell(eventsOf(changes)...) })
	w.store = store.New(w.db, audittest.Keys(1))
	must(t, w.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, shards) }))
	kek := "file://" + filepath.Join(t.TempDir(), "kek")
	must(t, keyring.Init(t.Context(), kek, keystore.New(w.db)))
	w.keyring, err = keyring.Open(t.Context(), keystore.New(w.db), kek)
	must(t, err)

	w.registry = newRegistry(w)
	for range set.integrations {
		w.registry.add(t.Context())
	}
	redis := redistest.Mini(t)
	for i := range set.replicas {
		w.replicas = append(w.replicas, &replica{w: w, name: fmt.Sprintf("vault-%d", i), link: redis.Link(t)})
	}
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// directory speaks to the simulator as one life.
func (w *world) directory(transport http.RoundTripper) (*entra.Directory, error) {
	at := w.sim.Endpoints()
	var parsed []*url.URL
	for _, text := range []string{at.Login, at.Graph, at.ResourceManager} {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, u)
	}
	return entra.New(entra.Config{
		Login: parsed[0], Graph: parsed[1], ResourceManager: parsed[2], HomeTenantID: w.platform.Tenant, ClientID: w.platform.ClientID,
		Credential: entra.Credential{SecretFile: w.secretFile}, Transport: transport,
	})
}

// run lets the world turn for its days, and returns when everything in it has come to rest.
func (w *world) run(ctx context.Context, progress func(day int)) {
	ctx, end := context.WithCancel(ctx)
	w.ctx = ctx
	var all sync.WaitGroup
	for _, r := range w.replicas {
		all.Go(func() { r.run(ctx) })
	}
	all.Go(func() { w.registry.run(ctx) })
	all.Go(func() { w.blow(ctx) })
	all.Go(func() { w.policies(ctx) })
	all.Go(func() { w.customers(ctx) })
	all.Go(func() { w.comeAndGo(ctx) })
	all.Go(func() { w.operators(ctx) })
	all.Go(func() { w.kinds(ctx) })
	all.Go(func() { w.keysInHand(ctx) })
	for i := range w.set.leases {
		all.Go(func() { w.runner(ctx, fmt.Sprintf("runner-%d", i)) })
	}
	for hour := 1; hour <= 24*w.set.days && len(w.failed()) == 0; hour++ {
		sleep(ctx, time.Hour)
		w.follow()
		if hour%24 == 0 {
			w.log.reveal(w.fail)
			w.journal.tell(day{})
			w.days = hour / 24
			progress(w.days)
		}
	}
	end()
	all.Wait()
}

func (w *world) failed() (all []string) {
	w.journal.ask(func(j *judge) { all = j.failures })
	return all
}

// integration is one that the registry wants.
type integration struct {
	store.Integration

	administrator string
	project       store.Project
	attachment    store.Attachment
}

// registry is the one service that does not run here: what it wants goes into the vault's copy as its feed would put it.
type registry struct {
	w *world
	// turn has one place: changes are told one after another. It is no mutex, for waiting for one stops a bubble's time.
	turn     chan struct{}
	revision int64

	mu   sync.Mutex
	all  []*integration
	made int // integrations, in all
	// conditions are the last report on each integration, by UID.
	conditions map[string]rotation.Report
	// gone are the UIDs of those that the vault has removed, and is yet to be told so.
	gone []string
}

func newRegistry(w *world) *registry {
	return &registry{w: w, turn: make(chan struct{}, 1), conditions: map[string]rotation.Report{}}
}

// add makes a customer, with an integration that is attached to a project.
func (r *registry) add(ctx context.Context) {
	tenant, err := r.w.sim.CreateTenant(entrasim.NewTenant{DisplayName: "Customer"})
	must(r.w.t, err)
	r.mu.Lock()
	n := r.made
	r.made++
	administrator := fmt.Sprintf("admin-%d@customer.example", n)
	_, err = r.w.sim.CreatePerson(entrasim.Person{Tenant: tenant.ID, UserName: administrator, Admin: true})
	must(r.w.t, err)
	uid := uuid.NewString()
	i := &integration{
		Integration: store.Integration{
			UID: uid, Name: fmt.Sprintf("accounts/%s/integrations/i%d", account, n), DisplayName: fmt.Sprintf("Integration %d", n),
			TenantID: tenant.ID, Cloud: "public", DefaultSubscriptionID: uuid.NewString(), RotationPeriod: 24 * time.Hour,
			Federated: n%r.w.set.federated == 1, DeliveryMaterials: materials(n%r.w.set.federated == 1),
		},
		administrator: administrator,
		project:       store.Project{UID: uuid.NewString(), Name: fmt.Sprintf("accounts/%s/projects/p%d", account, n)},
	}
	if n%5 == 4 {
		i.RotationPeriod = 4 * time.Hour
	}
	i.attachment = store.Attachment{UID: uuid.NewString(), IntegrationUID: uid, ProjectUID: i.project.UID, Reads: true, Writes: true}
	r.mu.Unlock()
	r.w.journal.tell(wanted{Integration: uid, Name: i.Name, Federated: i.Federated})
	r.publish(ctx, store.Wanted{
		Integrations: []store.Integration{i.Integration}, Projects: []store.Project{i.project}, Attachments: []store.Attachment{i.attachment},
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, i)
}

// publish tells the vault of a change; with none, that there is none.
func (r *registry) publish(ctx context.Context, changed store.Wanted) {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	r.tell(ctx, changed)
}

// tell is for whoever has the turn.
func (r *registry) tell(ctx context.Context, changed store.Wanted) {
	first := r.revision == 0
	if len(changed.Integrations)+len(changed.GoneIntegrations)+len(changed.Attachments)+len(changed.GoneAttachments) > 0 {
		r.revision++
	}
	for i := range changed.Integrations {
		changed.Integrations[i].Revision = r.revision
	}
	at := store.Projection{Incarnation: "registry", Revision: r.revision, Cursor: fmt.Sprint(r.revision), BookmarkTime: time.Now()}
	var err error
	if first {
		err = r.w.store.ReplaceProjection(ctx, time.Now(), at, changed)
	} else {
		err = r.w.store.AdvanceProjection(ctx, time.Now(), at, changed)
	}
	if err != nil && ctx.Err() == nil {
		r.w.fail("tell the vault what is wanted: %v", err)
	}
}

// run sends bookmarks.
func (r *registry) run(ctx context.Context) {
	for ctx.Err() == nil {
		if !r.w.is(noRegistry) {
			r.mu.Lock()
			gone := r.gone
			r.gone = nil
			r.mu.Unlock()
			r.publish(ctx, store.Wanted{GoneIntegrations: gone})
		}
		sleep(ctx, poll)
	}
}

// Report takes a report.
func (r *registry) Report(_ context.Context, _ election.Mastership, report rotation.Report) error {
	if r.w.is(noRegistry) {
		return errors.New("the registry is away")
	}
	if report.Removed {
		r.w.follow()
	}
	r.w.journal.tell(reported{Integration: report.IntegrationUID, Client: report.ClientID, Ready: ready(report.Conditions), Removed: report.Removed})
	r.mu.Lock()
	defer r.mu.Unlock()
	if report.Removed {
		r.gone = append(r.gone, report.IntegrationUID)
		return nil
	}
	r.conditions[report.IntegrationUID] = report
	return nil
}

// remove deletes an integration although it is attached.
func (r *registry) remove(ctx context.Context, i *integration) {
	r.w.follow()
	r.w.journal.tell(looked{i.UID})
	r.mu.Lock()
	r.all = slices.DeleteFunc(r.all, func(other *integration) bool { return other == i })
	deleting := i.Integration
	r.mu.Unlock()
	deleting.Deleting = true
	r.publish(ctx, store.Wanted{Integrations: []store.Integration{deleting}, GoneAttachments: []store.Attachment{i.attachment}})
	r.w.journal.tell(left{i.UID})
}

// living are the integrations there are.
func (r *registry) living() []*integration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*integration(nil), r.all...)
}

// reported is the last report on an integration.
func (r *registry) reported(uid string) rotation.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conditions[uid]
}

// log keeps no line, but looks for secrets in each.
type log struct {
	mu sync.Mutex
	// secrets are hashes of those that were learnt since, before of those of the week until then: a year has millions, and none lives for as long.
	secrets, before map[uint64]struct{}
	since           time.Time
	seed            maphash.Seed
	leaks           []string
	last            []string
}

func newLog() *log {
	return &log{secrets: map[uint64]struct{}{}, since: time.Now(), seed: maphash.MakeSeed()}
}

func (l *log) handler(replica string) slog.Handler {
	return slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}).WithAttrs([]slog.Attr{slog.String("replica", replica)})
}

// know adds a text that must never be logged.
func (l *log) know(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) > 7*24*time.Hour {
		l.secrets, l.before, l.since = map[uint64]struct{}{}, l.secrets, now
	}
	l.secrets[maphash.String(l.seed, text)] = struct{}{}
}

// knows tells whether a word is a text that must never be logged.
func (l *log) knows(word []byte) bool {
	hash := maphash.Bytes(l.seed, word)
	_, now := l.secrets[hash]
	_, before := l.before[hash]
	return now || before
}

// reveal says which lines had a secret since it was last asked.
func (l *log) reveal(say func(format string, args ...any)) {
	l.mu.Lock()
	leaks := l.leaks
	l.leaks = nil
	l.mu.Unlock()
	for _, line := range leaks {
		say("I7: a secret is in the log: %.200s", line)
	}
}

// keptLines is how much of the log is shown after a failure.
const keptLines = 400

// Write looks at a line.
func (l *log) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	word := make([]byte, 0, len(line))
	for _, c := range line { // which ends with a newline
		if c == '"' || c == ' ' || c == '=' || c == '\n' || c == ',' || c == ':' {
			if l.knows(word) {
				l.leaks = append(l.leaks, strings.ReplaceAll(string(line), string(word), "[a secret]"))
			}
			word = word[:0]
			continue
		}
		word = append(word, c)
	}
	if bytes.Contains(line, []byte(" level=DEBUG ")) {
		return len(line), nil // is not shown
	}
	if len(l.last) >= 2*keptLines {
		l.last = append([]string(nil), l.last[keptLines:]...)
	}
	l.last = append(l.last, string(line))
	return len(line), nil
}
