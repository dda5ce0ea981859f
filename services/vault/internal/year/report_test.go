package year_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// table shows the newest versions.
func (j *judge) table(rows []row) string {
	var out strings.Builder
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format("01-02T15:04:05")
	}
	for _, v := range rows[max(0, len(rows)-6):] {
		fmt.Fprintf(&out, "  version %d %s%s: added %s, active %s, retired %s, revoked %s, ends %s", v.number, v.state, v.signingKey, at(v.add), at(v.activate), at(v.retire), at(v.revoke), at(v.end))
		if s := j.secrets[v.keyID]; s != nil {
			fmt.Fprintf(&out, "; at Entra: everywhere %s, removed %s, refused %s, %d grants", at(s.everywhere), at(s.removed), at(s.refused), j.grants[v.keyID])
		}
		out.WriteString("\n")
	}
	return out.String()
}

// deaths is how many there were; at is at how many different steps.
func (j *judge) deaths() (total, at int) {
	for _, n := range j.kills {
		total += n
	}
	return total, len(j.kills)
}

// counted is how often any of these happened.
func (j *judge) counted(what ...string) (total int) {
	for _, w := range what {
		total += j.counts[w]
	}
	return total
}

// report says what the world has been through.
func (j *judge) report() string {
	total, at := j.deaths()
	var out strings.Builder
	fmt.Fprintf(&out, "%d kills, at %d different steps", total, at)
	for _, what := range slices.Sorted(maps.Keys(j.counts)) {
		fmt.Fprintf(&out, "\n  %-40s %d", what, j.counts[what])
	}
	out.WriteString("\n  kills by step:")
	for _, step := range slices.Sorted(maps.Keys(j.kills)) {
		fmt.Fprintf(&out, "\n    %-60s %d", step, j.kills[step])
	}
	return out.String()
}
