package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/page"
)

const (
	// maxRead bounds the rows that one page reads to find those that pass its filter.
	maxRead = 5000
	// readAtOnce bounds those that are in memory at a time.
	readAtOnce = 1000
)

// listing is what is listed: FROM which tables, by which keys.
type listing[T any] struct {
	columns, from string
	scan          func(sqldb.Row) (T, error)
	// keys are the columns that orders name; times are those whose values are microseconds.
	keys, times map[string]string
	// place is where one of the list stands.
	place func(of T, order []page.Order) page.Place
}

// condition is a part of a statement, each question mark for one of its arguments.
type condition struct {
	text string
	args []any
}

// query selects, where all conditions hold, what comes behind a place in an order: for the order a, b these are the rows with a
// greater a, and those with the same a and a greater b.
func (l listing[T]) query(where []condition, p page.Page, after page.Place, limit int) (text string, args []any, err error) {
	param := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(len(args))
	}
	var all []string
	for _, c := range where {
		for _, arg := range c.args {
			c.text = strings.Replace(c.text, "?", param(arg), 1)
		}
		all = append(all, c.text)
	}
	var alternatives, same, by []string
	for i, o := range p.Order {
		name, isTime := l.times[o.By]
		if !isTime {
			name = l.keys[o.By]
		}
		beyond := " > "
		if o.Desc {
			beyond = " < "
			by = append(by, name+" DESC")
		} else {
			by = append(by, name)
		}
		if after == nil {
			continue
		}
		value := any(after[i])
		if isTime {
			if value, err = strconv.ParseInt(after[i], 10, 64); err != nil {
				return "", nil, fmt.Errorf("place of %s: %w", o.By, err)
			}
		}
		at := param(value)
		alternatives = append(alternatives, strings.Join(append(same, name+beyond+at), " AND "))
		same = append(same[:i:i], name+" = "+at)
	}
	if len(alternatives) > 0 {
		all = append(all, "("+strings.Join(alternatives, " OR ")+")")
	}
	return "SELECT " + l.columns + " FROM " + l.from + " WHERE " + strings.Join(all, " AND ") +
		" ORDER BY " + strings.Join(by, ", ") + " LIMIT " + param(limit), args, nil
}

// list reads a page of what passes, which may be nil, and one more where there is more. Where it has read all that it may and found
// too little, rest is the place behind which the list goes on.
func (l listing[T]) list(ctx context.Context, tx sqldb.Tx, where []condition, p page.Page, passes func(T) bool) (found []T, rest page.Place, err error) {
	after, wanted := p.After, p.Size+1
	read := func(limit int) ([]T, error) {
		query, args, err := l.query(where, p, after, limit)
		if err != nil {
			return nil, err
		}
		return sqldb.Collect(ctx, tx, l.scan, query, args...)
	}
	if passes == nil {
		found, err = read(wanted)
		return found, nil, err
	}
	for range maxRead / readAtOnce {
		rows, err := read(readAtOnce)
		if err != nil {
			return nil, nil, err
		}
		for _, row := range rows {
			if !passes(row) {
				continue
			}
			if found = append(found, row); len(found) == wanted {
				return found, nil, nil
			}
		}
		if len(rows) < readAtOnce {
			return found, nil, nil
		}
		after = l.place(rows[len(rows)-1], p.Order)
	}
	return found, after, nil
}
