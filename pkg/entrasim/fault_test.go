package entrasim_test

import (
	"context"
	"errors"
	"io"
	"net/http"
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
