package entrasim_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"phasekey.dev/pkg/entrasim"
)

const overQuota = "The directory object quota limit for the Tenant has been exceeded. Please ask your administrator to increase the quota limit or delete objects to reduce the used quota."

func (w *world) used(tenant string, want float64) {
	w.Helper()
	if q, err := w.sim.Quota(tenant); err != nil || q.Used != want {
		w.Errorf("%+v (%v), want %v used", q, err, want)
	}
}

func TestQuota_OfADirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := entrasim.Config{StateDir: t.TempDir(), Replicas: 1}
		w := newWorld(t, config)
		for tenant, total := range map[string]int{homeID: 300_000, customerID: 50_000} {
			if q, err := w.sim.Quota(tenant); err != nil || q.Total != total {
				t.Errorf("%s: %+v, %v", tenant, q, err)
			}
		}
		a, b := w.newApp("one"), w.newApp("two")
		w.used(homeID, 5) // a person, the platform and its principal, two applications
		w.must(w.sim.SetQuota(homeID, 6))
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		create := func(want int) {
			t.Helper()
			for _, try := range []func() answer{
				func() answer { return w.graph(http.MethodPost, "/applications", `{"displayName":"more"}`) },
				func() answer {
					return w.graph(http.MethodPatch, "/applications(uniqueName='more')", appBody, "Prefer", "create-if-missing")
				},
				func() answer { return w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+b.clientID+`"}`) },
			} {
				got := try()
				if want > 0 {
					if want--; got.status != 201 {
						t.Errorf("with room: %d %s", got.status, got.body)
					}
					continue
				}
				if got.status != 403 || got.text("error/code") != "Directory_QuotaExceeded" || got.text("error/message") != overQuota {
					t.Errorf("without room: %d %s", got.status, got.body)
				}
			}
		}
		create(1)
		if got := w.graph(http.MethodPatch, "/applications/"+a.id, `{"tags":["x"]}`); got.status != 204 {
			t.Errorf("a change needs no room: %d %s", got.status, got.body)
		}
		// The bin is no room, and what has left it takes a quarter for a while.
		w.graph(http.MethodDelete, "/applications/"+a.id, "")
		w.used(homeID, 6)
		create(0)
		w.graph(http.MethodDelete, "/directory/deletedItems/"+a.id, "")
		w.used(homeID, 5.25)
		create(0)
		w.graph(http.MethodDelete, "/applications/"+b.id, "")
		w.wait(31 * 24 * 3600)
		w.used(homeID, 4.25) // the other one is forgotten
		if got := w.graph(http.MethodPost, "/applications", `{"displayName":"more"}`); got.status != 201 {
			t.Errorf("after a month: %d %s", got.status, got.body)
		}
		w.wait(30 * 24 * 3600)
		w.used(homeID, 5)
	})
}

func TestQuota_OnTheConsentPage(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, p := w.consented("one")
	b := w.newApp("two")
	if got := w.send(http.MethodPost, w.sim.Endpoints().Admin+"/quotas", "", `{"tenant":"customer.example.com","objects":3}`); got.status != 200 || got.at("total") != 3.0 || got.at("used") != 3.0 {
		t.Errorf("quota: %d %s", got.status, got.body)
	}
	for _, v1 := range []bool{false, true} {
		location, err := w.sim.Consent(t.Context(), entrasim.Consent{
			Tenant: customerID, ClientID: b.clientID, RedirectURI: callback, State: "s1", UserName: "admin@customer.example.com", V1: v1,
		})
		w.must(err)
		to, err := url.Parse(location)
		w.must(err)
		if q := to.Query(); q.Get("error") != "access_denied" || !strings.HasPrefix(q.Get("error_description"), "AADSTS90093: "+overQuota) || q.Get("state") != "s1" || q.Get("tenant") != "" {
			t.Errorf("sent to %s", location)
		}
	}
	if _, err := w.sim.Principal(customerID, b.clientID); !errors.Is(err, entrasim.ErrNotFound) {
		t.Errorf("a principal beyond the quota: %v", err)
	}
	if location := w.consent(a); !strings.Contains(location, "admin_consent=True&tenant=") {
		t.Errorf("a second consent needs no room: %s", location)
	}
	// In the bin it takes as much.
	w.must(w.sim.RemovePrincipal(customerID, a.clientID))
	if location := w.consent(a); !strings.Contains(location, "AADSTS90093") {
		t.Errorf("after the removal of %s: %s", p.ID, location)
	}
	got := w.send(http.MethodGet, w.sim.Endpoints().Admin+"/tenants/"+customerID+"/quota", "", "")
	if got.at("total") != 3.0 || got.at("used") != 3.0 {
		t.Errorf("quota: %d %s", got.status, got.body)
	}
	for body, status := range map[string]int{`{"tenant":"` + subID + `"}`: 404, `{"tenant":"` + homeID + `","objects":-1}`: 400} {
		if got := w.send(http.MethodPost, w.sim.Endpoints().Admin+"/quotas", "", body); got.status != status {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	if set := w.sim.Journal(entrasim.Query{Kinds: []string{"quota.set"}}); len(set) != 1 || set[0].Tenant != customerID {
		t.Errorf("journal %+v", set)
	}
}

func TestGraph_AnObjectsSize(t *testing.T) {
	w := newWorld(t, entrasim.Config{MaxCredentials: 3})
	key, err := sharedKey()
	w.must(err)
	cert := certificate(t, key, w.sim.Tenants()[0].Created, w.sim.Tenants()[0].Created.AddDate(1, 0, 0))
	a := w.newApp("one")
	principal := w.graph(http.MethodPost, "/servicePrincipals", `{"appId":"`+a.clientID+`"}`).text("id")
	for _, where := range []string{"/applications/" + a.id, "/servicePrincipals/" + principal} {
		full := func(name string, got answer) {
			t.Helper()
			if got.status != 403 || got.text("error/code") != "Directory_ResourceSizeExceeded" ||
				got.text("error/message") != "The size of the object has exceeded its limit. Please reduce the number of values and retry your request." {
				t.Errorf("%s: %s: %d %s", where, name, got.status, got.body)
			}
		}
		keys := func(n int) answer {
			return w.graph(http.MethodPatch, where, `{"keyCredentials":[`+strings.Join(repeat(keyJSON(cert), n), ",")+`]}`)
		}
		full("four certificates", keys(4))
		if got := keys(2); got.status != 204 {
			t.Fatalf("two: %d %s", got.status, got.body)
		}
		added := w.graph(http.MethodPost, where+"/addPassword", "{}")
		if added.status != 200 {
			t.Fatalf("one more: %d %s", added.status, added.body)
		}
		full("a secret too many", w.graph(http.MethodPost, where+"/addPassword", "{}"))
		full("a certificate too many", keys(3))
		if got := w.graph(http.MethodPost, where+"/removePassword", `{"keyId":"`+added.text("keyId")+`"}`); got.status != 204 {
			t.Errorf("remove: %d %s", got.status, got.body)
		}
		if got := keys(3); got.status != 204 {
			t.Errorf("with room again: %d %s", got.status, got.body)
		}
	}
	if _, err := entrasim.New(entrasim.Config{MaxCredentials: -1}); err == nil {
		t.Error("a size below zero is accepted")
	}
}

func repeat(text string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = text
	}
	return out
}
