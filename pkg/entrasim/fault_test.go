package entrasim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestFault_RefusedBefore(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	f := w.fault(entrasim.Fault{Operation: "graph.application.*", Count: 2, Effect: entrasim.Effect{Status: 429, RetryAfter: 1500 * time.Millisecond}})
	for range 2 {
		got := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", "{}")
		if got.status != 429 || got.header.Get("Retry-After") != "2" || got.text("error/code") != "TooManyRequests" {
			t.Errorf("got %d %v %s", got.status, got.header, got.body)
		}
	}
	read := w.graph(http.MethodGet, "/applications/"+a.id, "")
	if list, _ := read.at("passwordCredentials").([]any); read.status != 200 || len(list) != 1 {
		t.Errorf("a refused request was carried out, or the count not kept: %d %s", read.status, read.body)
	}
	if rules := w.sim.Faults(); len(rules) != 1 || rules[0].Acted != 2 || rules[0].ID != f.ID {
		t.Errorf("rules %+v", rules)
	}
	w.must(w.sim.RemoveFault(f.ID))
	if err := w.sim.RemoveFault(f.ID); !errors.Is(err, entrasim.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestFault_TheReplyIsLostAfterTheCommit(t *testing.T) {
	for name, effect := range map[string]entrasim.Effect{
		"gateway timeout": {Status: 504, AfterCommit: true},
		"connection cut":  {Cut: true, AfterCommit: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{})
			a := w.newApp("one")
			bearer := w.graphToken()
			w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Application: a.clientID, Count: 1, Effect: effect})
			got, err := w.try(http.MethodPost, "https://graph.microsoft.com/v1.0/applications/"+a.id+"/addPassword", bearer, "{}")
			if effect.Cut && !errors.Is(err, io.ErrUnexpectedEOF) || !effect.Cut && (err != nil || got.status != 504 || got.text("secretText") != "") {
				t.Fatalf("got %d %s, %v", got.status, got.body, err)
			}
			read := w.graph(http.MethodGet, "/applications/"+a.id, "")
			if list, _ := read.at("passwordCredentials").([]any); len(list) != 1 {
				t.Errorf("the password was not made: %s", read.body)
			}
			lost := w.sim.Journal(entrasim.Query{Operation: "graph.application.addPassword"})
			if len(lost) != 1 || !lost[0].Lost || lost[0].Fault == "" || lost[0].KeyID == "" {
				t.Errorf("journal %+v", lost)
			}
		})
	}
}

func TestFault_DelayHonoursTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one")
		w.fault(entrasim.Fault{Plane: entrasim.PlaneLogin, Effect: entrasim.Effect{Delay: time.Minute}})
		begun := time.Now()
		if got := w.login(customerID, credentials(a.clientID, a.secret, armScope)); got.status != 200 || time.Since(begun) != time.Minute {
			t.Errorf("%d after %v", got.status, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.sim.Endpoints().Login+"/"+homeID+"/discovery/v2.0/keys", nil)
		w.must(err)
		if _, err := w.client.Do(r); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

func TestFault_MatchesTimeTenantAndProbability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one")
		form := credentials(a.clientID, a.secret, armScope)
		w.fault(entrasim.Fault{
			Operation: "login.token", Tenant: customerID, After: time.Now().Add(time.Minute), Before: time.Now().Add(2 * time.Minute),
			Effect: entrasim.Effect{Status: 503},
		})
		for _, want := range []int{200, 503, 200} {
			if got := w.login(customerID, form); got.status != want {
				t.Errorf("got %d %s, want %d", got.status, got.body, want)
			}
			w.graphToken() // the home tenant is not concerned
			time.Sleep(time.Minute)
		}
		w.fault(entrasim.Fault{Operation: "login.token", Application: a.clientID, Probability: 0.5, Effect: entrasim.Effect{Status: 500, Code: "90033"}})
		failed := 0
		for range 200 {
			if got := w.login(customerID, form); got.status == 500 {
				failed++
				if got.text("error") != "temporarily_unavailable" {
					t.Errorf("error %s", got.body)
				}
			}
		}
		if failed < 70 || failed > 130 {
			t.Errorf("%d of 200 failed", failed)
		}
	})
}

