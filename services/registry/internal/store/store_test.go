package store_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

var (
	start  = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	later  = start.Add(time.Minute)
	master = integration.Mastership{Shard: 0, Epoch: 10, Holder: "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a001"}
)

const (
	tenant       = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	subscription = "0b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
	requestID    = "9a2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0003"
)

// suite runs a case on a fresh database of each engine.
func suite(t *testing.T, test func(t *testing.T, s *store.Store)) {
	t.Helper()
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) { test(t, open(t, db)) })
}

func open(t *testing.T, db *sqldb.DB) *store.Store {
	t.Helper()
	s, err := store.New(t.Context(), db, quota.Default())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func integrationName(id string) integration.Name { return integration.Name{Account: "acme", ID: id} }

func projectName(id string) project.Name { return project.Name{Account: "acme", ID: id} }

func attachmentName(p, i string) attachment.Name {
	return attachment.Name{Account: "acme", Project: p, ID: i}
}

func spec(display string) integration.Spec {
	return integration.Spec{
		DisplayName: display, TenantID: tenant, DefaultSubscriptionID: subscription, AllowedAudiences: []string{"https://b.example", "https://a.example"},
		DeliveryMaterials: []integration.Material{integration.MaterialClientSecret, integration.MaterialAccessToken},
	}
}

func makeIntegration(t *testing.T, s *store.Store, id string) integration.Integration {
	t.Helper()
	i, err := s.CreateIntegration(t.Context(), start, integrationName(id), spec(id), "")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func makeProject(t *testing.T, s *store.Store, id string) project.Project {
	t.Helper()
	p, err := s.CreateProject(t.Context(), start, projectName(id), project.Spec{Kind: project.Stack, DisplayName: id}, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func attach(t *testing.T, s *store.Store, p, i string, accesses ...attachment.Access) attachment.Attachment {
	t.Helper()
	a, err := s.CreateAttachment(t.Context(), start, attachmentName(p, i), attachment.Spec{Accesses: accesses}, "")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// changesAfter gives all changes after a revision.
func changesAfter(t *testing.T, s *store.Store, after int64) []change.Change {
	t.Helper()
	changes, head, err := s.Changes(t.Context(), at(s, after), 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if want := after + int64(len(changes)); head != want {
		t.Fatalf("head is %d, with %d changes after %d", head, len(changes), after)
	}
	return changes
}

func head(t *testing.T, s *store.Store) int64 {
	t.Helper()
	h, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h.Revision
}

// at is a position in the store's database.
func at(s *store.Store, revision int64) resource.Position {
	return resource.Position{Incarnation: s.Incarnation(), Revision: revision}
}

// wantError checks the reason and one entry of the metadata, "key=value" or empty.
func wantError(t *testing.T, err, reason error, metadata string) {
	t.Helper()
	if !errors.Is(err, reason) {
		t.Fatalf("got error %v, want %v", err, reason)
	}
	if metadata == "" {
		return
	}
	key, value, _ := strings.Cut(metadata, "=")
	var refusal *resource.Error
	if !errors.As(err, &refusal) || refusal.Metadata[key] != value {
		t.Fatalf("got error %#v, want metadata %s", err, metadata)
	}
}

func TestStore_KeepsIncarnation(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		first, second := open(t, db), open(t, db)
		if first.Incarnation() == "" || first.Incarnation() != second.Incarnation() {
			t.Fatalf("incarnations %q and %q", first.Incarnation(), second.Incarnation())
		}
	})
}

func TestStore_SaysThatItCommitted(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		makeProject(t, s, "one")
		makeProject(t, s, "two")
		<-s.Committed()
		if _, err := s.UpdateProject(t.Context(), later, projectName("one"), "", func(p project.Project) (project.Spec, error) { return p.Spec, nil }, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Committed():
			t.Fatal("a write without a change was told")
		default:
		}
	})
}

// together runs n calls at once and gives their errors.
func together(n int, call func(i int) error) []error {
	found := make([]error, n)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-begin
			found[i] = call(i)
		})
	}
	close(begin)
	all.Wait()
	return found
}
