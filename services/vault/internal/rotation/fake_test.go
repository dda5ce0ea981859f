package rotation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/budget"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/fence"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/rotation"
	"phasekey.dev/services/vault/internal/store"
)

const (
	uid        = "11111111-2222-4333-8444-555555555555"
	name       = "accounts/acme/integrations/network"
	homeTenant = "home"
	tenant     = "customer"
	// canary begins every secret text.
	canary = "canary-"
)

// fakeDirectory is an Entra ID whose replicas lag and disagree, in fake time.
type fakeDirectory struct {
	mu   sync.Mutex
	rand *rand.Rand
	// lag is how long at most an application or password takes to reach every replica.
	lag       time.Duration
	apps      map[string]*fakeApp
	consented bool
	// before and after are called around each request's effect, without the lock; an error from either is the answer.
	before, after func(ctx context.Context, op string) error
	// intended is called with the name of each password that is asked for, before it is made; nil asks nobody.
	intended   func(name string)
	journal    []string
	requestIDs map[string]bool
	grants     map[string]int // by key, in the customer's tenant
	calls      map[string]int
	// federation is what it knows of an issuer; nil while there is none.
	federation *fakeFederation
}

type fakeApp struct {
	object    string
	spec      directory.Spec
	visible   time.Time
	passwords map[string]*fakePassword
	trusts    map[string]*fakeTrust
	deleted   bool
	binned    time.Time // when every replica knows that it was deleted
	purged    bool
}

type fakePassword struct {
	directory.Password
	text    string
	visible time.Time
}

func newFakeDirectory() *fakeDirectory {
	return &fakeDirectory{
		rand: rand.New(rand.NewPCG(1, 2)), apps: map[string]*fakeApp{}, requestIDs: map[string]bool{}, grants: map[string]int{}, calls: map[string]int{},
	}
}

func (d *fakeDirectory) HomeTenantID() string    { return homeTenant }
func (d *fakeDirectory) ResourceManager() string { return "https://rm.example" }

// around runs one request.
func (d *fakeDirectory) around(ctx context.Context, op string, effect func() error) error {
	d.mu.Lock()
	d.calls[op]++
	before, after := d.before, d.after
	d.mu.Unlock()
	if before != nil {
		if err := before(ctx, op); err != nil {
			return err
		}
	}
	d.mu.Lock()
	err := effect()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if after != nil {
		return after(ctx, op)
	}
	return ctx.Err()
}

func (d *fakeDirectory) note(format string, args ...any) {
	d.journal = append(d.journal, fmt.Sprintf(format, args...))
}

func (d *fakeDirectory) some() time.Time {
	if d.lag == 0 {
		return time.Now()
	}
	return time.Now().Add(time.Duration(d.rand.Int64N(int64(d.lag))))
}

// knows is the answer of whichever replica is asked.
func (d *fakeDirectory) knows(visible time.Time) bool {
	return !time.Now().Before(visible) || d.rand.IntN(3) == 0
}

func refuse(class directory.Class, code string) error {
	return &directory.Error{Op: "fake", Class: class, Code: code, Err: errors.New("refused")}
}

func (d *fakeDirectory) byObject(object string) (*fakeApp, error) {
	for _, app := range d.apps {
		if app.object == object && !app.deleted {
			return app, nil
		}
	}
	return nil, refuse(directory.NotFound, "Request_ResourceNotFound")
}

func (app *fakeApp) entity() directory.Application {
	out := directory.Application{ObjectID: app.object, ClientID: "client-" + app.object, DisplayName: app.spec.DisplayName}
	for _, key := range slices.Sorted(maps.Keys(app.passwords)) {
		out.Passwords = append(out.Passwords, app.passwords[key].Password)
	}
	for _, name := range slices.Sorted(maps.Keys(app.trusts)) {
		if t := app.trusts[name]; t.removed.IsZero() {
			out.Trusts = append(out.Trusts, t.Trust)
		}
	}
	return out
}

