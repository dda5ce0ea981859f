package entrasim_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestConflict_WritesOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{WriteConflicts: entrasim.WriteConflicts{Probability: 1, Window: 2 * time.Second}})
		a, b := w.newApp("one"), w.newApp("two")
		write := func(method, path, body string, want int, header ...string) {
			t.Helper()
			got := w.graph(method, path, body, header...)
			if got.status != want {
				t.Errorf("%s %s: %d %s, want %d", method, path, got.status, got.body, want)
			}
			if want == http.StatusConflict && (got.text("error/code") != "Directory_ConcurrencyViolation" ||
				got.text("error/message") != "Error due to concurrent requests being made to the tenant. Please wait briefly and retry.") {
				t.Errorf("conflict: %s", got.body)
			}
		}
		one := "/applications/" + a.id
		for _, step := range []struct{ method, path, body string }{
			{http.MethodPost, one + "/addPassword", "{}"},
			{http.MethodPatch, one, `{"tags":["x"]}`},
			{http.MethodPost, one + "/federatedIdentityCredentials", federation("plan", issuerURL, subject, exchange)},
			{http.MethodPatch, one + "/federatedIdentityCredentials/plan", `{"subject":"x"}`},
		} {
			time.Sleep(2*time.Second - time.Nanosecond)
			write(step.method, step.path, step.body, http.StatusConflict)
			time.Sleep(time.Nanosecond)
			want := map[bool]int{true: http.StatusNoContent, false: http.StatusCreated}[step.method == http.MethodPatch]
			if step.path == one+"/addPassword" {
				want = http.StatusOK
			}
			write(step.method, step.path, step.body, want)
			write(http.MethodPatch, "/applications(uniqueName='one')", "{}", http.StatusConflict, "Prefer", "create-if-missing")
		}
		read := w.graph(http.MethodGet, one, "")
		if list, _ := read.at("passwordCredentials").([]any); read.status != 200 || len(list) != 1 {
			t.Errorf("a refused write was carried out, or a read refused: %d %s", read.status, read.body)
		}
		write(http.MethodPost, "/applications/"+b.id+"/addPassword", "{}", http.StatusOK) // nobody wrote to that one
		time.Sleep(2 * time.Second)
		write(http.MethodDelete, one, "", http.StatusNoContent)
		write(http.MethodPost, "/directory/deletedItems/"+a.id+"/restore", "", http.StatusConflict)
		write(http.MethodDelete, "/directory/deletedItems/"+a.id, "", http.StatusConflict)
		time.Sleep(2 * time.Second)
		write(http.MethodDelete, "/directory/deletedItems/"+a.id, "", http.StatusNoContent)
	})
}

func TestConflict_WritesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{WriteConflicts: entrasim.WriteConflicts{Probability: 1}})
		a := w.newApp("one")
		add := func() int { return w.graph(http.MethodPost, "/applications/"+a.id+"/addPassword", "{}").status }
		for range 3 { // one after the other, however soon
			if got := add(); got != http.StatusOK {
				t.Errorf("got %d", got)
			}
		}
		time.Sleep(time.Second)
		w.fault(entrasim.Fault{Operation: "graph.application.addPassword", Count: 1, Effect: entrasim.Effect{Delay: time.Minute}})
		slow := make(chan int)
		go func() { slow <- add() }()
		synctest.Wait()
		time.Sleep(30 * time.Second)
		if got := add(); got != http.StatusOK {
			t.Errorf("the quick one: %d", got)
		}
		if got := <-slow; got != http.StatusConflict {
			t.Errorf("the slow one, which the quick one overtook: %d", got)
		}
	})
}

func TestConflict_RemovalSoonAfterAnAddition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, entrasim.Config{Seed: 3, WriteConflicts: entrasim.WriteConflicts{RemovalProbability: 0.5, Window: 5 * time.Second}})
		a := w.newApp("one")
		statuses := map[int]int{}
		for range 60 {
			a = w.newSecret(a)
			remove := func() int {
				return w.graph(http.MethodPost, "/applications/"+a.id+"/removePassword", `{"keyId":"`+a.keyID+`"}`).status
			}
			soon := remove()
			statuses[soon]++
			time.Sleep(5 * time.Second)
			if later := remove(); later != 204 && soon == 500 || later != 400 && soon == 204 {
				t.Errorf("removed again later: %d after %d", later, soon)
			}
		}
		if statuses[500] < 15 || statuses[204] < 15 || len(statuses) != 2 {
			t.Errorf("statuses %v", statuses)
		}
	})
}

func TestConfig_TroubleIsChecked(t *testing.T) {
	for name, config := range map[string]entrasim.Config{
		"probability above one":  {WriteConflicts: entrasim.WriteConflicts{Probability: 1.5}},
		"probability below zero": {WriteConflicts: entrasim.WriteConflicts{RemovalProbability: -0.5}},
		"negative window":        {WriteConflicts: entrasim.WriteConflicts{Window: -1}},
		"loop without time":      {LoginLoop: entrasim.Budget{Amount: 1}},
		"budget without amount":  {Budgets: entrasim.Budgets{PairUnits: entrasim.Budget{Per: time.Second}}},
		"negative budget":        {Budgets: entrasim.Budgets{Reads: entrasim.Budget{Amount: -1, Per: time.Second}}},
	} {
		if _, err := entrasim.New(config); !errors.Is(err, entrasim.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
