package resource_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/registry/internal/resource"
)

var query = resource.Query{Incarnation: here, Key: secret.New(strings.Repeat("k", 64)), List: "projects", Parent: "accounts/acme", Filter: "kind = STACK", OrderBy: "create_time desc"}

func TestQuery_Page(t *testing.T) {
	newest := []resource.Order{{By: resource.ByCreateTime, Desc: true}}
	total := []resource.Order{{By: resource.ByCreateTime, Desc: true}, {By: resource.ByName}}
	place := resource.Place{"1700000000000000", "accounts/acme/projects/b"}
	token := query.Token(place)
	other := func(change func(q *resource.Query)) resource.Query {
		q := query
		change(&q)
		return q
	}
	for _, tt := range []struct {
		name           string
		query          resource.Query
		order          []resource.Order
		token          string
		size, wantSize int32
		wantAfter      resource.Place
		wantErr        error
	}{
		{name: "first", query: query, order: newest, wantSize: 100},
		{name: "sized", query: query, order: newest, size: 7, wantSize: 7},
		{name: "too large", query: query, order: newest, size: 5000, wantSize: 1000},
		{name: "next", query: query, order: newest, token: token, wantSize: 100, wantAfter: place},
		{name: "next, of another size", query: query, order: newest, token: token, size: 3, wantSize: 3, wantAfter: place},
		{name: "other parent", query: other(func(q *resource.Query) { q.Parent = "accounts/b" }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "other list", query: other(func(q *resource.Query) { q.List = "integrations" }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "other filter", query: other(func(q *resource.Query) { q.Filter = "" }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "other order", query: other(func(q *resource.Query) { q.OrderBy = "create_time" }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "filter and order mixed up", query: other(func(q *resource.Query) { q.Filter, q.OrderBy = q.Filter+"create_time", " desc" }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "other database", query: other(func(q *resource.Query) { q.Incarnation = there }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "other key", query: other(func(q *resource.Query) { q.Key = secret.New(strings.Repeat("x", 64)) }), order: newest, token: token, wantErr: resource.ErrPageToken},
		{name: "a place too few", query: query, order: newest, token: query.Token(place[:1]), wantErr: resource.ErrPageToken},
		{name: "a place too many", query: query, order: newest, token: query.Token(append(place[:2:2], "x")), wantErr: resource.ErrPageToken},
		{name: "no time", query: query, order: newest, token: query.Token(resource.Place{"x", "y"}), wantErr: resource.ErrPageToken},
		{name: "no place", query: query, order: newest, token: query.Token(nil), wantErr: resource.ErrPageToken},
		{name: "changed", query: query, order: newest, token: token[:len(token)-2] + "AA", wantErr: resource.ErrPageToken},
		{name: "cut", query: query, order: newest, token: token[:10], wantErr: resource.ErrPageToken},
		{name: "garbage", query: query, order: newest, token: "?", wantErr: resource.ErrPageToken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page, err := tt.query.Page(tt.order, tt.token, tt.size)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("got error %v, want %v", err, tt.wantErr)
			}
			want := resource.Page{Parent: tt.query.Parent, Order: total, After: tt.wantAfter, Size: int(tt.wantSize)}
			if diff := cmp.Diff(want, page); err == nil && diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestQuery_TokensAreOpaque: a token shows nothing of its place, is not what another of the same place is, and no bit of it can be changed.
func TestQuery_TokensAreOpaque(t *testing.T) {
	place := resource.Place{"1700000000000000", "accounts/acme/projects/b"}
	token := query.Token(place)
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, readable := range []string{"acme", "projects", "170000", `","`} {
		if bytes.Contains(raw, []byte(readable)) || strings.Contains(token, readable) {
			t.Errorf("%q is readable in %q", readable, raw)
		}
	}
	if again := query.Token(place); again == token {
		t.Error("two tokens of one place are the same")
	}
	total := []resource.Order{{By: resource.ByCreateTime, Desc: true}}
	for i := range 8 * len(raw) {
		changed := bytes.Clone(raw)
		changed[i/8] ^= 1 << (i % 8)
		if _, err := query.Page(total, base64.RawURLEncoding.EncodeToString(changed), 1); !errors.Is(err, resource.ErrPageToken) {
			t.Errorf("bit %d changed: %v", i, err)
		}
	}
	for i := range raw {
		if _, err := query.Page(total, base64.RawURLEncoding.EncodeToString(raw[:i]), 1); i > 0 && !errors.Is(err, resource.ErrPageToken) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func TestTotal(t *testing.T) {
	name, created, display := resource.Order{By: resource.ByName, Desc: true}, resource.Order{By: resource.ByCreateTime}, resource.Order{By: resource.ByDisplayName}
	for _, tt := range []struct {
		name        string
		order, want []resource.Order
	}{
		{"empty", nil, []resource.Order{{By: resource.ByName}}},
		{"without a name", []resource.Order{created}, []resource.Order{created, {By: resource.ByName}}},
		{"with a name", []resource.Order{created, name}, []resource.Order{created, name}},
		{"what comes after a name", []resource.Order{name, created, display}, []resource.Order{name}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, resource.Total(tt.order)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestQuery_LongestToken: a token that was given is never refused for its length.
func TestQuery_LongestToken(t *testing.T) {
	id := strings.Repeat("x", 63)
	keys := resource.Keys{
		Name:        "accounts/" + id + "/integrations/" + id,
		DisplayName: strings.Repeat("\U0001F511", 100),
		CreateTime:  time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), UpdateTime: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	place := keys.Place([]resource.Order{{By: resource.ByDisplayName}, {By: resource.ByCreateTime}, {By: resource.ByUpdateTime}, {By: resource.ByName}})
	const limit = 1000 // the protos'
	if got := len(query.Token(place)); got > limit {
		t.Errorf("%d bytes", got)
	}
	keys.DisplayName = strings.Repeat(`<&"\`, 25)
	place = keys.Place([]resource.Order{{By: resource.ByDisplayName}, {By: resource.ByCreateTime}, {By: resource.ByUpdateTime}, {By: resource.ByName}})
	if got := len(query.Token(place)); got > limit {
		t.Errorf("%d bytes", got)
	}
}

// FuzzPageToken: nothing but what was given is taken for a page token, and what was given leads to its place, in its query
// only.
func FuzzPageToken(f *testing.F) {
	f.Add("", "accounts/acme/projects/b", "")
	place := resource.Place{"accounts/acme/projects/b"}
	f.Add(query.Token(place), "", "kind = STACK")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "\x00\n<\"", "\n")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`0123456789abcdef["x"]`)), "x", "x")
	f.Fuzz(func(t *testing.T, token, name, filter string) {
		if page, err := query.Page(nil, token, 1); err == nil && token != "" && !slices.Equal(page.After, place) {
			t.Fatalf("page token %q was not given for %+v", token, page)
		}
		if strings.ToValidUTF8(name, "") != name {
			return // neither names nor display names
		}
		q := query
		q.Filter = filter
		given := q.Token(resource.Place{name})
		page, err := q.Page(nil, given, 1)
		if err != nil || page.After[0] != name {
			t.Fatalf("%q led to %q, %v", name, page.After, err)
		}
		q.Filter += " "
		if _, err := q.Page(nil, given, 1); !errors.Is(err, resource.ErrPageToken) {
			t.Fatalf("another query's token: %v", err)
		}
	})
}
