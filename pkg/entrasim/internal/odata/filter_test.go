package odata_test

import (
	"errors"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim/internal/odata"
)

func TestParseFilter(t *testing.T) {
	item := map[string][]string{"name": {"O'Hara"}, "tags": {"red", "blue"}, "enabled": {"true"}, "none": {"null"}}
	property := func(name string) ([]string, bool) {
		v, ok := item[name]
		return v, ok
	}
	for text, want := range map[string]bool{
		"name eq 'O''Hara'":                                 true,
		"name eq 'o''hara'":                                 true,
		"name ne 'O''Hara'":                                 false,
		"startsWith(name,'O''')":                            true,
		"endswith(name,'x')":                                false,
		"contains(name,'HAR')":                              true,
		"tags/any(t:t eq 'blue')":                           true,
		"tags/any(t:t eq 'green')":                          false,
		"name in ('a','O''Hara')":                           true,
		"enabled eq true and none eq null":                  true,
		"enabled eq false or name eq 'x'":                   false,
		"enabled eq false or name eq 'x' and none eq null":  false,
		"enabled eq true or name eq 'x' and none eq 'some'": true,
		"not (name eq 'x' or enabled eq false)":             true,
		"not name eq 'x'":                                   true,
	} {
		f, err := odata.ParseFilter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := f(property); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "name", "name eq", "name like 'x'", "name eq 'x' name", "'name' eq 'x'", "name eq 'x", "(name eq 'x'", "name in 'x'", "name in ()",
		"startswith(name)", "startswith(name,'x'", "lower(name,'x')", "tags/any(t:u eq 'x')", "tags/any", strings.Repeat("(", 100), strings.Repeat("not ", 100) + "name eq 'x'",
	} {
		if _, err := odata.ParseFilter(text); !errors.Is(err, odata.ErrSyntax) {
			t.Errorf("%q: %v", text, err)
		}
	}
	f, err := odata.ParseFilter("unknown eq 'x'")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f(property); !errors.Is(err, odata.ErrSyntax) {
		t.Errorf("an unknown property: %v", err)
	}
}

func TestParseKey(t *testing.T) {
	for text, want := range map[string][3]string{
		"applications":                     {"applications", "", ""},
		"applications('x')":                {"applications", "id", "x"},
		"applications(appId='x')":          {"applications", "appId", "x"},
		"applications(uniqueName='a=''b')": {"applications", "uniqueName", "a='b"},
	} {
		collection, name, value, err := odata.ParseKey(text)
		if got := [3]string{collection, name, value}; err != nil || got != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"a(", "a()", "a(x)", "a(b=c)", "a('x'", "a('x'y)", "a(b='x)"} {
		if _, _, _, err := odata.ParseKey(text); !errors.Is(err, odata.ErrSyntax) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
