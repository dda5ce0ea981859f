package web_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/web"
)

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
