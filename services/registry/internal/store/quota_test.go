package store_test

import (
	"errors"
	"fmt"
	"testing"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

// quotaSuite is suite with few places, and twice as many for the account named big.
func quotaSuite(t *testing.T, limit int, test func(t *testing.T, s *store.Store)) {
	t.Helper()
	cfg := quota.Config{
		Integrations: limit, Projects: limit, Attachments: limit,
		Accounts: map[string]quota.Limits{"big": {Integrations: 2 * limit, Projects: 2 * limit}},
	}
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		s, err := store.New(t.Context(), db, cfg)
		if err != nil {
			t.Fatal(err)
		}
		test(t, s)
	})
}

// creators make one resource of each kind, by different ways; n tells resources of a kind apart.
var creators = []struct {
	name string
	kind quota.Kind
	// set is what the creations need to be there; it stays below the quota of everything else.
	set    func(t *testing.T, s *store.Store, account string, n int)
	create func(t *testing.T, s *store.Store, account string, n int, requestID string) error
	remove func(t *testing.T, s *store.Store, account string, n int) error
}{
	{
		name: "integrations", kind: quota.Integrations,
		create: func(t *testing.T, s *store.Store, account string, n int, requestID string) error {
			_, err := s.CreateIntegration(t.Context(), start, integration.Name{Account: account, ID: fmt.Sprint("i", n)}, spec("x"), requestID)
			return err
		},
		remove: func(t *testing.T, s *store.Store, account string, n int) error {
			name := integration.Name{Account: account, ID: fmt.Sprint("i", n)}
			deleted, err := s.DeleteIntegration(t.Context(), later, name, "", false)
			if err != nil {
				return err
			}
			// Its application is still there, and with it its place in the quota.
			if _, err := s.CreateIntegration(t.Context(), later, integration.Name{Account: account, ID: "early"}, spec("x"), ""); !errors.Is(err, quota.ErrExceeded) {
				t.Errorf("while one is being deleted: %v", err)
			}
			return s.RemoveIntegration(t.Context(), later, master, deleted.UID, removable)
		},
	},
	{
		name: "projects", kind: quota.Projects,
		create: func(t *testing.T, s *store.Store, account string, n int, requestID string) error {
			_, err := s.CreateProject(t.Context(), start, project.Name{Account: account, ID: fmt.Sprint("p", n)}, project.Spec{Kind: project.Stack}, requestID)
			return err
		},
		remove: func(t *testing.T, s *store.Store, account string, n int) error {
			return s.DeleteProject(t.Context(), later, project.Name{Account: account, ID: fmt.Sprint("p", n)}, "", false)
		},
	},
	{
		name: "attachments", kind: quota.Attachments,
		set: func(t *testing.T, s *store.Store, account string, n int) {
			for i := range (n + 1) / 2 {
				for _, access := range []string{"r", "w"} {
					name := integration.Name{Account: account, ID: fmt.Sprint(access, i)}
					if _, err := s.CreateIntegration(t.Context(), start, name, spec("x"), ""); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := s.CreateProject(t.Context(), start, project.Name{Account: account, ID: fmt.Sprint("p", i)}, project.Spec{Kind: project.Stack}, ""); err != nil {
					t.Fatal(err)
				}
			}
		},
		create: func(t *testing.T, s *store.Store, account string, n int, requestID string) error {
			name, accesses := attachmentOf(account, n)
			_, err := s.CreateAttachment(t.Context(), start, name, attachment.Spec{Accesses: accesses}, requestID)
			return err
		},
		remove: func(t *testing.T, s *store.Store, account string, n int) error {
			name, _ := attachmentOf(account, n)
			return s.DeleteAttachment(t.Context(), later, name, "")
		},
	},
}

// attachmentOf numbers the attachments: two of each project, one for each access.
func attachmentOf(account string, n int) (attachment.Name, []attachment.Access) {
	access, id := attachment.Read, "r"
	if n%2 == 1 {
		access, id = attachment.Write, "w"
	}
	return attachment.Name{Account: account, Project: fmt.Sprint("p", n/2), ID: fmt.Sprint(id, n/2)}, []attachment.Access{access}
}

func TestStore_QuotaIsExactAmongConcurrentCreators(t *testing.T) {
	const limit, racers = 8, 12
	for _, tt := range creators {
		t.Run(tt.name, func(t *testing.T) {
			run := quotaSuite
			if tt.set != nil {
				// What the attachments need must not meet its own quota.
				run = func(t *testing.T, limit int, test func(t *testing.T, s *store.Store)) {
					sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
						s, err := store.New(t.Context(), db, quota.Config{Integrations: 100, Projects: 100, Attachments: limit})
						if err != nil {
							t.Fatal(err)
						}
						tt.set(t, s, "acme", racers)
						test(t, s)
					})
				}
			}
			run(t, limit, func(t *testing.T, s *store.Store) {
				before := head(t, s)
				made := 0
				var won int
				for i, err := range together(racers, func(i int) error { return tt.create(t, s, "acme", i, fmt.Sprint("request", i)) }) {
					if err == nil {
						made, won = made+1, i
						continue
					}
					wantError(t, err, quota.ErrExceeded, "quota="+string(tt.kind))
					wantError(t, err, quota.ErrExceeded, fmt.Sprint("limit=", limit))
				}
				if made != limit || head(t, s) != before+limit {
					t.Fatalf("%d of %d were made, and %d revisions", made, limit, head(t, s)-before)
				}
				// A repeat creates nothing, and is not refused.
				if err := tt.create(t, s, "acme", won, fmt.Sprint("request", won)); err != nil {
					t.Errorf("a repeat: %v", err)
				}
				// What exists already is refused as that.
				wantError(t, tt.create(t, s, "acme", won, ""), resource.ErrExists, "")
				if err := tt.remove(t, s, "acme", won); err != nil {
					t.Fatal(err)
				}
				if err := tt.create(t, s, "acme", won, ""); err != nil {
					t.Errorf("in the place of what was removed: %v", err)
				}
			})
		})
	}
}

