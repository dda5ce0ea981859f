package store_test

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

//go:embed testdata/previous.sql
var previousSQL string

// previousMigrations are those that the previous release knows.
func previousMigrations(t *testing.T) fs.FS {
	t.Helper()
	return someMigrations(t, "0001_registry.sql", "0002_delivery_materials.sql")
}

func someMigrations(t *testing.T, names ...string) fs.FS {
	t.Helper()
	known := fstest.MapFS{}
	for _, driver := range []string{sqldb.DriverSQLite, sqldb.DriverPostgres} {
		for _, name := range names {
			text, err := fs.ReadFile(store.Migrations(), driver+"/"+name)
			if err != nil {
				t.Fatal(err)
			}
			known[driver+"/"+name] = &fstest.MapFile{Data: text}
		}
	}
	return known
}

// previous is a replica of the previous release.
type previous struct {
	db         *sqldb.DB
	statements map[string]string
}

func newPrevious(db *sqldb.DB) *previous {
	p := &previous{db: db, statements: map[string]string{}}
	for _, block := range strings.Split(previousSQL, "-- name: ")[1:] {
		name, text, _ := strings.Cut(block, "\n")
		p.statements[name] = strings.TrimSpace(text)
	}
	return p
}

// previously is a transaction of the previous release.
type previously struct {
	p  *previous
	tx sqldb.Tx
	// changes are kind, UID, whether deleted, and payload.
	changes [][4]any
}

func (d *previously) exec(ctx context.Context, name string, args ...any) error {
	text, ok := d.p.statements[name]
	if !ok {
		return fmt.Errorf("there is no statement %q", name)
	}
	// Some return the row; whoever has no use for it executes them all the same.
	n, err := d.tx.Exec(ctx, text, args...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%s: %d rows", name, n)
	}
	return err
}

