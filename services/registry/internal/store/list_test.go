package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
	"phasekey.dev/services/registry/internal/store/storetest"
)

func TestStore_ListsByNameInPages(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		// acme-b sorts, as a string, before acme/…, which must not confuse pages of acme.
		for _, account := range []string{"acme", "acme-b", "b"} {
			for _, id := range []string{"a", "a-1", "a1", "b"} {
				if _, err := s.CreateIntegration(ctx, start, integration.Name{Account: account, ID: id}, spec(id), ""); err != nil {
					t.Fatal(err)
				}
				if _, err := s.CreateProject(ctx, start, project.Name{Account: account, ID: id}, project.Spec{Kind: project.Stack}, ""); err != nil {
					t.Fatal(err)
				}
			}
			for _, p := range []string{"a", "a1"} {
				if _, err := s.CreateAttachment(ctx, start, attachment.Name{Account: account, Project: p, ID: "b"}, attachment.Spec{}, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		lists := map[string]func(page resource.Page) ([]string, resource.Position, error){
			"integrations": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Integrations(ctx, page, nil)
				return names(found, func(i integration.Integration) string { return i.Name.String() }), at, err
			},
			"projects": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Projects(ctx, page, nil)
				return names(found, func(p project.Project) string { return p.Name.String() }), at, err
			},
			"attachments": func(page resource.Page) ([]string, resource.Position, error) {
				found, _, at, err := s.Attachments(ctx, page, nil)
				return names(found, func(a attachment.Attachment) string { return a.Name.String() }), at, err
			},
		}
		for _, tt := range []struct {
			list, parent string
			want         []string
		}{
			{"integrations", "accounts/acme", below("accounts/acme/integrations/", "a", "a-1", "a1", "b")},
			{"integrations", "accounts/none", nil},
			{"projects", "accounts/acme-b", below("accounts/acme-b/projects/", "a", "a-1", "a1", "b")},
			{
				"projects", "accounts/-",
				slices.Concat(below("accounts/acme-b/projects/", "a", "a-1", "a1", "b"), below("accounts/acme/projects/", "a", "a-1", "a1", "b"), below("accounts/b/projects/", "a", "a-1", "a1", "b")),
			},
			{"attachments", "accounts/acme/projects/a", below("accounts/acme/projects/", "a/attachments/b")},
			{"attachments", "accounts/acme/projects/a-1", nil},
			{"attachments", "accounts/acme/projects/-", below("accounts/acme/projects/", "a/attachments/b", "a1/attachments/b")},
			{"attachments", "accounts/-/projects/a1", below("accounts/", "acme-b/projects/a1/attachments/b", "acme/projects/a1/attachments/b", "b/projects/a1/attachments/b")},
			{
				"attachments", "accounts/-/projects/-",
				below("accounts/", "acme-b/projects/a/attachments/b", "acme-b/projects/a1/attachments/b", "acme/projects/a/attachments/b", "acme/projects/a1/attachments/b", "b/projects/a/attachments/b", "b/projects/a1/attachments/b"),
			},
		} {
			for _, size := range []int{1, 3, 100} {
				t.Run(fmt.Sprintf("%s of %s by %d", tt.list, strings.ReplaceAll(tt.parent, "/", "_"), size), func(t *testing.T) {
					var all []string
					page := resource.Page{Parent: tt.parent, Size: size}
					for {
						found, at, err := lists[tt.list](page)
						if err != nil {
							t.Fatal(err)
						}
						if at.Revision != 30 {
							t.Fatalf("at revision %d", at.Revision)
						}
						if len(found) <= size {
							all = append(all, found...)
							break
						}
						all = append(all, found[:size]...)
						page.After = resource.Place{found[size-1]}
					}
					if diff := cmp.Diff(tt.want, all); diff != "" {
						t.Fatalf("(-want +got):\n%s", diff)
					}
				})
			}
		}
	})
}

func names[T any](found []T, name func(T) string) []string {
	var all []string
	for _, one := range found {
		all = append(all, name(one))
	}
	return all
}

func below(prefix string, rest ...string) []string {
	var all []string
	for _, r := range rest {
		all = append(all, prefix+r)
	}
	return all
}