func TestFault_BadRulesAreRefused(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	for name, f := range map[string]entrasim.Fault{
		"no effect":        {},
		"bad pattern":      {Operation: "[", Effect: entrasim.Effect{Cut: true}},
		"bad probability":  {Probability: 2, Effect: entrasim.Effect{Cut: true}},
		"bad status":       {Effect: entrasim.Effect{Status: 99}},
		"negative delay":   {Effect: entrasim.Effect{Delay: -1, Cut: true}},
		"negative count":   {Count: -1, Effect: entrasim.Effect{Cut: true}},
		"negative advice ": {Effect: entrasim.Effect{Status: 503, RetryAfter: -1}},
	} {
		if _, err := w.sim.AddFault(f); !errors.Is(err, entrasim.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFault_MatchesEachOfItsFields has every rule strike one of two requests
// that differ by one thing.
func TestFault_MatchesEachOfItsFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, p := w.consented("one")
		b, q := w.consented("two")
		w.assign(p.ID, "Reader", scope)
		w.assign(q.ID, "Reader", scope)
		tokens := map[string]string{a.clientID: w.token(customerID, a.clientID, a.secret, armScope), b.clientID: w.token(customerID, b.clientID, b.secret, armScope)}
		login := func(x app, tenant string) func() int {
			return func() int { return w.login(tenant, credentials(x.clientID, x.secret, armScope)).status }
		}
		arm := func(x app, path string) func() int {
			return func() int { return w.arm(http.MethodGet, path, tokens[x.clientID], "").status }
		}
		bearer := w.graphToken()
		graph := func(x app, method string) func() int {
			return func() int {
				return w.send(method, w.sim.Endpoints().Graph+"/v1.0/applications/"+x.id, bearer, `{"tags":[]}`).status
			}
		}
		later := func(f func() int) func() int {
			return func() int {
				time.Sleep(time.Hour)
				return f()
			}
		}
		now := time.Now()
		for _, c := range []struct {
			name             string
			rule             entrasim.Fault
			struck, unharmed func() int
		}{
			{"plane", entrasim.Fault{Plane: entrasim.PlaneARM}, arm(a, scope), login(a, customerID)},
			{"operation", entrasim.Fault{Operation: "arm.subscription.get"}, arm(a, scope), arm(a, "/subscriptions")},
			{"pattern", entrasim.Fault{Operation: "graph.application.up*"}, graph(a, http.MethodPatch), graph(a, http.MethodGet)},
			{"tenant", entrasim.Fault{Tenant: homeID, Plane: entrasim.PlaneLogin}, login(a, homeID), login(a, customerID)},
			{"calling application", entrasim.Fault{Application: a.clientID}, login(a, customerID), login(b, customerID)},
			{"calling application at Resource Manager", entrasim.Fault{Application: b.clientID}, arm(b, scope), arm(a, scope)},
			{"application asked for", entrasim.Fault{Application: a.clientID}, graph(a, http.MethodGet), graph(b, http.MethodGet)},
			{"count", entrasim.Fault{Count: 1}, arm(a, scope), arm(a, scope)},
			{"before", entrasim.Fault{Before: now.Add(30 * time.Minute)}, login(a, customerID), later(login(a, customerID))},
			{"after", entrasim.Fault{After: now.Add(90 * time.Minute)}, later(login(a, customerID)), nil},
		} {
			c.rule.Effect.Status = http.StatusTeapot
			f := w.fault(c.rule)
			if c.name == "after" {
				if got := login(a, customerID)(); got == http.StatusTeapot {
					t.Errorf("%s: struck too early", c.name)
				}
			}
			if got := c.struck(); got != http.StatusTeapot {
				t.Errorf("%s: the one it is for got %d", c.name, got)
			}
			if c.unharmed != nil {
				if got := c.unharmed(); got == http.StatusTeapot {
					t.Errorf("%s: another one is struck", c.name)
				}
			}
			w.must(w.sim.RemoveFault(f.ID))
		}
	})
}

