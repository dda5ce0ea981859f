package entrasim_test

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
)

// TestSimulator_ManyAtOnce has clients get in each other's way at all planes.
// What is left is what the state holds, and what the evidence says.
func TestSimulator_ManyAtOnce(t *testing.T) {
	config := entrasim.Config{
		StateDir: t.TempDir(), Lags: entrasim.Lag(0, 20*time.Millisecond), JournalRequests: 100, JournalLife: 100 * time.Millisecond,
		WriteConflicts: entrasim.WriteConflicts{Probability: 0.2, Window: time.Millisecond}, Budgets: entrasim.Budgets{Unlimited: true},
	}
	w := newWorld(t, config)
	bearer := w.graphToken()
	graph := func(method, path, body string, header ...string) answer {
		a, err := w.try(method, w.sim.Endpoints().Graph+"/v1.0"+path, bearer, body, header...)
		if err != nil || a.status == http.StatusInternalServerError {
			t.Errorf("%s %s: %d %v", method, path, a.status, err)
		}
		return a
	}
	// Of what it may meet, each step may find something that is not there any more.
	client := func(name string, round int) {
		at := "/applications(uniqueName='" + name + "')"
		graph(http.MethodPatch, at, appBody, "Prefer", "create-if-missing")
		got := graph(http.MethodGet, at, "")
		id, clientID := got.text("id"), got.text("appId")
		if id == "" {
			return
		}
		added := graph(http.MethodPost, "/applications/"+id+"/addPassword", "{}")
		graph(http.MethodPost, "/applications/"+id+"/federatedIdentityCredentials", fmt.Sprintf(`{"name":"plan%d","issuer":"https://x","subject":"%d","audiences":["a"]}`, round%5, round))
		_, _ = w.sim.Consent(t.Context(), entrasim.Consent{Tenant: customerID, ClientID: clientID, RedirectURI: callback, UserName: "admin@customer.example.com"})
		_, _ = w.try(http.MethodPost, w.sim.Endpoints().Login+"/"+customerID+"/oauth2/v2.0/token", "", credentials(clientID, added.text("secretText"), armScope).Encode())
		if p, err := w.sim.Principal(customerID, clientID); err == nil {
			if role, err := w.sim.AssignRole(entrasim.NewAssignment{Scope: scope, PrincipalID: p.ID, Role: "Reader"}); err == nil && round%2 == 0 {
				_ = w.sim.RemoveRole(role.ID)
			}
		}
		if round%7 == 6 {
			_ = w.sim.RemovePrincipal(customerID, clientID)
		}
		graph(http.MethodPost, "/applications/"+id+"/removePassword", `{"keyId":"`+added.text("keyId")+`"}`)
		if round%9 == 8 {
			graph(http.MethodDelete, "/applications/"+id, "")
			graph(http.MethodDelete, "/directory/deletedItems/"+id, "")
		}
		if round%11 == 8 {
			graph(http.MethodDelete, "/applications/"+id, "")
			graph(http.MethodPost, "/directory/deletedItems/"+id+"/restore", "")
		}
		graph(http.MethodGet, "/applications?$top=2&$filter="+url.QueryEscape("startswith(uniqueName,'a')"), "")
		w.sim.Journal(entrasim.Query{Limit: 5})
		_, _ = w.sim.Quota(homeID)
		_, _ = w.sim.Writes(clientID, time.Now())
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for round := range 20 {
				client(fmt.Sprintf("a%d", i%3), round)
			}
		})
	}
	all.Wait()

	deadline := time.Now().Add(10 * time.Second)
	seen := func() (text string, clients []string) {
		list := graph(http.MethodGet, "/applications?$top=999", "")
		items, _ := list.at("value").([]any)
		for _, item := range items {
			clients = append(clients, item.(map[string]any)["appId"].(string))
		}
		return fmt.Sprint(list.at("value")), clients
	}
	// Until the last lag has passed answers may differ.
	var before string
	var clients []string
	for same := 0; same < 20 && time.Now().Before(deadline); {
		text, ids := seen()
		if same++; text != before {
			before, clients, same = text, ids, 0
		}
	}
	evidence := func() string {
		out := ""
		for _, id := range clients {
			held, err := w.sim.Credentials(id, time.Now())
			out += fmt.Sprintln(id, held, err)
			for _, one := range held {
				if !one.Everywhere {
					t.Errorf("a credential of %s is not everywhere in the end: %+v", id, one)
				}
			}
		}
		return out
	}
	stood := evidence()
	w.reopen(config)
	defer func() { w.must(w.sim.Close()) }()
	if after, _ := seen(); after != before {
		t.Errorf("the state holds\n%s\nwhere there was\n%s", after, before)
	}
	if again := evidence(); again != stood {
		t.Errorf("the evidence is\n%s\nand was\n%s", again, stood)
	}
}