func (d *fakeDirectory) EnsureApplication(ctx context.Context, spec directory.Spec) (out directory.Application, err error) {
	err = d.around(ctx, "ensure", func() error {
		app := d.apps[spec.UniqueName]
		if app == nil || app.deleted {
			app = &fakeApp{object: uuid.NewString(), visible: d.some(), passwords: map[string]*fakePassword{}, trusts: map[string]*fakeTrust{}}
			d.apps[spec.UniqueName] = app
			d.note("made")
		}
		app.spec = spec
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) RepairApplication(ctx context.Context, spec directory.Spec) (out directory.Application, err error) {
	err = d.around(ctx, "ensure", func() error {
		app := d.apps[spec.UniqueName]
		if app == nil || app.deleted || !d.knows(app.visible) {
			return refuse(directory.NotFound, "Request_ResourceNotFound")
		}
		app.spec = spec
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) FindApplication(ctx context.Context, uniqueName string) (out directory.Application, err error) {
	err = d.around(ctx, "find", func() error {
		app := d.apps[uniqueName]
		if app == nil || app.deleted || !d.knows(app.visible) {
			return refuse(directory.NotFound, "Request_ResourceNotFound")
		}
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (out directory.Password, text secret.Text, err error) {
	if d.intended != nil {
		d.intended(displayName)
	}
	err = d.around(ctx, "add", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		p := &fakePassword{
			Password: directory.Password{KeyID: uuid.NewString(), DisplayName: displayName, StartTime: time.Now(), EndTime: end},
			text:     canary + uuid.NewString(), visible: d.some(),
		}
		app.passwords[p.KeyID] = p
		d.note("added")
		out, text = p.Password, secret.New(p.text)
		return nil
	})
	if err != nil {
		return directory.Password{}, secret.Text{}, err
	}
	return out, text, nil
}

func (d *fakeDirectory) RemovePassword(ctx context.Context, objectID, keyID string) error {
	return d.around(ctx, "remove", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		delete(app.passwords, keyID)
		d.note("removed")
		return nil
	})
}

func (d *fakeDirectory) DeleteApplication(ctx context.Context, objectID string) error {
	return d.around(ctx, "delete", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		app.deleted, app.binned = true, d.some()
		d.note("deleted")
		return nil
	})
}

func (d *fakeDirectory) PurgeApplication(ctx context.Context, objectID string) error {
	return d.around(ctx, "purge", func() error {
		for _, app := range d.apps {
			if app.object == objectID && app.deleted && !app.purged && d.knows(app.binned) {
				app.purged = true
				d.note("purged")
				return nil
			}
		}
		return refuse(directory.NotFound, "Request_ResourceNotFound")
	})
}

func (d *fakeDirectory) Token(ctx context.Context, r directory.TokenRequest) (out directory.Token, err error) {
	err = d.around(ctx, "token", func() error {
		if d.requestIDs[r.RequestID] || r.RequestID == "" {
			d.note("request ID used again")
		}
		d.requestIDs[r.RequestID] = true
		var app *fakeApp
		for _, a := range d.apps {
			if "client-"+a.object == r.ClientID && !a.deleted {
				app = a
			}
		}
		switch {
		case app == nil || r.TenantID == homeTenant && !d.knows(app.visible):
			return refuse(directory.ApplicationUnknown, "AADSTS700016")
		case r.TenantID == homeTenant:
			return refuse(directory.PrincipalMissing, "AADSTS7000229")
		case !d.consented:
			return refuse(directory.ApplicationUnknown, "AADSTS700016")
		}
		if r.Assertion.Expose() != "" {
			out, err = d.exchange(app, r.Assertion.Expose())
			return err
		}
		for _, p := range app.passwords {
			switch {
			case p.text != r.Secret.Expose():
			case !d.knows(p.visible):
				return refuse(directory.SecretRefused, "AADSTS7000215")
			case !time.Now().Before(p.EndTime):
				return refuse(directory.SecretExpired, "AADSTS7000222")
			default:
				d.grants[p.KeyID]++
				out = directory.Token{Text: secret.New(canary + "token"), IssueTime: time.Now(), ExpireTime: time.Now().Add(time.Hour), PrincipalObjectID: "principal"}
				return nil
			}
		}
		return refuse(directory.SecretRefused, "AADSTS7000215")
	})
	if err != nil {
		return directory.Token{}, err
	}
	return out, nil
}

// set changes the fake.
func (d *fakeDirectory) set(change func(d *fakeDirectory)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *fakeDirectory) count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[op]
}

// granted is how many tokens were given for a password in the customer's tenant.
func (d *fakeDirectory) granted(key string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.grants[key]
}

// happened is what changed, in order.
func (d *fakeDirectory) happened() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.journal)
}

// keys are the passwords of all applications that are not deleted.
func (d *fakeDirectory) keys() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, app := range d.apps {
		if !app.deleted {
			out = append(out, slices.Collect(maps.Keys(app.passwords))...)
		}
	}
	slices.Sort(out)
	return out
}

// works reports whether a token could be had at every replica with the password.
func (d *fakeDirectory) works(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, app := range d.apps {
		if p := app.passwords[key]; p != nil && !app.deleted {
			return !time.Now().Before(p.visible) && time.Now().Before(p.EndTime)
		}
	}
	return false
}

