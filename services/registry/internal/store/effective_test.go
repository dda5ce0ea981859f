package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

// autoSpec is of an integration that is attached by itself to what has one of the labels.
func autoSpec(labels ...string) integration.Spec {
	all := spec("auto")
	all.AutoAttach = true
	for _, label := range labels {
		all.Labels = append(all.Labels, resource.AutoAttachPrefix+label)
	}
	return all
}

func makeAuto(t *testing.T, s *store.Store, id string, labels ...string) integration.Integration {
	t.Helper()
	i, err := s.CreateIntegration(t.Context(), start, integrationName(id), autoSpec(labels...), "")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func wantAuto(t *testing.T, s *store.Store, id string, spec integration.Spec) integration.Integration {
	t.Helper()
	i, err := s.UpdateIntegration(t.Context(), later, integrationName(id), "", func(integration.Integration) (integration.Spec, error) { return spec, nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// label gives a project these labels, making it if need be.
func label(t *testing.T, s *store.Store, name project.Name, labels ...string) project.Project {
	t.Helper()
	want := project.Spec{Kind: project.Stack, Labels: labels}
	p, err := s.UpdateProject(t.Context(), later, name, "", func(project.Project) (project.Spec, error) { return want, nil },
		func() (project.Spec, error) { return want, nil })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// giver is the ID of the integration that gives the project an access, and by which labels, or the refusal.
func giver(t *testing.T, s *store.Store, id string, access attachment.Access) string {
	t.Helper()
	got, at, err := s.ResolveAccess(t.Context(), projectName(id), access)
	if err != nil {
		return err.Error()
	}
	if at.Revision != head(t, s) || at.Incarnation != s.Incarnation() {
		t.Errorf("resolved at %+v", at)
	}
	return fmt.Sprint(got.Integration.Name.ID, got.Labels)
}

func TestStore_ResolveAccess(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		_, _, err := s.ResolveAccess(ctx, projectName("stack"), attachment.Read)
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/projects/stack")
		p := makeProject(t, s, "stack")
		reader := makeIntegration(t, s, "reader")
		a := attach(t, s, "stack", "reader", attachment.Read)
		_, _, err = s.ResolveAccess(ctx, projectName("stack"), attachment.Write)
		wantError(t, err, attachment.ErrNothingAttached, "access=WRITE")
		got, at, err := s.ResolveAccess(ctx, projectName("stack"), attachment.Read)
		if err != nil {
			t.Fatal(err)
		}
		want := attachment.Resolution{Access: attachment.Read, ProjectUID: p.UID, Candidate: attachment.Candidate{Integration: reader, Explicit: &a}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("resolved (-want +got):\n%s", diff)
		}
		if at.Revision != head(t, s) || at.Incarnation != s.Incarnation() {
			t.Fatalf("at %+v", at)
		}
		if _, err := s.UpdateIntegration(ctx, later, reader.Name, "", func(i integration.Integration) (integration.Spec, error) {
			next := i.Spec
			next.DefaultSubscriptionID = ""
			return next, nil
		}, nil); err != nil {
			t.Fatal(err)
		}
		_, _, err = s.ResolveAccess(ctx, projectName("stack"), attachment.Read)
		wantError(t, err, attachment.ErrNoSubscription, "integration=accounts/acme/integrations/reader")
	})
}

func TestStore_ResolveAccessFollowsLabels(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		nothing := func(access attachment.Access) string {
			return "resolve " + string(access) + " of accounts/acme/projects/stack: " + attachmentNothing(access)
		}
		label(t, s, projectName("stack"), "prod", "eu")
		for _, step := range []struct {
			name        string
			do          func()
			read, write string
		}{
			{"nothing", func() {}, nothing(attachment.Read), nothing(attachment.Write)},
			{"another account's", func() {
				if _, err := s.CreateIntegration(ctx, start, integration.Name{Account: "acme-b", ID: "a"}, autoSpec("prod"), ""); err != nil {
					t.Fatal(err)
				}
			}, nothing(attachment.Read), nothing(attachment.Write)},
			{"one that attaches by a label", func() { makeAuto(t, s, "m", "prod") }, "m[prod]", "m[prod]"},
			{"one after it", func() { makeAuto(t, s, "z", "prod") }, "m[prod]", "m[prod]"},
			{"one before it", func() { makeAuto(t, s, "c", "eu", "prod", "us") }, "c[eu prod]", "c[eu prod]"},
			{"another one attached for WRITE", func() { makeIntegration(t, s, "x"); attach(t, s, "stack", "x", attachment.Write) }, "c[eu prod]", "x[]"},
			{"the first one attached for READ", func() { attach(t, s, "stack", "c", attachment.Read) }, "c[]", "x[]"},
			{"and for WRITE no longer the other", func() {
				if err := s.DeleteAttachment(ctx, later, attachmentName("stack", "x"), ""); err != nil {
					t.Fatal(err)
				}
			}, "c[]", "m[prod]"}, // the explicit attachment decides about c, the labels do not add WRITE
			{"detached", func() {
				if err := s.DeleteAttachment(ctx, later, attachmentName("stack", "c"), ""); err != nil {
					t.Fatal(err)
				}
			}, "c[eu prod]", "c[eu prod]"},
			{"switched off", func() { wantAuto(t, s, "c", spec("c")) }, "m[prod]", "m[prod]"},
			{"another label", func() { wantAuto(t, s, "m", autoSpec("us")) }, "z[prod]", "z[prod]"},
			{"the project's label gone", func() { label(t, s, projectName("stack"), "eu", "us") }, "m[us]", "m[us]"},
			{"being deleted", func() {
				if _, err := s.DeleteIntegration(ctx, later, integrationName("m"), "", true); err != nil {
					t.Fatal(err)
				}
			}, nothing(attachment.Read), nothing(attachment.Write)},
		} {
			step.do()
			if read, write := giver(t, s, "stack", attachment.Read), giver(t, s, "stack", attachment.Write); read != step.read || write != step.write {
				t.Errorf("%s: READ %s, WRITE %s; want %s, %s", step.name, read, write, step.read, step.write)
			}
		}
	})
}

func attachmentNothing(access attachment.Access) string {
	_, err := attachment.Resolve(access, project.Project{Name: projectName("stack")}, nil)
	return err.Error()
}

func TestStore_DeletionIsRefusedWhileLabelsAttach(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		auto := makeAuto(t, s, "auto", "prod", "eu")
		label(t, s, projectName("both"), "prod", "eu")
		label(t, s, projectName("one"), "eu")
		label(t, s, projectName("attached"), "eu")
		label(t, s, projectName("other"), "us")
		label(t, s, project.Name{Account: "acme-b", ID: "one"}, "eu")
		attach(t, s, "attached", "auto")

		before := head(t, s)
		_, err := s.DeleteIntegration(ctx, later, auto.Name, "", false)
		wantError(t, err, integration.ErrAttached, "attachments=1")
		wantError(t, err, integration.ErrAttached, "projects=2")
		if err := s.DeleteAttachment(ctx, later, attachmentName("attached", "auto"), ""); err != nil {
			t.Fatal(err)
		}
		_, err = s.DeleteIntegration(ctx, later, auto.Name, "", false)
		wantError(t, err, integration.ErrAttached, "attachments=0")
		wantError(t, err, integration.ErrAttached, "projects=3")
		if head(t, s) != before+1 {
			t.Fatal("a refusal made a revision")
		}
		// Projects do not care.
		if err := s.DeleteProject(ctx, later, projectName("one"), "", false); err != nil {
			t.Fatal(err)
		}
		label(t, s, projectName("attached"))
		_, err = s.DeleteIntegration(ctx, later, auto.Name, "", false)
		wantError(t, err, integration.ErrAttached, "projects=1")
		label(t, s, projectName("both"), "us")
		if _, err := s.DeleteIntegration(ctx, later, auto.Name, "", false); err != nil {
			t.Fatal(err)
		}

		forced := makeAuto(t, s, "forced", "us")
		_, err = s.DeleteIntegration(ctx, later, forced.Name, "", false)
		wantError(t, err, integration.ErrAttached, "projects=2")
		if _, err := s.DeleteIntegration(ctx, later, forced.Name, "", true); err != nil {
			t.Fatal(err)
		}
		off := makeAuto(t, s, "off", "us")
		wantAuto(t, s, "off", spec("off"))
		if _, err := s.DeleteIntegration(ctx, later, off.Name, "", false); err != nil {
			t.Fatal(err)
		}
	})
}

