package web_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/web"
)

// patience bounds what a test waits for that happens at once: it says that a test has failed, not how fast anything is.
const patience = 20 * time.Second

// stream is a browser that is told what becomes of a session.
type stream struct {
	t        testing.TB
	response *http.Response
	lines    *bufio.Reader
	cancel   func()
}

func (b *browser) follow(link string) *stream {
	b.w.t.Helper()
	return b.followFrom(link, "")
}

// followFrom is follow behind a proxy that says so, for a browser at an address.
func (b *browser) followFrom(link, address string) *stream {
	b.w.t.Helper()
	ctx, cancel := context.WithCancel(b.w.t.Context())
	b.w.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, link+"/events", nil)
	if err != nil {
		b.w.t.Fatal(err)
	}
	if address != "" {
		r.Header.Set("X-Forwarded-For", address)
	}
	patient := *b.http
	patient.Timeout = 0
	response, err := patient.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.w.t.Cleanup(func() { _ = response.Body.Close() })
	return &stream{b.w.t, response, bufio.NewReader(response.Body), cancel}
}

// next is the data of the next event, and io.EOF after the last.
func (s *stream) next() (string, error) {
	s.t.Helper()
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return "", err
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			return strings.TrimSpace(data), nil
		}
	}
}

func (s *stream) expect(want string) {
	s.t.Helper()
	if got, err := s.next(); got != want || err != nil {
		s.t.Fatalf("told %s, error %v; want %s", got, err, want)
	}
}

func TestEvents_GoOnWhileNothingHappens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	_, link := w.open(nil)
	events := w.browser().follow(link)
	events.expect(`{"page":"landing","version":1}`)
	<-time.After(11 * time.Second) // longer than one event may take to send
	w.settle(consent.Observation{Finding: consent.Ready, ClientID: "other", ApplicationName: "phasekey Network 1a2b"})
	events.expect(`{"page":"landing","version":2}`)
}

func TestEvents_TellWhatBecomesOfTheSession(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(func(s *consent.Session) {
		s.State, s.ClientID, s.ApplicationName = consent.WaitingForApplication, "", ""
	})
	path := strings.TrimPrefix(link, w.config.Links.PublicURL)
	b := w.browser()
	shows(t, b.get(link), http.StatusOK, `data-page="waiting" data-version="1" data-live="`+path+`/events"`)
	events := b.follow(link)
	if kind := events.response.Header.Get("Content-Type"); events.response.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("status %d, %s", events.response.StatusCode, kind)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Frame-Options": "DENY"} {
		if got := events.response.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	events.expect(`{"page":"waiting","version":1}`)
	if n := w.gauged("phasekey_broker_live_pages"); n != 1 {
		t.Errorf("%v live pages", n)
	}
	ready := consent.Observation{Finding: consent.Ready, ClientID: "client", ApplicationName: "phasekey Network 1a2b"}
	w.settle(ready)
	events.expect(`{"page":"landing","version":2}`)
	w.entraSays(refused("consent_required", "AADSTS65004"))
	b.get(b.through(b.press(link)))
	events.expect(`{"page":"problem","version":3}`)
	w.entraSays(approved)
	b.get(b.through(b.press(link)))
	events.expect(`{"page":"pending","version":4}`)
	ready.Proof = &consent.Proof{Refusal: "AADSTS7000229"}
	w.settle(ready)
	events.expect(`{"page":"pending","version":5}`)
	ready.Proof = &consent.Proof{Consented: true, PrincipalObjectID: principal}
	w.settle(ready)
	w.roles.finds(consent.Permissions{Read: consent.Full, Write: consent.None})
	events.expect(`{"page":"result","version":6}`)
	events.expect(`{"page":"result","version":7}`)
	shows(t, b.get(link), http.StatusOK, "may read this subscription, and change nothing", "data-live")
	w.roles.finds(consent.Permissions{Read: consent.Full, Write: consent.Full})
	if p := b.do(http.MethodPost, link+"/check", nil); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("looking again: %d to %s", p.status, p.to())
	}
	events.expect(`{"page":"result","version":8}`)
	shows(t, b.get(link), http.StatusOK, "may read and change things in this subscription", "--role Contributor")
	if told, err := events.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: told %s, error %v", told, err)
	}
	if p := b.get(link); strings.Contains(p.text, "data-live") {
		t.Error("the page is live after the end")
	}
	if log := w.log.String(); strings.Contains(log, strings.TrimPrefix(path, "/consent/")) || !strings.Contains(log, `"page":"GET /consent/{link}/events"`) {
		t.Errorf("the log:\n%s", log)
	}
}

