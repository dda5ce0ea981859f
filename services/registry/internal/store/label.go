package store

import (
	"context"
	"slices"
	"strings"
)

// labelTable is a table of labels, and its columns besides the label: what has it, the UID first.
type labelTable struct {
	name  string
	owner []string
}

var (
	autoLabels    = labelTable{name: "auto_labels", owner: []string{"integration_uid", "account", "integration_name"}}
	projectLabels = labelTable{name: "project_labels", owner: []string{"project_uid", "account"}}
)

// insertLabels gives a new resource its labels.
func (w *writing) insertLabels(ctx context.Context, table labelTable, owner []any, labels []string) error {
	if len(labels) == 0 {
		return nil
	}
	rows := make([][]any, len(labels))
	for i, label := range labels {
		rows[i] = append(slices.Clip(owner), label)
	}
	places, args := rowsOf(rows)
	_, err := w.Exec(ctx, `INSERT INTO `+table.name+` (`+strings.Join(table.owner, ", ")+`, label) VALUES `+places, args...)
	return err
}

// replaceLabels gives a resource that this transaction has locked its new labels.
func (w *writing) replaceLabels(ctx context.Context, table labelTable, owner []any, before, after []string) error {
	if slices.Equal(before, after) {
		return nil
	}
	if _, err := w.Exec(ctx, `DELETE FROM `+table.name+` WHERE `+table.owner[0]+` = $1`, owner[0]); err != nil {
		return err
	}
	return w.insertLabels(ctx, table, owner, after)
}
