package pagetoken_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
)

var scope = pagetoken.Scope{
	Incarnation: "e5a4", Key: secret.New(strings.Repeat("k", 64)), List: "projects", Parent: "accounts/acme", Filter: "kind = STACK", OrderBy: "create_time desc",
}

func other(change func(s *pagetoken.Scope)) pagetoken.Scope {
	s := scope
	change(&s)
	return s
}

func TestScope_TokensAreItsOwn(t *testing.T) {
	place := []string{"1700000000000000", "accounts/acme/projects/b"}
	token := scope.SealTexts(place...)
	for _, tt := range []struct {
		name    string
		scope   pagetoken.Scope
		token   string
		wantErr error
	}{
		{name: "its own", scope: scope, token: token},
		{name: "other parent", scope: other(func(s *pagetoken.Scope) { s.Parent = "accounts/b" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "other list", scope: other(func(s *pagetoken.Scope) { s.List = "integrations" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "other filter", scope: other(func(s *pagetoken.Scope) { s.Filter = "" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "other order", scope: other(func(s *pagetoken.Scope) { s.OrderBy = "create_time" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "filter and order mixed up", scope: other(func(s *pagetoken.Scope) { s.Filter, s.OrderBy = s.Filter+"create_time", " desc" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "other incarnation", scope: other(func(s *pagetoken.Scope) { s.Incarnation = "e5a5" }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "other key", scope: other(func(s *pagetoken.Scope) { s.Key = secret.New(strings.Repeat("x", 64)) }), token: token, wantErr: pagetoken.ErrInvalid},
		{name: "no texts", scope: scope, token: scope.Seal([]byte("{}")), wantErr: pagetoken.ErrInvalid},
		{name: "changed", scope: scope, token: token[:len(token)-2] + "AA", wantErr: pagetoken.ErrInvalid},
		{name: "cut", scope: scope, token: token[:10], wantErr: pagetoken.ErrInvalid},
		{name: "nothing", scope: scope, token: "", wantErr: pagetoken.ErrInvalid},
		{name: "garbage", scope: scope, token: "?", wantErr: pagetoken.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.scope.OpenTexts(tt.token)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("got error %v, want %v", err, tt.wantErr)
			}
			if err == nil && !slices.Equal(got, place) {
				t.Fatalf("got %q, want %q", got, place)
			}
		})
	}
}

// TestScope_TokensAreOpaque: a token shows nothing of its place, is not what another of the same place is, and no bit of it can be changed.
func TestScope_TokensAreOpaque(t *testing.T) {
	place := []string{"1700000000000000", "accounts/acme/projects/b"}
	token := scope.SealTexts(place...)
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, readable := range []string{"acme", "projects", "170000", `","`} {
		if bytes.Contains(raw, []byte(readable)) || strings.Contains(token, readable) {
			t.Errorf("%q is readable in %q", readable, raw)
		}
	}
	if again := scope.SealTexts(place...); again == token {
		t.Error("two tokens of one place are the same")
	}
	for i := range 8 * len(raw) {
		changed := bytes.Clone(raw)
		changed[i/8] ^= 1 << (i % 8)
		if _, err := scope.Open(base64.RawURLEncoding.EncodeToString(changed)); !errors.Is(err, pagetoken.ErrInvalid) {
			t.Errorf("bit %d changed: %v", i, err)
		}
	}
	for i := range raw {
		if _, err := scope.Open(base64.RawURLEncoding.EncodeToString(raw[:i])); !errors.Is(err, pagetoken.ErrInvalid) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func TestKey_IsTheDatabases(t *testing.T) {
	table := fstest.MapFS{}
	for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
		table[driver+"/0001_page_token_keys.sql"] = &fstest.MapFile{Data: []byte(`CREATE TABLE page_token_keys (id BIGINT NOT NULL PRIMARY KEY, secret TEXT NOT NULL);`)}
	}
	var keys []secret.Text
	sqldbtest.Run(t, table, func(t *testing.T, db *sqldb.DB) {
		for range 2 {
			if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
				key, err := pagetoken.Key(ctx, tx)
				keys = append(keys, key)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
	if len(keys) != 4 || keys[0].IsZero() || !keys[0].Equal(keys[1]) || !keys[2].Equal(keys[3]) || keys[0].Equal(keys[2]) {
		t.Error("each database has a key of its own, and one")
	}
}

// FuzzPageToken: nothing but what was given is taken for a page token, and what was given leads to its place, in its scope only.
func FuzzPageToken(f *testing.F) {
	f.Add("", "accounts/acme/projects/b", "")
	f.Add(scope.SealTexts("accounts/acme/projects/b"), "", "kind = STACK")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "\x00\n<\"", "\n")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`0123456789abcdef["x"]`)), "x", "x")
	f.Fuzz(func(t *testing.T, token, name, filter string) {
		// Each process of the fuzzer makes a token of its own for the place.
		if place, err := scope.OpenTexts(token); err == nil && !slices.Equal(place, []string{"accounts/acme/projects/b"}) {
			t.Fatalf("page token %q was not given for %q", token, place)
		}
		if raw, err := scope.Open(scope.Seal([]byte(name))); err != nil || string(raw) != name {
			t.Fatalf("%q led to %q, %v", name, raw, err)
		}
		if strings.ToValidUTF8(name, "") != name {
			return // neither names nor display names
		}
		s := scope
		s.Filter = filter
		given := s.SealTexts(name)
		if place, err := s.OpenTexts(given); err != nil || !slices.Equal(place, []string{name}) {
			t.Fatalf("%q led to %q, %v", name, place, err)
		}
		s.Filter += " "
		if _, err := s.Open(given); !errors.Is(err, pagetoken.ErrInvalid) {
			t.Fatalf("another scope's token: %v", err)
		}
	})
}
