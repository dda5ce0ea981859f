package web_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

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

// transcript is a log that tests read.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// world is a served site, with a database, and a simulated Entra to which it sends browsers.
type world struct {
	t       testing.TB
	db      *sqldb.DB
	roles   *fakeRoles
	stands  *fakeStanding
	store   *store.Store
	config  web.Config
	log     *transcript
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
	w := &world{t: t, db: db, store: store.New(db), roles: &fakeRoles{store: store.New(db)}, stands: &fakeStanding{}, log: &transcript{}, metrics: prometheus.NewRegistry()}
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

// browser keeps cookies and follows nothing by itself.
type browser struct {
	w    *world
	http *http.Client
}

func (w *world) browser() *browser {
	w.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := w.entra.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = true
	w.t.Cleanup(transport.CloseIdleConnections)
	return &browser{w: w, http: &http.Client{
		Transport: transport, Jar: jar, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// page is an answer, read.
type page struct {
	status  int
	header  http.Header
	text    string
	cookies []*http.Cookie
}

// to is where a page sends the browser on to.
func (p page) to() string {
	if sent := onward.FindStringSubmatch(p.text); sent != nil {
		return html.UnescapeString(sent[1])
	}
	return p.header.Get("Location")
}

func (b *browser) do(method, where string, change func(*http.Request)) page {
	b.w.t.Helper()
	r, err := http.NewRequestWithContext(b.w.t.Context(), method, where, nil)
	if err != nil {
		b.w.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	if change != nil {
		change(r)
	}
	response, err := b.http.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return page{response.StatusCode, response.Header, string(text), response.Cookies()}
}

func (b *browser) get(where string) page { b.w.t.Helper(); return b.do(http.MethodGet, where, nil) }

// press presses the button, and returns where it leads.
func (b *browser) press(link string) string {
	b.w.t.Helper()
	p := b.do(http.MethodPost, link, nil)
	if p.to() == "" {
		b.w.t.Fatalf("the button: %d %s", p.status, p.text)
	}
	if shown := linked.FindStringSubmatch(p.text); p.status == http.StatusOK && (shown == nil || html.UnescapeString(shown[1]) != p.to()) {
		b.w.t.Errorf("the page does not have the link that it follows by itself: %s", p.text)
	}
	return p.to()
}

// onward is where a page sends browsers on to by itself, linked where the link goes that people may follow.
var (
	onward = regexp.MustCompile(`<meta http-equiv="refresh" content="0; url=([^"]+)">`)
	linked = regexp.MustCompile(`<a href="([^"]+)">Go on to Microsoft</a>`)
)

// through goes through Entra ID, and returns where that sends the browser back to.
func (b *browser) through(entra string) string {
	b.w.t.Helper()
	p := b.get(entra)
	if p.status != http.StatusFound {
		b.w.t.Fatalf("at Entra ID: %d %s", p.status, p.text)
	}
	return p.to()
}

// shows fails unless a page has a status and these texts.
func shows(t *testing.T, p page, status int, texts ...string) {
	t.Helper()
	if p.status != status {
		t.Errorf("status %d, want %d", p.status, status)
	}
	folded := strings.NewReplacer("<span>", "", "</span>", "").Replace(strings.Join(strings.Fields(p.text), " "))
	for _, text := range texts {
		if !strings.Contains(folded, text) {
			t.Errorf("the page lacks %q:\n%s", text, p.text)
		}
	}
}

const button = "<button>"

// ours is the one script there is.
var ours = regexp.MustCompile(`<script src="/assets/[0-9a-f]{12}\.js" defer>`)

func TestSite_LeadsFromTheLinkToTheResult(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(func(s *consent.Session) {
		s.State, s.ClientID, s.ApplicationName, s.ReturnURI = consent.WaitingForApplication, "", "", "https://app.example.com/done?a=1&b=2"
	})
	b := w.browser()

	p := b.get(link)
	shows(t, p, http.StatusOK, "Not quite ready yet", `http-equiv="refresh" content="5"`, tenant, "Network", "acme", "Example IaC", `<html lang="en">`)
	if strings.Contains(p.text, button) {
		t.Error("waiting, the page has a button")
	}
	if to := b.press(link); to != link {
		t.Errorf("waiting, the button leads to %s", to)
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b"})
	p = b.get(link)
	shows(t, p, http.StatusOK, button, "Connect Example IaC to your Azure tenant", "phasekey Network 1a2b", "User.Read", "Nothing, until you assign it an Azure role.",
		`<a href="https://app.example.com/done?a=1&amp;b=2">`)
	if strings.Contains(p.text, "refresh") {
		t.Error("the page with the button is loaded again by itself")
	}
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
		t.Errorf("following the link has begun %d attempts", n)
	}

	w.entraSays(approved)
	pressed := b.do(http.MethodPost, link, nil)
	entra, err := url.Parse(pressed.to())
	if err != nil {
		t.Fatal(err)
	}
	state := entra.Query().Get("state")
	want := url.Values{"client_id": {"client"}, "scope": {"https://graph.microsoft.com/.default"},
		"redirect_uri": {w.config.Links.PublicURL + "/consent/callback"}, "state": {state}}
	if diff := cmp.Diff(want, entra.Query()); diff != "" || len(state) != consent.TokenSize || entra.Path != "/"+tenant+"/v2.0/adminconsent" {
		t.Errorf("Entra ID at %s is asked (-want +got):\n%s", entra.Path, diff)
	}
	if len(pressed.cookies) != 1 {
		t.Fatalf("cookies %v", pressed.cookies)
	}
	cookie := pressed.cookies[0]
	if !regexp.MustCompile(`^__Host-phasekey-[a-z2-7]{16}$`).MatchString(cookie.Name) || len(cookie.Value) != consent.TokenSize ||
		!cookie.Secure || !cookie.HttpOnly || cookie.Path != "/" || cookie.Domain != "" || cookie.SameSite != http.SameSiteLaxMode || cookie.MaxAge != 1800 {
		t.Errorf("cookie %s", cookie)
	}
	p = b.get(b.through(pressed.to()))
	if p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if len(p.cookies) != 1 || p.cookies[0].Name != cookie.Name || p.cookies[0].MaxAge >= 0 {
		t.Errorf("the cookie is not taken back: %v", p.cookies)
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" || s.State != consent.AwaitingConsent {
		t.Errorf("callback %q, state %d", s.LastCallback, s.State)
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b", Proof: &consent.Proof{Refusal: "AADSTS7000229"}})
	p = b.get(link)
	shows(t, p, http.StatusOK, "Waiting for your tenant", "AADSTS7000229", `http-equiv="refresh" content="5"`)
	if strings.Contains(p.text, button) {
		t.Error("pending, the page has a button")
	}

	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b", Proof: &consent.Proof{Consented: true, PrincipalObjectID: principal}})
	p = b.get(link)
	shows(t, p, http.StatusOK, "You have consented",
		"az role assignment create --assignee-object-id "+principal+" --assignee-principal-type ServicePrincipal --role Reader --scope /subscriptions/"+subscription+"<",
		"az role assignment create --assignee-object-id "+principal+" --assignee-principal-type ServicePrincipal --role Contributor --scope /subscriptions/"+subscription+"<",
		"az ad sp update --id "+principal+" --set accountEnabled=false<", "az ad sp delete --id "+principal+"<", `<a href="https://app.example.com/done?a=1&amp;b=2">`)

	said := w.log.String()
	linkPart := strings.TrimPrefix(link, w.config.Links.PublicURL+"/consent/")
	for what, text := range map[string]string{"link": linkPart, "state": state, "cookie": cookie.Value, "query": "admin_consent"} {
		if strings.Contains(said, text) {
			t.Errorf("the log has the %s:\n%s", what, said)
		}
	}
	for _, text := range []string{`"page":"GET /consent/{link}"`, `"page":"GET /consent/callback"`, `"status":303`, `"request_id"`, `"outcome":"approved"`} {
		if !strings.Contains(said, text) {
			t.Errorf("the log lacks %s:\n%s", text, said)
		}
	}
	if n := w.counted("phasekey_broker_pages_total", "session", "200"); n != 4 {
		t.Errorf("%v pages were counted", n)
	}
	if n := w.counted("phasekey_broker_callbacks_total", "approved"); n != 1 {
		t.Errorf("%v callbacks were counted", n)
	}
}

func TestSite_ResultWithoutASubscription(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) {
		s.SubscriptionID, s.State, s.PrincipalObjectID = "", consent.Completed, principal
		s.EndTime = s.CreateTime
	})
	shows(t, w.browser().get(link), http.StatusOK, "--role Reader --scope /subscriptions/YOUR-SUBSCRIPTION-ID<", "Put your subscription’s ID in the place of")
}

func TestSite_SaysWhatWentWrong(t *testing.T) {
	for _, tc := range []struct {
		name  string
		says  func(url.Values) url.Values
		last  string
		texts []string
	}{
		{"declined", refused("consent_required", "AADSTS65004: User declined to consent to access the app. Trace ID: canary"), "AADSTS65004",
			[]string{"You did not consent.", "Nothing was installed", button, "Try again at Microsoft"}},
		{"declined, as the older page says it", refused("permission_denied", "The admin canceled the request canary"), "permission_denied",
			[]string{"You did not consent.", "Nothing was installed", button}},
		{"an account of another tenant", refused("interaction_required", "AADSTS50020: User account canary does not exist"), "AADSTS50020",
			[]string{"AADSTS50020", "sign in with an account of the tenant above", "Who can mend it, and how", "<strong>You.</strong>", "Nothing was installed", button, "Try again at Microsoft"}},
		{"not an administrator", refused("interaction_required", "AADSTS90094: canary"), "AADSTS90094",
			[]string{"AADSTS90094", "may not consent for the whole tenant", "you can pass this link on"}},
		{"a policy", refused("access_denied", "AADSTS53003: canary"), "AADSTS53003", []string{"A policy of your tenant is in the way", "Those who administer your tenant", "Conditional Access"}},
		{"the quota", refused("server_error", "AADSTS90093: canary"), "AADSTS90093", []string{"Your tenant takes no more objects", "directory quota"}},
		{"twice at once", refused("invalid_client", "AADSTS650051: canary"), "AADSTS650051", []string{"Consent was given twice at once", `http-equiv="refresh" content="5"`}},
		{"set up wrongly", refused("invalid_request", "AADSTS50011: canary"), "AADSTS50011", []string{"The application names another address", "Wait some minutes"}},
		{"not found yet", refused("unauthorized_client", "AADSTS700016: canary"), "AADSTS700016", []string{"Microsoft does not know it everywhere yet"}},
		{"an error nobody knows", refused("server_error", "AADSTS99999: canary"), "AADSTS99999", []string{"AADSTS99999", "tell whoever sent you the link this code"}},
		{"an error without a number", refused("<script>Server_Error</script>", "canary"), "scriptserver_errorscript", []string{"scriptserver_errorscript"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			session, link := w.open(nil)
			w.entraSays(tc.says)
			b := w.browser()
			if p := b.get(b.through(b.press(link))); p.status != http.StatusSeeOther || p.to() != link {
				t.Fatalf("the callback: %d to %s", p.status, p.to())
			}
			if s := w.get(session.Name); s.LastCallback != tc.last || s.Version != 2 || s.State != consent.AwaitingConsent {
				t.Errorf("callback %q, version %d, state %d", s.LastCallback, s.Version, s.State)
			}
			p := b.get(link)
			shows(t, p, http.StatusOK, tc.texts...)
			if strings.Contains(p.text+w.log.String(), "canary") {
				t.Error("the description is shown or logged")
			}
			w.entraSays(approved)
			b.get(b.through(b.press(link)))
			shows(t, b.get(link), http.StatusOK, "Waiting for your tenant")
		})
	}
}

func TestSite_CallbacksThatChangeNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		// change changes the query that Entra ID sent; other is a browser that was not sent.
		change  func(url.Values)
		raw     func(string) string
		other   bool
		forge   bool
		status  int
		outcome string
	}{
		{name: "no state", change: func(q url.Values) { q.Del("state") }, status: 400, outcome: "malformed"},
		{name: "a state that nobody was given", change: func(q url.Values) { q.Set("state", strings.Repeat("A", consent.TokenSize)) }, status: 400, outcome: "unknown_state"},
		{name: "another tenant", change: func(q url.Values) { q.Set("tenant", subscription) }, status: 400, outcome: "wrong_tenant"},
		{name: "two states", change: func(q url.Values) { q.Add("state", "x") }, status: 400, outcome: "malformed"},
		{name: "two tenants", change: func(q url.Values) { q.Add("tenant", tenant) }, status: 400, outcome: "malformed"},
		{name: "too long an error", change: func(q url.Values) { q.Set("error", strings.Repeat("a", 201)) }, status: 400, outcome: "malformed"},
		{name: "neither consent nor an error", change: func(q url.Values) { q.Del("admin_consent") }, status: 400, outcome: "malformed"},
		{name: "consent refused without an error", change: func(q url.Values) { q.Set("admin_consent", "False") }, status: 400, outcome: "malformed"},
		{name: "too long a query", change: func(q url.Values) { q.Set("scope", strings.Repeat("a", 9<<10)) }, status: 400, outcome: "malformed"},
		{name: "broken escapes", raw: func(q string) string { return q + "&x=%zz" }, status: 400, outcome: "malformed"},
		{name: "another secret in the cookie", forge: true, status: 400, outcome: "wrong_cookie"},
		{name: "another browser", other: true, status: 200, outcome: "other_browser"},
		{name: "another browser and tenant", other: true, change: func(q url.Values) { q.Set("tenant", subscription) }, status: 400, outcome: "wrong_tenant"},
		{name: "another browser, after an error", other: true, change: func(q url.Values) { q.Set("error", "access_denied") }, status: 200, outcome: "other_browser"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			session, link := w.open(nil)
			w.entraSays(approved)
			b := w.browser()
			pressed := b.do(http.MethodPost, link, nil)
			back, err := url.Parse(b.through(pressed.to()))
			if err != nil {
				t.Fatal(err)
			}
			bad := *back
			if tc.change != nil {
				q := back.Query()
				tc.change(q)
				bad.RawQuery = q.Encode()
			}
			if tc.raw != nil {
				bad.RawQuery = tc.raw(bad.RawQuery)
			}
			who := b
			if tc.other || tc.forge {
				who = w.browser()
			}
			p := who.do(http.MethodGet, bad.String(), func(r *http.Request) {
				if tc.forge {
					r.AddCookie(&http.Cookie{Name: pressed.cookies[0].Name, Value: strings.Repeat("A", consent.TokenSize)})
				}
			})
			shows(t, p, tc.status)
			if len(p.cookies) != 0 {
				t.Errorf("cookies %v", p.cookies)
			}
			if diff := cmp.Diff(session, w.get(session.Name)); diff != "" {
				t.Errorf("the session has changed (-before +after):\n%s", diff)
			}
			if n := w.counted("phasekey_broker_callbacks_total", tc.outcome); n != 1 {
				t.Errorf("%v of outcome %s were counted", n, tc.outcome)
			}
			if !strings.Contains(w.log.String(), `"outcome":"`+tc.outcome+`"`) || strings.Contains(w.log.String(), back.Query().Get("state")) {
				t.Errorf("the log:\n%s", w.log)
			}
			// What was sent out is still good.
			if p := b.get(back.String()); p.status != http.StatusSeeOther {
				t.Errorf("the true callback afterwards: %d", p.status)
			}
			// And only once.
			shows(t, b.do(http.MethodGet, back.String(), func(r *http.Request) {
				r.AddCookie(&http.Cookie{Name: pressed.cookies[0].Name, Value: pressed.cookies[0].Value})
			}),
				http.StatusBadRequest, "This cannot be used")
			if n := w.counted("phasekey_broker_callbacks_total", "replayed_state"); n != 1 {
				t.Errorf("%v replays were counted", n)
			}
		})
	}
}

func TestSite_AttemptsExpire(t *testing.T) {
	w := newWorld(t, func(c *web.Config) { c.AttemptLife = time.Microsecond })
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	shows(t, b.get(b.through(b.press(link))), http.StatusBadRequest, "You took too long at Microsoft", `<a href="`+strings.TrimPrefix(link, w.config.Links.PublicURL)+`">Try again</a>`)
	if s := w.get(session.Name); s.LastCallback != "" {
		t.Errorf("callback %q", s.LastCallback)
	}
	if n := w.counted("phasekey_broker_callbacks_total", "expired_state"); n != 1 {
		t.Errorf("%v were counted", n)
	}
}

func TestSite_TwoTabsDoNotDisturbEachOther(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	b := w.browser()
	first, second := b.press(link), b.press(link)
	w.entraSays(refused("consent_required", "AADSTS65004"))
	if p := b.get(b.through(first)); p.status != http.StatusSeeOther {
		t.Errorf("the first tab: %d", p.status)
	}
	w.entraSays(approved)
	if p := b.get(b.through(second)); p.status != http.StatusSeeOther {
		t.Errorf("the second tab: %d", p.status)
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" {
		t.Errorf("callback %q", s.LastCallback)
	}
}

func TestSite_ASessionThatHasEnded(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	b := w.browser()
	entra := b.press(link)
	w.settle(consent.Observation{Finding: consent.Gone})
	w.entraSays(approved)
	if p := b.get(b.through(entra)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if s := w.get(session.Name); s.LastCallback != "" || s.State != consent.Expired {
		t.Errorf("callback %q, state %d", s.LastCallback, s.State)
	}
	shows(t, b.get(link), http.StatusOK, "The integration was deleted", "nothing left to consent to")
	if to := b.press(link); to != link {
		t.Errorf("the button leads to %s", to)
	}
	if n := w.counted("phasekey_broker_callbacks_total", "late"); n != 1 {
		t.Errorf("%v were counted", n)
	}

	_, over := w.open(func(s *consent.Session) { s.ExpireTime = s.CreateTime.Add(time.Microsecond) })
	shows(t, b.get(over), http.StatusOK, "This link has expired", "Consent was not proven in time")
	if to := b.press(over); to != over {
		t.Errorf("after the deadline, the button leads to %s", to)
	}
}

func TestSite_AnotherReplicaTakesTheBrowserBack(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	back := b.through(b.press(link))
	cfg := w.config
	cfg.Metrics = nil
	other := w.serve(cfg)
	if p := b.get(other + strings.TrimPrefix(back, w.config.Links.PublicURL)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if s := w.get(session.Name); s.LastCallback != "APPROVED" {
		t.Errorf("callback %q", s.LastCallback)
	}
}

func TestSite_OfCallbacksAtOneMomentOneCounts(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	pressed := b.do(http.MethodPost, link, nil)
	back := b.through(pressed.to())
	var all sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		all.Go(func() {
			statuses[i] = w.browser().do(http.MethodGet, back, func(r *http.Request) { r.Header.Set("Cookie", pressed.cookies[0].Name+"="+pressed.cookies[0].Value) }).status
		})
	}
	all.Wait()
	slices.Sort(statuses)
	if want := []int{303, 400, 400, 400, 400, 400, 400, 400}; !slices.Equal(statuses, want) {
		t.Errorf("statuses %v", statuses)
	}
	if s := w.get(session.Name); s.Version != 2 {
		t.Errorf("version %d", s.Version)
	}
}

func TestSite_ProtectsEveryAnswer(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	_, expired := w.open(func(s *consent.Session) { s.State, s.EndTime = consent.Expired, s.CreateTime })
	b := w.browser()
	public := w.config.Links.PublicURL
	css := regexp.MustCompile(`href="(/assets/[0-9a-f]+\.css)"`).FindStringSubmatch(b.get(link).text)
	if css == nil {
		t.Fatal("no stylesheet")
	}
	always := map[string]string{
		"Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Strict-Transport-Security": "max-age=31536000",
		"Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-store", "X-Robots-Tag": "noindex",
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
	}
	for _, tc := range []struct {
		name, method, where string
		change              func(*http.Request)
		status              int
		special             map[string]string
	}{
		{"the page", "GET", link, nil, 200, nil},
		{"the page's headers alone", "HEAD", link, nil, 200, nil},
		{"an ended page", "GET", expired, nil, 200, nil},
		{"the button", "POST", link, nil, 200, nil},
		{"the stylesheet", "GET", public + css[1], nil, 200, map[string]string{"Cache-Control": "public, max-age=31536000, immutable"}},
		{"a link that is nobody's", "GET", public + "/consent/" + strings.Repeat("A", consent.TokenSize), nil, 404, nil},
		{"a link that cannot be", "GET", public + "/consent/short", nil, 404, nil},
		{"the button of nobody", "POST", public + "/consent/short", nil, 404, nil},
		{"the root", "GET", public + "/", nil, 404, nil},
		{"more than a link", "GET", link + "/more", nil, 404, nil},
		{"a path that goes up", "GET", public + "/consent/x/../y", nil, 404, nil},
		{"a path with nothing in it", "GET", public + "//consent", nil, 404, nil},
		{"another method", "DELETE", link, nil, 405, map[string]string{"Allow": "GET, HEAD, POST"}},
		{"another method of the callback", "POST", public + "/consent/callback", nil, 405, map[string]string{"Allow": "GET"}},
		{"the callback's headers alone", "HEAD", public + "/consent/callback?state=x", nil, 405, map[string]string{"Allow": "GET"}},
		{"another method of nothing", "POST", public + "/nothing", nil, 404, nil},
		{"a forged callback", "GET", public + "/consent/callback?state=x", nil, 400, nil},
		{"the button on another site", "POST", link, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403, nil},
		{"the button on another site, in an old browser", "POST", link, func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "https://evil.example.com")
		}, 403, nil},
		{"looking again, on another site", "POST", link + "/check", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403, nil},
		{"looking again, on another site, in an old browser", "POST", link + "/check", func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "https://evil.example.com")
		}, 403, nil},
		{"the button behind a proxy, in an old browser", "POST", link, func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Host = "backend.internal"
			r.Header.Set("Origin", public)
		}, 200, nil},
		{"too much", "POST", link, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 4<<10+1)))
		}, 413, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := b.do(tc.method, tc.where, tc.change)
			if p.status != tc.status {
				t.Errorf("status %d, want %d:\n%s", p.status, tc.status, p.text)
			}
			want := maps.Clone(always)
			maps.Copy(want, tc.special)
			for name, value := range want {
				if got := p.header.Get(name); got != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
			if p.header.Get("X-Request-Id") == "" {
				t.Error("no request ID")
			}
			if own := ours.ReplaceAllString(p.text, ""); strings.Contains(own, "<script") || strings.Contains(p.text, "http://") {
				t.Errorf("the page has what it should not:\n%s", p.text)
			}
		})
	}
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 2 {
		t.Errorf("%d attempts were begun", n)
	}
}

