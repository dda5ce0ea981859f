package sqldb

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	// maxRead bounds the rows that one page reads to find those that pass its filter.
	maxRead = 5000
	// readAtOnce bounds those that are in memory at a time.
	readAtOnce = 1000
)

// Order is what a list is ordered by. It is total: no two rows have the same values of all its keys.
type Order []Key

// Key is a column of an order, and its direction.
type Key struct {
	Column string
	Desc   bool
	// Micros is set for a column of times.
	Micros bool
}

// By is what stands behind ORDER BY.
func (o Order) By() string {
	by := make([]string, len(o))
	for i, k := range o {
		if by[i] = k.Column; k.Desc {
			by[i] += " DESC"
		}
	}
	return strings.Join(by, ", ")
}

// Behind is the condition that a row comes behind a place, which is the values of the order's keys as texts: for the order a, b these are the rows with a greater a, and those with the
// same a and a greater b. Such a page neither skips nor repeats what stays where it is, whatever happens to the rows around it. Param makes a value a parameter of the statement.
func (o Order) Behind(place []string, param func(value any) string) (string, error) {
	var alternatives, same []string
	for i, k := range o {
		value := any(place[i])
		if k.Micros {
			micros, err := strconv.ParseInt(place[i], 10, 64)
			if err != nil {
				return "", fmt.Errorf("place of %s: %w", k.Column, err)
			}
			value = micros
		}
		beyond := " > "
		if k.Desc {
			beyond = " < "
		}
		at := param(value)
		alternatives = append(alternatives, strings.Join(append(same, k.Column+beyond+at), " AND "))
		same = append(same[:i:i], k.Column+" = "+at)
	}
	return "(" + strings.Join(alternatives, " OR ") + ")", nil
}

// Page reads a page: most rows, behind the place after, of those that pass, which all do where passes is nil. It reads by read, which gives at most limit rows behind a place, and place is
// where a row stands. Where it has read all that it may and found too little, rest is the place behind which the list goes on.
func Page[T any, P ~[]string](after P, most int, passes func(T) bool, read func(after P, limit int) ([]T, error), place func(T) P) (found []T, rest P, err error) {
	if passes == nil {
		found, err = read(after, most)
		return found, nil, err
	}
	for range maxRead / readAtOnce {
		rows, err := read(after, readAtOnce)
		if err != nil {
			return nil, nil, err
		}
		for _, row := range rows {
			if !passes(row) {
				continue
			}
			if found = append(found, row); len(found) == most {
				return found, nil, nil
			}
		}
		if len(rows) < readAtOnce {
			return found, nil, nil
		}
		after = place(rows[len(rows)-1])
	}
	return found, after, nil
}