// TestFault_LuckIsEachActorsOwn has one client meet the same faults and replicas
// whatever another one does meanwhile.
func TestFault_LuckIsEachActorsOwn(t *testing.T) {
	story := func(seed uint64, meanwhile int) string {
		w := newWorld(t, entrasim.Config{Seed: seed})
		a, _ := w.consented("one")
		b, _ := w.consented("two")
		w.fault(entrasim.Fault{Operation: "login.token", Probability: 0.5, Effect: entrasim.Effect{Code: "90033"}})
		var story strings.Builder
		for range 100 {
			fmt.Fprint(&story, w.login(customerID, credentials(a.clientID, a.secret, armScope)).status)
			for range meanwhile {
				w.login(customerID, credentials(b.clientID, b.secret, armScope))
			}
		}
		for _, e := range w.sim.Journal(entrasim.Query{Operation: "login.token", Application: a.clientID}) {
			fmt.Fprint(&story, " ", e.Replica, " ", e.RequestID)
		}
		return story.String()
	}
	alone := story(1, 0)
	if !strings.Contains(alone, "200503") && !strings.Contains(alone, "503200") {
		t.Fatalf("there is no luck in %s", alone)
	}
	if other := story(1, 3); other != alone {
		t.Errorf("beside another client:\n%s\nalone:\n%s", other, alone)
	}
	if other := story(2, 0); other == alone {
		t.Error("another seed makes no difference")
	}
}