// write runs a transaction as the previous release does: what is to be done, then the revisions, then the changes.
func (p *previous) write(t *testing.T, fn func(ctx context.Context, d *previously) error) error {
	return p.db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		d := &previously{p: p, tx: tx}
		if err := fn(ctx, d); err != nil || len(d.changes) == 0 {
			return err
		}
		var last int64
		if err := tx.QueryRow(ctx, p.statements["take revisions"], len(d.changes)).Scan(&last); err != nil {
			return err
		}
		for i, c := range d.changes {
			if err := d.exec(ctx, "insert change", last-int64(len(d.changes)-1-i), c[0], c[1], c[2], start.UnixMicro(), c[3]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *previously) record(kind, uid string, deleted bool, payload string) {
	d.changes = append(d.changes, [4]any{kind, uid, deleted, payload})
}

func integrationPayload(uid, id, display string) string {
	return fmt.Sprintf(`{"account":"acme","id":%q,"uid":%q,"spec":{"display_name":%q,"tenant_id":%q,"cloud":"public","credential_kind":"CLIENT_SECRET","rotation_period":86400000000},"generation":1,"create_time":%d,"update_time":%[5]d}`,
		id, uid, display, tenant, start.UnixMicro())
}

func projectPayload(uid, id string) string {
	return fmt.Sprintf(`{"account":"acme","id":%q,"uid":%q,"spec":{"kind":"STACK"},"generation":1,"create_time":%d,"update_time":%[3]d}`, id, uid, start.UnixMicro())
}

func attachmentPayload(uid, p, i, pUID, iUID string) string {
	return fmt.Sprintf(`{"account":"acme","project":%q,"id":%q,"uid":%q,"integration_uid":%q,"project_uid":%q,"spec":{"accesses":["READ"]},"generation":1,"create_time":%d,"update_time":%[6]d}`,
		p, i, uid, iUID, pUID, start.UnixMicro())
}

func (p *previous) createIntegration(t *testing.T, id string) (uid string, err error) {
	uid = uuid.NewString()
	return uid, p.write(t, func(ctx context.Context, d *previously) error {
		d.record("integration", uid, false, integrationPayload(uid, id, id))
		return d.exec(ctx, "insert integration", uid, integrationName(id).String(), id, tenant, "public", "", "CLIENT_SECRET", "null", int64(86_400_000_000),
			"", "", "", "[]", false, 1, start.UnixMicro(), start.UnixMicro(), 0, "null")
	})
}

func (p *previous) createProject(t *testing.T, id string) (uid string, err error) {
	uid = uuid.NewString()
	return uid, p.write(t, func(ctx context.Context, d *previously) error {
		d.record("project", uid, false, projectPayload(uid, id))
		return d.exec(ctx, "insert project", uid, projectName(id).String(), "STACK", "", 1, start.UnixMicro(), start.UnixMicro())
	})
}

func (p *previous) attach(t *testing.T, project, integration, pUID, iUID string) (uid string, err error) {
	uid = uuid.NewString()
	return uid, p.write(t, func(ctx context.Context, d *previously) error {
		d.record("attachment", uid, false, attachmentPayload(uid, project, integration, pUID, iUID))
		return errors.Join(
			d.exec(ctx, "lock project", projectName(project).String()),
			d.exec(ctx, "lock integration", integrationName(integration).String()),
			d.exec(ctx, "insert attachment", uid, attachmentName(project, integration).String(), iUID, pUID, pUID, nil, "", 1, start.UnixMicro(), start.UnixMicro()),
		)
	})
}

// upgrade runs a case on each engine, with a database that the previous release made and wrote to.
func upgrade(t *testing.T, test func(t *testing.T, config sqldb.Config)) {
	t.Helper()
	for _, config := range []sqldb.Config{sqldbtest.SQLiteConfig(t), sqldbtest.PostgresConfig(t)} {
		t.Run(config.Driver, func(t *testing.T) { test(t, config) })
	}
}

func openDB(t *testing.T, config sqldb.Config, migrations fs.FS) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), config, migrations)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func must[T any](t *testing.T) func(T, error) T {
	return func(got T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
}

// TestUpgrade_KeepsWhatThePreviousReleaseWrote opens a database of the previous release: everything is there, also what it remembers of requests, and its changes.
func TestUpgrade_KeepsWhatThePreviousReleaseWrote(t *testing.T) {
	upgrade(t, func(t *testing.T, config sqldb.Config) {
		uids := must[string](t)
		before := openDB(t, config, previousMigrations(t))
		old := newPrevious(before)
		asked := uuid.NewString()
		sum := sha256.Sum256([]byte(`{"name":"accounts/acme/projects/asked","spec":{"kind":"STACK"}}`))
		err := old.write(t, func(ctx context.Context, d *previously) error {
			return errors.Join(
				d.exec(ctx, "begin", "incarnation"),
				d.exec(ctx, "fence", 0, master.Epoch+1, master.Holder),
				d.exec(ctx, "remember request", "projects of acme", requestID, hex.EncodeToString(sum[:]), projectPayload(asked, "asked"), start.Add(time.Hour).UnixMicro()),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		iUID, pUID := uids(old.createIntegration(t, "net")), uids(old.createProject(t, "stack"))
		aUID := uids(old.attach(t, "stack", "net", pUID, iUID))
		if err := before.Close(); err != nil {
			t.Fatal(err)
		}

		db := openDB(t, config, store.Migrations())
		defer func() { _ = db.Close() }()
		s, err := store.New(t.Context(), db, quota.Config{Integrations: 1, Projects: 1, Attachments: 1})
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		i, err := s.Integration(ctx, integrationName("net"))
		if err != nil || i.UID != iUID || i.Spec.Labels != nil || i.Spec.AutoAttach {
			t.Errorf("got %+v, %v", i, err)
		}
		p, err := s.Project(ctx, projectName("stack"))
		if err != nil || p.UID != pUID || p.Spec.Labels != nil {
			t.Errorf("got %+v, %v", p, err)
		}
		a, err := s.Attachment(ctx, attachmentName("stack", "net"))
		if err != nil || a.UID != aUID || !slices.Equal(a.Spec.Accesses, []attachment.Access{attachment.Read}) {
			t.Errorf("got %+v, %v", a, err)
		}
		if s.Incarnation() != "incarnation" {
			t.Errorf("incarnation %q", s.Incarnation())
		}
		var seen []string
		for _, c := range changesAfter(t, s, 0) {
			switch {
			case c.Integration != nil:
				seen = append(seen, c.Integration.UID)
			case c.Project != nil:
				seen = append(seen, c.Project.UID)
			default:
				seen = append(seen, c.Attachment.UID)
			}
		}
		if diff := cmp.Diff([]string{iUID, pUID, aUID}, seen); diff != "" {
			t.Error(diff)
		}
		// A request that the previous release answered is the same request.
		again, err := s.CreateProject(ctx, start, projectName("asked"), project.Spec{Kind: project.Stack}, requestID)
		if err != nil || again.UID != asked {
			t.Errorf("a repeat: %+v, %v", again, err)
		}
		wantError(t, s.Report(ctx, later, master, iUID, integration.Report{}), resource.ErrFenced, "")
		// What is there counts.
		_, err = s.CreateIntegration(ctx, start, integrationName("more"), spec("more"), "")
		wantError(t, err, quota.ErrExceeded, "quota=integrations")
	})
}

// TestUpgrade_PreviousReleaseGoesOnBesideThisOne has both write, also to what the other made.
func TestUpgrade_PreviousReleaseGoesOnBesideThisOne(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		uids := must[string](t)
		s, old := open(t, db), newPrevious(db)
		labelled, err := s.CreateIntegration(ctx, start, integrationName("new"), integration.Spec{
			DisplayName: "new", TenantID: tenant, DefaultSubscriptionID: subscription, Labels: []string{resource.AutoAttachPrefix + "prod"}, AutoAttach: true,
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		marked, err := s.CreateProject(ctx, start, projectName("new"), project.Spec{Kind: project.Stack, Labels: []string{"prod"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		iUID, pUID := uids(old.createIntegration(t, "old")), uids(old.createProject(t, "old"))

		// Each attaches what the other made.
		attach(t, s, "old", "old", attachment.Write)
		aUID := uids(old.attach(t, "old", "new", pUID, labelled.UID))
		if got, _, err := s.ResolveAccess(ctx, projectName("old"), attachment.Read); err == nil {
			if got.Integration.UID != labelled.UID {
				t.Errorf("resolved %+v", got)
			}
		} else {
			t.Error(err)
		}

		// The previous release changes what has labels, and they stay.
		before := head(t, s)
		err = old.write(t, func(ctx context.Context, d *previously) error {
			d.record("integration", labelled.UID, false, integrationPayload(labelled.UID, "new", "renamed"))
			d.record("project", marked.UID, false, projectPayload(marked.UID, "new"))
			return errors.Join(
				d.exec(ctx, "lock integration", integrationName("new").String()),
				d.exec(ctx, "update integration", labelled.UID, "renamed", subscription, "null", int64(86_400_000_000), "", "", "", "[]", true, 2, start.UnixMicro(), 0, "null"),
				d.exec(ctx, "lock project", projectName("new").String()),
				d.exec(ctx, "update project", marked.UID, "renamed", 2, start.UnixMicro()),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		i, err := s.Integration(ctx, integrationName("new"))
		if err != nil || i.Spec.DisplayName != "renamed" || !slices.Equal(i.Spec.AutoLabels(), []string{"prod"}) {
			t.Errorf("got %+v, %v", i, err)
		}
		p, err := s.Project(ctx, projectName("new"))
		if err != nil || p.Spec.DisplayName != "renamed" || !slices.Equal(p.Spec.Labels, []string{"prod"}) {
			t.Errorf("got %+v, %v", p, err)
		}
		if got, _, err := s.ResolveAccess(ctx, projectName("new"), attachment.Write); err != nil || got.Integration.UID != labelled.UID {
			t.Errorf("resolved %+v, %v", got, err)
		}
		// But watchers are told without them, until the next change that this one makes: labels are for when all replicas are new.
		told := changesAfter(t, s, before)
		if len(told) != 2 || told[0].Integration.Spec.Labels != nil || told[0].Integration.Spec.AutoAttach || told[1].Project.Spec.Labels != nil {
			t.Errorf("told %+v", told)
		}
		before = head(t, s)
		if _, err := s.UpdateProject(ctx, later, projectName("new"), "", func(p project.Project) (project.Spec, error) {
			return project.Spec{Kind: p.Spec.Kind, DisplayName: "again", Labels: p.Spec.Labels}, nil
		}, nil); err != nil {
			t.Fatal(err)
		}
		if told := changesAfter(t, s, before); len(told) != 1 || !slices.Equal(told[0].Project.Spec.Labels, []string{"prod"}) {
			t.Errorf("told %+v", told)
		}

		// What it marks as being deleted gives nothing any more; what it removes is gone, with its labels.
		err = old.write(t, func(ctx context.Context, d *previously) error {
			d.record("attachment", aUID, true, attachmentPayload(aUID, "old", "new", pUID, labelled.UID))
			d.record("integration", labelled.UID, false, integrationPayload(labelled.UID, "new", "renamed"))
			return errors.Join(
				d.exec(ctx, "delete attachment", aUID),
				d.exec(ctx, "update integration", labelled.UID, "renamed", subscription, "null", int64(86_400_000_000), "", "", "", "[]", true, 3, start.UnixMicro(), later.UnixMicro(), "null"),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.ResolveAccess(ctx, projectName("new"), attachment.Write)
		wantError(t, err, attachment.ErrNothingAttached, "")
		// Its labels are still there, and come before those of the next one.
		makeAuto(t, s, "next", "prod")
		if got := giver(t, s, "new", attachment.Write); got != "next[prod]" {
			t.Errorf("WRITE is given by %s", got)
		}
		err = old.write(t, func(ctx context.Context, d *previously) error {
			d.record("integration", labelled.UID, true, integrationPayload(labelled.UID, "new", "renamed"))
			d.record("project", marked.UID, true, projectPayload(marked.UID, "new"))
			return errors.Join(d.exec(ctx, "delete integration", labelled.UID), d.exec(ctx, "delete project", marked.UID))
		})
		if err != nil {
			t.Fatal(err)
		}
		if next := makeIntegration(t, s, "new"); next.Spec.AutoLabels() != nil {
			t.Errorf("the next of the name is %+v", next)
		}

		// And this one removes what the other made.
		if err := s.DeleteProject(ctx, later, projectName("old"), "", true); err != nil {
			t.Error(err)
		}
		if _, err := s.DeleteIntegration(ctx, later, integrationName("old"), "", true); err != nil {
			t.Error(err)
		}
		if err := s.RemoveIntegration(ctx, later, master, iUID, removable); err != nil {
			t.Error(err)
		}
		changesAfter(t, s, 0) // have no gap
	})
}

// TestUpgrade_RevisionsOfBothReleasesHaveNoGaps has both write at once.
func TestUpgrade_RevisionsOfBothReleasesHaveNoGaps(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		s, old := open(t, db), newPrevious(db)
		const writers, each = 4, 15
		for _, err := range together(writers, func(w int) error {
			for n := range each {
				id := fmt.Sprintf("w%d-%d", w, n)
				var err error
				if w%2 == 0 {
					_, err = old.createProject(t, id)
				} else {
					_, err = s.CreateProject(t.Context(), start, projectName(id), project.Spec{Kind: project.Stack}, "")
				}
				if err != nil {
					return err
				}
			}
			return nil
		}) {
			if err != nil {
				t.Error(err)
			}
		}
		if got := len(changesAfter(t, s, 0)); got != writers*each {
			t.Errorf("%d changes", got)
		}
	})
}

// TestUpgrade_PreviousReleaseStartsAgain has a replica of the previous release start after the upgrade, as one does that crashed meanwhile.
func TestUpgrade_PreviousReleaseStartsAgain(t *testing.T) {
	upgrade(t, func(t *testing.T, config sqldb.Config) {
		db := openDB(t, config, store.Migrations())
		makeProject(t, open(t, db), "new")
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = openDB(t, config, previousMigrations(t))
		defer func() { _ = db.Close() }()
		if newer := db.NewerMigrations(); len(newer) < 2 || newer[0] != "0003_labels" || newer[1] != "0004_accounts" {
			t.Errorf("newer migrations: %v", newer)
		}
		if _, err := newPrevious(db).createProject(t, "old"); err != nil {
			t.Error(err)
		}
	})
}

// insertUnnamed makes an integration as a release does that knows labels, but not that the integration's name stands beside them.
func insertUnnamed(t *testing.T, db *sqldb.DB, id, label string) error {
	return db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO integrations (uid, name, display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences,
			rotation_period, application_display_name, client_id, service_principal_object_id, conditions, ever_active, generation,
			create_time, update_time, delete_time, labels, auto_attach, writes)
			VALUES ($1, $2, 'auto', $3, 'public', $4, 'CLIENT_SECRET', 'null', 86400000000, '', '', '', '[]', $5, 1, 1, 1, 0, $6, $7, 1)`,
			id, integrationName(id).String(), tenant, subscription, false, fmt.Sprintf(`["autoattach:%s"]`, label), true)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO auto_labels (integration_uid, account, label) VALUES ($1, 'acme', $2)`, id, label)
		return err
	})
}

// TestUpgrade_AttachesByLabelsThatHaveNoName: a replica that does not know that names stand beside labels goes on inserting labels after the upgrade.
func TestUpgrade_AttachesByLabelsThatHaveNoName(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		ctx, s := t.Context(), open(t, db)
		label(t, s, projectName("stack"), "prod", "eu")
		makeAuto(t, s, "c", "prod")
		if err := errors.Join(insertUnnamed(t, db, "d", "prod"), insertUnnamed(t, db, "b", "eu"), insertUnnamed(t, db, "x", "us")); err != nil {
			t.Fatal(err)
		}
		all := func() (found []string) {
			page := resource.Page{Size: 1}
			for {
				got, _, err := s.EffectiveAttachments(ctx, projectName("stack"), page)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range got[:min(len(got), page.Size)] {
					found = append(found, e.Integration.Name.ID)
					page.After = resource.Place{e.Place()}
				}
				if len(got) <= page.Size {
					return found
				}
			}
		}
		if got := giver(t, s, "stack", attachment.Write); got != "b[eu]" {
			t.Errorf("WRITE is given by %s", got)
		}
		if diff := cmp.Diff([]string{"b", "c", "d"}, all()); diff != "" {
			t.Error(diff)
		}
		// What counts when it is deleted gives, and the other way round.
		_, err := s.DeleteIntegration(ctx, later, integrationName("b"), "", false)
		wantError(t, err, integration.ErrAttached, "projects=1")
		attach(t, s, "stack", "d", attachment.Read)
		if diff := cmp.Diff([]string{"d", "b", "c"}, all()); diff != "" {
			t.Error(diff)
		}
		if _, err := s.DeleteIntegration(ctx, later, integrationName("b"), "", true); err != nil {
			t.Fatal(err)
		}
		if got := giver(t, s, "stack", attachment.Write); got != "c[prod]" {
			t.Errorf("WRITE is given by %s", got)
		}
		// Labels that this release writes have the name.
		wantAuto(t, s, "x", autoSpec("prod"))
		if diff := cmp.Diff([]string{"d", "c", "x"}, all()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestUpgrade_NamesWhatLabelsAttach: integrations that were attached by labels before their names stood there are attached still.
func TestUpgrade_NamesWhatLabelsAttach(t *testing.T) {
	upgrade(t, func(t *testing.T, config sqldb.Config) {
		before := openDB(t, config, someMigrations(t, "0001_registry.sql", "0002_delivery_materials.sql", "0003_labels.sql", "0004_accounts.sql"))
		err := errors.Join(insertUnnamed(t, before, "b", "prod"), insertUnnamed(t, before, "a", "prod"))
		if err := errors.Join(err, before.Close()); err != nil {
			t.Fatal(err)
		}
		db := openDB(t, config, store.Migrations())
		defer func() { _ = db.Close() }()
		s := open(t, db)
		label(t, s, projectName("stack"), "prod")
		if got := giver(t, s, "stack", attachment.Write); got != "a[prod]" {
			t.Errorf("WRITE is given by %s", got)
		}
	})
}

// TestUpgrade_ReplicasStartTogether has several replicas find a database of the previous release at once.
func TestUpgrade_ReplicasStartTogether(t *testing.T) {
	config := sqldbtest.PostgresConfig(t)
	before := openDB(t, config, previousMigrations(t))
	if _, err := newPrevious(before).createProject(t, "old"); err == nil {
		t.Fatal("a revision without a registry")
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	const replicas = 5
	var mu sync.Mutex
	incarnations := map[string]bool{}
	var keys []secret.Text
	for _, err := range together(replicas, func(n int) error {
		db, err := sqldb.Open(t.Context(), config, store.Migrations())
		if err != nil {
			return err
		}
		s, err := store.New(t.Context(), db, quota.Default())
		if err == nil {
			mu.Lock()
			incarnations[s.Incarnation()] = true
			keys = append(keys, s.PageKey())
			mu.Unlock()
			_, err = s.CreateProject(t.Context(), start, projectName(fmt.Sprint("p", n)), project.Spec{Kind: project.Stack}, "")
		}
		return errors.Join(err, db.Close())
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	if len(incarnations) != 1 {
		t.Errorf("incarnations %v", incarnations)
	}
	for _, key := range keys {
		if key.Equal(secret.Text{}) || !key.Equal(keys[0]) {
			t.Error("replicas seal page tokens with no key, or with several")
		}
	}
}
