package entrasim_test

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"phasekey.dev/pkg/entrasim"
)

// administration is a platform that may change everything in a tenant.
func (w *world) administration(tenant string, roles ...string) (entrasim.Platform, func(method, path, body string) answer) {
	w.Helper()
	if len(roles) == 0 {
		roles = []string{"Application.ReadWrite.All"}
	}
	p, err := w.sim.CreatePlatform(entrasim.NewPlatform{Tenant: tenant, DisplayName: "administration", Roles: roles})
	w.must(err)
	return p, func(method, path, body string) answer {
		w.Helper()
		return w.send(method, w.sim.Endpoints().Graph+"/v1.0"+path, w.token(tenant, p.ClientID, p.ClientSecret, graphScope), body)
	}
}

func (w *world) wait(n int) { time.Sleep(seconds(n)) }

const lockOff = `{"servicePrincipalLockConfiguration":{"isEnabled":false}}`

func TestLock_PrincipalsOwnSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{StateDir: t.TempDir(), Lags: entrasim.Lags{
			Secret: entrasim.Range{Min: seconds(5), Max: seconds(5)}, Removal: entrasim.Range{Min: seconds(9), Max: seconds(9)},
		}})
		a := w.newApp("one")
		w.graph(http.MethodPatch, "/applications/"+a.id, lockOff)
		w.consent(a)
		p, err := w.sim.Principal(customerID, a.clientID)
		w.must(err)
		if got := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`); got.status != 201 {
			t.Fatalf("principal at home: %s", got.body)
		}
		_, graph := w.administration(customerID)
		w.wait(10)
		added := graph(http.MethodPost, "/servicePrincipals/"+p.ID+"/addPassword", `{"passwordCredential":{"displayName":"own"}}`)
		if added.status != 200 || added.text("displayName") != "own" || len(added.text("secretText")) != 40 {
			t.Fatalf("add: %d %s", added.status, added.body)
		}
		form := credentials(a.clientID, added.text("secretText"), armScope)
		if got := w.code(customerID, form); got != "AADSTS7000215" {
			t.Errorf("at once: %q", got)
		}
		w.wait(5)
		works := func(when string, want bool) {
			t.Helper()
			if got := w.code(customerID, form); (got == "") != want {
				t.Errorf("%s: %q", when, got)
			}
			state, err := w.sim.SecretState(customerID, a.clientID, added.text("keyId"))
			w.must(err)
			if state.Everywhere != want || state.Nowhere == want {
				t.Errorf("%s: %+v", when, state)
			}
		}
		works("after the lag", true)
		if got := w.code(homeID, form); got != "AADSTS7000215" {
			t.Errorf("in the home tenant: %q", got)
		}
		if id, err := w.sim.SecretKey(a.clientID, added.text("secretText")); err != nil || id != added.text("keyId") {
			t.Errorf("its key is %q, %v", id, err)
		}
		read := graph(http.MethodGet, "/servicePrincipals/"+p.ID, "")
		if list, _ := read.at("passwordCredentials").([]any); len(list) != 1 || strings.Contains(read.body, added.text("secretText")) {
			t.Errorf("read back %s", read.body)
		}
		if read := w.graph(http.MethodGet, "/applications/"+a.id, ""); len(read.at("passwordCredentials").([]any)) != 0 {
			t.Errorf("the application has it: %s", read.body)
		}
		entries := w.sim.Journal(entrasim.Query{KeyID: added.text("keyId"), Kinds: []string{"password.added"}})
		if len(entries) != 1 || entries[0].Tenant != customerID || entries[0].Object != p.ID || entries[0].Application != a.clientID {
			t.Errorf("journal %+v", entries)
		}
		if all, err := w.sim.Credentials(a.clientID, time.Now()); err != nil || len(all) != 0 {
			t.Errorf("the application's credentials are %+v, %v", all, err)
		}
		remove := `{"keyId":"` + added.text("keyId") + `"}`
		if got := graph(http.MethodPost, "/servicePrincipals/"+p.ID+"/removePassword", remove); got.status != 204 {
			t.Errorf("remove: %d %s", got.status, got.body)
		}
		works("just removed", true)
		w.wait(9)
		works("removed", false)
		if got := graph(http.MethodPost, "/servicePrincipals/"+p.ID+"/removePassword", remove); got.status != 400 || !strings.Contains(got.text("error/message"), "No password credential found with keyId") {
			t.Errorf("remove again: %d %s", got.status, got.body)
		}
	})
}

func TestLock_AddingToAPrincipal(t *testing.T) {
	key, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	cert := keyJSON(certificate(t, key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))
	const all, verify, sign, encryption = `"allProperties":true`, `"credentialsWithUsageVerify":true`, `"credentialsWithUsageSign":true`, `"tokenEncryptionKeyId":true`
	for _, c := range []struct {
		name, lock            string
		home                  bool // the principal is the home tenant's
		config                entrasim.Config
		credentials, tokenKey bool // are locked
	}{
		{"all", `"isEnabled":true,` + all, false, entrasim.Config{}, true, true},
		{"credentials", `"isEnabled":true,` + verify, false, entrasim.Config{}, true, false},
		{"signing", `"isEnabled":true,` + sign, false, entrasim.Config{}, false, false},
		{"token encryption", `"isEnabled":true,` + encryption, false, entrasim.Config{}, false, true},
		{"nothing", `"isEnabled":true`, false, entrasim.Config{}, false, false},
		{"off", `"isEnabled":false,` + all, false, entrasim.Config{}, false, false},
		{"at home", `"isEnabled":true,` + all, true, entrasim.Config{}, false, false},
		{"at home, when asked to", `"isEnabled":true,` + all, true, entrasim.Config{LockAtHome: true}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.config)
			a := w.newApp("one")
			if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"servicePrincipalLockConfiguration":null}`); got.status != 204 {
				t.Fatalf("unlock: %s", got.body)
			}
			tenant := customerID
			if c.home {
				tenant = homeID
				w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`)
			} else {
				w.consent(a)
			}
			_, graph := w.administration(tenant)
			where := "/servicePrincipals(appId='" + a.clientID + "')"
			before := graph(http.MethodPost, where+"/addPassword", "{}")
			if got := graph(http.MethodPatch, where, `{"keyCredentials":[`+cert+`],"tokenEncryptionKeyId":"`+subID+`"}`); before.status != 200 || got.status != 204 {
				t.Fatalf("before the lock: %d %s, %d %s", before.status, before.body, got.status, got.body)
			}
			if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"servicePrincipalLockConfiguration":{`+c.lock+`}}`); got.status != 204 {
				t.Fatalf("lock: %s", got.body)
			}
			check := func(name string, got answer, locked bool, property string) {
				t.Helper()
				want := got.status == 200 || got.status == 204
				if locked {
					want = got.status == 400 && got.text("error/code") == "CannotUpdateLockedServicePrincipalProperty" && got.text("error/message") == "Property "+property+" is invalid."
				}
				if !want {
					t.Errorf("%s: %d %s, want locked %t", name, got.status, got.body, locked)
				}
			}
			check("add a secret", graph(http.MethodPost, where+"/addPassword", "{}"), c.credentials, "passwordCredentials")
			kept, _ := graph(http.MethodGet, where, "").at("keyCredentials").([]any)
			id, _ := kept[0].(map[string]any)["keyId"].(string)
			old := `{"keyId":"` + id + `","type":"AsymmetricX509Cert","usage":"Verify"}`
			check("add a certificate", graph(http.MethodPatch, where, `{"keyCredentials":[`+old+`,`+cert+`]}`), c.credentials, "keyCredentials")
			check("keep a certificate", graph(http.MethodPatch, where, `{"keyCredentials":[`+old+`]}`), false, "")
			check("change the encryption key", graph(http.MethodPatch, where, `{"tokenEncryptionKeyId":null}`), c.tokenKey, "tokenEncryptionKeyId")
			check("keep the encryption key", graph(http.MethodPatch, where, `{"tokenEncryptionKeyId":`+graph(http.MethodGet, where, "").json1("tokenEncryptionKeyId")+`}`), false, "")
			check("anything else", graph(http.MethodPatch, where, `{"tags":["x"]}`), false, "")
			check("remove the certificates", graph(http.MethodPatch, where, `{"keyCredentials":[]}`), false, "")
			check("remove a secret", graph(http.MethodPost, where+"/removePassword", `{"keyId":"`+before.text("keyId")+`"}`), false, "")
		})
	}
}