func TestFault_ACodeIsEnough(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	f := w.fault(entrasim.Fault{Effect: entrasim.Effect{Code: "AADSTS90024", Message: "Own words.", RetryAfter: 5 * time.Second}})
	if f.Plane != entrasim.PlaneLogin || f.Effect.Status != 503 || f.Effect.Code != "90024" {
		t.Errorf("the rule is %+v", f)
	}
	if got := w.login(customerID, credentials(a.clientID, a.secret, armScope)); got.status != 503 || got.header.Get("Retry-After") != "5" ||
		!strings.HasPrefix(got.text("error_description"), "AADSTS90024: Own words. ") {
		t.Errorf("got %d %v %s", got.status, got.header, got.body)
	}
	w.must(w.sim.RemoveFault(f.ID))
	w.fault(entrasim.Fault{Effect: entrasim.Effect{Code: "53003", Status: 401}})
	if got := w.login(customerID, credentials(a.clientID, a.secret, armScope)); got.status != 401 || got.text("error") != "invalid_grant" ||
		!strings.Contains(got.text("error_description"), "Conditional Access") {
		t.Errorf("with another status: %d %s", got.status, got.body)
	}
	for name, bad := range map[string]entrasim.Fault{
		"an unknown code":    {Effect: entrasim.Effect{Code: "1"}},
		"a code of no plane": {Effect: entrasim.Effect{Code: "TooManyRequests"}},
		"a code elsewhere":   {Plane: entrasim.PlaneGraph, Effect: entrasim.Effect{Code: "90024"}},
	} {
		if _, err := w.sim.AddFault(bad); !errors.Is(err, entrasim.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFault_OnTheConsentPage(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a := w.newApp("one")
	w.fault(entrasim.Fault{Operation: "login.adminconsent", Effect: entrasim.Effect{Code: "650052"}})
	got := w.send(http.MethodGet, consentURL(w, customerID, a.clientID, callback), "", "")
	if to := got.header.Get("Location"); got.status != 302 || !strings.HasPrefix(to, callback+"?admin_consent=True&error=invalid_client&error_description=AADSTS650052") {
		t.Errorf("got %d %q", got.status, to)
	}
	got = w.send(http.MethodGet, w.sim.Endpoints().Login+"/organizations/v2.0/adminconsent?scope=x&client_id="+a.clientID+"&redirect_uri="+callback, "", "")
	if to := got.header.Get("Location"); got.status != 302 || !strings.HasPrefix(to, callback+"?admin_consent=True&error=invalid_client") {
		t.Errorf("before anybody has signed in: %d %q", got.status, to)
	}
	got = w.send(http.MethodGet, consentURL(w, customerID, a.clientID, "https://evil.example.com"), "", "")
	if got.status != 400 || got.header.Get("Location") != "" || !strings.Contains(got.body, "AADSTS50011") {
		t.Errorf("a fault sends the browser anywhere: %d %v", got.status, got.header)
	}
	if got := w.send(http.MethodPut, consentURL(w, customerID, a.clientID, callback), "", ""); got.status != 405 {
		t.Errorf("another method: %d", got.status)
	}
}

// broken reads an answer that breaks, and returns what came of it.
func (w *world) broken(method, where, bearer, body string) (status int, length int64, got string, err error) {
	w.Helper()
	r, err := http.NewRequestWithContext(w.Context(), method, where, strings.NewReader(body))
	w.must(err)
	r.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := w.client.Do(r)
	if err != nil {
		return 0, 0, "", err
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it is broken
	return resp.StatusCode, resp.ContentLength, string(text), err
}

func TestFault_CutsInTheMiddleOfTheBody(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *world{
		"in process":  func(t *testing.T) *world { return newWorld(t, entrasim.Config{}) },
		"over HTTP/2": func(t *testing.T) *world { return serve(t, entrasim.Config{}) },
		"over HTTP/1.1": func(t *testing.T) *world {
			w := serve(t, entrasim.Config{})
			w.client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t)
			a := w.newApp("one")
			bearer := w.graphToken()
			where := w.sim.Endpoints().Graph + "/v1.0/applications/" + a.id
			add := func() (int, int64, string, error) {
				return w.broken(http.MethodPost, where+"/addPassword", bearer, "{}")
			}
			check := func(when string, status int, want func() (int, int64, string, error), lost bool, passwords int) {
				t.Helper()
				code, length, text, err := want()
				if code != status || !errors.Is(err, io.ErrUnexpectedEOF) && (name != "over HTTP/2" || err == nil) || len(text) == 0 || int64(len(text)) != length/2 || text[0] != '{' {
					t.Errorf("%s: %d, %d of %d bytes %q, %v", when, code, len(text), length, text, err)
				}
				read := w.send(http.MethodGet, where, bearer, "")
				if list, _ := read.at("passwordCredentials").([]any); read.status != 200 || len(list) != passwords {
					t.Errorf("%s: %d passwords, want %d: %s", when, len(list), passwords, read.body)
				}
				all := w.sim.Journal(entrasim.Query{Operation: "graph.application.addPassword"})
				if e := all[len(all)-1]; e.Lost != lost || e.Fault == "" || e.Status != status {
					t.Errorf("%s: journal %+v", when, e)
				}
			}
			rule := func(e entrasim.Effect) {
				w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Count: 1, Effect: e})
			}
			rule(entrasim.Effect{CutBody: true})
			check("the real answer", 200, add, true, 1)
			rule(entrasim.Effect{CutBody: true, Status: 503})
			check("an error instead", 503, add, false, 1)
			rule(entrasim.Effect{CutBody: true, Status: 503, AfterCommit: true})
			check("an error after the commit", 503, add, true, 2)
			// An answer without a body breaks before it begins.
			w.fault(entrasim.Fault{Operation: "graph.application.update", Count: 1, Effect: entrasim.Effect{CutBody: true}})
			if code, _, _, err := w.broken(http.MethodPatch, where, bearer, `{"tags":["x"]}`); err == nil {
				t.Errorf("an answer without a body: %d", code)
			}
			if read := w.send(http.MethodGet, where, bearer, ""); !strings.Contains(read.body, `"tags":["x"]`) {
				t.Errorf("the update was not carried out: %s", read.body)
			}
		})
	}
}