// effective reads all pages of so many.
func effective(t *testing.T, s *store.Store, name project.Name, size int) []attachment.Effective {
	t.Helper()
	var all []attachment.Effective
	page := resource.Page{Parent: name.String(), Size: size}
	for {
		found, at, err := s.EffectiveAttachments(t.Context(), name, page)
		if err != nil {
			t.Fatal(err)
		}
		if at.Revision != head(t, s) {
			t.Fatalf("at %+v", at)
		}
		if len(found) <= size {
			return append(all, found...)
		}
		if len(found) != size+1 {
			t.Fatalf("%d on a page of %d", len(found), size)
		}
		all = append(all, found[:size]...)
		page.After = resource.Place{found[size-1].Place()}
	}
}

// TestStore_EffectiveAttachmentsAreWhatTheDomainSays compares what the database finds with what the domain says of everything there is,
// for accounts that were drawn.
func TestStore_EffectiveAttachmentsAreWhatTheDomainSays(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		_, _, err := s.EffectiveAttachments(ctx, projectName("none"), resource.Page{Size: 1})
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/projects/none")

		dice := rand.New(rand.NewPCG(1, 2))
		some := func() (labels []string) {
			for _, label := range []string{"a", "b", "c", "d"} {
				if dice.IntN(3) == 0 {
					labels = append(labels, label)
				}
			}
			return labels
		}
		one := func(kind string) string { return fmt.Sprint(kind, dice.IntN(6)) }
		unless := func(err error, allowed ...error) {
			t.Helper()
			if err != nil && !slices.ContainsFunc(allowed, func(a error) bool { return errors.Is(err, a) }) {
				t.Fatal(err)
			}
		}
		for round := range 12 {
			for range 25 {
				account, p, i := []string{"acme", "acme-b"}[dice.IntN(2)], one("p"), one("i")
				name := attachment.Name{Account: account, Project: p, ID: i}
				switch dice.IntN(8) {
				case 0, 1:
					label(t, s, name.ProjectName(), some()...)
				case 2:
					_, err := s.CreateIntegration(ctx, start, name.IntegrationName(), autoSpec(some()...), "")
					unless(err, resource.ErrExists)
				case 3:
					want := autoSpec(some()...)
					want.AutoAttach = dice.IntN(4) > 0
					_, err := s.UpdateIntegration(ctx, later, name.IntegrationName(), "", func(integration.Integration) (integration.Spec, error) { return want, nil }, nil)
					unless(err, resource.ErrNotFound, integration.ErrDeleting)
				case 4, 5:
					accesses := [][]attachment.Access{{attachment.Read}, {attachment.Write}, nil}[dice.IntN(3)]
					_, err := s.CreateAttachment(ctx, later, name, attachment.Spec{Accesses: accesses}, "")
					unless(err, resource.ErrNotFound, resource.ErrExists, attachment.ErrAccessTaken, integration.ErrDeleting)
				case 6:
					unless(s.DeleteAttachment(ctx, later, name, ""), resource.ErrNotFound)
				case 7:
					if dice.IntN(4) > 0 {
						continue
					}
					gone, err := s.DeleteIntegration(ctx, later, name.IntegrationName(), "", true)
					unless(err, resource.ErrNotFound)
					if err == nil && dice.IntN(2) == 0 {
						unless(s.RemoveIntegration(ctx, later, master, gone.UID, removable))
					}
				}
			}
			for _, account := range []string{"acme", "acme-b"} {
				parent := "accounts/" + account
				integrations, _, _, err := s.Integrations(ctx, resource.Page{Parent: parent, Size: 100}, nil)
				if err != nil {
					t.Fatal(err)
				}
				projects, _, _, err := s.Projects(ctx, resource.Page{Parent: parent, Size: 100}, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range projects {
					explicit, _, _, err := s.Attachments(ctx, resource.Page{Parent: p.Name.String(), Size: 100}, nil)
					if err != nil {
						t.Fatal(err)
					}
					var want []attachment.Effective
					want = append(want, attachment.Rank(attachment.Candidates(p, explicit, integrations))...)
					for size := 1; size <= len(want)+1; size++ {
						if diff := cmp.Diff(want, effective(t, s, p.Name, size)); diff != "" {
							t.Fatalf("round %d: %s in pages of %d (-want +got):\n%s", round, p.Name, size, diff)
						}
					}
					for _, access := range []attachment.Access{attachment.Read, attachment.Write} {
						want, wantErr := attachment.Resolve(access, p, attachment.Candidates(p, explicit, integrations))
						got, _, err := s.ResolveAccess(ctx, p.Name, access)
						if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
							t.Fatalf("round %d: %s of %s: %v, want %v (-want +got):\n%s", round, access, p.Name, err, wantErr, diff)
						}
					}
				}
			}
		}
	})
}

