package contexts_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"phasekey.dev/services/phasekey/internal/contexts"
)

func good() contexts.Context {
	return contexts.Context{Registry: "localhost:1", CAFile: "/tls/ca.pem", CertFile: "/tls/me.pem", KeyFile: "/tls/me-key.pem", Account: "acme"}
}

func TestFile_IsWhatWasSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "contexts.yaml")
	file, err := contexts.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Get(""); !errors.Is(err, contexts.ErrNone) {
		t.Errorf("without a context: %v", err)
	}
	for _, name := range []string{"one", "two"} {
		if err := file.Set(name, good()); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	again, err := contexts.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Names(), []string{"one", "two"}) || again.Current != "one" {
		t.Errorf("%+v", again)
	}
	if got, err := again.Get(""); err != nil || got != good() {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := again.Get("three"); err == nil || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("an unknown one: %v", err)
	}
	if err := again.Delete("one"); err != nil || again.Current != "" {
		t.Errorf("%v, current %q", err, again.Current)
	}
	if err := again.Use("two"); err != nil || again.Current != "two" {
		t.Errorf("%v, current %q", err, again.Current)
	}
}

func TestFile_RefusesWhatItDoesNotKnow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contexts.yaml")
	const text = "contexts:\n  one:\n    registri: localhost:1\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := contexts.Load(path); err == nil || !strings.Contains(err.Error(), "registri") {
		t.Errorf("a misspelt key: %v", err)
	}
}

func TestSet_RefusesWhatCannotBeUsed(t *testing.T) {
	for name, change := range map[string]func(*contexts.Context){
		"no address":      func(c *contexts.Context) { c.Registry = "" },
		"no certificate":  func(c *contexts.Context) { c.CertFile = "" },
		"a relative path": func(c *contexts.Context) { c.CAFile = "tls/ca.pem" },
	} {
		c := good()
		change(&c)
		file := contexts.File{Contexts: map[string]contexts.Context{}}
		if file.Set("one", c) == nil {
			t.Error(name + " is taken")
		}
	}
	for _, name := range []string{"", "a b", "-a", "../a", strings.Repeat("a", 64)} {
		file := contexts.File{Contexts: map[string]contexts.Context{}}
		if file.Set(name, good()) == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}
