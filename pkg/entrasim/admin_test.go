package entrasim_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"phasekey.dev/pkg/entrasim"
)

func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// TestAdmin_TheWholeStoryOverHTTP does by HTTP alone what the Go methods do.
func TestAdmin_TheWholeStoryOverHTTP(t *testing.T) {
	sim := open(t, entrasim.Config{})
	w := &world{T: t, sim: sim, client: &http.Client{Transport: sim.Transport()}}
	admin := func(method, path, body string, status int) answer {
		t.Helper()
		got := w.send(method, sim.Endpoints().Admin+path, "", body)
		if got.status != status {
			t.Fatalf("%s %s: %d %s, want %d", method, path, got.status, got.body, status)
		}
		return got
	}
	home := admin("POST", "/tenants", `{"displayName":"Home","domain":"home.example.com","verified":true}`, 200).text("id")
	admin("POST", "/tenants", `{"id":"`+home+`"}`, 409)
	admin("POST", "/tenants", `{"domain":"Home.example.com"}`, 409)
	admin("POST", "/tenants", `{"id":"x"}`, 400)
	admin("POST", "/tenants", `{"nonsense":1}`, 400)
	admin("POST", "/tenants", `{} {}`, 400)
	admin("POST", "/tenants", ``, 400)
	customer := admin("POST", "/tenants", `{}`, 200).text("id")
	user := admin("POST", "/people", `{"tenant":"`+customer+`","admin":true}`, 200).text("userName")
	admin("POST", "/people", `{"tenant":"`+home+`","userName":"`+strings.ToUpper(user)+`"}`, 409)
	sub := admin("POST", "/subscriptions", `{"tenant":"`+customer+`"}`, 200).text("id")
	made := admin("POST", "/platforms", `{"tenant":"home.example.com"}`, 200)
	w.platform = entrasim.Platform{ClientID: made.text("clientId"), ClientSecret: made.text("clientSecret")}
	if list := admin("GET", "/tenants/"+customer+"/subscriptions", "", 200); !strings.Contains(list.body, sub) {
		t.Errorf("subscriptions %s", list.body)
	}
	if list := admin("GET", "/tenants/"+customer+"/people", "", 200); !strings.Contains(list.body, user) {
		t.Errorf("people %s", list.body)
	}

	bearer := w.token(home, w.platform.ClientID, w.platform.ClientSecret, graphScope)
	created := w.send("PATCH", sim.Endpoints().Graph+"/v1.0/applications(uniqueName='one')", bearer, appBody, "Prefer", "create-if-missing")
	a := app{id: created.text("id"), clientID: created.text("appId")}
	added := w.send("POST", sim.Endpoints().Graph+"/v1.0/applications/"+a.id+"/addPassword", bearer, "{}")
	a.secret, a.keyID = added.text("secretText"), added.text("keyId")

	consent := `{"tenant":"` + customer + `","clientId":"` + a.clientID + `","redirectUri":"` + callback + `","userName":"` + user + `"}`
	if location := admin("POST", "/consents", consent, 200).text("location"); !strings.HasPrefix(location, callback+"?admin_consent=True&tenant="+customer) {
		t.Errorf("consent went to %q", location)
	}
	if got := admin("POST", "/consents", strings.Replace(consent, callback, callback+"x", 1), 409); got.text("error/code") != "AADSTS50011" {
		t.Errorf("consent %s", got.body)
	}
	who := url.Values{"tenant": {customer}, "clientId": {a.clientID}, "keyId": {a.keyID}}.Encode()
	oid := admin("GET", "/principals?"+who, "", 200).text("id")
	role := admin("POST", "/roleAssignments", `{"scope":"/subscriptions/`+sub+`","principalId":"`+oid+`","role":"Reader"}`, 200).text("id")
	token := w.token(customer, a.clientID, a.secret, armScope)
	read := func(want int) {
		t.Helper()
		if got := w.arm("GET", "/subscriptions/"+sub, token, ""); got.status != want {
			t.Errorf("read: %d %s, want %d", got.status, got.body, want)
		}
	}
	read(200)
	fault := admin("POST", "/faults", `{"plane":"arm","effect":{"status":503,"retryAfter":"3s"}}`, 200).text("id")
	read(503)
	if list := admin("GET", "/faults", "", 200); !strings.Contains(list.body, `"retryAfter":"3s"`) || !strings.Contains(list.body, `"acted":1`) {
		t.Errorf("faults %s", list.body)
	}
	admin("DELETE", "/faults/"+fault, "", 200)
	admin("DELETE", "/faults/"+fault, "", 404)
	if named := admin("POST", "/faults", `{"id":"mine","effect":{"status":500}}`, 200).text("id"); named != "mine" {
		t.Errorf("a rule called mine is %q", named)
	}
	admin("POST", "/faults", `{"id":"mine","effect":{"status":503}}`, 409)
	admin("DELETE", "/faults/mine", "", 200)
	admin("POST", "/faults", `{"effect":{"delay":"soon"}}`, 400)
	admin("POST", "/faults", `{"effect":{"status":504,"afterComit":true}}`, 400)
	read(200)
	denial := admin("POST", "/denyAssignments", `{"tenant":"`+customer+`","scope":"/subscriptions/`+sub+`","actions":["*/read"],"principals":["`+oid+`"]}`, 200).text("id")
	read(403)
	admin("DELETE", "/denyAssignments?id="+url.QueryEscape(denial), "", 200)
	read(200)
	admin("DELETE", "/roleAssignments?id="+url.QueryEscape(role), "", 200)
	read(403)
	admin("POST", "/managementGroups", `{"tenant":"`+customer+`","id":"corp"}`, 200)
	inside := admin("POST", "/subscriptions", `{"tenant":"`+customer+`","managementGroup":"corp"}`, 200).text("id")
	admin("POST", "/roleAssignments", `{"scope":"/providers/Microsoft.Management/managementGroups/corp","principalId":"`+oid+`","role":"Reader"}`, 200)
	read(403)
	if got := w.arm("GET", "/subscriptions/"+inside, token, ""); got.status != 200 {
		t.Errorf("in the management group: %d %s", got.status, got.body)
	}

	if got := admin("GET", "/secrets?"+who, "", 200); got.at("everywhere") != true {
		t.Errorf("secret %s", got.body)
	}
	admin("POST", "/principals", `{"tenant":"`+customer+`","clientId":"`+a.clientID+`","accountEnabled":false}`, 200)
	if got := admin("GET", "/secrets?"+who, "", 200); got.at("nowhere") != true {
		t.Errorf("secret of a disabled principal %s", got.body)
	}
	admin("POST", "/principals", `{"tenant":"`+customer+`","clientId":"`+a.clientID+`","removed":true}`, 200)
	admin("GET", "/principals?"+who, "", 404)
	if got := admin("GET", "/journal?kind=password.added&keyId="+a.keyID, "", 200); !strings.Contains(got.body, a.clientID) || strings.Contains(got.body, a.secret) {
		t.Errorf("journal %s", got.body)
	}
	admin("GET", "/journal?after=x", "", 400)
	admin("GET", "/nothing", "", 404)
	admin("PUT", "/tenants", "", 404)
}

func TestAdmin_AnswersThisMachineOnly(t *testing.T) {
	for _, tt := range []struct {
		name, from string
		open       bool
		status     int
	}{
		{"this machine", "127.0.0.1:40000", false, http.StatusOK},
		{"this machine by IPv6", "[::1]:40000", false, http.StatusOK},
		{"this machine by an IPv6 socket", "[::ffff:127.0.0.1]:40000", false, http.StatusOK},
		{"another machine", "192.0.2.1:40000", false, http.StatusForbidden},
		{"no address", "@", false, http.StatusForbidden},
		{"another machine, opened", "192.0.2.1:40000", true, http.StatusOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sim := open(t, entrasim.Config{OpenAdmin: tt.open})
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				r := httptest.NewRequest(method, "/admin/tenants", strings.NewReader("{}"))
				r.RemoteAddr = tt.from
				out := httptest.NewRecorder()
				sim.Handler().ServeHTTP(out, r)
				if out.Code != tt.status {
					t.Errorf("%s: %d %s, want %d", method, out.Code, out.Body, tt.status)
				}
			}
			if made := len(sim.Tenants()); (made > 0) != (tt.status == http.StatusOK) {
				t.Errorf("%d tenants were made", made)
			}
		})
	}
}
