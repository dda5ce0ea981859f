package web_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

// Whatever anybody sends, the answer is one of ours: whole, protected, no mistake of ours, and without what was sent as markup. Nothing of a
// session changes but by its own cookie.
func FuzzSite(f *testing.F) {
	w := newWorld(f, func(c *web.Config) { c.Proxies = web.Proxies{netip.MustParsePrefix("192.0.2.0/24")} })
	session, link := w.open(nil)
	lost, lostLink := w.proven(nil)
	w.stands.set(lostBy("AADSTS700016"), refusing, nil)
	shown := w.browser().get(lostLink)
	lost = w.get(lost.Name)
	if shown.status != http.StatusOK || !lost.Lost() {
		f.Fatalf("%d, %+v", shown.status, lost)
	}
	lostPath := strings.TrimPrefix(lostLink, w.config.Links.PublicURL)
	cfg := w.config
	cfg.Metrics = nil
	path := strings.TrimPrefix(link, cfg.Links.PublicURL)
	b := w.browser()
	pressed := b.do(http.MethodPost, link, nil)
	to, err := url.Parse(pressed.to())
	if err != nil {
		f.Fatal(err)
	}
	state := to.Query().Get("state")
	cookie := pressed.cookies[0].Name + "=x"
	for _, seed := range []struct{ method, target, query, cookie, forwarded, origin string }{
		{"GET", path, "", "", "", ""}, {"POST", path, "", cookie, "203.0.113.1", cfg.Links.PublicURL}, {"GET", path + "/events", "", "", "", ""},
		{"GET", path + "/errors/AADSTS50011", "", "", "", ""}, {"POST", path + "/check", "", "", "", ""}, {"HEAD", path, "", "", "", ""},
		{"GET", lostPath, "", "", "", ""}, {"POST", lostPath, "", cookie, "", cfg.Links.PublicURL}, {"GET", lostPath + "/errors/AADSTS700016", "", "", "", ""},
		{"GET", "/consent/callback", "state=" + state + "&admin_consent=True&tenant=" + tenant, cookie, "203.0.113.1, 192.0.2.1", ""},
		{"GET", "/consent/callback", "state=" + state + "&error=%3Cscript%3Ex&error_description=AADSTS65004", "", "unknown, [::1]:x", "null"},
		{"OPTIONS", "/consent/%2e%2e/", "a=%zz", "__Host-phasekey-=", ",,,", "https://evil.example"}, {"<b>", "/assets/x.css", "", "", "", ""},
		{"GET", "/consent/" + strings.Repeat("A", 43) + "/../x", "<script>alert(1)</script>", "", "", ""}, {"DELETE", "//consent", "", "", "", ""},
	} {
		f.Add(seed.method, seed.target, seed.query, seed.cookie, seed.forwarded, seed.origin)
	}
	f.Fuzz(func(t *testing.T, method, target, query, cookie, forwarded, origin string) {
		site, err := web.New(cfg) // anew, so that no limit is reached
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Method, r.URL = method, &url.URL{Path: target, RawQuery: query}
		r.RemoteAddr = "192.0.2.1:1"
		r.Header = http.Header{"Cookie": {cookie}, "X-Forwarded-For": {forwarded}, "Origin": {origin}}
		answer := httptest.NewRecorder()
		site.Handler().ServeHTTP(answer, r)
		got := answer.Result()
		if got.StatusCode < 200 || got.StatusCode >= 500 || got.Header.Get("X-Frame-Options") != "DENY" || got.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s %q?%q: %d %v", method, target, query, got.StatusCode, got.Header)
		}
		if text := ours.ReplaceAllString(answer.Body.String(), ""); strings.HasPrefix(got.Header.Get("Content-Type"), "text/html") && (strings.Contains(text, "<script") || !strings.HasSuffix(text, "</html>\n")) {
			t.Errorf("%s %q?%q: %s", method, target, query, text)
		}
		if to := got.Header.Get("Location"); to != "" && !strings.HasPrefix(to, cfg.Links.PublicURL+"/") && !strings.HasPrefix(to, "/") {
			t.Errorf("%s %q?%q leads to %s", method, target, query, to)
		}
		for _, was := range []consent.Session{session, lost} {
			if now, err := w.store.Get(t.Context(), was.Name); err != nil || now != was {
				t.Errorf("%s %q?%q changed the session: %+v, error %v", method, target, query, now, err)
			}
		}
	})
}
