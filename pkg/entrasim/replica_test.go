package entrasim_test

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// code is the AADSTS code of a token request's answer, empty for a token.
func (w *world) code(tenant string, form url.Values) string {
	w.Helper()
	code, _, _ := strings.Cut(w.login(tenant, form).text("error_description"), ":")
	return code
}

// watch asks every 100 ms and returns the distinct answers in the order of their
// first coming, and how often one followed another.
func watch(d time.Duration, ask func() string) (first []string, changes int) {
	seen, last := map[string]bool{}, ""
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		got := ask()
		if !seen[got] {
			seen[got] = true
			first = append(first, got)
		} else if got != last {
			changes++
		}
		last = got
	}
	return first, changes
}

func equal(a []string, b ...string) bool {
	return strings.Join(a, ",") == strings.Join(b, ",")
}

func TestReplicas_ANewSecretFlapsUntilAllHaveIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Seed: 7, Lags: entrasim.Lags{Secret: entrasim.Range{Min: time.Second, Max: 20 * time.Second}}})
		a := w.newApp("one")
		w.consent(a)
		a = w.newSecret(a)
		form := credentials(a.clientID, a.secret, armScope)
		first, changes := watch(20*time.Second, func() string { return w.code(customerID, form) })
		if !equal(first, "AADSTS7000215", "") || changes < 5 {
			t.Errorf("answers %q, %d changes back", first, changes)
		}
		if later, _ := watch(20*time.Second, func() string { return w.code(customerID, form) }); !equal(later, "") {
			t.Errorf("after the longest lag: %q", later)
		}
	})
}

func TestReplicas_HomeTenantTellsWhetherTheApplicationIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Seed: 3, Lags: entrasim.Lags{Application: r}})
		a := w.newSecret(w.newApp("one"))
		form := credentials(a.clientID, a.secret, armScope)
		if first, _ := watch(11*time.Second, func() string { return w.code(homeID, form) }); !equal(first, "AADSTS700016", "AADSTS7000229") {
			t.Errorf("answers %q", first)
		}
	})
}

func TestReplicas_ConsentPageMissesANewApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Application: r}})
		a := w.newApp("one")
		if page := w.browse(consentURL(w, customerID, a.clientID, callback)).page; page.status != 400 || !strings.Contains(page.body, "AADSTS700016") {
			t.Errorf("at once: %d %s", page.status, page.body)
		}
		time.Sleep(11 * time.Second)
		if page := w.browse(consentURL(w, customerID, a.clientID, callback)).page; page.status != 200 {
			t.Errorf("later: %d %s", page.status, page.body)
		}
	})
}

func TestReplicas_APrincipalAndARoleTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Principal: r, Role: r, Removal: r}})
		a, p := w.consented("one")
		form := credentials(a.clientID, a.secret, armScope)
		if first, _ := watch(11*time.Second, func() string { return w.code(customerID, form) }); !equal(first, "AADSTS700016", "") {
			t.Errorf("principal: %q", first)
		}
		bearer := w.token(customerID, a.clientID, a.secret, armScope)
		read := func() string { return w.arm(http.MethodGet, scope, bearer, "").text("error/code") }
		given := w.assign(p.ID, "Reader", scope)
		if first, changes := watch(11*time.Second, read); !equal(first, "AuthorizationFailed", "") || changes == 0 {
			t.Errorf("role: %q, %d changes back", first, changes)
		}
		w.must(w.sim.RemoveRole(given.ID))
		if first, _ := watch(11*time.Second, read); !equal(first, "", "AuthorizationFailed") {
			t.Errorf("role removed: %q", first)
		}
	})
}

func TestReplicas_GraphMayNotReadItsOwnWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: time.Second, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Seed: 2, Lags: entrasim.Lags{Graph: r}})
		a := w.newApp("one")
		read := func() string { return w.graph(http.MethodGet, "/applications/"+a.id, "").text("error/code") }
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", "{}"); got.status != 404 {
			t.Errorf("a write on a replica that lags: %d", got.status)
		}
		if got := w.graph(http.MethodPatch, "/applications(uniqueName='one')", appBody, "Prefer", "create-if-missing"); got.status != 204 {
			t.Errorf("an upsert made a second application: %d %s", got.status, got.body)
		}
		if first, changes := watch(11*time.Second, read); !equal(first, "Request_ResourceNotFound", "") || changes == 0 {
			t.Errorf("answers %q, %d changes back", first, changes)
		}
	})
}

// A removed password is still listed where its removal has not come.
func TestReplicas_GraphListsARemovedPasswordForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lag := entrasim.Range{Min: seconds(1), Max: seconds(20)}
		w := newWorld(t, entrasim.Config{Seed: 7, Lags: entrasim.Lags{Graph: lag}})
		a := w.newApp("one")
		time.Sleep(lag.Max)
		a = w.newSecret(a)
		time.Sleep(lag.Max)
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`); got.status != 204 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		listed := func() string {
			return strconv.FormatBool(strings.Contains(w.graph(http.MethodGet, "/applications/"+a.id, "").body, a.keyID))
		}
		if first, changes := watch(lag.Max, listed); !equal(first, "true", "false") || changes < 5 {
			t.Errorf("listed: %q, %d changes back", first, changes)
		}
		if later, _ := watch(lag.Max, listed); !equal(later, "false") {
			t.Errorf("after the longest lag: %q", later)
		}
	})
}

func TestReplicas_ARemovedSecretWorksForAWhileAndItsTokensLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Removal: entrasim.Range{Min: time.Second, Max: 30 * time.Second}}})
		a, p := w.consented("one")
		w.assign(p.ID, "Reader", scope)
		bearer := w.token(customerID, a.clientID, a.secret, armScope)
		if got := w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`); got.status != 204 {
			t.Fatalf("remove: %s", got.body)
		}
		form := credentials(a.clientID, a.secret, armScope)
		if first, changes := watch(31*time.Second, func() string { return w.code(customerID, form) }); !equal(first, "", "AADSTS7000215") || changes == 0 {
			t.Errorf("answers %q, %d changes back", first, changes)
		}
		if got := w.arm(http.MethodGet, scope, bearer, ""); got.status != 200 {
			t.Errorf("a token made before: %d %s", got.status, got.body)
		}
	})
}