func TestSite_NamesAreText(t *testing.T) {
	w := newWorld(t, func(c *web.Config) { c.Platform = `A & "B"` })
	_, link := w.open(func(s *consent.Session) {
		s.DisplayName, s.ApplicationName = `<script>alert(1)</script>`, "phasekey <b>Network</b> 1a2b"
	})
	p := w.browser().get(link)
	shows(t, p, http.StatusOK, "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi>", "<bdi>phasekey &lt;b&gt;Network&lt;/b&gt; 1a2b</bdi>", "<bdi>A &amp; &#34;B&#34;</bdi>")
	if strings.Contains(ours.ReplaceAllString(p.text, ""), "<script") {
		t.Error("a name became a script")
	}
}

func TestSite_ARenamedApplicationDoesNotMislead(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	b.press(link)
	named := func(name string) consent.Observation {
		return consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: name}
	}
	w.settle(named("phasekey Micr\u043esoft 1a2b"))
	p := b.get(link)
	shows(t, p, http.StatusOK, "The application has a misleading name", "Have them give the integration another name")
	if strings.Contains(p.text, "Micr\u043esoft") || strings.Contains(p.text, "<button") {
		t.Errorf("the page has the name, or a button:\n%s", p.text)
	}
	if p := b.do(http.MethodPost, link, nil); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("pressing leads to %q (%d)", p.to(), p.status)
	}
	if p := b.get(link + "/errors/AADSTS90094"); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("asking for help leads to %q (%d)", p.to(), p.status)
	}
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 1 {
		t.Errorf("%d attempts were begun", n)
	}
	w.settle(named("phasekey Network 1a2b"))
	shows(t, b.get(link), http.StatusOK, button, "phasekey Network 1a2b")
	if got := w.get(session.Name); got.State != consent.AwaitingConsent {
		t.Errorf("state %d", got.State)
	}
}

