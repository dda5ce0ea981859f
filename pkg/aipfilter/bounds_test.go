package aipfilter_test

import (
	"slices"
	"testing"

	"phasekey.dev/pkg/aipfilter"
)

func TestBounds(t *testing.T) {
	lower, upper := func(v string) aipfilter.Bound { return aipfilter.Bound{Lower: true, Value: v} }, func(v string) aipfilter.Bound { return aipfilter.Bound{Value: v} }
	for filter, want := range map[string][]aipfilter.Bound{
		`made > "a"`: {lower("a")},
		`made >= "a" AND (made < "b" AND on = x)`: {lower("a"), upper("b")},
		`made = "a"`:                      {upper("a"), lower("a")},
		`made > "a" OR on = true`:         nil,
		`NOT made > "a"`:                  nil,
		`made != "a" AND other > "a"`:     nil,
		`made <= "a" AND NOT (on = true)`: {upper("a")},
		``:                                nil,
		`made > "a`:                       nil,
	} {
		got := aipfilter.Bounds(filter, "made")
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
	}
}
