package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/resource"
)

// batch reads the resources of these names, of which none comes twice, at one moment and in their order. Query selects all of the kind.
func batch[N interface {
	comparable
	fmt.Stringer
}, T any](ctx context.Context, s *Store, names []N, scan func(in string) func(sqldb.Row) (T, error), query string, nameOf func(T) N) ([]T, error) {
	places := make([]string, len(names))
	args := make([]any, len(names))
	for i, name := range names {
		places[i], args[i] = "$"+strconv.Itoa(i+1), name.String()
	}
	found := make(map[N]T, len(names))
	_, err := s.read(ctx, func(ctx context.Context, v view) error {
		rows, err := sqldb.Collect(ctx, v.Tx, scan(v.at.Incarnation), query+` WHERE name IN (`+strings.Join(places, ", ")+`)`, args...)
		for _, row := range rows {
			found[nameOf(row)] = row
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %d resources: %w", len(names), err)
	}
	all := make([]T, len(names))
	for i, name := range names {
		var ok bool
		if all[i], ok = found[name]; !ok {
			return nil, resource.NotFound(name.String())
		}
	}
	return all, nil
}
