package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_RequestIDIsRememberedForADay(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		first, err := s.CreateIntegration(ctx, start, integrationName("net"), spec("net"), requestID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.UpdateIntegration(ctx, start, first.Name, "", wantDisplayName("changed"), nil); err != nil {
			t.Fatal(err)
		}
		before := head(t, s)
		again, err := s.CreateIntegration(ctx, start.Add(23*time.Hour+59*time.Minute), integrationName("net"), spec("net"), requestID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Fatalf("repeat (-first +again):\n%s", diff)
		}
		_, err = s.CreateIntegration(ctx, later, integrationName("net"), spec("other"), requestID)
		wantError(t, err, resource.ErrRequestIDReused, "requestId="+requestID)
		_, err = s.CreateIntegration(ctx, later, integrationName("other"), spec("net"), requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
		if head(t, s) != before {
			t.Fatal("a repeat made a revision")
		}
		// Another account's request of the same ID, and another method's, are other requests.
		if _, err := s.CreateIntegration(ctx, later, integration.Name{Account: "umbrella", ID: "net"}, spec("net"), requestID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateProject(ctx, later, projectName("net"), project.Spec{Kind: project.Stack}, requestID); err != nil {
			t.Fatal(err)
		}
		// After a day the ID is free, whether or not it has been swept.
		_, err = s.CreateIntegration(ctx, start.Add(24*time.Hour+time.Minute), integrationName("net"), spec("net"), requestID)
		wantError(t, err, resource.ErrExists, "")
		if _, err := s.CreateIntegration(ctx, start.Add(24*time.Hour+time.Minute), integrationName("third"), spec("net"), requestID); err != nil {
			t.Fatal(err)
		}
		if err := s.ForgetRequests(ctx, start.Add(50*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateIntegration(ctx, start.Add(26*time.Hour), integrationName("fourth"), spec("net"), requestID); err != nil {
			t.Fatalf("after forgetting: %v", err)
		}
	})
}

func TestStore_RequestIDCoversProjectsAndAttachments(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		makeIntegration(t, s, "net")
		p, err := s.CreateProject(ctx, start, projectName("stack"), project.Spec{Kind: project.Stack}, requestID)
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.CreateAttachment(ctx, start, attachmentName("stack", "net"), attachment.Spec{}, requestID)
		if err != nil {
			t.Fatal(err)
		}
		p2, err := s.CreateProject(ctx, later, p.Name, project.Spec{Kind: project.Stack}, requestID)
		if diff := cmp.Diff(p, p2); err != nil || diff != "" {
			t.Fatalf("repeat: %v\n%s", err, diff)
		}
		// Both accesses said is the same as none said.
		a2, err := s.CreateAttachment(ctx, later, a.Name, attachment.Spec{Accesses: []attachment.Access{attachment.Write, attachment.Read}}, requestID)
		if diff := cmp.Diff(a, a2); err != nil || diff != "" {
			t.Fatalf("repeat: %v\n%s", err, diff)
		}
		_, err = s.CreateProject(ctx, later, p.Name, project.Spec{Kind: project.Module}, requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
		_, err = s.CreateAttachment(ctx, later, a.Name, attachment.Spec{SubscriptionID: subscription}, requestID)
		wantError(t, err, resource.ErrRequestIDReused, "")
	})
}

func TestStore_OneRequestAtOnceHasOneResult(t *testing.T) {
	for _, tt := range []struct {
		name   string
		create func(t *testing.T, s *store.Store) (uid string, err error)
	}{
		{"integration", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateIntegration(t.Context(), start, integrationName("new"), spec("net"), requestID)
			return created.UID, err
		}},
		{"project", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateProject(t.Context(), start, projectName("new"), project.Spec{Kind: project.Stack}, requestID)
			return created.UID, err
		}},
		{"attachment", func(t *testing.T, s *store.Store) (string, error) {
			created, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", "net"), attachment.Spec{}, requestID)
			return created.UID, err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				makeIntegration(t, s, "net")
				makeProject(t, s, "stack")
				const racers = 6
				var uids [racers]string
				for _, err := range together(racers, func(i int) (err error) {
					uids[i], err = tt.create(t, s)
					return err
				}) {
					if err != nil {
						t.Error(err)
					}
				}
				for _, uid := range uids {
					if uid != uids[0] {
						t.Fatalf("got %v", uids)
					}
				}
				if head(t, s) != 3 {
					t.Fatalf("%d revisions", head(t, s))
				}
			})
		})
	}
}
