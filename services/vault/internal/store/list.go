package store

import (
	"context"
	"strconv"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/page"
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

// query selects, where all conditions hold, what comes behind a place in an order.
func (l listing[T]) query(where []condition, order []page.Order, after page.Place, limit int) (text string, args []any, err error) {
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
	keys := make(sqldb.Order, len(order))
	for i, o := range order {
		name, isTime := l.times[o.By]
		if !isTime {
			name = l.keys[o.By]
		}
		keys[i] = sqldb.Key{Column: name, Desc: o.Desc, Micros: isTime}
	}
	if after != nil {
		behind, err := keys.Behind(after, param)
		if err != nil {
			return "", nil, err
		}
		all = append(all, behind)
	}
	return "SELECT " + l.columns + " FROM " + l.from + " WHERE " + strings.Join(all, " AND ") + " ORDER BY " + keys.By() + " LIMIT " + param(limit), args, nil
}

// list reads a page of what passes, which may be nil, and one more where there is more. Where it has read all that it may and found
// too little, rest is the place behind which the list goes on.
func (l listing[T]) list(ctx context.Context, tx sqldb.Tx, where []condition, p page.Page, passes func(T) bool) (found []T, rest page.Place, err error) {
	read := func(after page.Place, limit int) ([]T, error) {
		query, args, err := l.query(where, p.Order, after, limit)
		if err != nil {
			return nil, err
		}
		return sqldb.Collect(ctx, tx, l.scan, query, args...)
	}
	return sqldb.Page(p.After, p.Size+1, passes, read, func(of T) page.Place { return l.place(of, p.Order) })
}
