package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/resource"
)

const (
	// maxRead bounds the rows that one page reads to find those that pass its filter.
	maxRead = 5000
	// readAtOnce bounds those that are in memory at a time.
	readAtOnce = 1000
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

// query selects, among names, what comes behind a place in an order: for the order a, b these are the rows with a greater a,
// and those with the same a and a greater b. Such a page neither skips nor repeats what stays where it is, whatever happens
// to the rows around it.
func (l listing[T]) query(names span, order []resource.Order, after resource.Place, limit int) (text string, args []any, err error) {
	where := "name > $1 AND name < $2"
	if !order[0].Desc && order[0].By == resource.ByName && after != nil {
		// The usual order needs no other condition than the one that an index answers.
		names, after = names.after(after[0]), nil
	}
	args = []any{names.from, names.to}
	param := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(len(args))
	}
	var alternatives, same, by []string
	for i, o := range order {
		name, beyond := column(o.By), " > "
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
		if o.By.IsTime() {
			if value, err = strconv.ParseInt(after[i], 10, 64); err != nil {
				return "", nil, fmt.Errorf("place of %s: %w", o.By, err)
			}
		}
		p := param(value)
		alternatives = append(alternatives, strings.Join(append(same, name+beyond+p), " AND "))
		same = append(same[:i:i], name+" = "+p)
	}
	if after != nil {
		where += " AND (" + strings.Join(alternatives, " OR ") + ")"
	}
	text = "SELECT " + l.columns + " FROM " + l.table + " WHERE " + where + " ORDER BY " + strings.Join(by, ", ") + " LIMIT " + param(limit)
	return text, args, nil
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
	after, wanted := page.After, page.Size+1
	next := func(limit int) ([]T, error) {
		query, args, err := l.query(names, page.Order, after, limit)
		if err != nil {
			return nil, err
		}
		return sqldb.Collect(ctx, v.Tx, l.scan(v.at.Incarnation), query, args...)
	}
	if passes == nil {
		found, err = next(wanted)
		return found, nil, err
	}
	for range maxRead / readAtOnce {
		rows, err := next(readAtOnce)
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
		after = l.keys(rows[len(rows)-1]).Place(page.Order)
	}
	return found, after, nil
}