// json1 is a member of the body that is text or null, as JSON.
func (a answer) json1(path string) string {
	if s, ok := a.at(path).(string); ok {
		return `"` + s + `"`
	}
	return "null"
}

func TestLock_ReachesReplicasAsTheApplicationDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Graph: entrasim.Range{Min: seconds(5), Max: seconds(5)}}})
		a := w.newApp("one")
		w.consent(a)
		_, graph := w.administration(customerID)
		w.wait(5)
		where := "/servicePrincipals(appId='" + a.clientID + "')/addPassword"
		if got := graph(http.MethodPost, where, "{}"); got.status != 400 {
			t.Fatalf("locked: %d %s", got.status, got.body)
		}
		w.graph(http.MethodPatch, "/applications/"+a.id, lockOff)
		if got := graph(http.MethodPost, where, "{}"); got.status != 400 {
			t.Errorf("unlocked, which is not known here: %d %s", got.status, got.body)
		}
		w.wait(5)
		if got := graph(http.MethodPost, where, "{}"); got.status != 200 {
			t.Errorf("unlocked: %d %s", got.status, got.body)
		}
	})
}

func TestLock_PrincipalsOwnCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := sharedKey()
		if err != nil {
			t.Fatal(err)
		}
		config := entrasim.Config{StateDir: t.TempDir(), Lags: entrasim.Lags{
			Principal: entrasim.Range{Min: seconds(5), Max: seconds(5)}, Removal: entrasim.Range{Min: seconds(9), Max: seconds(9)},
		}}
		w := newWorld(t, config)
		a, p := w.consented("one")
		w.graph(http.MethodPatch, "/applications/"+a.id, lockOff)
		_, graph := w.administration(customerID)
		cert := certificate(t, key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		w.wait(5)
		if got := graph(http.MethodPatch, "/servicePrincipals/"+p.ID, `{"keyCredentials":[`+keyJSON(cert)+`]}`); got.status != 204 {
			t.Fatalf("certificate: %d %s", got.status, got.body)
		}
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		data := graph(http.MethodGet, "/servicePrincipals/"+p.ID+"?$select=keyCredentials", "")
		if list, _ := data.at("keyCredentials").([]any); len(list) != 1 || list[0].(map[string]any)["key"] != base64.StdEncoding.EncodeToString(cert.Raw) {
			t.Errorf("after a restart: %s", data.body)
		}
		works := func(want bool) {
			t.Helper()
			endpoint := w.sim.Endpoints().Login + "/" + customerID + "/oauth2/v2.0/token"
			sum := sha1.Sum(cert.Raw)
			claims := jwt.MapClaims{"iss": a.clientID, "sub": a.clientID, "aud": endpoint, "exp": time.Now().Add(time.Minute).Unix()}
			text := sign(t, jwt.SigningMethodPS256, map[string]any{"x5t": base64.RawURLEncoding.EncodeToString(sum[:])}, claims, key)
			if got := w.code(customerID, asserted(a.clientID, text, armScope)); (got == "") != want {
				t.Errorf("got %q", got)
			}
		}
		works(false)
		w.wait(5)
		works(true)
		graph(http.MethodPatch, "/servicePrincipals/"+p.ID, `{"keyCredentials":[]}`)
		w.wait(8)
		works(true)
		w.wait(1)
		works(false)
	})
}