func TestStore_QuotaIsTheAccountsOwn(t *testing.T) {
	quotaSuite(t, 2, func(t *testing.T, s *store.Store) {
		// acme-b sorts, as a string, right before acme/….
		for account, limit := range map[string]int{"acme": 2, "acme-b": 2, "big": 4} {
			for _, tt := range creators[:2] {
				for n := range limit {
					if err := tt.create(t, s, account, n, ""); err != nil {
						t.Fatal(err)
					}
				}
				wantError(t, tt.create(t, s, account, limit, ""), quota.ErrExceeded, fmt.Sprint("limit=", limit))
			}
		}
	})
}

// An update that would create counts as a creation; one that finds the project, also only once it has the lock, does not.
func TestStore_QuotaOfUpdatesThatCreate(t *testing.T) {
	const limit, racers = 3, 8
	quotaSuite(t, limit, func(t *testing.T, s *store.Store) {
		update := func(id string) error {
			_, err := s.UpdateProject(t.Context(), later, projectName(id), "",
				func(p project.Project) (project.Spec, error) { return p.Spec, nil },
				func() (project.Spec, error) { return project.Spec{Kind: project.Stack}, nil })
			return err
		}
		for i := range limit - 1 {
			makeProject(t, s, fmt.Sprint("p", i))
		}
		for i, err := range together(racers, func(int) error { return update("last") }) {
			if err != nil {
				t.Errorf("racer %d: %v", i, err)
			}
		}
		wantError(t, update("more"), quota.ErrExceeded, "quota=projects")
		if err := update("last"); err != nil || head(t, s) != limit {
			t.Errorf("update of what is there: %v, head %d", err, head(t, s))
		}
	})
}