func TestSite_DoesNotShowAReturnLinkThatIsNoLongerAllowed(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) { s.ReturnURI = "https://old.example.com/secret-path" })
	if p := w.browser().get(link); p.status != http.StatusOK || strings.Contains(p.text, "old.example.com") {
		t.Errorf("%d:\n%s", p.status, p.text)
	}
	if log := w.log.String(); !strings.Contains(log, "a return link is not shown") || strings.Contains(log, "secret-path") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestSite_KeepsTenAttemptsOfOneSource(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	const most = 10
	first := b.press(link)
	var last string
	for range most {
		last = b.press(link)
	}
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != most {
		t.Errorf("%d attempts are kept", n)
	}
	shows(t, b.get(b.through(first)), http.StatusBadRequest)
	if p := b.get(b.through(last)); p.status != http.StatusSeeOther {
		t.Errorf("the newest: %d", p.status)
	}
}

// brokenStore fails or panics.
type brokenStore struct {
	*store.Store
	mu     sync.Mutex
	broken func() error
}

func (s *brokenStore) set(broken func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *brokenStore) failure() error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken == nil {
		return nil
	}
	return broken()
}

func (s *brokenStore) ByLink(ctx context.Context, hash []byte) (consent.Session, error) {
	if err := s.failure(); err != nil {
		return consent.Session{}, err
	}
	return s.Store.ByLink(ctx, hash)
}

