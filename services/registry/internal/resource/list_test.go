package resource_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/services/registry/internal/resource"
)

func TestFirstPage(t *testing.T) {
	newest := []resource.Order{{By: resource.ByCreateTime, Desc: true}}
	total := []resource.Order{{By: resource.ByCreateTime, Desc: true}, {By: resource.ByName}}
	for _, tt := range []struct {
		name string
		size int32
		want int
	}{
		{"of no size", 0, 100},
		{"sized", 7, 7},
		{"too large", 5000, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := resource.Page{Parent: "accounts/acme", Order: total, Size: tt.want}
			if diff := cmp.Diff(want, resource.FirstPage("accounts/acme", newest, tt.size)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlace_Fits(t *testing.T) {
	order := []resource.Order{{By: resource.ByCreateTime, Desc: true}, {By: resource.ByName}}
	for _, tt := range []struct {
		name  string
		place resource.Place
		want  bool
	}{
		{"as it is", resource.Place{"1700000000000000", "accounts/acme/projects/b"}, true},
		{"one too few", resource.Place{"1700000000000000"}, false},
		{"one too many", resource.Place{"1700000000000000", "b", "x"}, false},
		{"no time", resource.Place{"x", "y"}, false},
		{"nothing", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.place.Fits(order); got != tt.want {
				t.Fatalf("got %t", got)
			}
		})
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

// TestPlace_LongestToken: a token that was given is never refused for its length.
func TestPlace_LongestToken(t *testing.T) {
	var scope pagetoken.Scope
	id := strings.Repeat("x", 63)
	keys := resource.Keys{
		Name:        "accounts/" + id + "/integrations/" + id,
		DisplayName: strings.Repeat("\U0001F511", 100),
		CreateTime:  time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), UpdateTime: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	place := keys.Place([]resource.Order{{By: resource.ByDisplayName}, {By: resource.ByCreateTime}, {By: resource.ByUpdateTime}, {By: resource.ByName}})
	const limit = 1000 // the protos'
	if got := len(scope.SealTexts(place...)); got > limit {
		t.Errorf("%d bytes", got)
	}
	keys.DisplayName = strings.Repeat(`<&"\`, 25)
	place = keys.Place([]resource.Order{{By: resource.ByDisplayName}, {By: resource.ByCreateTime}, {By: resource.ByUpdateTime}, {By: resource.ByName}})
	if got := len(scope.SealTexts(place...)); got > limit {
		t.Errorf("%d bytes", got)
	}
}