func TestEvents_OfNoSession(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	b := w.browser()
	nobodys := w.config.Links.PublicURL + "/consent/" + strings.Repeat("A", consent.TokenSize)
	for _, tc := range []struct {
		method, where string
		status        int
	}{
		{"GET", nobodys + "/events", http.StatusNotFound}, {"GET", w.config.Links.PublicURL + "/consent/short/events", http.StatusNotFound},
		{"HEAD", link + "/events", http.StatusMethodNotAllowed}, {"POST", link + "/events", http.StatusMethodNotAllowed},
		{"GET", link + "/events/", http.StatusNotFound},
	} {
		if p := b.do(tc.method, tc.where, nil); p.status != tc.status || p.header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s %s: %d", tc.method, tc.where, p.status)
		}
	}
}

func TestEvents_ARefusalOfTheDatabaseOrAPanicIsAPage(t *testing.T) {
	broken := &brokenStore{}
	w := newWorld(t, func(c *web.Config) { broken.Store, _ = c.Store.(*store.Store); c.Store = broken })
	_, link := w.open(nil)
	b := w.browser()
	broken.set(func() error { return errors.New("driver says no") })
	shows(t, b.get(link+"/events"), http.StatusServiceUnavailable, "This does not work right now")
	broken.set(func() error { panic("canary") }) //nolint:forbidigo // what is tested is that it ends nothing
	shows(t, b.get(link+"/events"), http.StatusInternalServerError, "This does not work right now")
	if n := w.counted("phasekey_broker_page_panics_total"); n != 1 {
		t.Errorf("%v panics were counted", n)
	}
}

func TestEvents_OneSourceDoesNotTakeAllPlaces(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	b := w.browser()
	const most = 64
	var first *stream
	for i := range most {
		s := b.follow(link)
		s.expect(`{"page":"landing","version":1}`)
		if i == 0 {
			first = s
		}
	}
	shows(t, b.get(link+"/events"), http.StatusServiceUnavailable, "Too many people")
	// The page itself is still served.
	shows(t, b.get(link), http.StatusOK, button)
	first.cancel()
	// The server sees that in its own time.
	for deadline := time.Now().Add(patience); ; {
		s := b.follow(link)
		if s.response.StatusCode == http.StatusOK {
			return
		}
		s.cancel()
		if time.Now().After(deadline) {
			t.Fatal("after one went away, nobody is let in")
		}
	}
}

func TestEvents_DoNotHoldUpTheStop(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	cfg := w.config
	cfg.Metrics = nil
	origin, stop := w.serveUntil(cfg)
	s := w.browser().follow(origin + strings.TrimPrefix(link, w.config.Links.PublicURL))
	s.expect(`{"page":"landing","version":1}`)
	began := time.Now()
	stop()
	if took := time.Since(began); took > 15*time.Second { // of the half minute that requests have
		t.Errorf("the stop took %s", took)
	}
	if told, err := s.next(); !errors.Is(err, io.EOF) {
		t.Errorf("told %s, error %v", told, err)
	}
}

func TestHelp_AboutWhatMicrosoftShows(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	path := strings.TrimPrefix(link, w.config.Links.PublicURL)
	b := w.browser()
	landing := b.get(link)
	for code, says := range map[string]string{
		"AADSTS50011": "The application names another address", "AADSTS700016": "Microsoft does not know it everywhere yet",
		"AADSTS90072": "That account is of another tenant", "AADSTS90094": "Your account may not consent", "AADSTS53003": "A policy of your tenant",
	} {
		shows(t, landing, http.StatusOK, `<a href="`+path+`/errors/`+code+`">`)
		shows(t, b.get(link+"/errors/"+code), http.StatusOK, says, code, "Who can mend it, and how", `<form method="post" action="`+path+`">`, button)
	}
	shows(t, b.get(link+"/errors/AADSTS1"), http.StatusNotFound)
	shows(t, b.get(w.config.Links.PublicURL+"/consent/"+strings.Repeat("A", consent.TokenSize)+"/errors/AADSTS50011"), http.StatusNotFound)
	if got := w.get(session.Name); got != session {
		t.Errorf("reading about errors has changed the session: %v", got)
	}
	w.settle(consent.Observation{Finding: consent.Gone})
	if p := b.get(link + "/errors/AADSTS50011"); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("after the end: %d to %s", p.status, p.to())
	}
}

