package web_test

import (
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"regexp"
	"strings"
	"testing"
	"time"
)

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
