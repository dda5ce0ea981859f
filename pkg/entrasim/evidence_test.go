package entrasim_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// credential is what the evidence says of one credential at a time, nil when it
// says nothing.
func (w *world) credentialAt(a app, keyID string, at time.Time) *entrasim.Credential {
	w.Helper()
	all, err := w.sim.Credentials(a.clientID, at)
	w.must(err)
	i := slices.IndexFunc(all, func(c entrasim.Credential) bool { return c.KeyID == keyID })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// lastReplica is where the last token request landed.
func (w *world) lastReplica(after uint64) int {
	w.Helper()
	found := w.sim.Journal(entrasim.Query{After: after, Kinds: []string{entrasim.KindRequest}, Operation: "login.token"})
	if len(found) == 0 {
		w.Fatal("no token request is in the journal")
	}
	return found[len(found)-1].Replica
}

// TestEvidence_CredentialsAreWhatRequestsMeet asks for tokens by a credential of
// each kind, over its whole life and that of its application, and compares each
// answer with what the evidence says of that replica: before, at that moment,
// and after all is over and the simulator was started anew.
func TestEvidence_CredentialsAreWhatRequestsMeet(t *testing.T) {
	key, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		name entrasim.CredentialKind
		// add makes the credential, and says how to ask by it and how to remove it.
		add func(w *world, issuer *fakeIssuer, a app) (keyID string, form func() url.Values, remove func())
	}
	for _, k := range []kind{
		{entrasim.KindSecret, func(w *world, _ *fakeIssuer, a app) (string, func() url.Values, func()) {
			a = w.newSecret(a)
			return a.keyID, func() url.Values { return credentials(a.clientID, a.secret, armScope) },
				func() { w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`) }
		}},
		{entrasim.KindFederated, func(w *world, issuer *fakeIssuer, a app) (string, func() url.Values, func()) {
			id := w.federate(a, federation("plan", issuerURL, subject, exchange))
			return id, func() url.Values { return asserted(a.clientID, issuer.token(t), armScope) },
				func() { w.graph(http.MethodDelete, "/applications/"+a.id+"/federatedIdentityCredentials/"+id, "") }
		}},
		{entrasim.KindCertificate, func(w *world, _ *fakeIssuer, a app) (string, func() url.Values, func()) {
			cert := certificate(t, key, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
			w.register(a, keyJSON(cert))
			added := w.sim.Journal(entrasim.Query{Application: a.clientID, Kinds: []string{"application.updated"}})
			all, err := w.sim.Credentials(a.clientID, added[len(added)-1].Time)
			w.must(err)
			sum := sha256.Sum256(cert.Raw)
			form := func() url.Values {
				return asserted(a.clientID, sign(t, jwt.SigningMethodPS256, map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}, jwt.MapClaims{
					"iss": a.clientID, "sub": a.clientID, "aud": w.sim.Endpoints().Login + "/" + customerID + "/oauth2/v2.0/token", "exp": time.Now().Add(time.Minute).Unix(),
				}, key), armScope)
			}
			return all[0].KeyID, form, func() { w.register(a) }
		}},
	} {
		t.Run(string(k.name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := entrasim.Range{Min: time.Second, Max: 20 * time.Second}
				issuer := newIssuer(t, issuerURL)
				config := entrasim.Config{
					Seed: 4, StateDir: t.TempDir(), Issuers: issuer, Lags: entrasim.Lags{Application: r, Secret: r, Federated: r, Removal: r},
				}
				w := newWorld(t, config)
				a := w.newApp("one")
				w.consentLater(a, 21*time.Second)
				keyID, form, remove := k.add(w, issuer, a)
				said := make(map[time.Time]entrasim.Credential)
				compare := func(seconds int) (worked int) {
					t.Helper()
					foretold := w.credentialAt(a, keyID, time.Now().Add(time.Duration(seconds)*time.Second))
					for range seconds {
						before := w.sim.Journal(entrasim.Query{})
						got := w.code(customerID, form())
						replica := w.lastReplica(before[len(before)-1].Seq)
						now := time.Now()
						c := w.credentialAt(a, keyID, now)
						if c == nil {
							c = &entrasim.Credential{Replicas: make([]bool, 3), Nowhere: true}
						} else {
							said[now] = *c
						}
						if c.Replicas[replica] != (got == "") {
							t.Errorf("replica %d answered %q; %+v", replica, got, c)
						}
						if c.Everywhere != !slices.Contains(c.Replicas, false) || c.Nowhere != !slices.Contains(c.Replicas, true) {
							t.Errorf("the sum is wrong: %+v", c)
						}
						if got == "" {
							worked++
						}
						time.Sleep(time.Second)
					}
					if now := w.credentialAt(a, keyID, time.Now()); !reflect.DeepEqual(now, foretold) {
						t.Errorf("it is %+v, but was to be %+v", now, foretold)
					}
					return worked
				}
				if n := compare(25); n < 5 || n > 24 {
					t.Errorf("%d of 25 requests worked while it spread", n)
				}
				if got := w.graph(http.MethodDelete, "/applications/"+a.id, ""); got.status != 204 {
					t.Fatalf("delete: %s", got.body)
				}
				if n := compare(25); n < 1 || n > 24 {
					t.Errorf("%d of 25 requests worked while the application went", n)
				}
				if got := w.graph(http.MethodPost, "/directory/deletedItems/"+a.id+"/restore", ""); got.status != 200 {
					t.Fatalf("restore: %s", got.body)
				}
				if n := compare(25); n < 5 || n > 24 {
					t.Errorf("%d of 25 requests worked while the application came back", n)
				}
				remove()
				if n := compare(25); n < 1 || n > 24 {
					t.Errorf("%d of 25 requests worked while it was removed", n)
				}
				if c := w.credentialAt(a, keyID, time.Now()); c != nil {
					t.Errorf("once it is gone it is %+v", c)
				}
				w.graph(http.MethodDelete, "/applications/"+a.id, "")
				w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, "")
				time.Sleep(time.Hour)
				w.reopen(config)
				defer func() { w.must(w.sim.Close()) }()
				if len(said) < 75 {
					t.Errorf("only %d moments were told of", len(said))
				}
				for at, c := range said {
					if again := w.credentialAt(a, keyID, at); !reflect.DeepEqual(again, &c) {
						t.Errorf("of %s it says %+v, and said %+v", at, again, c)
					}
				}
			})
		})
	}
}

// consentLater consents once the page's replicas know the application.
func (w *world) consentLater(a app, after time.Duration) {
	w.Helper()
	time.Sleep(after) // in a bubble
	w.consent(a)
}

func TestEvidence_APurgedApplicationTakesItsCredentialsAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Removal: entrasim.Range{Min: time.Minute, Max: time.Minute}}})
		a, _ := w.consented("one")
		time.Sleep(time.Second)
		stood := time.Now()
		w.graph(http.MethodDelete, "/applications/"+a.id, "")
		w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, "")
		if c := w.credentialAt(a, a.keyID, time.Now()); c == nil || !c.Everywhere {
			t.Errorf("before a replica knows of the purge: %+v", c)
		}
		time.Sleep(time.Hour)
		if c := w.credentialAt(a, a.keyID, time.Now()); c != nil {
			t.Errorf("after it: %+v", c)
		}
		if c := w.credentialAt(a, a.keyID, stood); c == nil || !c.Everywhere {
			t.Errorf("of the time before it: %+v", c)
		}
	})
}

func TestEvidence_WritesAreCountedByApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one") // created, password, consent
		b := w.newApp("two")
		time.Sleep(time.Hour)
		since := time.Now()
		w.newSecret(a)
		w.federate(a, federation("plan", issuerURL, subject, exchange))
		w.must(w.sim.EnablePrincipal(customerID, a.clientID, false)) // no request
		w.graph(http.MethodGet, "/applications/"+a.id, "")
		w.graph(http.MethodPatch, "/applications/"+a.id, `{"nonsense":1}`)
		time.Sleep(time.Second)
		for _, tt := range []struct {
			of    app
			since time.Time
			want  entrasim.Writes
		}{
			{a, since, entrasim.Writes{Total: 5, Since: 2}},
			{a, time.Time{}, entrasim.Writes{Total: 5, Since: 5}},
			{a, since.Add(time.Nanosecond), entrasim.Writes{Total: 5}},
			{b, since, entrasim.Writes{Total: 1}},
		} {
			if got, err := w.sim.Writes(tt.of.clientID, tt.since); err != nil || got != tt.want {
				t.Errorf("since %s: %+v, %v, want %+v", tt.since, got, err, tt.want)
			}
		}
		if _, err := w.sim.Writes(subID, since); !errors.Is(err, entrasim.ErrNotFound) {
			t.Errorf("of an unknown application: %v", err)
		}
	})
}

// TestEvidence_TokenStateIsWhatThePlanesSay compares every judgement with the
// answer of the plane that the token is for.
func TestEvidence_TokenStateIsWhatThePlanesSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{TokenLife: entrasim.Range{Min: time.Hour, Max: time.Hour}})
		a, p := w.consented("one")
		w.assign(p.ID, "Reader", scope)
		arm, graph := w.token(customerID, a.clientID, a.secret, armScope), w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, graphScope)
		broken := arm[:len(arm)-4] + "AAAA"
		check := func(name, token string, plane entrasim.Plane, enabled bool) {
			t.Helper()
			status := w.arm(http.MethodGet, scope, token, "").status
			if plane == entrasim.PlaneGraph {
				status = w.send(http.MethodGet, w.sim.Endpoints().Graph+"/v1.0/organization", token, "").status
			}
			got := w.sim.TokenState(token)
			if got.Plane != plane || got.Works != (status == http.StatusOK) || got.Works != (got.Problem == "") || got.Enabled != enabled {
				t.Errorf("%s: %+v, and the plane answered %d", name, got, status)
			}
		}
		check("new", arm, entrasim.PlaneARM, true)
		check("for Graph", graph, entrasim.PlaneGraph, true)
		check("badly signed", broken, "", false)
		check("none", "", "", false)
		check("no token", "x.y.z", "", false)
		if got := w.sim.TokenState(arm); got.ClientID != a.clientID || got.PrincipalID != p.ID || got.Tenant != customerID || time.Until(got.Expires) != time.Hour {
			t.Errorf("%+v", got)
		}
		w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`)
		check("its secret removed", arm, entrasim.PlaneARM, true)
		w.must(w.sim.EnablePrincipal(customerID, a.clientID, false))
		check("its principal disabled", arm, entrasim.PlaneARM, false)
		w.must(w.sim.RemovePrincipal(customerID, a.clientID))
		check("its principal removed", arm, entrasim.PlaneARM, false)
		time.Sleep(time.Hour)
		check("expired", arm, entrasim.PlaneARM, false)
		check("expired, for Graph", graph, entrasim.PlaneGraph, true)
	})
}

// TestEvidence_OutlivesTheJournal rotates a secret for half a year with a journal
// of ten days.
func TestEvidence_OutlivesTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 10 * 24 * time.Hour
		w := newWorld(t, entrasim.Config{JournalLife: life, JournalRequests: 100, Lags: entrasim.Lag(time.Second, time.Minute)})
		start := time.Now()
		a := w.newApp("standing")
		time.Sleep(time.Minute)
		a = w.newSecret(a)
		b := w.newApp("rotating")
		purged := w.newApp("purged")
		time.Sleep(time.Minute)
		w.graph(http.MethodDelete, "/applications/"+purged.id, "")
		time.Sleep(time.Minute)
		w.graph(http.MethodDelete, "/directory/deletedItems/"+purged.id, "")
		const rotations = 180 * 6
		for range rotations {
			b = w.newSecret(b)
			time.Sleep(4 * time.Hour)
			w.graph(http.MethodPost, "/applications/"+b.id+"/removePassword", `{"keyId":"`+b.keyID+`"}`)
		}
		changes := w.sim.Journal(entrasim.Query{Application: b.clientID, Kinds: []string{"password.added", "password.removed"}})
		if n := len(changes); n < 2*10*6 || n > 2*1024 {
			t.Errorf("%d changes are kept", n)
		}
		if c := w.credentialAt(a, a.keyID, time.Now()); c == nil || !c.Everywhere {
			t.Errorf("the secret that stands is %+v", c)
		}
		if got, err := w.sim.Writes(b.clientID, time.Now().Add(-24*time.Hour)); err != nil || got.Total != 1+2*rotations || got.Since < 11 || got.Since > 13 {
			t.Errorf("writes %+v, %v", got, err)
		}
		if got, err := w.sim.Writes(b.clientID, start); !errors.Is(err, entrasim.ErrForgotten) || got.Total != 1+2*rotations {
			t.Errorf("writes since the start: %+v, %v", got, err)
		}
		if got, err := w.sim.Credentials(b.clientID, start.Add(24*time.Hour)); !errors.Is(err, entrasim.ErrForgotten) {
			t.Errorf("credentials after a day: %+v, %v", got, err)
		}
		if got, err := w.sim.Credentials(purged.clientID, time.Now()); !errors.Is(err, entrasim.ErrNotFound) {
			t.Errorf("credentials of an application that was purged: %+v, %v", got, err)
		}
		// The last one's removal was a moment ago.
		if c := w.credentialAt(b, b.keyID, time.Now().Add(-time.Hour)); c == nil || !c.Everywhere || !c.Removed.IsZero() {
			t.Errorf("an hour ago the last secret was %+v", c)
		}
	})
}

