package web_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/standing"
	"phasekey.dev/services/broker/internal/store"
	"phasekey.dev/services/broker/internal/web"
)

var proxies = web.Proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")}

// asked is how often one browser, and after it another, is answered before it is told that it asks too often.
func asked(t *testing.T, site *web.Site, one func(*http.Request), other func(*http.Request)) (first int, second bool) {
	t.Helper()
	ask := func(change func(*http.Request)) bool {
		r := request(t, http.MethodGet, 0, nil)
		change(r)
		answer := httptest.NewRecorder()
		site.Handler().ServeHTTP(answer, r)
		return answer.Code != http.StatusTooManyRequests
	}
	for first < 1000 && ask(one) {
		first++
	}
	return first, ask(other)
}

func TestSite_TellsBrowsersBehindAProxyApart(t *testing.T) {
	from := func(remote string, forwarded ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.RemoteAddr = remote
			r.Header["X-Forwarded-For"] = forwarded
		}
	}
	for _, tc := range []struct {
		name       string
		one, other func(*http.Request)
		apart      bool
	}{
		{"two browsers", from("10.0.0.1:1", "192.0.2.1"), from("10.0.0.1:2", "192.0.2.2"), true},
		{"one, by two proxies", from("10.0.0.1:1", "192.0.2.1"), from("10.0.0.2:1", "192.0.2.1"), false},
		{"one, that makes up who it is", from("10.0.0.1:1", "198.51.100.1, 192.0.2.1"), from("10.0.0.1:1", "198.51.100.2, 192.0.2.1"), false},
		{"one, that makes up a proxy", from("10.0.0.1:1", "198.51.100.1, 10.1.1.1, 192.0.2.1"), from("10.0.0.1:1", "198.51.100.2, 10.1.1.1, 192.0.2.1"), false},
		{"two, behind two proxies", from("10.0.0.1:1", "192.0.2.1, 10.0.0.2"), from("10.0.0.1:1", "192.0.2.2, 10.0.0.2"), true},
		{"two, in two headers", from("10.0.0.1:1", "192.0.2.1", "10.0.0.2"), from("10.0.0.1:1", "192.0.2.2", "10.0.0.2"), true},
		{"one, that makes up who it is, in a header of its own", from("10.0.0.1:1", "198.51.100.1", "192.0.2.1"), from("10.0.0.1:1", "198.51.100.2", "192.0.2.1"), false},
		{"two, in a header that is not the first", from("10.0.0.1:1", "198.51.100.1", "192.0.2.1"), from("10.0.0.1:1", "198.51.100.1", "192.0.2.2"), true},
		{"two, with ports", from("10.0.0.1:1", "192.0.2.1:1234"), from("10.0.0.1:1", "192.0.2.2:1234"), true},
		{"one, with two ports", from("10.0.0.1:1", "192.0.2.1:1234"), from("10.0.0.1:1", "192.0.2.1:1235"), false},
		{"two of IPv6", from("[2001:db8:1::1]:1", "2001:db8:2::1"), from("[2001:db8:1::1]:1", "[2001:db8:3::1]:99"), true},
		{"one of IPv6, for a /64 is one customer", from("[2001:db8:1::1]:1", "2001:db8:2::1"), from("[2001:db8:1::1]:1", "2001:db8:2::2"), false},
		{"one, written in two ways", from("10.0.0.1:1", "192.0.2.1"), from("10.0.0.1:1", "::ffff:192.0.2.1"), false},
		{"no proxy", from("192.0.2.1:1", "198.51.100.1"), from("192.0.2.1:1", "198.51.100.2"), false},
		{"the proxies themselves", from("10.0.0.1:1"), from("10.0.0.2:1"), true},
		{"what is no address counts as the proxy", from("10.0.0.1:1", "192.0.2.1, unknown"), from("10.0.0.1:1", "192.0.2.2, _hidden"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // where no time passes
				site := emptySite(t, nil, proxies...)
				first, apart := asked(t, site, tc.one, tc.other)
				if first != 200 || apart != tc.apart {
					t.Errorf("the first was answered %d times, the other: %v", first, apart)
				}
			})
		})
	}
}

func TestSite_LogsWhoAsksBehindAProxy(t *testing.T) {
	w := newWorld(t, func(c *web.Config) { c.Proxies = web.Proxies{netip.MustParsePrefix("127.0.0.0/8")} })
	_, link := w.open(nil)
	w.browser().do(http.MethodGet, link, func(r *http.Request) { r.Header.Set("X-Forwarded-For", "203.0.113.7") })
	if log := w.log.String(); !strings.Contains(log, `"address":"203.0.113.7:0"`) {
		t.Errorf("the log:\n%s", log)
	}
}

