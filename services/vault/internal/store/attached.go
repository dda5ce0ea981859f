package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"phasekey.dev/pkg/sqldb"
)

// explicitlyAttached is true of a grant g whose integration and project have an attachment, whatever it gives.
const explicitlyAttached = `EXISTS (SELECT 1 FROM attachments a WHERE a.integration_uid = g.integration_uid AND a.project_uid = g.project_uid)`

// attached is true of a grant g whose integration gives its project its access: by the attachment of the two, which decides alone
// where there is one, else by a label that both name. What comes before the integration for other grants does not matter to this
// one. Labels that are not known are none.
const attached = `(EXISTS (SELECT 1 FROM attachments a WHERE a.integration_uid = g.integration_uid AND a.project_uid = g.project_uid
		AND (g.access = 'READ' AND a.reads = 1 OR g.access = 'WRITE' AND a.writes = 1))
	OR NOT ` + explicitlyAttached + ` AND EXISTS (SELECT 1 FROM integrations ai, auto_labels al, project_labels pl, projects ap
		WHERE ai.uid = g.integration_uid AND ai.labels_revision = ai.revision AND al.integration_uid = ai.uid
			AND ap.uid = g.project_uid AND ap.labels_revision = ap.revision AND pl.project_uid = ap.uid AND pl.label = al.label))`

// unlabelled is true of a grant g that may rest on labels which are not known.
const unlabelled = `(NOT ` + explicitlyAttached + ` AND (
	EXISTS (SELECT 1 FROM integrations ai WHERE ai.uid = g.integration_uid AND ai.labels_revision <> ai.revision)
	OR EXISTS (SELECT 1 FROM projects ap WHERE ap.uid = g.project_uid AND ap.labels_revision <> ap.revision)))`

// someUnlabelled is true while there are rows whose labels are not known.
const someUnlabelled = `(EXISTS (SELECT 1 FROM integrations WHERE labels_revision <> revision) OR EXISTS (SELECT 1 FROM projects WHERE labels_revision <> revision))`

// labelTable is a table of labels: of whom, and its column for them.
type labelTable struct{ name, of, uid string }

var (
	autoLabels    = labelTable{name: "auto_labels", of: "integrations", uid: "integration_uid"}
	projectLabels = labelTable{name: "project_labels", of: "projects", uid: "project_uid"}
)

// putLabels replaces the labels of a row that this transaction has written.
func putLabels(ctx context.Context, tx sqldb.Tx, table labelTable, uid string, labels []string) error {
	if _, err := tx.Exec(ctx, `DELETE FROM `+table.name+` WHERE `+table.uid+` = $1`, uid); err != nil {
		return err
	}
	if len(labels) == 0 {
		return nil
	}
	rows, args := make([]string, len(labels)), []any{uid}
	for i, label := range labels {
		rows[i] = fmt.Sprintf("($1, $%d)", i+2)
		args = append(args, label)
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+table.name+` (`+table.uid+`, label) VALUES `+strings.Join(rows, ", "), args...)
	return err
}

// addLabels gives those of the changed rows their labels that somebody has brought without: a replica of a release that does not
// know of them. At its revision a row is the same, whoever brings it.
func addLabels(ctx context.Context, tx sqldb.Tx, incarnation string, changed Wanted) error {
	add := func(table labelTable, uid string, revision int64, labels []string) error {
		n, err := tx.Exec(ctx, `UPDATE `+table.of+` SET labels_revision = revision WHERE uid = $1 AND revision = $2 AND labels_revision <> revision
			AND EXISTS (SELECT 1 FROM projection WHERE singleton = 1 AND incarnation = $3)`, uid, revision, incarnation)
		if err != nil || n == 0 {
			return err
		}
		return putLabels(ctx, tx, table, uid, labels)
	}
	for _, i := range changed.Integrations {
		if err := add(autoLabels, i.UID, i.Revision, i.AutoLabels); err != nil {
			return err
		}
	}
	for _, p := range changed.Projects {
		if err := add(projectLabels, p.UID, p.Revision, p.Labels); err != nil {
			return err
		}
	}
	return nil
}

// grantedThrough are the integrations of the live grants for the projects that changed or are gone.
func grantedThrough(ctx context.Context, tx sqldb.Tx, now time.Time, changed Wanted) ([]string, error) {
	var all []string
	find := func(projectUID string) error {
		found, err := sqldb.Collect(ctx, tx, scanUID,
			`SELECT DISTINCT integration_uid FROM grants WHERE project_uid = $1 AND expire_time > $2 AND revoke_time = 0`, projectUID, sqldb.Micros(now))
		all = append(all, found...)
		return err
	}
	for _, p := range changed.Projects {
		if err := find(p.UID); err != nil {
			return nil, err
		}
	}
	for _, uid := range changed.GoneProjects {
		if err := find(uid); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func scanUID(row sqldb.Row) (uid string, err error) { return uid, row.Scan(&uid) }

// checkLabelled is ErrChanged while there are rows whose labels are not known.
func checkLabelled(ctx context.Context, tx sqldb.Tx) error {
	var missing bool
	if err := tx.QueryRow(ctx, `SELECT `+someUnlabelled).Scan(&missing); err != nil {
		return err
	}
	if missing {
		return ErrChanged
	}
	return nil
}