// fakeKeyring binds texts to identities without hiding them well.
type fakeKeyring struct{}

func (fakeKeyring) Seal(identity string, text secret.Text) ([]byte, error) {
	out := []byte(identity + "|" + text.Expose())
	for i := range out {
		out[i] ^= 0x5a
	}
	return out, nil
}

func (fakeKeyring) Open(_ context.Context, identity string, sealed []byte) (secret.Text, error) {
	out := bytes.Clone(sealed)
	for i := range out {
		out[i] ^= 0x5a
	}
	text, ok := strings.CutPrefix(string(out), identity+"|")
	if !ok {
		return secret.Text{}, errors.New("sealed under another identity")
	}
	return secret.New(text), nil
}

// fakeRegistry takes reports.
type fakeRegistry struct {
	mu      sync.Mutex
	err     error
	reports []rotation.Report
	refused int
}

func (r *fakeRegistry) Report(_ context.Context, _ election.Mastership, report rotation.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		r.refused++
		return r.err
	}
	r.reports = append(r.reports, report)
	return nil
}

func (r *fakeRegistry) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *fakeRegistry) counts() (taken, refused int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reports), r.refused
}

// last returns the last report, in short: each condition's reason, with a + when it holds.
func (r *fakeRegistry) last() (report rotation.Report, short string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.reports) == 0 {
		return rotation.Report{}, ""
	}
	report = r.reports[len(r.reports)-1]
	var words []string
	for _, c := range report.Conditions {
		word := c.Reason
		if c.True {
			word += "+"
		}
		words = append(words, word)
	}
	return report, strings.Join(words, " ")
}

