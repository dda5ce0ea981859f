package resource_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"phasekey.dev/services/registry/internal/resource"
)

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "a1": true, "a-1": true, strings.Repeat("a", 63): true,
		"": false, "-": false, "1a": false, "a-": false, "-a": false, "A": false, "a_b": false, "é": false, "a/b": false, "a.b": false,
		strings.Repeat("a", 64): false,
	} {
		if got := resource.ValidID(id); got != want {
			t.Errorf("ValidID(%q) = %t", id, got)
		}
	}
}

func TestSplitName(t *testing.T) {
	for _, tt := range []struct {
		name, in         string
		asName, asParent string // the IDs, joined; empty for a refusal
	}{
		{"whole", "accounts/acme/projects/net", "acme net", "acme net"},
		{"wildcards", "accounts/-/projects/-", "", "- -"},
		{"too short", "accounts/acme", "", ""},
		{"too long", "accounts/acme/projects/net/x/y", "", ""},
		{"other collection", "accounts/acme/stacks/net", "", ""},
		{"empty ID", "accounts//projects/net", "", ""},
		{"trailing slash", "accounts/acme/projects/net/", "", ""},
		{"upper case", "accounts/Acme/projects/net", "", ""},
		{"empty", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(split func(string, ...string) ([]string, bool), want string) {
				t.Helper()
				if ids, ok := split(tt.in, "accounts", "projects"); ok != (want != "") || strings.Join(ids, " ") != want {
					t.Errorf("got %q, %t, want %q", ids, ok, want)
				}
			}
			check(resource.SplitName, tt.asName)
			check(resource.SplitParent, tt.asParent)
		})
	}
}

func TestCheckETag(t *testing.T) {
	tag := resource.ETag("here", "a", 1)
	bare := strings.Trim(strings.TrimPrefix(tag, "W/"), `"`)
	if tag != `W/"`+bare+`"` || bare == "" {
		t.Fatalf("%s is not a weak etag", tag)
	}
	for _, tt := range []struct {
		name, given, current string
		want                 error
	}{
		{"none", "", tag, nil},
		{"as it was given", tag, tag, nil},
		{"bare", bare, tag, nil},
		{"another state's", resource.ETag("here", "a", 2), tag, resource.ErrETagMismatch},
		{"as a strong one", `"` + bare + `"`, tag, resource.ErrETagMismatch},
		{"wrapped twice", `W/"` + tag + `"`, tag, resource.ErrETagMismatch},
		{"nothing in quotes", `W/""`, tag, resource.ErrETagMismatch},
		{"of what is not there", tag, "", resource.ErrETagMismatch},
		{"bare, of what is not there", bare, "", resource.ErrETagMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := resource.CheckETag("it", tt.given, tt.current); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestETag_IsOfOneStateOfOneResource(t *testing.T) {
	tag := resource.ETag("here", "a", 1)
	if tag == "" || len(tag) > 64 || tag != resource.ETag("here", "a", 1) {
		t.Fatalf("tag %q", tag)
	}
	if tag == resource.ETag("here", "a", 2) || tag == resource.ETag("here", "b", 1) || tag == resource.ETag("there", "a", 1) {
		t.Fatal("two states have one tag")
	}
}

const (
	here  = "1b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	there = "1b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
)

func TestCursor(t *testing.T) {
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	good := resource.Position{Incarnation: here, Revision: 42}
	if got, err := resource.ParseCursor(good.Cursor()); err != nil || got != good {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, cursor := range map[string]string{
		"of nothing":       encode("c1  42"),
		"empty":            "",
		"not base64":       "!!!",
		"padded":           good.Cursor() + "=",
		"cut":              good.Cursor()[:20],
		"other version":    encode("c9 " + here + " 42"),
		"negative":         encode("c1 " + here + " -1"),
		"signed":           encode("c1 " + here + " +42"),
		"leading zero":     encode("c1 " + here + " 042"),
		"too large":        encode("c1 " + here + " 99999999999999999999"),
		"no number":        encode("c1 " + here + " x"),
		"something behind": encode("c1 " + here + " 42 1"),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := resource.ParseCursor(cursor); !errors.Is(err, resource.ErrCursor) {
				t.Fatalf("got %+v, %v", got, err)
			}
		})
	}
}

// FuzzNames: what is taken for a name is one: it is put together again from its IDs.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"accounts/acme/projects/net", "accounts/-/projects/-", "accounts/a/projects/b/", "accounts//projects/", "x", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ids, ok := resource.SplitName(name, "accounts", "projects")
		if !ok {
			return
		}
		if got := "accounts/" + ids[0] + "/projects/" + ids[1]; got != name {
			t.Fatalf("%q became %q", name, got)
		}
		if _, ok := resource.SplitParent(name, "accounts", "projects"); !ok {
			t.Fatalf("%q is a name and no parent", name)
		}
	})
}

// FuzzCursor: nothing but what was given is taken for a cursor.
func FuzzCursor(f *testing.F) {
	f.Add(resource.Position{Incarnation: here, Revision: 7}.Cursor())
	f.Add("")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, token string) {
		if position, err := resource.ParseCursor(token); err == nil && position.Cursor() != token {
			t.Fatalf("cursor %q was not given for %+v", token, position)
		}
	})
}
