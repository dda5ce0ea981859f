package web_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
	"phasekey.dev/services/broker/internal/standing"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/web"
)

func TestMain(m *testing.M) {
	// Of the server that the benchmarks' databases are in, which ends with the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
}

const (
	tenant       = "3fe2a1c4-0000-4000-8000-000000000001"
	subscription = "3fe2a1c4-0000-4000-8000-00000000000a"
	principal    = "3fe2a1c4-0000-4000-8000-0000000000ff"
	uid          = "uid-1"
)

// world is a served site, with a database, and a simulated Entra to which it sends browsers.
type world struct {
	t       testing.TB
	db      *sqldb.DB
	roles   *fakeRoles
	stands  *fakeStanding
	store   *store.Store
	config  web.Config
	log     *logtest.Transcript
	metrics *prometheus.Registry
	// entra is where the login pages are. It sends a browser back with what a test has it say.
	entra *httptest.Server
	mu    sync.Mutex
	says  func(asked url.Values) url.Values
}

// fakeRoles is who looks for roles: finding what a test has it find.
type fakeRoles struct {
	mu    sync.Mutex
	store *store.Store
	found consent.Permissions
	looks int
}

func (f *fakeRoles) Look(ctx context.Context, session consent.Session) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !consent.LooksForRoles(time.Now(), session) {
		return nil
	}
	f.looks++
	return f.store.RecordPermissions(ctx, session.Name, f.found)
}

func (f *fakeRoles) finds(p consent.Permissions) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.found = p
}

// fakeStanding is the registry and the vault that are asked whether consent still holds.
type fakeStanding struct {
	mu    sync.Mutex
	is    consent.Standing
	proof consent.Proof
	err   error
	asked int // times that the tenant was
}

func (f *fakeStanding) Integration(_ context.Context, name string) (consent.Integration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return consent.Integration{
		Name: name, UID: uid, TenantID: tenant, Cloud: "public", ClientID: "client", ApplicationName: "phasekey Network 1a2b", Ready: true, Standing: f.is,
	}, f.err
}

func (f *fakeStanding) ProbeConsent(context.Context, string) (consent.Proof, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.proof, nil
}

func (f *fakeStanding) set(is consent.Standing, proof consent.Proof, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.is, f.proof, f.err = is, proof, err
}

// newWorld serves a site whose configuration a test may have changed.
func newWorld(t testing.TB, change func(*web.Config)) *world {
	t.Helper()
	return newWorldOn(t, sqldbtest.SQLite(t, store.Migrations()), 20*time.Millisecond, change)
}

// newWorldOn is one with a database, which is asked so often what has become of the sessions that are looked at.
func newWorldOn(t testing.TB, db *sqldb.DB, interval time.Duration, change func(*web.Config)) *world {
	t.Helper()
	key, err := consent.NewKey([]byte(strings.Repeat("k", consent.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, store: store.New(db), roles: &fakeRoles{store: store.New(db)}, stands: &fakeStanding{}, log: &logtest.Transcript{}, metrics: prometheus.NewRegistry()}
	hub := follow.New(follow.Config{Store: w.store, Interval: interval, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- hub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	w.entra = httptest.NewTLSServer(http.HandlerFunc(w.answerAsEntra))
	t.Cleanup(w.entra.Close)
	w.config = web.Config{
		Store: w.store, Follow: hub, Roles: w.roles, Standing: standing.New(standing.Config{
			Store: w.store, Registry: w.stands, Vault: w.stands, Interval: time.Nanosecond, Log: slog.New(slog.DiscardHandler),
		}), Origins: consent.Origins{"https://app.example.com"}, Platform: "Example IaC", AttemptLife: 30 * time.Minute,
		Log: obs.NewLogger(w.log, slog.LevelDebug, obs.FormatJSON), Metrics: w.metrics,
		Links: consent.Links{Key: key, Clouds: map[string]consent.Cloud{"public": {LoginURL: w.entra.URL, GraphURL: "https://graph.microsoft.com"}}},
	}
	if change != nil {
		change(&w.config)
	}
	w.config.Links.PublicURL = w.serve(w.config)
	return w
}

// serve serves one more site over HTTPS, as app does, and returns its origin.
func (w *world) serve(cfg web.Config) string {
	w.t.Helper()
	origin, stop := w.serveUntil(cfg)
	w.t.Cleanup(stop)
	return origin
}

// serveUntil serves one more until the returned function is called, which then must be.
func (w *world) serveUntil(cfg web.Config) (origin string, stop func()) {
	w.t.Helper()
	ln, err := new(net.ListenConfig).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	origin = "https://" + ln.Addr().String()
	if cfg.Links.PublicURL == "" {
		cfg.Links.PublicURL = origin
	}
	site, err := web.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- site.Task(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: w.entra.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}, 30*time.Second).Run(ctx)
	}()
	return origin, func() {
		w.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) answerAsEntra(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	says := w.says
	w.mu.Unlock()
	if r.URL.Path != "/"+tenant+"/v2.0/adminconsent" || says == nil {
		http.NotFound(rw, r)
		return
	}
	asked := r.URL.Query()
	http.Redirect(rw, r, asked.Get("redirect_uri")+"?"+says(asked).Encode(), http.StatusFound)
}

func approved(asked url.Values) url.Values {
	return url.Values{"admin_consent": {"True"}, "tenant": {tenant}, "scope": asked["scope"], "state": asked["state"]}
}

func refused(name, description string) func(url.Values) url.Values {
	return func(asked url.Values) url.Values {
		return url.Values{"admin_consent": {"True"}, "error": {name}, "error_description": {description}, "state": asked["state"]}
	}
}

func (w *world) entraSays(says func(asked url.Values) url.Values) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.says = says
}

// open stores a session whose application is ready, with what a test changes, and returns the address of its page.
func (w *world) open(change func(*consent.Session)) (consent.Session, string) {
	w.t.Helper()
	now := time.Now()
	s := consent.New(now, "acme", consent.Integration{
		Name: "accounts/acme/integrations/net", UID: uid, TenantID: tenant, Cloud: "public", DisplayName: "Network", SubscriptionID: subscription,
		ClientID: "client", ApplicationName: "phasekey Network 1a2b", Ready: true,
	}, now.Add(time.Hour))
	if change != nil {
		change(&s)
	}
	if _, err := w.store.Create(w.t.Context(), now, s, consent.Hash(w.config.Links.Key.LinkOf(s)), consent.Request{}, 100); err != nil {
		w.t.Fatal(err)
	}
	return s, w.config.Links.PageURI(s)
}

// settle does to the sessions what a prover does.
func (w *world) settle(seen consent.Observation) {
	w.t.Helper()
	now := time.Now()
	seen.AskTime = now
	claim, err := w.store.Claim(w.t.Context(), now, now.Add(time.Minute), uid)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Settle(w.t.Context(), claim, func(target consent.Target, open []consent.Session) (consent.Target, []consent.Session) {
		var changed []consent.Session
		for _, s := range open {
			if next, differs := consent.Decide(now, s, seen); differs {
				changed = append(changed, next)
			}
		}
		return target, changed
	}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) get(name consent.Name) consent.Session {
	w.t.Helper()
	s, err := w.store.Get(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// count counts rows.
func (w *world) count(query string) (n int) {
	w.t.Helper()
	if err := w.db.ReadTx(w.t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) }); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// counted is the value of a counter with these values of its labels.
func (w *world) counted(name string, labels ...string) (n float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values := make([]string, 0, 2)
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && slices.Equal(values, labels) {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// gauged is the value of a gauge without labels.
func (w *world) gauged(name string) (n float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			n = f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return n
}
