package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/store"
)

// byLabels is what the registry wants when the integration "uid" is attached by these labels, the project "network" has those, and
// there are these attachments besides.
func byLabels(revision int64, auto, project string, attachments ...store.Attachment) store.Wanted {
	return store.Wanted{
		Integrations: []store.Integration{
			{UID: "other", Name: "accounts/acme/integrations/aaa", Cloud: "public", AutoLabels: []string{"prod"}, Revision: revision},
			{UID: "uid", Name: "accounts/acme/integrations/read", TenantID: "tenant", Cloud: "public", AutoLabels: strings.Fields(auto), Revision: revision},
		},
		Projects:    []store.Project{{UID: "network", Name: "accounts/acme/projects/network", Labels: strings.Fields(project), Revision: revision}},
		Attachments: attachments,
	}
}

func TestStore_DeliverByLabels(t *testing.T) {
	attachedFor := func(uid string, reads, writes bool) store.Attachment {
		return store.Attachment{UID: "att-" + uid, IntegrationUID: uid, ProjectUID: "network", Reads: reads, Writes: writes}
	}
	sql := func(query string) func(c *counter) { return func(c *counter) { c.exec(query) } }
	for _, tt := range []struct {
		name          string
		auto, project string
		attachments   []store.Attachment
		then          func(c *counter)
		read, write   error
	}{
		{name: "a label of both", auto: "prod eu", project: "dev prod"},
		{name: "no label of both", auto: "prod eu", project: "dev Prod", read: grant.ErrDetached, write: grant.ErrDetached},
		{name: "no labels", read: grant.ErrDetached, write: grant.ErrDetached},
		{name: "outranked by an explicit attachment", auto: "prod", project: "prod", attachments: []store.Attachment{attachedFor("other", true, true)}},
		{name: "attached for READ, which decides", auto: "prod", project: "prod", attachments: []store.Attachment{attachedFor("uid", true, false)}, write: grant.ErrDetached},
		{name: "attached for WRITE, which decides", auto: "prod", project: "prod", attachments: []store.Attachment{attachedFor("uid", false, true)}, read: grant.ErrDetached},
		{name: "attached, without labels", attachments: []store.Attachment{attachedFor("uid", true, true)}},
		{name: "being deleted", auto: "prod", project: "prod", then: sql(`UPDATE integrations SET deleting = 1`), read: grant.ErrIntegrationDeleted, write: grant.ErrIntegrationDeleted},
		{name: "the project gone", auto: "prod", project: "prod", then: sql(`DELETE FROM projects`), read: grant.ErrIntegrationDeleted, write: grant.ErrIntegrationDeleted},
		{name: "the project brought without labels", auto: "prod", project: "prod", then: sql(`UPDATE projects SET revision = 6`), read: grant.ErrBehind, write: grant.ErrBehind},
		{name: "the integration brought without labels", auto: "prod", project: "prod", then: sql(`UPDATE integrations SET revision = 6`), read: grant.ErrBehind, write: grant.ErrBehind},
		{name: "brought without labels, and attached", auto: "prod", project: "prod", attachments: []store.Attachment{attachedFor("uid", true, false)},
			then: sql(`UPDATE projects SET revision = 6`), write: grant.ErrDetached},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overTheCounter(t, func(c *counter) {
				c.project(6, start, byLabels(5, tt.auto, tt.project, tt.attachments...))
				if tt.then != nil {
					tt.then(c)
				}
				for phase, want := range map[grant.Phase]error{grant.Planning: tt.read, grant.Applying: tt.write} {
					uid := "g-" + string(phase)
					c.grant(uid, func(g *grant.Grant) { g.Phase = phase })
					before := len(c.audit())
					e, err := c.store.Entitlement(c.t.Context(), uid, "instance")
					if err != nil {
						c.t.Fatal(err)
					}
					if err := e.Check(start); !errors.Is(err, want) {
						c.t.Errorf("%s: entitlement %v, want %v", phase, err, want)
					}
					if _, err := c.store.Deliver(c.t.Context(), start, order(uid, "instance", "v2")); !errors.Is(err, want) {
						c.t.Errorf("%s: delivery %v, want %v", phase, err, want)
					}
					if recorded := len(c.audit()) > before; recorded != (want == nil) {
						c.t.Errorf("%s: recorded is %t", phase, recorded)
					}
				}
			})
		})
	}
}

// labels are all there are, "whose label", and whether some are missing.
func (m *mirror) labels(step, want string) {
	m.t.Helper()
	got := strings.Join(m.rows(`SELECT integration_uid || ' ' || label FROM auto_labels UNION ALL SELECT project_uid || ' ' || label FROM project_labels ORDER BY 1`), ", ")
	if missing := m.rows(`SELECT uid FROM integrations WHERE labels_revision <> revision UNION ALL SELECT uid FROM projects WHERE labels_revision <> revision ORDER BY 1`); len(missing) > 0 {
		got += " without " + strings.Join(missing, ", ")
	}
	if got != want {
		m.t.Errorf("%s: labels %q, want %q", step, got, want)
	}
}

