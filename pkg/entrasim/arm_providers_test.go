package entrasim_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

const compute = scope + "/providers/Microsoft.Compute"

func TestARM_ResourceProviders(t *testing.T) {
	for _, c := range []struct {
		role           string
		read, register int
	}{{"", 403, 403}, {"Reader", 200, 403}, {"User Access Administrator", 200, 403}, {"Contributor", 200, 200}, {"Owner", 200, 200}} {
		t.Run("as "+c.role, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{})
			a, p := w.consented("one")
			if c.role != "" {
				w.assign(p.ID, c.role, scope)
			}
			bearer := w.token(customerID, a.clientID, a.secret, armScope)
			for _, path := range []string{scope + "/providers", compute} {
				if got := w.arm(http.MethodGet, path, bearer, ""); got.status != c.read {
					t.Errorf("%s: %d %s, want %d", path, got.status, got.body, c.read)
				}
			}
			got := w.arm(http.MethodPost, compute+"/register", bearer, "")
			if got.status != c.register {
				t.Errorf("register: %d %s, want %d", got.status, got.body, c.register)
			}
			if got.status == 403 && !strings.Contains(got.text("error/message"), "'Microsoft.Compute/register/action' over scope '"+scope+"'") {
				t.Errorf("register: %s", got.body)
			}
		})
	}
}

func TestARM_ResourceProvidersAreRegistered(t *testing.T) {
	config := entrasim.Config{StateDir: t.TempDir()}
	w := newWorld(t, config)
	a, p := w.consented("one")
	w.assign(p.ID, "Contributor", scope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	states := func() map[string]string {
		t.Helper()
		out := map[string]string{}
		list, _ := w.arm(http.MethodGet, scope+"/providers", bearer, "").at("value").([]any)
		for _, item := range list {
			provider, _ := item.(map[string]any)
			if types, ok := provider["resourceTypes"].([]any); !ok || len(types) != 0 || provider["id"] != scope+"/providers/"+provider["namespace"].(string) {
				t.Errorf("listed %v", provider)
			}
			out[provider["namespace"].(string)] = provider["registrationState"].(string)
		}
		return out
	}
	for namespace, state := range states() {
		want := "NotRegistered"
		if namespace == "Microsoft.Resources" || namespace == "Microsoft.Authorization" {
			want = "Registered"
		}
		if state != want {
			t.Errorf("%s is %s at first, want %s", namespace, state, want)
		}
	}
	for i, want := range []string{"Registering", "Registered"} {
		got := w.arm(http.MethodPost, strings.ToLower(compute)+"/register", bearer, "")
		if got.status != 200 || got.text("namespace") != "Microsoft.Compute" || got.text("registrationState") != want {
			t.Errorf("request %d: %d %s, want %s", i+1, got.status, got.body, want)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		path := map[string]string{http.MethodGet: "", http.MethodPost: "/register"}[method]
		if got := w.arm(method, scope+"/providers/Microsoft.Nothing"+path, bearer, ""); got.status != 404 || got.text("error/code") != "InvalidResourceNamespace" {
			t.Errorf("%s of an unknown one: %d %s", method, got.status, got.body)
		}
	}
	if got := w.arm(http.MethodPost, scope+"/resourcegroups/network/providers/Microsoft.Compute/register", bearer, ""); got.status != 404 {
		t.Errorf("in a group: %d %s", got.status, got.body)
	}
	entries := w.sim.Journal(entrasim.Query{Kinds: []string{"provider.registered"}})
	if len(entries) != 1 || entries[0].Object != compute || entries[0].Actor != a.clientID {
		t.Errorf("journal %+v", entries)
	}
	w.reopen(config)
	found := states()
	if found["Microsoft.Compute"] != "Registered" || found["Microsoft.Network"] != "NotRegistered" || found["Microsoft.Resources"] != "Registered" {
		t.Errorf("after a restart: %v", found)
	}
}

func TestARM_ResourceProvidersTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Role: entrasim.Range{Min: time.Minute, Max: time.Minute}}})
		a, p := w.consented("one")
		w.assign(p.ID, "Contributor", scope)
		time.Sleep(2 * time.Minute)
		bearer := w.token(customerID, a.clientID, a.secret, armScope)
		w.arm(http.MethodPost, compute+"/register", bearer, "")
		for _, step := range []struct {
			wait time.Duration
			want string
		}{{0, "Registering"}, {59 * time.Second, "Registering"}, {time.Second, "Registered"}} {
			time.Sleep(step.wait)
			if got := w.arm(http.MethodGet, compute, bearer, ""); got.text("registrationState") != step.want {
				t.Errorf("after %v: %s, want %s", step.wait, got.body, step.want)
			}
		}
		if got := w.arm(http.MethodPost, compute+"/register", bearer, ""); got.text("registrationState") != "Registered" {
			t.Errorf("again: %s", got.body)
		}
	})
}
