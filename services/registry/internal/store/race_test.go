package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_RacesHaveOneWinner(t *testing.T) {
	const racers = 6
	for _, tt := range []struct {
		name   string
		set    func(t *testing.T, s *store.Store)
		call   func(t *testing.T, s *store.Store, i int) error
		losers error
	}{
		{
			name: "one access, several integrations",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				for i := range racers {
					makeIntegration(t, s, fmt.Sprint("i", i))
				}
			},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", fmt.Sprint("i", i)), attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
				return err
			},
			losers: attachment.ErrAccessTaken,
		},
		{
			name: "one access, several updates",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				makeIntegration(t, s, "i0")
				makeIntegration(t, s, "i1")
				attach(t, s, "stack", "i0", attachment.Read)
			},
			// The first racer widens the one attachment to WRITE, the others attach for WRITE, under one name.
			call: func(t *testing.T, s *store.Store, i int) error {
				if i == 0 {
					_, err := s.UpdateAttachment(t.Context(), start, attachmentName("stack", "i0"), "", func(attachment.Attachment) (attachment.Spec, error) {
						return attachment.Spec{}, nil
					}, nil)
					return err
				}
				_, err := s.CreateAttachment(t.Context(), start, attachmentName("stack", "i1"), attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
				if errors.Is(err, resource.ErrExists) {
					return attachment.ErrAccessTaken // another creator won
				}
				return err
			},
			losers: attachment.ErrAccessTaken,
		},
		{
			name: "one name",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateIntegration(t.Context(), start, integrationName("net"), spec(fmt.Sprint(i)), "")
				return err
			},
			losers: resource.ErrExists,
		},
		{
			name: "one integration by several updates, and one creation",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				created := false
				var err error
				if i == 0 {
					_, err = s.CreateIntegration(t.Context(), start, integrationName("net"), spec("net"), "")
					created = err == nil
				} else {
					_, err = s.UpdateIntegration(t.Context(), start, integrationName("net"), "",
						func(current integration.Integration) (integration.Spec, error) {
							created = false // an attempt before may have been undone
							return current.Spec, nil
						},
						func() (integration.Spec, error) {
							created = true
							return spec("net"), nil
						})
				}
				switch {
				case err != nil && !errors.Is(err, resource.ErrExists):
					return err
				case created:
					return nil
				}
				return resource.ErrConflict // agreed on: not the creator
			},
			losers: resource.ErrConflict,
		},
		{
			name: "one attachment by several updates, and one creation",
			set: func(t *testing.T, s *store.Store) {
				makeProject(t, s, "stack")
				makeIntegration(t, s, "net")
			},
			call: func(t *testing.T, s *store.Store, i int) error {
				created := false
				var err error
				if i == 0 {
					_, err = s.CreateAttachment(t.Context(), start, attachmentName("stack", "net"), attachment.Spec{}, "")
					created = err == nil
				} else {
					_, err = s.UpdateAttachment(t.Context(), start, attachmentName("stack", "net"), "",
						func(current attachment.Attachment) (attachment.Spec, error) {
							created = false
							return current.Spec, nil
						},
						func() (attachment.Spec, error) {
							created = true
							return attachment.Spec{}, nil
						})
				}
				switch {
				case err != nil && !errors.Is(err, resource.ErrExists):
					return err
				case created:
					return nil
				}
				return resource.ErrConflict // agreed on: not the creator
			},
			losers: resource.ErrConflict,
		},
		{
			name: "one request ID with different contents",
			set:  func(*testing.T, *store.Store) {},
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.CreateIntegration(t.Context(), start, integrationName(fmt.Sprint("i", i)), spec("x"), requestID)
				return err
			},
			losers: resource.ErrRequestIDReused,
		},
		{
			name: "one etag",
			set:  func(t *testing.T, s *store.Store) { makeIntegration(t, s, "net") },
			call: func(t *testing.T, s *store.Store, i int) error {
				_, err := s.UpdateIntegration(t.Context(), later, integrationName("net"), "", func(current integration.Integration) (integration.Spec, error) {
					if current.Generation != 1 {
						return integration.Spec{}, resource.ErrETagMismatch
					}
					return wantDisplayName(fmt.Sprint("name ", i))(current)
				}, nil)
				return err
			},
			losers: resource.ErrETagMismatch,
		},
		{
			name: "attaching and deleting",
			set: func(t *testing.T, s *store.Store) {
				makeIntegration(t, s, "net")
				for i := range racers {
					makeProject(t, s, fmt.Sprint("p", i))
				}
			},
			// Either everybody attaches, and deleting is refused; or deleting wins, and those who come later are refused. What must not be is
			// an attachment of an integration that is being deleted, which the last racer looks for.
			call: func(t *testing.T, s *store.Store, i int) error {
				if i%2 == 0 {
					_, err := s.CreateAttachment(t.Context(), start, attachmentName(fmt.Sprint("p", i), "net"), attachment.Spec{}, "")
					if err != nil && !errors.Is(err, integration.ErrDeleting) {
						return err
					}
				} else if _, err := s.DeleteIntegration(t.Context(), later, integrationName("net"), "", false); err != nil && !errors.Is(err, integration.ErrAttached) {
					return err
				}
				net, err := s.Integration(t.Context(), integrationName("net"))
				if err != nil {
					return err
				}
				attached, _, _, err := s.Attachments(t.Context(), resource.Page{Parent: "accounts/-/projects/-", Size: 100}, nil)
				if err != nil {
					return err
				}
				if net.Deleting() && len(attached) > 0 {
					return fmt.Errorf("%d attachments of an integration that is being deleted", len(attached))
				}
				if i == 0 {
					return nil
				}
				return resource.ErrConflict // agreed on: not the winner
			},
			losers: resource.ErrConflict,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, func(t *testing.T, s *store.Store) {
				tt.set(t, s)
				won := 0
				for i, err := range together(racers, func(i int) error { return tt.call(t, s, i) }) {
					switch {
					case err == nil:
						won++
					case !errors.Is(err, tt.losers):
						t.Errorf("racer %d: %v, want %v", i, err, tt.losers)
					}
				}
				if won != 1 {
					t.Errorf("%d won", won)
				}
			})
		})
	}
}

// TestStore_LosesTheRaceForAnAccess has another attachment take the access between an update's look at it and its writing, which waits for no lock: the
// database's index refuses it, and the update says what it then finds.
func TestStore_LosesTheRaceForAnAccess(t *testing.T) {
	s, ctx := open(t, sqldbtest.Postgres(t, store.Migrations())), t.Context()
	makeProject(t, s, "stack")
	makeIntegration(t, s, "reader")
	makeIntegration(t, s, "writer")
	attach(t, s, "stack", "reader", attachment.Read)
	overtaken := false
	racing := sqldbtest.WithCount(ctx, func(query string) {
		if !overtaken && strings.HasPrefix(query, "UPDATE attachments SET reads_for") {
			overtaken = true
			attach(t, s, "stack", "writer", attachment.Write)
		}
	})
	_, err := s.UpdateAttachment(racing, later, attachmentName("stack", "reader"), "", func(attachment.Attachment) (attachment.Spec, error) {
		return attachment.Spec{}, nil
	}, nil)
	wantError(t, err, attachment.ErrAccessTaken, "attachment="+attachmentName("stack", "writer").String())
	if !overtaken {
		t.Error("nobody was faster")
	}
}