func TestEvidence_OverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{})
		a, _ := w.consented("one")
		token := w.token(customerID, a.clientID, a.secret, armScope)
		stood := time.Now().Format(time.RFC3339)
		time.Sleep(time.Minute)
		w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`)
		time.Sleep(time.Minute)
		admin := w.sim.Endpoints().Admin
		for _, tt := range []struct {
			method, path, body string
			status             int
			want               string
		}{
			{"GET", "/credentials?clientId=" + a.clientID, "", 200, `[]`},
			{"GET", "/credentials?clientId=" + a.clientID + "&at=" + stood, "", 200, `"keyId":"` + a.keyID + `","kind":"secret"`},
			{"GET", "/credentials?clientId=" + a.clientID + "&at=yesterday", "", 400, "Invalid"},
			{"GET", "/credentials?clientId=x", "", 404, "NotFound"},
			{"GET", "/writes?clientId=" + a.clientID + "&since=" + time.Now().Add(-2*time.Minute).Format(time.RFC3339), "", 200, `{"total":4,"since":4}`},
			{"GET", "/writes?clientId=" + a.clientID, "", 200, `{"total":4,"since":0}`},
			{"GET", "/writes?clientId=" + a.clientID + "&since=x", "", 400, "Invalid"},
			{"POST", "/tokens", `{"token":"` + token + `"}`, 200, `"works":true`},
			{"POST", "/tokens", `{"token":"x"}`, 200, `"works":false`},
			{"POST", "/secretKeys", `{"clientId":"` + w.platform.ClientID + `","secret":"` + w.platform.ClientSecret + `"}`, 200, `{"keyId":"` + w.platform.KeyID + `"}`},
			{"POST", "/secretKeys", `{"clientId":"` + w.platform.ClientID + `","secret":"x"}`, 404, "NotFound"},
		} {
			if got := w.send(tt.method, admin+tt.path, "", tt.body); got.status != tt.status || !strings.Contains(got.body, tt.want) {
				t.Errorf("%s %s: %d %s, want %d with %s", tt.method, tt.path, got.status, got.body, tt.status, tt.want)
			}
		}
	})
}
