package entrasim_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/eventlog"
)

// reopen closes the world's simulator and opens another on the same state.
func (w *world) reopen(config entrasim.Config) {
	w.Helper()
	w.must(w.sim.Close())
	sim, err := entrasim.New(config)
	w.must(err)
	w.sim = sim
	w.client.Transport = sim.Transport()
}

func TestState_SurvivesARestart(t *testing.T) {
	config := entrasim.Config{StateDir: t.TempDir(), Seed: 5}
	w := newWorld(t, config)
	a, p := w.consented("one")
	w.assign(p.ID, "Contributor", scope)
	bearer := w.token(customerID, a.clientID, a.secret, armScope)
	if got := w.arm(http.MethodPut, group, bearer, `{"location":"westeurope"}`); got.status != 201 {
		t.Fatalf("group: %s", got.body)
	}
	before := w.graph(http.MethodGet, "/applications/"+a.id, "").body
	changes := w.sim.Journal(entrasim.Query{Kinds: []string{"password.added"}})

	w.reopen(config)
	defer func() { w.must(w.sim.Close()) }()
	if after := w.graph(http.MethodGet, "/applications/"+a.id, "").body; after != before {
		t.Errorf("application is\n%s\nwas\n%s", after, before)
	}
	if got := w.arm(http.MethodGet, group, bearer, ""); got.status != 200 {
		t.Errorf("an old token, an old role and an old group: %d %s", got.status, got.body)
	}
	w.token(customerID, a.clientID, a.secret, armScope)
	if again := w.sim.Journal(entrasim.Query{Kinds: []string{"password.added"}}); len(again) != len(changes) || again[1].KeyID != changes[1].KeyID || again[1].Seq != changes[1].Seq {
		t.Errorf("journal %+v, was %+v", again, changes)
	}
	if b := w.newApp("two"); b.id == a.id || b.clientID == a.clientID {
		t.Error("identifiers repeat after a restart")
	}
}

func TestState_LagSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := entrasim.Config{StateDir: t.TempDir(), Lags: entrasim.Lags{Secret: entrasim.Range{Min: 10 * time.Second, Max: 10 * time.Second}}}
		w := newWorld(t, config)
		a, _ := w.consented("one")
		w.reopen(config)
		defer func() { w.must(w.sim.Close()) }()
		form := credentials(a.clientID, a.secret, armScope)
		if got := w.code(customerID, form); got != "AADSTS7000215" {
			t.Errorf("a restart brought the secret: %q", got)
		}
		time.Sleep(10 * time.Second)
		if got := w.code(customerID, form); got != "" {
			t.Errorf("the secret never came: %q", got)
		}
	})
}

func TestState_HoldsNoSecret(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, entrasim.Config{StateDir: dir})
	a, _ := w.consented("one")
	token := w.token(customerID, a.clientID, a.secret, armScope)
	text, err := os.ReadFile(filepath.Join(dir, "entrasim.log"))
	w.must(err)
	for name, secret := range map[string]string{"secret": a.secret, "platform's secret": w.platform.ClientSecret, "token": token} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("the state holds the %s", name)
		}
	}
}

func TestState_TornAndCorruptFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "entrasim.log")
	sim, err := entrasim.New(entrasim.Config{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{homeID, customerID} {
		if _, err := sim.CreateTenant(entrasim.NewTenant{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := entrasim.New(entrasim.Config{StateDir: dir}); err == nil {
		t.Error("two simulators have one state")
	}
	if err := sim.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sim.CreateTenant(entrasim.NewTenant{}); err == nil {
		t.Error("a closed simulator accepts changes")
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		text    string
		tenants int // -1: refused
	}{
		{"whole", string(good), 2},
		{"last line torn", string(good[:len(good)-20]), 1},
		{"last line lacks its end", string(good[:len(good)-1]), 1},
		{"a letter changed in the middle", strings.Replace(string(good), homeID, customerID, 1), -1},
		{"a line missing its start", string(good[5:]), -1},
		{"a line twice", string(good) + string(good[bytes.LastIndexByte(good[:len(good)-1], '\n')+1:]), -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			sim, err := entrasim.New(entrasim.Config{StateDir: dir})
			if c.tenants < 0 {
				if !errors.Is(err, eventlog.ErrCorrupt) {
					t.Fatalf("opened with %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := len(sim.Tenants()); got != c.tenants {
				t.Errorf("%d tenants, want %d", got, c.tenants)
			}
			if _, err := sim.CreateTenant(entrasim.NewTenant{}); err != nil {
				t.Errorf("it cannot go on: %v", err)
			}
			if err := sim.Close(); err != nil {
				t.Error(err)
			}
			again, err := entrasim.New(entrasim.Config{StateDir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if got := len(again.Tenants()); got != c.tenants+1 {
				t.Errorf("%d tenants the next time, want %d", got, c.tenants+1)
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