func labelled(uid string, revision int64, labels ...string) store.Project {
	p := wantedProject(uid, revision)
	p.Labels = labels
	return p
}

func automatic(uid string, revision int64, labels ...string) store.Integration {
	i := wantedIntegration(uid, revision)
	i.AutoLabels = labels
	return i
}

func TestProjection_KeepsLabels(t *testing.T) {
	withMirror(t, func(m *mirror) {
		m.replace(at("r", 1, 0), store.Wanted{
			Integrations: []store.Integration{automatic("i1", 1, "prod", "eu"), automatic("i2", 1)},
			Projects:     []store.Project{labelled("p1", 1, "prod"), labelled("p2", 1, "prod", "dev")},
		})
		m.labels("listed", "i1 eu, i1 prod, p1 prod, p2 dev, p2 prod")
		m.advance(at("r", 3, 1), store.Wanted{Integrations: []store.Integration{automatic("i1", 2), automatic("i2", 3, "dev")}})
		m.labels("one switched off, one on", "i2 dev, p1 prod, p2 dev, p2 prod")
		m.advance(at("r", 3, 1), store.Wanted{Integrations: []store.Integration{automatic("i2", 3, "again")}})
		m.labels("the same revision by another replica", "i2 dev, p1 prod, p2 dev, p2 prod")
		m.advance(at("r", 4, 2), store.Wanted{Projects: []store.Project{labelled("p1", 4, "it's", "a?")}})
		m.labels("another label", "i2 dev, p1 a?, p1 it's, p2 dev, p2 prod")
		m.advance(at("r", 6, 3), store.Wanted{GoneIntegrations: []string{"i2"}, GoneProjects: []string{"p2"}})
		m.labels("gone", "p1 a?, p1 it's")
		m.replace(at("r", 7, 4), store.Wanted{Projects: []store.Project{labelled("p1", 7, "new")}})
		m.labels("listed anew", "p1 new")
	})
}

// TestProjection_TellsStreamsOfTheirProject: who may have lost what it holds when a project changes is whoever has a grant for it.
func TestProjection_TellsStreamsOfTheirProject(t *testing.T) {
	overTheCounter(t, func(c *counter) {
		m := &mirror{t: c.t, db: c.db, store: c.store}
		through := func(uid, integration, project string) {
			c.grant(uid, func(g *grant.Grant) { g.IntegrationUID, g.ProjectUID = integration, project })
		}
		through("g1", "i1", "p1")
		through("g2", "i1", "p1")
		through("g3", "i2", "p1")
		through("g4", "i3", "p2")
		through("g5", "i5", "p1")
		if _, err := c.store.RevokeGrant(c.t.Context(), start, "acme", "g5", platform); err != nil {
			c.t.Fatal(err)
		}
		c.grant("g6", func(g *grant.Grant) {
			g.IntegrationUID, g.ProjectUID, g.ExpireTime = "i6", "p1", start.Add(time.Second)
		})
		_, m.heard, _ = m.store.Changes(c.t.Context(), 0, 0)
		m.advance(at("registry", 6, 1), store.Wanted{Projects: []store.Project{labelled("p1", 6, "prod")}})
		m.told("a project's label", "i1", "i2")
		m.advance(at("registry", 7, 2), store.Wanted{Projects: []store.Project{labelled("p1", 7)}, Integrations: []store.Integration{automatic("i1", 7)}})
		m.told("and an integration's, each once", "i1", "i2")
		m.advance(at("registry", 8, 3), store.Wanted{GoneProjects: []string{"p2"}})
		m.told("a project gone", "i3")
		m.advance(at("registry", 9, 4), store.Wanted{Projects: []store.Project{labelled("p3", 9, "prod")}})
		m.told("a project without grants")
	})
}

// What a replica of the release before does while this one runs beside it: the statements with which it brings and replaces rows.
const (
	oldAdvance = `UPDATE projection SET revision = $1, cursor = $2 WHERE singleton = 1 AND revision < $1`
	oldProject = `INSERT INTO projects (uid, name, revision) VALUES ($1, $2, $3)
		ON CONFLICT (uid) DO UPDATE SET name = excluded.name, revision = excluded.revision`
	oldIntegration = `INSERT INTO integrations
		(uid, name, shard, display_name, tenant_id, cloud, default_subscription_id, allowed_audiences, rotation_period, deleting, revision, delivery_materials)
		VALUES ($1, $2, 0, '', '', 'public', '', '[]', 0, 0, $3, '[]')
		ON CONFLICT (uid) DO UPDATE SET name = excluded.name, revision = excluded.revision`
)

