package entrasim_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestJournal_FindsByEveryField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Lags: entrasim.Lags{Secret: entrasim.Range{Min: time.Second, Max: time.Second}}})
		a, _ := w.consented("one")
		b, _ := w.consented("two")
		time.Sleep(time.Minute)
		middle := time.Now()
		w.token(customerID, a.clientID, a.secret, armScope)
		w.login(customerID, credentials(b.clientID, "wrong", armScope))
		for _, c := range []struct {
			name string
			q    entrasim.Query
			want int
		}{
			{"requests by key", entrasim.Query{KeyID: a.keyID, Operation: "login.token"}, 1},
			{"changes by key", entrasim.Query{KeyID: a.keyID, Kinds: []string{"password.added", "password.removed"}}, 1},
			{"by application, since", entrasim.Query{Application: b.clientID, Since: middle}, 1},
			{"by application, until", entrasim.Query{Application: b.clientID, Until: middle, Kinds: []string{"application.created", "principal.created"}}, 2},
			{"by tenant", entrasim.Query{Tenant: customerID, Kinds: []string{"principal.created"}}, 2},
			{"limited", entrasim.Query{Limit: 3}, 3},
			{"nothing", entrasim.Query{Plane: "none"}, 0},
		} {
			if got := w.sim.Journal(c.q); len(got) != c.want {
				t.Errorf("%s: %d entries %+v, want %d", c.name, len(got), got, c.want)
			}
		}
		failed := w.sim.Journal(entrasim.Query{Application: b.clientID, Since: middle})[0]
		if failed.Code != "AADSTS7000215" || failed.Status != 401 || failed.Actor != b.clientID || failed.KeyID != "" {
			t.Errorf("the failed request is %+v", failed)
		}
		added := w.sim.Journal(entrasim.Query{KeyID: a.keyID, Kinds: []string{"password.added"}})[0]
		if len(added.Visible.Login) != 3 || added.Visible.Login[0] != added.Time.Add(time.Second).UnixNano() || added.Visible.Login.Everywhere(added.Time) || !added.Visible.Login.Everywhere(middle) {
			t.Errorf("visible %+v", added.Visible)
		}
	})
}

func TestJournal_IsInOrderAndGoesOnFromACursor(t *testing.T) {
	w := newWorld(t, entrasim.Config{JournalRequests: 50})
	a, _ := w.consented("one")
	cursor, total := uint64(0), 0
	for range 30 {
		for range 10 {
			w.arm(http.MethodGet, scope, "", "")
		}
		for _, e := range w.sim.Journal(entrasim.Query{After: cursor}) {
			if e.Seq <= cursor {
				t.Fatalf("entry %d after %d", e.Seq, cursor)
			}
			cursor, total = e.Seq, total+1
		}
	}
	if total < 300 {
		t.Errorf("a reader that keeps up saw %d entries", total)
	}
	if kept := w.sim.Journal(entrasim.Query{Kinds: []string{entrasim.KindRequest}}); len(kept) < 50 || len(kept) >= 100 {
		t.Errorf("%d requests are kept, of a limit of 50", len(kept))
	}
	if got := w.sim.Journal(entrasim.Query{Application: a.clientID, Kinds: []string{"application.created"}}); len(got) != 1 {
		t.Errorf("a change was forgotten: %+v", got)
	}
}

func TestJournal_HoldsNoSecretAndNoToken(t *testing.T) {
	w := newWorld(t, entrasim.Config{})
	a, _ := w.consented("one")
	token := w.token(customerID, a.clientID, a.secret, armScope)
	w.arm(http.MethodGet, scope, token, "")
	w.send(http.MethodGet, "https://login.microsoftonline.com/"+customerID+"/v2.0/adminconsent?client_id="+a.clientID+"&state="+a.secret, "", "")
	text, err := json.Marshal(w.sim.Journal(entrasim.Query{}))
	w.must(err)
	for name, secret := range map[string]string{"secret": a.secret, "token": token, "platform's secret": w.platform.ClientSecret} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the journal holds the %s", name)
		}
	}
}