func (s *brokenStore) Begin(ctx context.Context, integrationUID string, a consent.Attempt, kept consent.Kept) error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.Store.Begin(ctx, integrationUID, a, kept)
}

func (s *brokenStore) Return(ctx context.Context, now time.Time, hash []byte, judge func(*consent.Attempt, consent.Session) consent.Verdict) (consent.Verdict, error) {
	if err := s.failure(); err != nil {
		return consent.Verdict{}, err
	}
	return s.Store.Return(ctx, now, hash, judge)
}

func TestSite_WhileTheDatabaseIsAway(t *testing.T) {
	broken := &brokenStore{}
	w := newWorld(t, func(c *web.Config) { broken.Store, _ = c.Store.(*store.Store); c.Store = broken })
	session, link := w.open(nil)
	w.entraSays(approved)
	b := w.browser()
	back := b.through(b.press(link))
	broken.set(func() error { return fmt.Errorf("driver says: %w", consent.ErrUnavailable) })
	for _, tc := range []struct{ method, where string }{{"GET", link}, {"POST", link}, {"GET", back}} {
		p := b.do(tc.method, tc.where, nil)
		shows(t, p, http.StatusServiceUnavailable, "This does not work right now")
		if p.header.Get("Retry-After") == "" || len(p.cookies) != 0 || strings.Contains(p.text, "driver says") {
			t.Errorf("%s: %v\n%s", tc.method, p.header, p.text)
		}
	}
	if strings.Contains(w.log.String(), strings.TrimPrefix(link, w.config.Links.PublicURL)) {
		t.Error("the log has the link")
	}
	// Nothing was half done: the browser's way goes on.
	broken.set(nil)
	if p := b.get(back); p.status != http.StatusSeeOther || w.get(session.Name).LastCallback != "APPROVED" {
		t.Errorf("afterwards: %d", p.status)
	}
}

