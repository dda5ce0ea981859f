// Package storetest fills a registry's database with many resources, quickly: past the store, by its tables.
package storetest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// PerAccount is how many integrations, projects and attachments an account has that is as large as it may be by default.
const PerAccount = 1000

const (
	// automatics of an account's integrations are attached by themselves, each by a label of its own.
	automatics = 50
	teams      = 20

	tenant       = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	subscription = "0b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
	made         = 1_767_225_600_000_000 // 2026, in microseconds

	// block is how many of each a transaction makes.
	block = 1000
)

// Account is the so many-th account's ID.
func Account(n int) string { return fmt.Sprintf("account-%03d", n) }

// Integration is the name of one of an account's integrations.
func Integration(account, n int) integration.Name {
	return integration.Name{Account: Account(account), ID: fmt.Sprintf("i-%06d", n)}
}

// Project is the name of one of an account's projects. The integration of the same number is attached to it for READ; WRITE it has from one that is
// attached by a label.
func Project(account, n int) project.Name {
	return project.Name{Account: Account(account), ID: fmt.Sprintf("p-%06d", n)}
}

// Load fills so many accounts with so many thousands of each. The database must be new, and a store have used it once.
func Load(t testing.TB, db *sqldb.DB, accounts, thousands int) {
	t.Helper()
	for n := range accounts * thousands {
		if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
			return load(ctx, tx, int64(n)*3*block, n/thousands, n%thousands*block)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// load fills a block of an account, after so many revisions.
func load(ctx context.Context, tx sqldb.Tx, revision int64, account, first int) error {
	l := loader{tables: map[string]*table{}}
	change := func(kind, uid string) {
		revision++
		payload := fmt.Sprintf(`{"account":%q,"id":%q,"uid":%q,"spec":{"kind":"STACK","labels":[%q]}}`, Account(account), uid, uid, strings.Repeat("x", 60))
		l.add("changes", "revision, kind, uid, deleted, change_time, payload", revision, kind, uid, false, int64(made), payload)
	}
	for n := first; n < first+block; n++ {
		i, p := Integration(account, n), Project(account, n)
		iUID, pUID, aUID := uuid.NewString(), uuid.NewString(), uuid.NewString()
		labels := fmt.Sprintf(`["team:%d"]`, n%teams)
		if n < automatics {
			labels = fmt.Sprintf(`["%sauto:%d","team:%d"]`, resource.AutoAttachPrefix, n, n%teams)
			l.add("auto_labels", "integration_uid, account, integration_name, label", iUID, i.Account, i.String(), "auto:"+strconv.Itoa(n))
		}
		l.add("integrations", `uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences, rotation_period,
			application_display_name, client_id, service_principal_object_id, conditions, ever_active, generation, create_time, update_time, delete_time,
			delivery_materials, labels, auto_attach, writes`,
			iUID, i.String(), "Integration "+i.ID, tenant, "public", subscription, string(integration.ClientSecret), "null", int64(86_400_000_000),
			"phasekey "+i.ID, uuid.NewString(), uuid.NewString(), "[]", true, 1, int64(made), int64(made), int64(0),
			"null", labels, n < automatics, 1)
		change("integration", iUID)

		auto := "auto:" + strconv.Itoa((n+1)%automatics)
		team := "team:" + strconv.Itoa(n%teams)
		l.add("projects", "uid, name, kind, display_name, generation, create_time, update_time, labels, writes",
			pUID, p.String(), string(project.Stack), "Project "+p.ID, 1, int64(made), int64(made), fmt.Sprintf(`[%q,%q]`, auto, team), 1)
		for _, label := range []string{auto, team} {
			l.add("project_labels", "project_uid, account, label", pUID, p.Account, label)
		}
		change("project", pUID)

		name := attachment.Name{Account: p.Account, Project: p.ID, ID: i.ID}
		l.add("attachments", "uid, name, integration_uid, project_uid, reads_for, writes_for, subscription_id, generation, create_time, update_time, writes",
			aUID, name.String(), iUID, pUID, pUID, nil, "", 1, int64(made), int64(made), 1)
		change("attachment", aUID)
	}
	for _, name := range []string{"integrations", "projects", "attachments", "auto_labels", "project_labels", "changes"} {
		if l.tables[name] == nil {
			continue // only an account's first block attaches by itself
		}
		if err := l.tables[name].insert(ctx, tx, name); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `UPDATE registry SET revision = $1`, revision)
	return err
}

// loader gathers rows.
type loader struct{ tables map[string]*table }

type table struct {
	columns string
	rows    [][]any
}

func (l *loader) add(name, columns string, values ...any) {
	if l.tables[name] == nil {
		l.tables[name] = &table{columns: columns}
	}
	l.tables[name].rows = append(l.tables[name].rows, values)
}

// insert inserts the rows, many by a statement.
func (t *table) insert(ctx context.Context, tx sqldb.Tx, name string) error {
	const atOnce = 20 // SQLite looks every parameter up among those before it
	for rows := t.rows; len(rows) > 0; rows = rows[min(len(rows), atOnce):] {
		var text strings.Builder
		fmt.Fprintf(&text, `INSERT INTO %s (%s) VALUES `, name, t.columns)
		var values []any
		for i, row := range rows[:min(len(rows), atOnce)] {
			if i > 0 {
				text.WriteString(", ")
			}
			for j := range row {
				text.WriteString([]string{"($", ", $"}[min(j, 1)] + strconv.Itoa(len(values)+j+1))
			}
			text.WriteString(")")
			values = append(values, row...)
		}
		if _, err := tx.Exec(ctx, text.String(), values...); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}