// stage is one integration in a vault of one shard, and the worker on it.
type stage struct {
	t        *testing.T
	db       *sqldb.DB
	store    *store.Store
	entra    *fakeDirectory
	registry *fakeRegistry
	log      *syncBuffer
	config   rotation.Config
	// metrics are the latest worker's.
	metrics  atomic.Pointer[prometheus.Registry]
	stop     context.CancelFunc
	served   chan error
	revision int64
	// look is how often until looks.
	look time.Duration
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newStage is to be called in a bubble; nobody is master yet.
func newStage(t *testing.T) *stage {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{
		t: t, db: sqldbtest.SQLite(t, migrations), entra: newFakeDirectory(), registry: &fakeRegistry{}, log: &syncBuffer{}, look: time.Minute,
	}
	s.store = store.New(s.db, audittest.Keys(1))
	s.tx(func(ctx context.Context, tx sqldb.Tx) error { return fence.Configure(ctx, tx, 1) })
	s.config = rotation.Config{
		Store: s.store, Clouds: rotation.Clouds{"public": s.entra}, Keyring: fakeKeyring{}, Reporter: s.registry,
		Timing: credential.Production(), DeploymentID: "test", NamePrefix: "Phasekey", RedirectURI: "https://broker.example/callback",
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Poll: 10 * time.Minute,
	}
	if s.config.Budget, err = budget.New(budget.Config{Limits: budget.DefaultLimits(), Log: s.config.Log}); err != nil {
		t.Fatal(err)
	}
	s.want(store.Integration{Deleting: false})
	s.entra.intended = s.intended
	t.Cleanup(func() {
		if strings.Contains(s.log.String(), canary) {
			t.Error("a secret is in the log")
		}
	})
	return s
}

func (s *stage) tx(fn func(ctx context.Context, tx sqldb.Tx) error) {
	s.t.Helper()
	if err := s.db.Tx(context.WithoutCancel(s.t.Context()), fn); err != nil {
		s.t.Error(err)
	}
}

// want sets what the registry wants of the integration.
func (s *stage) want(i store.Integration) {
	s.t.Helper()
	s.revision++
	i.UID, i.Name, i.DisplayName, i.TenantID, i.Cloud, i.Revision = uid, name, "Network", tenant, "public", s.revision
	if i.RotationPeriod == 0 {
		i.RotationPeriod = 24 * time.Hour
	}
	at := store.Projection{Incarnation: "registry", Revision: s.revision, Cursor: "c", BookmarkTime: time.Now()}
	i.DeliveryMaterials = []lease.Material{lease.ClientSecret}
	all := store.Wanted{
		Integrations: []store.Integration{i}, Projects: []store.Project{{UID: "p"}},
		Attachments: []store.Attachment{{UID: "a", IntegrationUID: uid, ProjectUID: "p", Reads: true}},
	}
	if err := s.store.ReplaceProjection(s.t.Context(), time.Now(), at, all); err != nil {
		s.t.Fatal(err)
	}
}

// intended fails unless the password of that name is stored as one that is about to be asked for: by then it must be, for its answer
// may be lost.
func (s *stage) intended(name string) {
	s.tx(func(ctx context.Context, tx sqldb.Tx) error {
		var stored int
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM credential_versions WHERE name = $1 AND state = 'INTENDED' AND send_time > 0`, name).Scan(&stored)
		if err == nil && stored != 1 {
			s.t.Errorf("password %s is asked for, and not stored as intended", name)
		}
		return err
	})
}

func (s *stage) take() (m election.Mastership) {
	s.t.Helper()
	s.tx(func(ctx context.Context, tx sqldb.Tx) (err error) {
		m, err = fence.Take(ctx, tx, 0, time.Now())
		return err
	})
	return m
}

// serve starts a worker as a new master, until end or the test's.
func (s *stage) serve(edit ...func(ctx context.Context) context.Context) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	for _, e := range edit {
		ctx = e(ctx)
	}
	s.stop, s.served = cancel, make(chan error, 1)
	served := s.served
	go func() { served <- s.serveOnce(ctx) }()
}

// serveOnce is a worker's whole time as a new master.
func (s *stage) serveOnce(ctx context.Context) error { return s.serveAs(ctx, s.take()) }

// serveAs is a worker's whole time as that master.
func (s *stage) serveAs(ctx context.Context, m election.Mastership) error {
	config := s.config
	config.Metrics = prometheus.NewRegistry()
	s.metrics.Store(config.Metrics.(*prometheus.Registry))
	w, err := rotation.New(config)
	if err != nil {
		return err
	}
	return w.Serve(ctx, m)
}

// end stops the worker and returns what Serve did.
func (s *stage) end() error {
	s.t.Helper()
	s.stop()
	return <-s.served
}

// facts are the latest.
func (s *stage) facts() store.Facts {
	s.t.Helper()
	f, err := s.store.Facts(s.t.Context(), uid)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		s.t.Fatal(err)
	}
	return f
}

// until waits in fake time for something to be so.
func (s *stage) until(what string, limit time.Duration, so func(f store.Facts) bool) store.Facts {
	s.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(min(s.look, time.Until(end))) {
		f := s.facts()
		if so(f) {
			return f
		}
		if !time.Now().Before(end) {
			_, conditions := s.registry.last()
			s.t.Log(s.log.String())
			s.t.Fatalf("%s: not within %s; conditions %s; versions %v", what, limit, conditions, f.Versions)
		}
	}
}

func active(f store.Facts) bool {
	_, ok := f.ByState(credential.Active)
	return ok
}

// live brings the integration to an ACTIVE version.
func (s *stage) live() store.Facts {
	s.t.Helper()
	s.entra.set(func(d *fakeDirectory) { d.consented = true })
	return s.until("active", 2*time.Hour, active)
}

// runner makes a grant of two days, and returns what delivers the ACTIVE version's secret to one of its instances.
func (s *stage) runner() (deliver func(instance string) error) {
	s.t.Helper()
	now := time.Now()
	g, err := grant.New(now, "grant", grant.Request{Account: "acme", Project: "accounts/acme/projects/p", Phase: grant.Planning},
		grant.Resolution{IntegrationUID: uid, ProjectUID: "p"})
	if err != nil {
		s.t.Fatal(err)
	}
	g.ExpireTime = now.Add(48 * time.Hour)
	_, hash := grant.Mint()
	if _, err := s.store.CreateGrant(s.t.Context(), now, g, hash, grant.RequestKey{}, grant.Caller{}); err != nil {
		s.t.Fatal(err)
	}
	return func(instance string) error {
		active, _ := s.facts().ByState(credential.Active)
		_, err := s.store.Deliver(s.t.Context(), time.Now(), store.Delivery{
			GrantUID: g.UID, InstanceID: instance, VersionID: active.ID, Material: lease.ClientSecret, HoldLimit: g.ExpireTime, ExpireTime: g.ExpireTime,
		})
		return err
	}
}

// tidy fails unless the passwords at Entra are exactly those of versions that may have one.
func (s *stage) tidy() {
	s.t.Helper()
	var known []string
	for _, v := range s.facts().Versions {
		if v.State.HasPassword() || v.State == credential.Revoking {
			known = append(known, v.KeyID)
		}
	}
	slices.Sort(known)
	if have := s.entra.keys(); !slices.Equal(have, known) {
		s.t.Errorf("passwords at Entra are %v, known are %v", have, known)
	}
}
