package store

import (
	"context"
	"fmt"
	"strconv"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/resource"
)

// listing is a table whose resources are listed.
type listing[T any] struct {
	table, columns string
	scan           func(in string) func(sqldb.Row) (T, error)
	keys           func(T) resource.Keys
	// parent refuses a parent that is not there, of which there is nothing to list; nil where there need be none.
	parent func(ctx context.Context, v view) error
}

// column is a key's, in words of the program's own.
func column(key resource.Key) string {
	switch key {
	case resource.ByDisplayName:
		return "display_name"
	case resource.ByCreateTime:
		return "create_time"
	case resource.ByUpdateTime:
		return "update_time"
	default:
		return "name"
	}
}

// query selects, among names, what comes behind a place in an order.
func (l listing[T]) query(names span, order []resource.Order, after resource.Place, limit int) (text string, args []any, err error) {
	if !order[0].Desc && order[0].By == resource.ByName && after != nil {
		// The usual order needs no other condition than the one that an index answers.
		names, after = names.after(after[0]), nil
	}
	where := "name > $1 AND name < $2"
	args = []any{names.from, names.to}
	param := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(len(args))
	}
	keys := make(sqldb.Order, len(order))
	for i, o := range order {
		keys[i] = sqldb.Key{Column: column(o.By), Desc: o.Desc, Micros: o.By.IsTime()}
	}
	if after != nil {
		behind, err := keys.Behind(after, param)
		if err != nil {
			return "", nil, err
		}
		where += " AND " + behind
	}
	return "SELECT " + l.columns + " FROM " + l.table + " WHERE " + where + " ORDER BY " + keys.By() + " LIMIT " + param(limit), args, nil
}

// list reads a page of what passes the filter, which may be nil, and one more where there is more, and says of which moment
// they are. Where it has read all that it may and found too little, rest is the place behind which the list goes on.
func list[T any](ctx context.Context, s *Store, l listing[T], names span, page resource.Page, passes func(T) bool) (found []T, rest resource.Place, at resource.Position, err error) {
	page.Order = resource.Total(page.Order)
	at, err = s.read(ctx, func(ctx context.Context, v view) (err error) {
		found, rest, err = l.read(ctx, v, names, page, passes)
		if err == nil && len(found) == 0 && rest == nil && l.parent != nil {
			err = l.parent(ctx, v)
		}
		return err
	})
	if err != nil {
		return nil, nil, at, fmt.Errorf("list %s of %s: %w", l.table, page.Parent, err)
	}
	return found, rest, at, nil
}

func (l listing[T]) read(ctx context.Context, v view, names span, page resource.Page, passes func(T) bool) (found []T, rest resource.Place, err error) {
	read := func(after resource.Place, limit int) ([]T, error) {
		query, args, err := l.query(names, page.Order, after, limit)
		if err != nil {
			return nil, err
		}
		return sqldb.Collect(ctx, v.Tx, l.scan(v.at.Incarnation), query, args...)
	}
	return sqldb.Page(page.After, page.Size+1, passes, read, func(of T) resource.Place { return l.keys(of).Place(page.Order) })
}
