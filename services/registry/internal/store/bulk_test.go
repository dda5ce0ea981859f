package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/store"
)

// manyAttachments attaches the integration to so many projects that it makes: the rows, without their changes.
func manyAttachments(t *testing.T, db *sqldb.DB, of integration.Integration, many int) {
	t.Helper()
	err := db.Tx(t.Context(), func(ctx context.Context, tx sqldb.Tx) error {
		const numbers = `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) `
		_, err := tx.Exec(ctx, numbers+`INSERT INTO projects (uid, name, kind, display_name, generation, create_time, update_time, writes)
			SELECT $2 || '-' || i, 'accounts/acme/projects/many-' || i, 'STACK', '', 1, 1, 1, 1 FROM n`, many, uuid.NewString())
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO attachments (uid, name, integration_uid, project_uid, reads_for, writes_for, subscription_id, generation, create_time, update_time, writes)
			SELECT 'a-' || uid, name || '/attachments/' || $1, $2, uid, uid, uid, '', 1, 1, 1, 1 FROM projects WHERE name LIKE 'accounts/acme/projects/many-%'`,
			of.Name.ID, of.UID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStore_DeletesInBatches has more attachments than a statement removes, of which each is told, in order.
func TestStore_DeletesInBatches(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		const many = 1001
		s := open(t, db)
		net := makeIntegration(t, s, "net")
		manyAttachments(t, db, net, many)
		before := head(t, s)
		if _, err := s.DeleteIntegration(t.Context(), later, net.Name, net.ETag(), true); err != nil {
			t.Fatal(err)
		}
		told := changesAfter(t, s, before)
		if len(told) != many+1 || told[many].Integration == nil || !told[many].Integration.Deleting() {
			t.Fatalf("%d changes, the last of %+v", len(told), told[len(told)-1])
		}
		var names []string
		for _, c := range told[:many] {
			if !c.Deleted || c.Attachment == nil || c.Attachment.IntegrationUID != net.UID {
				t.Fatalf("told %+v", c)
			}
			names = append(names, c.Attachment.Name.String())
		}
		if !slices.IsSorted(names) || len(slices.Compact(names)) != many {
			t.Error("not each of them once, in order")
		}
	})
}

// TestStore_DeletingMuchHoldsNobodyUp has another account write while ten thousand attachments are removed, again and again until the deletion takes
// its revisions, from when on all others wait until it has committed: for one statement then, however much is deleted.
func TestStore_DeletingMuchHoldsNobodyUp(t *testing.T) {
	const many = 10_000
	db := sqldbtest.Postgres(t, store.Migrations())
	s, ctx := open(t, db), t.Context()
	net := makeIntegration(t, s, "net")
	manyAttachments(t, db, net, many)

	before := head(t, s)
	other := project.Name{Account: "beta", ID: "busy"}
	done := make(chan struct{})
	var meanwhile, last []string
	taken := false
	deletion := sqldbtest.WithCount(ctx, func(query string) {
		switch {
		case taken:
			last = append(last, query)
		case strings.HasPrefix(query, "UPDATE registry"):
			taken = true
		default:
			meanwhile = append(meanwhile, query)
			_, err := s.UpdateProject(ctx, later, other, "",
				func(p project.Project) (project.Spec, error) {
					return project.Spec{Kind: p.Spec.Kind, DisplayName: fmt.Sprint(len(meanwhile))}, nil
				},
				func() (project.Spec, error) { return project.Spec{Kind: project.Stack}, nil })
			if err != nil {
				t.Errorf("before %.60s: %v", query, err)
			}
		}
	})
	for _, err := range together(2, func(who int) error {
		if who == 1 {
			return follow(ctx, s, before, done)
		}
		defer close(done)
		_, err := s.DeleteIntegration(deletion, later, net.Name, "", true)
		return err
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(meanwhile) < 50 {
		t.Errorf("another account could write only %d times", len(meanwhile))
	}
	if len(last) != 1 {
		t.Errorf("all others waited for %d statements: %.100q", len(last), last)
	}
}

// follow reads all changes after a revision, as they come, until done and the last: none may be missing or come late.
func follow(ctx context.Context, s *store.Store, last int64, done <-chan struct{}) error {
	for {
		over := false
		select {
		case <-done:
			over = true
		case <-s.Committed():
		}
		changes, newest, err := s.Changes(ctx, at(s, last), 500)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if c.Revision != last+1 {
				return fmt.Errorf("revision %d follows %d", c.Revision, last)
			}
			last++
		}
		if over && last == newest {
			return nil
		}
	}
}