func TestSite_APanicIsAPageAndALogRecord(t *testing.T) {
	broken := &brokenStore{}
	w := newWorld(t, func(c *web.Config) { broken.Store, _ = c.Store.(*store.Store); c.Store = broken })
	_, link := w.open(nil)
	b := w.browser()
	broken.set(func() error { panic("canary") }) //nolint:forbidigo // what is tested is that it ends nothing
	p := b.get(link)
	shows(t, p, http.StatusInternalServerError, "This does not work right now")
	if strings.Contains(p.text, "canary") || !strings.Contains(w.log.String(), "canary") {
		t.Errorf("page:\n%s\nlog:\n%s", p.text, w.log)
	}
	if n := w.counted("phasekey_broker_page_panics_total"); n != 1 {
		t.Errorf("%v panics were counted", n)
	}
	broken.set(func() error { return errors.New("driver says no") })
	shows(t, b.get(link), http.StatusServiceUnavailable)
	broken.set(nil)
	shows(t, b.get(link), http.StatusOK)
}

func TestSite_AnUnknownCloudIsOurMistake(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) { s.Cloud = "elsewhere" })
	b := w.browser()
	shows(t, b.do(http.MethodPost, link, nil), http.StatusInternalServerError)
	if n := w.count(`SELECT COUNT(*) FROM consent_attempts`); n != 0 {
		t.Errorf("%d attempts were begun", n)
	}
}