func TestReplicas_APasswordDoesNotHastenItsApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: 10 * time.Second, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Application: r}})
		a := w.newApp("one")
		time.Sleep(9 * time.Second)
		a = w.newSecret(a)
		form := credentials(a.clientID, a.secret, armScope)
		if got := w.code(homeID, form); got != "AADSTS700016" {
			t.Errorf("before the application is there: %q", got)
		}
		time.Sleep(time.Second)
		if got := w.code(homeID, form); got != "AADSTS7000229" {
			t.Errorf("once it is: %q", got)
		}
	})
}

func TestReplicas_SecretStateIsWhatRequestsMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := entrasim.Range{Min: 0, Max: 10 * time.Second}
		w := newWorld(t, entrasim.Config{Replicas: 4, Lags: entrasim.Lag(r.Min, r.Max)})
		time.Sleep(time.Minute)
		a := w.newApp("one")
		time.Sleep(10 * time.Second)
		a = w.newSecret(a)
		w.consent(a)
		form := credentials(a.clientID, a.secret, armScope)
		for range 12 {
			state, err := w.sim.SecretState(customerID, a.clientID, a.keyID)
			w.must(err)
			good, bad := 0, 0
			for range 40 {
				if w.code(customerID, form) == "" {
					good++
				} else {
					bad++
				}
			}
			if state.Everywhere != (bad == 0) || state.Nowhere != (good == 0) {
				t.Errorf("state %+v, but %d requests succeeded and %d failed", state, good, bad)
			}
			time.Sleep(time.Second)
		}
		key, err := w.sim.SecretKey(a.clientID, a.secret)
		if err != nil || key != a.keyID {
			t.Errorf("the secret's key is %q (%v), want %q", key, err, a.keyID)
		}
	})
}

func TestSeed_OneActorsCallsDoNotChangeAnothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(disturb bool) string {
			w := newWorld(t, entrasim.Config{Seed: 42, Lags: entrasim.Lags{Secret: entrasim.Range{Max: 10 * time.Second}}})
			quiet, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID, DisplayName: "quiet"})
			w.must(err)
			var out strings.Builder
			for range 20 {
				if disturb {
					w.newSecret(w.newApp("x" + time.Now().String()))
				}
				out.WriteString(claims(t, w.token(homeID, quiet.ClientID, quiet.ClientSecret, armScope))["uti"].(string))
				time.Sleep(time.Second)
			}
			return out.String()
		}
		if a, b := run(false), run(true); a != b {
			t.Error("another actor's calls changed what this one drew")
		}
	})
}

// What is deleted for good at once goes no faster than what is deleted.
func TestReplicas_APurgeTakesAsLongAsADeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lag := entrasim.Range{Min: 10 * time.Second, Max: 10 * time.Second}
		config := entrasim.Config{StateDir: t.TempDir(), Lags: entrasim.Lags{Removal: lag, Graph: entrasim.Range{Max: 5 * time.Second}}}
		w := newWorld(t, config)
		a := w.newApp("one")
		w.consent(a)
		time.Sleep(seconds(5))
		a = w.newSecret(a)
		time.Sleep(seconds(5))
		bearer := w.graphToken()
		until := func(want int, method, path string) {
			w.Helper()
			for range 1000 {
				if w.send(method, w.sim.Endpoints().Graph+"/v1.0"+path, bearer, "").status == want {
					return
				}
			}
			t.Fatalf("%s %s is never %d", method, path, want)
		}
		until(204, http.MethodDelete, "/applications/"+a.id)
		time.Sleep(seconds(3)) // some replicas know that it is in the bin
		until(204, http.MethodDelete, "/directory/deletedItems/"+a.id)
		time.Sleep(seconds(3)) // one or the other knows that it has left it
		until(200, http.MethodGet, "/directory/deletedItems/"+a.id)
		until(404, http.MethodGet, "/directory/deletedItems/"+a.id)
		until(404, http.MethodDelete, "/directory/deletedItems/"+a.id)
		judge := func(want string, works bool) {
			w.Helper()
			if got := w.code(customerID, credentials(a.clientID, a.secret, armScope)); got != want {
				t.Errorf("token service: %q, want %q", got, want)
			}
			held, err := w.sim.Credentials(a.clientID, time.Now())
			w.must(err)
			if has := len(held) == 1 && held[0].Everywhere; has != works {
				t.Errorf("the evidence is %+v", held)
			}
			state, err := w.sim.SecretState(customerID, a.clientID, a.keyID)
			if state.Everywhere != works {
				t.Errorf("the secret's state is %+v %v", state, err)
			}
		}
		judge("", true)
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		judge("", true)
		if _, err := w.sim.Quota(homeID); err != nil {
			t.Error(err)
		}
		time.Sleep(seconds(10))
		judge("AADSTS700016", false)
		w.newApp("two") // makes room
		if _, err := w.sim.SecretState(customerID, a.clientID, a.keyID); !errors.Is(err, entrasim.ErrNotFound) {
			t.Errorf("it is still kept: %v", err)
		}
	})
}