// TestFault_Outage cuts what is asked of a plane, or of all, before any answer,
// until a time.
func TestFault_Outage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, p := w.consented("one")
		w.assign(p.ID, "Reader", scope)
		bearer, graphBearer := w.token(customerID, a.clientID, a.secret, armScope), w.graphToken()
		e := w.sim.Endpoints()
		planes := map[entrasim.Plane]func() (answer, error){
			entrasim.PlaneLogin: func() (answer, error) {
				return w.try(http.MethodPost, e.Login+"/"+customerID+"/oauth2/v2.0/token", "", credentials(a.clientID, a.secret, armScope).Encode())
			},
			entrasim.PlaneGraph: func() (answer, error) {
				return w.try(http.MethodPost, e.Graph+"/v1.0/applications/"+a.id+"/addPassword", graphBearer, "{}")
			},
			entrasim.PlaneARM: func() (answer, error) {
				return w.try(http.MethodGet, e.ResourceManager+scope+"?api-version=1", bearer, "")
			},
		}
		for _, out := range []entrasim.Plane{"", entrasim.PlaneLogin, entrasim.PlaneGraph, entrasim.PlaneARM} {
			passwords := len(w.sim.Journal(entrasim.Query{Kinds: []string{"password.added"}}))
			w.fault(entrasim.Fault{Plane: out, Before: time.Now().Add(time.Minute), Effect: entrasim.Effect{Cut: true}})
			for plane, ask := range planes {
				got, err := ask()
				if down := out == "" || out == plane; down != errors.Is(err, io.ErrUnexpectedEOF) || !down && got.status != 200 {
					t.Errorf("%q is out: %s answered %d, %v", out, plane, got.status, err)
				}
			}
			added := len(w.sim.Journal(entrasim.Query{Kinds: []string{"password.added"}})) - passwords
			if want := map[bool]int{true: 0, false: 1}[out == "" || out == entrasim.PlaneGraph]; added != want {
				t.Errorf("%q is out: %d writes were carried out", out, added)
			}
			if got := w.send(http.MethodGet, e.Admin, "", ""); got.status != 200 {
				t.Errorf("%q is out: the admin plane answers %d", out, got.status)
			}
			time.Sleep(time.Minute)
			for plane, ask := range planes {
				if got, err := ask(); err != nil || got.status != 200 {
					t.Errorf("%q is over: %s answered %d, %v", out, plane, got.status, err)
				}
			}
		}
	})
}

func TestServer_Outage(t *testing.T) {
	w := serve(t, entrasim.Config{})
	a, _ := w.consented("one")
	f := w.fault(entrasim.Fault{Effect: entrasim.Effect{Cut: true}})
	for range 3 {
		if got, err := w.try(http.MethodPost, w.sim.Endpoints().Login+"/"+customerID+"/oauth2/v2.0/token", "", credentials(a.clientID, a.secret, armScope).Encode()); err == nil {
			t.Errorf("answered %d %s", got.status, got.body)
		}
	}
	// Rather than cut connections, an outage may leave them hanging.
	w.must(w.sim.RemoveFault(f.ID))
	f = w.fault(entrasim.Fault{Effect: entrasim.Effect{Delay: time.Hour}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.sim.Endpoints().Graph+"/v1.0/organization", http.NoBody)
	w.must(err)
	if resp, err := w.client.Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("answered %v, %v", resp, err)
	}
	w.must(w.sim.RemoveFault(f.ID))
	if got := w.login(customerID, credentials(a.clientID, a.secret, armScope)); got.status != 200 {
		t.Errorf("it is over: %d %s", got.status, got.body)
	}
}
