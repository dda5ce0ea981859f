package load

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// row is one thing that was measured, in every round, on the vault and on what it is compared with.
type row struct {
	What string `json:"what"`
	Unit string `json:"unit"`
	// Vault, or what else is said to be measured, and Floor have a number a round; Floor none when there is nothing to compare with.
	Vault []float64 `json:"vault"`
	Floor []float64 `json:"floor,omitempty"`
	// Against says what Floor is, if not the bare server.
	Against string `json:"against,omitempty"`
	// Ratio is the median of the rounds' ratios.
	Ratio float64 `json:"ratio,omitempty"`
	// Least and Most are the bounds that are promised of the ratio; zero is none.
	Least float64 `json:"least,omitempty"`
	Most  float64 `json:"most,omitempty"`
	// OrElse is the same in rows of which one has to keep its promise; empty when it has to keep its own.
	OrElse string `json:"or_else,omitempty"`
}

// bound is what is promised of a ratio; zero is none.
type bound struct {
	least, most float64
	// orElse is the same in bounds of which one is enough.
	orElse string
}

// report is all that was measured, in its order.
type report struct {
	Machine string `json:"machine"`
	Streams int    `json:"streams"`
	Rounds  int    `json:"rounds"`
	Rows    []*row `json:"rows"`
}

// add adds a round's numbers.
func (r *report) add(what, unit, against string, promised bound, vault float64, floor ...float64) {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.What == what && x.Against == against })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{What: what, Unit: unit, Against: against, Least: promised.least, Most: promised.most, OrElse: promised.orElse})
	}
	x := r.Rows[i]
	x.Vault = append(x.Vault, vault)
	x.Floor = append(x.Floor, floor...)
	var ratios []float64
	for n, f := range x.Floor {
		if f > 0 {
			ratios = append(ratios, x.Vault[n]/f)
		}
	}
	if len(ratios) > 0 {
		x.Ratio = median(ratios)
	}
}

// kept reports whether the row's ratio is within its bounds.
func (x *row) kept() bool {
	return (x.Least == 0 || x.Ratio >= x.Least) && (x.Most == 0 || x.Ratio <= x.Most)
}

// kept reports whether a row's promise is kept, or the other one that will do.
func (r *report) kept(x *row) bool {
	return x.kept() || x.OrElse != "" && slices.ContainsFunc(r.Rows, func(o *row) bool { return o.OrElse == x.OrElse && o.kept() })
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// write writes the table for people.
func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "\n%-58s %-8s %10s %10s  %6s  %s\n%s\n", "medians of rounds", "", "measured", "floor", "ratio", "promised", strings.Repeat("─", 116))
	for _, x := range r.Rows {
		floor, ratio, promised := "", "", ""
		if len(x.Floor) > 0 {
			floor, ratio = number(median(x.Floor)), fmt.Sprintf("%.2f", x.Ratio)
		}
		switch {
		case x.Least > 0:
			promised = fmt.Sprintf("at least %.2f", x.Least)
		case x.Most > 0:
			promised = fmt.Sprintf("at most %.2f", x.Most)
		}
		if x.OrElse != "" {
			promised += " (one of these)"
		}
		if !r.kept(x) {
			promised += ", NOT KEPT"
		}
		if x.Against != "" {
			promised = strings.TrimPrefix(promised+", against "+x.Against, ", ")
		}
		fmt.Fprintf(w, "%-58s %-8s %10s %10s  %6s  %s\n", x.What, x.Unit, number(median(x.Vault)), floor, ratio, promised)
	}
	fmt.Fprintln(w)
}

// number has three digits that say something.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// broken are the promises that are not kept.
func (r *report) broken() (out []string) {
	for _, x := range r.Rows {
		if !r.kept(x) {
			out = append(out, fmt.Sprintf("%s: %.2f times the %s's", x.What, x.Ratio, or(x.Against, "floor")))
		}
	}
	return out
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (r *report) json() ([]byte, error) { return json.MarshalIndent(r, "", "  ") }
