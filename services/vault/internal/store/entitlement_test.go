package store_test

import (
	"regexp"
	"slices"
	"testing"

	"phasekey.dev/services/vault/internal/store"
)

// How grants of a relation stand is read once for all of them: it may depend on nothing in which they differ.
func TestEntitlement_StandsByItsRelation(t *testing.T) {
	t.Parallel()
	columnsOf := func(sql string) []string {
		columns := regexp.MustCompile(`\bg\.\w+`).FindAllString(sql, -1)
		slices.Sort(columns)
		return slices.Compact(columns)
	}
	if have, want := columnsOf(store.StandingColumns), columnsOf(store.RelationColumns); !slices.Equal(have, want) {
		t.Errorf("%q of a grant decide how it stands, and %q are looked at", have, want)
	}
}