func TestSite_LimitsHowOftenOneAddressAsks(t *testing.T) {
	w := newWorld(t, nil)
	b := w.browser()
	var limited page
	for range 2000 {
		if limited = b.get(w.config.Links.PublicURL + "/"); limited.status == http.StatusTooManyRequests {
			break
		}
	}
	shows(t, limited, http.StatusTooManyRequests, "Too many requests")
	if limited.header.Get("Retry-After") == "" || limited.header.Get("X-Frame-Options") != "DENY" {
		t.Errorf("headers %v", limited.header)
	}
}

func TestSite_LimitsHowManyAreServedAtOnce(t *testing.T) {
	broken := &brokenStore{}
	release := make(chan struct{})
	var waiting sync.WaitGroup
	cfg := web.Config{Store: broken, Log: slog.New(slog.DiscardHandler), Links: consent.Links{PublicURL: "https://consent.example.com"}}
	site, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(i int) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/consent/"+strings.Repeat("A", consent.TokenSize), nil)
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", i%250)
		answer := httptest.NewRecorder()
		site.Handler().ServeHTTP(answer, r)
		return answer.Code
	}
	const most = 256
	inside := make(chan struct{}, most)
	broken.set(func() error {
		inside <- struct{}{}
		<-release
		return consent.ErrNotFound
	})
	for i := range most {
		waiting.Go(func() {
			if got := ask(i); got != http.StatusNotFound {
				t.Errorf("one within the bound: %d", got)
			}
		})
	}
	for range most {
		<-inside
	}
	if got := ask(0); got != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", got)
	}
	close(release)
	waiting.Wait()
	if got := ask(0); got != http.StatusNotFound {
		t.Errorf("afterwards: %d", got)
	}
}

