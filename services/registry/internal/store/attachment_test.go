package store_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

func TestStore_Attachment(t *testing.T) {
	suite(t, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		_, err := s.CreateAttachment(ctx, start, attachmentName("stack", "reader"), attachment.Spec{}, "")
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/projects/stack")
		p := makeProject(t, s, "stack")
		_, err = s.CreateAttachment(ctx, start, attachmentName("stack", "reader"), attachment.Spec{}, "")
		wantError(t, err, resource.ErrNotFound, "name=accounts/acme/integrations/reader")
		reader, writer := makeIntegration(t, s, "reader"), makeIntegration(t, s, "writer")

		reads := attach(t, s, "stack", "reader", attachment.Read)
		if reads.ProjectUID != p.UID || reads.IntegrationUID != reader.UID {
			t.Fatalf("attached %+v", reads)
		}
		found, err := s.Attachment(ctx, reads.Name)
		if diff := cmp.Diff(reads, found); err != nil || diff != "" {
			t.Fatalf("found: %v\n%s", err, diff)
		}
		_, err = s.CreateAttachment(ctx, start, reads.Name, attachment.Spec{Accesses: []attachment.Access{attachment.Write}}, "")
		wantError(t, err, resource.ErrExists, "name="+reads.Name.String())
		before := head(t, s)
		_, err = s.CreateAttachment(ctx, start, attachmentName("stack", "writer"), attachment.Spec{}, "")
		wantError(t, err, attachment.ErrAccessTaken, "attachment="+reads.Name.String())
		writes := attach(t, s, "stack", "writer", attachment.Write)
		if writes.IntegrationUID != writer.UID || head(t, s) != before+1 {
			t.Fatalf("attached %+v at %d", writes, head(t, s))
		}

		want := func(spec attachment.Spec) func(attachment.Attachment) (attachment.Spec, error) {
			return func(attachment.Attachment) (attachment.Spec, error) { return spec, nil }
		}
		both := attachment.Spec{Accesses: []attachment.Access{attachment.Write, attachment.Read}}
		_, err = s.UpdateAttachment(ctx, later, reads.Name, "", want(both), nil)
		wantError(t, err, attachment.ErrAccessTaken, "attachment="+writes.Name.String())
		if same, err := s.UpdateAttachment(ctx, later, writes.Name, "", want(writes.Spec), nil); err != nil || !cmp.Equal(same, writes) || head(t, s) != before+1 {
			t.Fatalf("a change of nothing: %+v, %v", same, err)
		}
		wantError(t, s.DeleteAttachment(ctx, later, writes.Name, "stale"), resource.ErrETagMismatch, "")
		if err := s.DeleteAttachment(ctx, later, writes.Name, writes.ETag()); err != nil {
			t.Fatal(err)
		}
		wantError(t, s.DeleteAttachment(ctx, later, writes.Name, ""), resource.ErrNotFound, "")
		updated, err := s.UpdateAttachment(ctx, later, reads.Name, reads.ETag(), want(both), nil)
		if err != nil || !slices.Equal(updated.Spec.Accesses, []attachment.Access{attachment.Read, attachment.Write}) {
			t.Fatalf("updated to %+v, %v", updated, err)
		}
		_, err = s.UpdateAttachment(ctx, later, reads.Name, reads.ETag(), want(reads.Spec), nil)
		wantError(t, err, resource.ErrETagMismatch, "")
		wantChanges := []change.Change{
			{Revision: before + 2, Deleted: true, Attachment: &writes},
			{Revision: before + 3, Attachment: &updated},
		}
		if diff := cmp.Diff(wantChanges, changesAfter(t, s, before+1)); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
	})
}