// TestStore_ReadsSoManyForAPage: a filter that few pass, in the largest of databases, makes short pages and not long reads.
func TestStore_ReadsSoManyForAPage(t *testing.T) {
	for engine, open := range map[string]func(t *testing.T) *sqldb.DB{
		"sqlite":   func(t *testing.T) *sqldb.DB { return sqldbtest.SQLite(t, store.Migrations()) },
		"postgres": func(t *testing.T) *sqldb.DB { return sqldbtest.Postgres(t, store.Migrations()) },
	} {
		t.Run(engine, func(t *testing.T) {
			db := open(t)
			s, err := store.New(t.Context(), db, quota.Default())
			if err != nil {
				t.Fatal(err)
			}
			const accounts, each = 6, storetest.PerAccount
			storetest.Load(t, db, accounts, 1)
			wanted := []integration.Name{storetest.Integration(0, 1), storetest.Integration(0, 2), storetest.Integration(accounts-1, each-1)}
			for _, order := range [][]resource.Order{nil, {{By: resource.ByName, Desc: true}}, {{By: resource.ByUpdateTime, Desc: true}, {By: resource.ByDisplayName}}} {
				var found []integration.Name
				page := resource.Page{Parent: "accounts/-", Order: order, Size: 2}
				var read []int
				for {
					reads := 0
					items, rest, _, err := s.Integrations(t.Context(), page, func(i integration.Integration) bool {
						reads++
						return slices.Contains(wanted, i.Name)
					})
					if err != nil {
						t.Fatal(err)
					}
					read = append(read, reads)
					more := len(items) > page.Size
					for _, i := range items[:min(len(items), page.Size)] {
						found = append(found, i.Name)
						page.After = i.Keys().Place(resource.Total(order))
					}
					if !more && rest == nil {
						break
					}
					if !more {
						page.After = rest
					}
				}
				if slices.Max(read) > 5000 || len(read) < 2 {
					t.Errorf("%+v: pages read %d rows", order, read)
				}
				slices.SortFunc(found, func(a, b integration.Name) int { return strings.Compare(a.String(), b.String()) })
				if diff := cmp.Diff(wanted, found); diff != "" {
					t.Errorf("%+v (-want +got):\n%s", order, diff)
				}
			}

			// The projects of one ID in all accounts are far from each other, and so few are found by as many reads.
			page := resource.Page{Parent: "accounts/-/projects/" + storetest.Project(0, 7).ID, Size: 100}
			var pages []int
			for rest := (resource.Place{}); rest != nil; page.After = rest {
				var found []attachment.Attachment
				if found, rest, _, err = s.Attachments(t.Context(), page, nil); err != nil {
					t.Fatal(err)
				}
				pages = append(pages, len(found))
			}
			if diff := cmp.Diff([]int{5, accounts - 5}, pages); diff != "" {
				t.Errorf("what is attached to the projects of one ID comes on pages of (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStore_PagesWhileRowsChange: what is there from the first page to the last, and stays as it is, is listed once, whatever
// is created and deleted around it, the place where a page ended included.
func TestStore_PagesWhileRowsChange(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		make := func(account, id string, display int) {
			t.Helper()
			spec := project.Spec{Kind: project.Stack, DisplayName: fmt.Sprint(display)}
			if _, err := s.CreateProject(ctx, start, project.Name{Account: account, ID: id}, spec, ""); err != nil {
				t.Fatal(err)
			}
		}
		for n, order := range [][]resource.Order{
			nil,
			{{By: resource.ByName, Desc: true}},
			{{By: resource.ByDisplayName}},
			{{By: resource.ByDisplayName, Desc: true}, {By: resource.ByCreateTime}, {By: resource.ByName, Desc: true}},
		} {
			account := fmt.Sprint("acme-", n)
			for i := range 20 {
				make(account, fmt.Sprintf("p%02d", i), i%3)
			}
			var all []string
			page := resource.Page{Parent: "accounts/" + account, Order: order, Size: 3}
			for round := 0; ; round++ {
				found, _, _, err := s.Projects(ctx, page, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range found[:min(len(found), page.Size)] {
					all = append(all, p.Name.ID)
				}
				if len(found) <= page.Size {
					break
				}
				last := found[page.Size-1]
				page.After = last.Keys().Place(resource.Total(order))
				if err := s.DeleteProject(ctx, later, last.Name, "", false); err != nil {
					t.Fatal(err)
				}
				for i := range 3 {
					if round < 3 {
						make(account, fmt.Sprintf("n%d-%d", round, i), i)
						make(account, fmt.Sprintf("q%d-%d", round, i), i)
					}
				}
			}
			once := slices.Sorted(slices.Values(all))
			if len(slices.Compact(slices.Clone(once))) != len(once) {
				t.Errorf("%+v: something came twice: %q", order, once)
			}
			for i := range 20 {
				if id := fmt.Sprintf("p%02d", i); !slices.Contains(all, id) {
					t.Errorf("%+v: %s was left out", order, id)
				}
			}
		}
	})
}