func TestTask_StopsInTimeAndLetsRequestsEnd(t *testing.T) {
	for _, tc := range []struct {
		name  string
		drain time.Duration
		ends  bool
	}{{"one that ends", time.Minute, true}, {"one that does not", 50 * time.Millisecond, false}} {
		t.Run(tc.name, func(t *testing.T) {
			entra := httptest.NewTLSServer(http.NotFoundHandler())
			defer entra.Close()
			inside, release := make(chan struct{}), make(chan struct{})
			broken := &brokenStore{}
			broken.set(func() error {
				close(inside)
				<-release
				return consent.ErrNotFound
			})
			site, err := web.New(web.Config{Store: broken, Log: slog.New(slog.DiscardHandler), Links: consent.Links{PublicURL: "https://consent.example.com"}})
			if err != nil {
				t.Fatal(err)
			}
			ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				ended <- site.Task(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: entra.TLS.Certificates}, tc.drain).Run(ctx)
			}()
			status := make(chan int, 1)
			go func() {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ln.Addr().String()+"/consent/"+strings.Repeat("A", consent.TokenSize), nil)
				if err != nil {
					t.Error(err)
				}
				response, err := entra.Client().Do(r)
				if err != nil {
					status <- 0
					return
				}
				_ = response.Body.Close()
				status <- response.StatusCode
			}()
			<-inside
			cancel()
			if tc.ends {
				close(release)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if got := <-status; (got == http.StatusNotFound) != tc.ends {
				t.Errorf("status %d", got)
			}
			if !tc.ends {
				close(release)
			}
			entra.Client().CloseIdleConnections()
		})
	}
}
