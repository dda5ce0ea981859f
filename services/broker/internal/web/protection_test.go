package web_test

import (
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

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
