package store

import (
	"context"
	"slices"
)

// labelTable is a table of labels, and its column for what has them.
type labelTable struct{ name, uid string }

var (
	autoLabels    = labelTable{name: "auto_labels", uid: "integration_uid"}
	projectLabels = labelTable{name: "project_labels", uid: "project_uid"}
)

// insertLabels gives a new resource its labels.
func (w *writing) insertLabels(ctx context.Context, table labelTable, uid, account string, labels []string) error {
	for _, label := range labels {
		_, err := w.Exec(ctx, `INSERT INTO `+table.name+` (`+table.uid+`, account, label) VALUES ($1, $2, $3)`, uid, account, label)
		if err != nil {
			return err
		}
	}
	return nil
}

// replaceLabels gives a resource that this transaction has locked its new labels.
func (w *writing) replaceLabels(ctx context.Context, table labelTable, uid, account string, before, after []string) error {
	if slices.Equal(before, after) {
		return nil
	}
	if _, err := w.Exec(ctx, `DELETE FROM `+table.name+` WHERE `+table.uid+` = $1`, uid); err != nil {
		return err
	}
	return w.insertLabels(ctx, table, uid, account, after)
}