func TestSite_SaysThatAnotherTenantWasNamedToWhomeverPressed(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	path := strings.TrimPrefix(link, w.config.Links.PublicURL)
	w.entraSays(approved)
	b := w.browser()
	back := strings.Replace(b.through(b.press(link)), tenant, subscription, 1)
	shows(t, b.get(back), http.StatusBadRequest, "That was another tenant", tenant, `<a href="`+path+`">Try again</a>`)
	p := w.browser().get(back)
	shows(t, p, http.StatusBadRequest, "This cannot be used")
	if strings.Contains(p.text, path) || strings.Contains(p.text, tenant) {
		t.Errorf("another browser is told too much:\n%s", p.text)
	}
	if got := w.get(session.Name); got != session {
		t.Errorf("the session has changed: %v", got)
	}
}

func TestSite_AWithdrawnLink(t *testing.T) {
	w := newWorld(t, nil)
	session, link := w.open(nil)
	b := w.browser()
	entra := b.press(link)
	if _, err := w.store.Change(t.Context(), session.Name, func(s consent.Session) (consent.Session, bool) { return consent.Cancel(time.Now(), s) }); err != nil {
		t.Fatal(err)
	}
	shows(t, b.get(link), http.StatusOK, "This link was withdrawn", "has withdrawn it", "stays among the enterprise applications")
	w.entraSays(approved)
	if p := b.get(b.through(entra)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the callback: %d to %s", p.status, p.to())
	}
	if s := w.get(session.Name); s.LastCallback != "" || s.State != consent.Expired {
		t.Errorf("callback %q, state %d", s.LastCallback, s.State)
	}
}

func TestSite_TheScriptIsServedAsOne(t *testing.T) {
	w := newWorld(t, nil)
	_, link := w.open(nil)
	b := w.browser()
	at := strings.Split(ours.FindString(b.get(link).text), `"`)[1]
	p := b.get(w.config.Links.PublicURL + at)
	if p.status != http.StatusOK || p.header.Get("Content-Type") != "text/javascript; charset=utf-8" || p.header.Get("Cache-Control") != "public, max-age=31536000, immutable" ||
		!strings.Contains(p.text, "EventSource") {
		t.Errorf("%d %v", p.status, p.header)
	}
}

// viewer is a browser in process that is told what becomes of a session: cheap, for there are many.
type viewer struct {
	*httptest.ResponseRecorder
	told chan<- struct{}
}

func (v viewer) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("event: ")) {
		v.told <- struct{}{}
	}
	return len(b), nil
}

func (viewer) SetReadDeadline(time.Time) error  { return nil }
func (viewer) SetWriteDeadline(time.Time) error { return nil }

func TestEvents_ThereAreSoManyPlacesInAll(t *testing.T) {
	const most, perSource = 4096, 64
	w := newWorld(t, nil)
	_, link := w.open(nil)
	cfg := w.config
	cfg.Metrics, cfg.Log = nil, slog.New(slog.DiscardHandler)
	site, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	ask := func(ctx context.Context, n int) viewer {
		v := viewer{httptest.NewRecorder(), told}
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, strings.TrimPrefix(link, cfg.Links.PublicURL)+"/events", nil)
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", n/perSource)
		site.Handler().ServeHTTP(v, r)
		return v
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var looking sync.WaitGroup
	for n := range most {
		looking.Go(func() { ask(ctx, n) })
		<-told
	}
	// A place that should not be there is left again.
	brief, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	late := make(chan viewer, 1)
	go func() { late <- ask(brief, most) }()
	select {
	case v := <-late:
		if v.Code != http.StatusServiceUnavailable || v.Header().Get("Retry-After") == "" {
			t.Errorf("one more: %d", v.Code)
		}
	case <-told:
		t.Error("one more is let in")
		cancel()
		<-late
	}
	leave()
	looking.Wait()
	again, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() { late <- ask(again, most) }()
	select {
	case <-told:
		cancel()
		<-late
	case v := <-late:
		t.Errorf("after all went away, nobody is let in: %d", v.Code)
	}
}