// oldBrings advances the copy as the release before does.
func (m *mirror) oldBrings(revision int64, project string) {
	m.t.Helper()
	m.exec(oldAdvance, revision, fmt.Sprintf("r/%d", revision))
	m.exec(oldProject, project, "accounts/a/projects/"+project, revision)
}

func TestProjection_BesideAReplicaThatKnowsNoLabels(t *testing.T) {
	withMirror(t, func(m *mirror) {
		position := func(step, cursor string) {
			m.t.Helper()
			got, err := m.store.Projection(m.t.Context())
			if err != nil || got.Cursor != cursor {
				m.t.Errorf("%s: cursor %q, %v, want %q", step, got.Cursor, err, cursor)
			}
		}
		all := func(revision int64) store.Wanted {
			return store.Wanted{
				Integrations: []store.Integration{automatic("i", revision, "prod")},
				Projects:     []store.Project{labelled("p", revision, "prod"), labelled("q", revision, "prod")},
			}
		}
		m.replace(at("r", 5, 0), all(5))
		m.labels("all known", "i prod, p prod, q prod")
		position("all known", "r/5")

		m.oldBrings(6, "p")
		m.labels("brought by the other", "i prod, p prod, q prod without p")
		position("brought by the other", "") // who starts now lists everything
		m.advance(at("r", 6, 1), store.Wanted{Projects: []store.Project{labelled("p", 6, "dev")}})
		m.labels("brought by both", "i prod, p dev, q prod")
		position("brought by both", "r/6")

		// What this replica is told may be older than what the other has brought, or be of a database that is no more.
		m.oldBrings(8, "p")
		m.advance(at("r", 7, 2), store.Wanted{Projects: []store.Project{labelled("p", 7, "seven")}})
		m.labels("told of an older one", "i prod, p dev, q prod without p")
		m.advance(at("s", 8, 2), store.Wanted{Projects: []store.Project{labelled("p", 8, "foreign")}})
		m.labels("told of another database's", "i prod, p dev, q prod without p")
		m.advance(at("r", 8, 2), store.Wanted{Projects: []store.Project{labelled("p", 8, "eight")}})
		m.labels("told of the same", "i prod, p eight, q prod")

		// The other has replaced everything.
		m.exec(`DELETE FROM projects`)
		m.exec(`DELETE FROM integrations`)
		m.exec(oldIntegration, "i", "accounts/a/integrations/i", 9)
		m.oldBrings(9, "p")
		m.labels("replaced by the other", " without i, p")
		if err := m.store.ReplaceProjection(m.t.Context(), start, at("r", 8, 3), all(8)); !errors.Is(err, store.ErrChanged) {
			m.t.Errorf("listed, but the other is ahead: %v", err)
		}
		m.labels("listed, but the other is ahead", " without i, p")
		m.replace(at("r", 9, 3), all(9))
		m.labels("listed", "i prod, p prod, q prod")
		m.replace(at("r", 9, 4), store.Wanted{})
		m.labels("listed by a third", "i prod, p prod, q prod")
	})
}

// TestMigrations_CopyWithoutLabels: what was copied before there were labels is listed anew, also when a replica of the release before
// goes on bringing changes.
func TestMigrations_CopyWithoutLabels(t *testing.T) {
	for engine, config := range map[string]sqldb.Config{"sqlite": sqldbtest.SQLiteConfig(t), "postgres": sqldbtest.PostgresConfig(t)} {
		t.Run(engine, func(t *testing.T) {
			current, err := store.Migrations()
			if err != nil {
				t.Fatal(err)
			}
			before := fstest.MapFS{}
			err = fs.WalkDir(current, ".", func(name string, _ fs.DirEntry, err error) error {
				if err != nil || path.Ext(name) != ".sql" || path.Base(name) >= "0006" {
					return err
				}
				text, err := fs.ReadFile(current, name)
				before[name] = &fstest.MapFile{Data: text}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			old, err := sqldb.Open(t.Context(), config, before)
			if err != nil {
				t.Fatal(err)
			}
			m := &mirror{t: t, db: old}
			m.exec(`INSERT INTO projection (singleton, incarnation, revision, cursor, bookmark_time) VALUES (1, 'r', 5, 'r/5', 0)`)
			m.oldBrings(5, "p")
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := sqldb.Open(t.Context(), config, current)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			m.db, m.store = db, store.New(db, audittest.Keys(1))
			m.oldBrings(6, "q")
			if got, err := m.store.Projection(t.Context()); err != nil || got.Cursor != "" {
				t.Errorf("position %+v, %v", got, err)
			}
			m.labels("without labels", " without p, q")
			m.replace(at("r", 6, 1), store.Wanted{Projects: []store.Project{labelled("p", 6, "prod"), labelled("q", 6)}})
			m.labels("listed", "p prod")
			if got, err := m.store.Projection(t.Context()); err != nil || got.Cursor != "r/6" {
				t.Errorf("position %+v, %v", got, err)
			}
		})
	}
}
