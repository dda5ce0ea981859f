package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/audit/audittest"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// mirror is a vault's database that has been told nothing yet.
type mirror struct {
	t     testing.TB
	db    *sqldb.DB
	store *store.Store
	heard int64
}

func withMirror(t *testing.T, test func(m *mirror)) {
	t.Helper()
	migrations, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	sqldbtest.Run(t, migrations, func(t *testing.T, db *sqldb.DB) {
		divide(t, db, 3)
		test(&mirror{t: t, db: db, store: store.New(db, audittest.Keys(1))})
	})
}

// at is a position of the registry, learnt so many seconds after the start.
func at(incarnation string, revision int64, seconds int) store.Projection {
	return store.Projection{
		Incarnation: incarnation, Revision: revision, Cursor: fmt.Sprintf("%s/%d", incarnation, revision),
		BookmarkTime: start.Add(time.Duration(seconds) * time.Second),
	}
}

func (m *mirror) advance(at store.Projection, changed store.Wanted) {
	m.t.Helper()
	if err := m.store.AdvanceProjection(m.t.Context(), at.BookmarkTime, at, changed); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mirror) replace(at store.Projection, all store.Wanted) {
	m.t.Helper()
	if err := m.store.ReplaceProjection(m.t.Context(), at.BookmarkTime, at, all); err != nil {
		m.t.Fatal(err)
	}
}

// expect compares the position, and the copy: each resource's UID and revision.
func (m *mirror) expect(step string, want store.Projection, copied ...string) {
	m.t.Helper()
	got, err := m.store.Projection(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("%s: position (-want +got):\n%s", step, diff)
	}
	rows := m.rows(`SELECT uid || '@' || revision FROM (SELECT uid, revision FROM integrations UNION ALL SELECT uid, revision FROM projects
		UNION ALL SELECT uid, revision FROM attachments) AS r ORDER BY uid`)
	if !slices.Equal(rows, copied) {
		m.t.Errorf("%s: the copy is %v, want %v", step, rows, copied)
	}
}