func TestTask_AProxyOpensConnectionsForOthers(t *testing.T) {
	metrics := prometheus.NewRegistry()
	s := serve(t, emptySite(t, metrics, proxies...))
	s.set("10.0.0.1:1")
	for range most + 1 {
		s.dial(t)
	}
	if response, err := s.ask(t, "GET / HTTP/1.1\r\nHost: consent.example.com\r\n\r\n"); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("one more: %v, error %v", response, err)
	}
}

func TestTask_WhoIsNoProxyDoesNotOpenConnectionsForOthers(t *testing.T) {
	s := serve(t, emptySite(t, nil, proxies...))
	for range most {
		s.dial(t)
	}
	if response, err := s.ask(t, "GET / HTTP/1.1\r\nHost: consent.example.com\r\n\r\n"); err == nil {
		t.Errorf("one more is answered %d", response.StatusCode)
	}
}

func TestSite_TheButtonsOfOneAccountAreNotPressedTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no time passes
		key, err := consent.NewKey([]byte(strings.Repeat("k", consent.KeySize)))
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, store: store.New(sqldbtest.SQLite(t, store.Migrations()))}
		w.config = web.Config{
			Store: w.store, Standing: standing.New(standing.Config{}), Log: slog.New(slog.DiscardHandler), Proxies: proxies, AttemptLife: time.Hour,
			Links: consent.Links{Key: key, Clouds: map[string]consent.Cloud{"public": {LoginURL: "https://login.example"}}, PublicURL: "https://consent.example.com"},
		}
		site, err := web.New(w.config)
		if err != nil {
			t.Fatal(err)
		}
		press := func(link string, from int) int {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, strings.TrimPrefix(link, w.config.Links.PublicURL), nil)
			r.RemoteAddr = fmt.Sprintf("192.0.%d.%d:1", from/250, from%250)
			answer := httptest.NewRecorder()
			site.Handler().ServeHTTP(answer, r)
			return answer.Code
		}
		var links []string
		for range 10 { // each of which may be pressed sixty times
			_, link := w.open(nil)
			links = append(links, link)
		}
		_, other := w.open(func(s *consent.Session) { s.Name.Account = "other" })
		pressed := 0
		for pressed < 500 && press(links[pressed/50], pressed) == http.StatusOK {
			pressed++
		}
		if pressed != 300 {
			t.Errorf("the buttons of one account are pressed %d times", pressed)
		}
		if got := press(other, 1000); got != http.StatusOK {
			t.Errorf("another account: %d", got)
		}
	})
}

func TestSite_ABrowserDoesNotDrownInItsCookies(t *testing.T) {
	w := newWorld(t, func(c *web.Config) { c.Proxies = web.Proxies{netip.MustParsePrefix("127.0.0.0/8")} })
	w.entraSays(approved)
	b := w.browser()
	var link, entra string
	// So many that their cookies would be more than a request may have in its headers.
	for i := range 200 {
		_, link = w.open(func(s *consent.Session) {
			s.IntegrationUID, s.Name.Account = fmt.Sprint("uid-", i), fmt.Sprint("account-", i)
		})
		p := b.do(http.MethodPost, link, func(r *http.Request) { r.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i)) })
		if entra = p.to(); p.status != http.StatusOK {
			t.Fatalf("press %d: %d", i, p.status)
		}
	}
	if p := b.get(b.through(entra)); p.status != http.StatusSeeOther || p.to() != link {
		t.Errorf("the newest: %d to %s", p.status, p.to())
	}
}

func TestSite_TheButtonIsNotPressedTooOften(t *testing.T) {
	w := newWorld(t, func(c *web.Config) { c.Proxies = web.Proxies{netip.MustParsePrefix("127.0.0.0/8")} })
	_, link := w.open(nil)
	_, other := w.open(nil)
	b := w.browser()
	press := func(link string, from int) int {
		return b.do(http.MethodPost, link, func(r *http.Request) { r.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.%d.%d", from/250, from%250)) }).status
	}
	pressed := 0
	for pressed < 100 && press(link, 0) == http.StatusOK {
		pressed++
	}
	if pressed < 20 || pressed > 25 {
		t.Errorf("one source presses %d times", pressed)
	}
	if got := press(link, 1); got != http.StatusOK {
		t.Errorf("another source: %d", got)
	}
	if got := press(other, 0); got != http.StatusOK {
		t.Errorf("another session: %d", got)
	}
	all := pressed + 1
	for all < 300 && press(link, all) == http.StatusOK {
		all++
	}
	if all < 60 || all > 150 {
		t.Errorf("in one session the button is pressed %d times", all)
	}
	if got := press(other, 500); got != http.StatusOK {
		t.Errorf("another session: %d", got)
	}
	p := b.do(http.MethodPost, link, func(r *http.Request) { r.Header.Set("X-Forwarded-For", "203.0.0.0") })
	if p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") == "" || !strings.Contains(p.text, "pressed too often") {
		t.Errorf("%d %v\n%s", p.status, p.header, p.text)
	}
}