// TestStore_ManyAutomaticAttachments is the largest case there is meant to be, a thousand integrations that name fifty labels each: what attaches a project is
// found without reading them all, whether all of them match or none, and the one that it gets by reading less than for a list of twenty.
func TestStore_ManyAutomaticAttachments(t *testing.T) {
	const integrations, labels, page = 1000, 50, 20
	config := sqldbtest.MigratedPostgresConfig(t, store.Migrations())
	config.MaxConns = 1 // whose session has the counts
	db, err := sqldb.Open(t.Context(), config, store.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, ctx := open(t, db), t.Context()
	var all, others []string
	for n := range labels {
		all, others = append(all, fmt.Sprint("label-", n)), append(others, fmt.Sprint("other-", n))
	}
	fillWithAutomatic(t, db, s, integrations, all...)
	sqldbtest.ExecPostgres(t, config, `VACUUM ANALYZE`)
	for name, project := range map[string]project.Project{
		"all match": label(t, s, projectName("all"), all...), "none matches": label(t, s, projectName("none"), others...),
	} {
		reads := func(call func() error) int64 {
			before := rowsRead(t, db)
			if err := call(); err != nil && (name == "all match" || !errors.Is(err, attachment.ErrNothingAttached)) {
				t.Fatal(err)
			}
			return rowsRead(t, db) - before
		}
		resolve := reads(func() error {
			_, _, err := s.ResolveAccess(ctx, project.Name, attachment.Write)
			return err
		})
		list := reads(func() error {
			_, _, err := s.EffectiveAttachments(ctx, project.Name, resource.Page{Size: page})
			return err
		})
		t.Logf("%s: to resolve reads %d rows, to list %d", name, resolve, list)
		if resolve == 0 || list == 0 || resolve > integrations || list > integrations*labels/10 {
			t.Errorf("%s: of %d, to resolve reads %d rows, to list %d of them %d", name, integrations*labels, resolve, page, list)
		}
		if name == "all match" && resolve > list/3 {
			t.Errorf("to resolve reads %d rows, and to list %d %d", resolve, page, list)
		}
	}
}

// rowsRead is how many rows and entries of indexes the session of a database's only connection has read of its tables so far.
func rowsRead(t *testing.T, db *sqldb.DB) (rows int64) {
	t.Helper()
	for _, query := range []string{
		`SELECT 0 FROM pg_stat_force_next_flush()`, // at this transaction's end
		`SELECT (SELECT SUM(seq_tup_read + COALESCE(idx_tup_fetch, 0)) FROM pg_stat_user_tables) + (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes)`,
	} {
		if err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error { return tx.QueryRow(ctx, query).Scan(&rows) }); err != nil {
			t.Fatal(err)
		}
	}
	return rows
}

// fillWithAutomatic makes so many integrations that are attached by the labels: copies of one.
func fillWithAutomatic(t *testing.T, db *sqldb.DB, s *store.Store, integrations int, labels ...string) {
	t.Helper()
	first := makeAuto(t, s, "first", labels...)
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		const columns = `display_name, tenant_id, cloud, default_subscription_id, credential_kind, allowed_audiences, rotation_period, application_display_name,
			client_id, service_principal_object_id, conditions, ever_active, generation, create_time, update_time, delete_time, delivery_materials, labels,
			auto_attach, writes`
		_, err := tx.Exec(ctx, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1 - 1)
			INSERT INTO integrations (uid, name, `+columns+`) SELECT uid || '-' || n.i, name || '-' || n.i, `+columns+` FROM integrations, n WHERE uid = $2`,
			integrations, first.UID)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO auto_labels (integration_uid, account, integration_name, label)
			SELECT i.uid, a.account, i.name, a.label FROM integrations i, auto_labels a WHERE a.integration_uid = $1 AND i.uid <> $1`, first.UID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