// rows are what a query of one column finds.
func (m *mirror) rows(query string) (found []string) {
	m.t.Helper()
	err := m.db.ReadTx(m.t.Context(), func(ctx context.Context, tx sqldb.Tx) (err error) {
		found, err = sqldb.Collect(ctx, tx, func(row sqldb.Row) (text string, err error) { return text, row.Scan(&text) }, query)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return found
}

func (m *mirror) exec(query string, args ...any) {
	m.t.Helper()
	err := m.db.Tx(m.t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// told checks which integrations' streams have been told to look since it was last called.
func (m *mirror) told(step string, want ...string) {
	m.t.Helper()
	changes, newest, err := m.store.Changes(m.t.Context(), m.heard, 1000)
	if err != nil {
		m.t.Fatal(err)
	}
	m.heard = newest
	var got []string
	for _, c := range changes {
		got = append(got, c.IntegrationUID)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		m.t.Errorf("%s: told of %v, want %v", step, got, want)
	}
}

func wantedIntegration(uid string, revision int64) store.Integration {
	return store.Integration{UID: uid, Name: "accounts/a/integrations/" + uid, Revision: revision}
}

func wantedProject(uid string, revision int64) store.Project {
	return store.Project{UID: uid, Name: "accounts/a/projects/" + uid, Revision: revision}
}

func wantedAttachment(uid, integration, project string, revision int64) store.Attachment {
	return store.Attachment{UID: uid, IntegrationUID: integration, ProjectUID: project, Reads: true, Revision: revision}
}

func TestAdvanceProjection_IsIdempotentAndMonotone(t *testing.T) {
	withMirror(t, func(m *mirror) {
		change := func(uids ...string) (out store.Wanted) {
			for i, uid := range uids {
				out.Integrations = append(out.Integrations, wantedIntegration(uid, int64(6+i)))
			}
			return out
		}
		m.advance(at("r", 6, 1), change("i1"))
		m.expect("before the first list", store.Projection{})
		m.replace(at("r", 5, 0), store.Wanted{})
		m.expect("nothing wanted", at("r", 5, 0))
		for _, step := range []struct {
			name    string
			at      store.Projection
			changed store.Wanted
			want    store.Projection
			copied  []string
			told    []string
		}{
			{"a batch", at("r", 7, 1), change("i1", "i2"), at("r", 7, 1), []string{"i1@6", "i2@7"}, []string{"i1", "i2"}},
			{"the same, by another replica", at("r", 7, 2), change("i1", "i2"), at("r", 7, 1), []string{"i1@6", "i2@7"}, nil},
			{"the first half of it", at("r", 6, 2), change("i1"), at("r", 7, 1), []string{"i1@6", "i2@7"}, nil},
			{"an older deletion", at("r", 6, 2), store.Wanted{GoneIntegrations: []string{"i1"}}, at("r", 7, 1), []string{"i1@6", "i2@7"}, nil},
			{"a bookmark", at("r", 7, 3), store.Wanted{}, at("r", 7, 3), []string{"i1@6", "i2@7"}, nil},
			{"an older bookmark", at("r", 6, 4), store.Wanted{}, at("r", 7, 3), []string{"i1@6", "i2@7"}, nil},
			{"another incarnation's bookmark", at("s", 9, 4), store.Wanted{}, at("r", 7, 3), []string{"i1@6", "i2@7"}, nil},
			{"another incarnation's batch", at("s", 9, 4), change("i9"), at("r", 7, 3), []string{"i1@6", "i2@7"}, nil},
			{"what overlaps", at("r", 8, 5), change("i1", "i2", "i3"), at("r", 8, 5), []string{"i1@6", "i2@7", "i3@8"}, []string{"i1", "i2", "i3"}},
			{"a deletion", at("r", 9, 6), store.Wanted{GoneIntegrations: []string{"i2"}}, at("r", 9, 6), []string{"i1@6", "i3@8"}, []string{"i2"}},
		} {
			m.advance(step.at, step.changed)
			m.expect(step.name, step.want, step.copied...)
			m.told(step.name, step.told...)
		}
	})
}

func TestReplaceProjection_TakesWhatIsNewerOrOfAnotherHistory(t *testing.T) {
	withMirror(t, func(m *mirror) {
		all := func(revision int64, uids ...string) (out store.Wanted) {
			for _, uid := range uids {
				out.Integrations = append(out.Integrations, wantedIntegration(uid, revision))
			}
			return out
		}
		for _, step := range []struct {
			name   string
			forget string // a cursor that the registry has refused before
			at     store.Projection
			all    store.Wanted
			want   store.Projection
			copied []string
			told   []string
		}{
			{"the first", "", at("r", 5, 0), all(5, "i1", "i2"), at("r", 5, 0), []string{"i1@5", "i2@5"}, []string{"i1", "i2"}},
			{"the same revision", "", at("r", 5, 1), all(5, "i3"), at("r", 5, 0), []string{"i1@5", "i2@5"}, nil},
			{"an older one", "", at("r", 4, 1), all(4), at("r", 5, 0), []string{"i1@5", "i2@5"}, nil},
			{"a newer one without i1", "", at("r", 9, 1), all(9, "i2", "i3"), at("r", 9, 1), []string{"i2@9", "i3@9"}, []string{"i1", "i2", "i3"}},
			{"an older one of another incarnation", "", at("s", 2, 2), all(2, "i3"), at("s", 2, 2), []string{"i3@2"}, []string{"i2", "i3"}},
			{"an older one after somebody else's cursor was refused", "r/9", at("s", 1, 3), all(1), at("s", 2, 2), []string{"i3@2"}, nil},
			{"an older one after ours was refused", "s/2", at("s", 1, 3), all(1, "i4"), at("s", 1, 3), []string{"i4@1"}, []string{"i3", "i4"}},
			{"the same by another replica whose cursor was refused", "s/2", at("s", 1, 4), all(1, "i4"), at("s", 1, 3), []string{"i4@1"}, nil},
		} {
			if step.forget != "" {
				if err := m.store.ForgetCursor(m.t.Context(), step.forget); err != nil {
					m.t.Fatal(err)
				}
			}
			m.replace(step.at, step.all)
			m.expect(step.name, step.want, step.copied...)
			m.told(step.name, step.told...)
		}
	})
}

func TestForgetCursor_KeepsEverythingElse(t *testing.T) {
	withMirror(t, func(m *mirror) {
		m.replace(at("r", 5, 0), store.Wanted{Projects: []store.Project{wantedProject("p", 5)}})
		if err := m.store.ForgetCursor(m.t.Context(), "r/5"); err != nil {
			m.t.Fatal(err)
		}
		forgotten := at("r", 5, 0)
		forgotten.Cursor = ""
		m.expect("forgotten", forgotten, "p@5")
		// A replica whose stream was not refused goes on.
		m.advance(at("r", 6, 1), store.Wanted{Projects: []store.Project{wantedProject("p", 6)}})
		m.expect("followed on", at("r", 6, 1), "p@6")
	})
}

func TestProjection_TellsStreamsOfTheirIntegration(t *testing.T) {
	withMirror(t, func(m *mirror) {
		everything := store.Wanted{
			Integrations: []store.Integration{wantedIntegration("i1", 1), wantedIntegration("i2", 1)},
			Projects:     []store.Project{wantedProject("p1", 1), wantedProject("p2", 1)},
			Attachments:  []store.Attachment{wantedAttachment("a1", "i1", "p1", 1), wantedAttachment("a2", "i2", "p2", 1)},
		}
		m.replace(at("r", 1, 0), everything)
		m.told("everything, each once", "i1", "i2")
		m.advance(at("r", 2, 1), store.Wanted{Attachments: []store.Attachment{wantedAttachment("a3", "i2", "p1", 2)}})
		m.told("attached", "i2")
		m.advance(at("r", 3, 2), store.Wanted{GoneAttachments: []store.Attachment{wantedAttachment("a1", "i1", "p1", 3)}})
		m.told("detached", "i1")
		m.advance(at("r", 4, 3), store.Wanted{Projects: []store.Project{wantedProject("p2", 4)}})
		m.told("a project's label")
		m.advance(at("r", 5, 4), store.Wanted{
			GoneAttachments: []store.Attachment{wantedAttachment("a2", "i2", "p2", 5), wantedAttachment("a3", "i2", "p1", 5)},
			GoneProjects:    []string{"p1", "p2"}, GoneIntegrations: []string{"i2"},
		})
		m.told("all of i2, once", "i2")
		m.expect("what is left", at("r", 5, 4), "i1@1")
		m.replace(at("r", 6, 5), store.Wanted{})
		m.told("gone without a word", "i1")
		m.expect("nothing is left", at("r", 6, 5))
	})
}

func TestProjection_KeepsWhatItIsTold(t *testing.T) {
	withMirror(t, func(m *mirror) {
		want := store.Integration{
			Federated: true, UID: "uid", Name: "accounts/a/integrations/i", DisplayName: "Read", TenantID: "tenant", Cloud: "public",
			DefaultSubscriptionID: "sub", AllowedAudiences: []string{"https://vault.azure.net", "api://x"},
			DeliveryMaterials: []lease.Material{lease.AccessToken, lease.ClientSecret}, RotationPeriod: 36 * time.Hour, Revision: 1,
		}
		m.replace(at("r", 1, 0), store.Wanted{Integrations: []store.Integration{want}})
		m.same("replaced", want)
		want.DisplayName, want.AllowedAudiences, want.Deleting, want.Revision = "Read more", []string{}, true, 2
		want.DeliveryMaterials = []lease.Material{}
		m.advance(at("r", 2, 1), store.Wanted{Integrations: []store.Integration{want}})
		m.same("changed", want)

		// The name is used again: by UID they are two, by name it is the second.
		second := want
		second.UID, second.Deleting, second.Revision = "uid-2", false, 3
		m.advance(at("r", 3, 2), store.Wanted{Integrations: []store.Integration{second}, GoneIntegrations: []string{"uid"}})
		m.same("again", second)
		if _, err := m.store.Integration(m.t.Context(), "uid"); !errors.Is(err, sqldb.ErrNoRows) {
			m.t.Errorf("the first integration: %v", err)
		}
		if _, err := m.store.IntegrationByName(m.t.Context(), "accounts/a/integrations/j"); !errors.Is(err, sqldb.ErrNoRows) {
			m.t.Errorf("a name that nobody has: %v", err)
		}
	})
}

// same checks that an integration is found by UID and by name.
func (m *mirror) same(step string, want store.Integration) {
	m.t.Helper()
	for by, find := range map[string]func() (store.Integration, error){
		"uid":  func() (store.Integration, error) { return m.store.Integration(m.t.Context(), want.UID) },
		"name": func() (store.Integration, error) { return m.store.IntegrationByName(m.t.Context(), want.Name) },
	} {
		got, err := find()
		if err != nil {
			m.t.Fatalf("%s: by %s: %v", step, by, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			m.t.Errorf("%s: by %s (-want +got):\n%s", step, by, diff)
		}
	}
}

// Replicas that follow the same registry at the same time do each change once, and what is here is true at each revision.
func TestAdvanceProjection_ByReplicasTogether(t *testing.T) {
	const replicas, revisions = 3, 40
	withMirror(t, func(m *mirror) {
		m.replace(at("r", 0, 0), store.Wanted{})
		var together sync.WaitGroup
		for range replicas {
			together.Go(func() {
				for revision := int64(1); revision <= revisions; revision++ {
					changed := store.Wanted{Integrations: []store.Integration{wantedIntegration("i", revision)}}
					if err := m.store.AdvanceProjection(t.Context(), start, at("r", revision, int(revision)), changed); err != nil {
						t.Error(err)
						return
					}
					got, err := m.store.Integration(t.Context(), "i")
					if err != nil || got.Revision < revision {
						t.Errorf("after revision %d was brought the integration is at %d, error %v", revision, got.Revision, err)
					}
				}
			})
		}
		together.Wait()
		m.expect("in the end", at("r", revisions, revisions), fmt.Sprintf("i@%d", revisions))
		m.told("each revision once", slices.Repeat([]string{"i"}, revisions)...)
	})
}
