package rpc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/pagetoken"
)

const (
	reading = typev1.Access_ACCESS_READ
	writing = typev1.Access_ACCESS_WRITE
)

// automatic makes an integration that is attached by itself to what has one of the labels.
func (w *world) automatic(t *testing.T, account, id string, labels ...string) *registryv1.Integration {
	t.Helper()
	i := newIntegration()
	i.AutoAttach = true
	for _, label := range labels {
		i.Labels = append(i.Labels, "autoattach:"+label)
	}
	got, err := w.platform.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{Parent: "accounts/" + account, IntegrationId: id, Integration: i})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// labelled makes a project with labels.
func (w *world) labelled(t *testing.T, account, id string, labels ...string) *registryv1.Project {
	t.Helper()
	got, err := w.platform.projects.CreateProject(t.Context(), &registryv1.CreateProjectRequest{
		Parent: "accounts/" + account, ProjectId: id, Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, Labels: labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestListEffectiveAttachments_SaysWhy(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	stack := w.labelled(t, "acme", "stack", "prod", "eu")
	first, second := w.automatic(t, "acme", "a", "prod", "us"), w.automatic(t, "acme", "b", "eu", "prod")
	w.automatic(t, "acme", "c", "us")
	w.automatic(t, "umbrella", "a", "prod")
	writer, reader := w.integration(t, "acme", "z"), w.automatic(t, "acme", "d", "prod")
	forWriting := w.attachment(t, stack.GetName(), writer.GetName(), writing)
	outranked := func(access typev1.Access, by *registryv1.Integration) *registryv1.OutrankedAccess {
		return &registryv1.OutrankedAccess{Access: access, Integration: by.GetName()}
	}
	attached := &registryv1.EffectiveAttachment{Integration: writer.GetName(), IntegrationUid: writer.GetUid(), Attachment: forWriting.GetName(), Accesses: []typev1.Access{writing}, SubscriptionId: subscription}
	byLabel := func(i *registryv1.Integration, accesses []typev1.Access, outranked []*registryv1.OutrankedAccess, labels ...string) *registryv1.EffectiveAttachment {
		return &registryv1.EffectiveAttachment{Integration: i.GetName(), IntegrationUid: i.GetUid(), Labels: labels, Accesses: accesses, OutrankedAccesses: outranked, SubscriptionId: subscription}
	}
	behind := []*registryv1.OutrankedAccess{outranked(reading, first), outranked(writing, writer)}
	want := []*registryv1.EffectiveAttachment{
		attached,
		byLabel(first, []typev1.Access{reading}, []*registryv1.OutrankedAccess{outranked(writing, writer)}, "prod"),
		byLabel(second, nil, behind, "eu", "prod"),
		byLabel(reader, nil, behind, "prod"),
	}
	list := func(size int32) (all []*registryv1.EffectiveAttachment) {
		t.Helper()
		req := &registryv1.ListEffectiveAttachmentsRequest{Parent: stack.GetName(), PageSize: size}
		for pages := 0; pages < 10; pages++ {
			page, err := w.limited.attachments.ListEffectiveAttachments(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			if page.GetRevision() != w.head(t) || size > 0 && len(page.GetEffectiveAttachments()) > int(size) {
				t.Fatalf("page %v of %d", page, size)
			}
			all = append(all, page.GetEffectiveAttachments()...)
			if req.PageToken = page.GetNextPageToken(); page.GetNextPageToken() == "" {
				return all
			}
		}
		t.Fatal("the pages do not end")
		return nil
	}
	for size := range int32(6) {
		if diff := cmp.Diff(want, list(size), protocmp.Transform()); diff != "" {
			t.Fatalf("in pages of %d (-want +got):\n%s", size, diff)
		}
	}

	resolve := func(phase typev1.Phase, want *registryv1.ResolveAccessResponse) {
		t.Helper()
		got, err := w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: stack.GetName(), Phase: phase})
		if err != nil {
			t.Fatal(err)
		}
		want.ProjectUid, want.TenantId, want.SubscriptionId, want.Incarnation, want.Revision = stack.GetUid(), tenant, subscription, w.store.Incarnation(), w.head(t)
		wantMessage(t, want, got)
	}
	resolve(typev1.Phase_PHASE_PLANNING, &registryv1.ResolveAccessResponse{Access: reading, Integration: first.GetName(), IntegrationUid: first.GetUid(), Labels: []string{"prod"}})
	resolve(typev1.Phase_PHASE_APPLYING, &registryv1.ResolveAccessResponse{
		Access: writing, Integration: writer.GetName(), IntegrationUid: writer.GetUid(), Attachment: forWriting.GetName(), AttachmentUid: forWriting.GetUid(),
	})

	_, err := w.limited.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: first.GetName()})
	attachedByLabels := refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_ATTACHED", metadata: "projects=1", says: "switch auto_attach off"}
	attachedByLabels.check(t, err)
	// Who attaches it for READ does not want WRITE of it.
	for _, name := range []string{writer.GetName(), reader.GetName(), second.GetName()} {
		if _, err := w.platform.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: name, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	forReading := w.attachment(t, stack.GetName(), first.GetName(), reading)
	attached.Integration, attached.IntegrationUid, attached.Attachment, attached.Accesses = first.GetName(), first.GetUid(), forReading.GetName(), []typev1.Access{reading}
	if diff := cmp.Diff([]*registryv1.EffectiveAttachment{attached}, list(0), protocmp.Transform()); diff != "" {
		t.Fatalf("attached for READ (-want +got):\n%s", diff)
	}
	_, err = w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: stack.GetName(), Phase: typev1.Phase_PHASE_APPLYING})
	refusal{code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED", metadata: "access=WRITE", says: "or give it a label"}.check(t, err)
}

func TestListEffectiveAttachments_Refuses(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	stack := w.labelled(t, "acme", "stack", "prod").GetName()
	other := w.labelled(t, "acme", "other", "prod").GetName()
	w.automatic(t, "acme", "a", "prod")
	w.automatic(t, "acme", "b", "prod")
	first, err := w.platform.attachments.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: stack, PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" {
		t.Fatalf("%v, %v", first, err)
	}
	foreign := pagetoken.Scope{Incarnation: w.store.Incarnation(), Key: w.store.PageKey(), List: "projects", Parent: stack}.SealTexts("x")
	for _, tt := range []struct {
		name string
		by   clients
		req  *registryv1.ListEffectiveAttachmentsRequest
		want refusal
	}{
		{"nothing", w.platform, &registryv1.ListEffectiveAttachmentsRequest{}, invalidFields("parent")},
		{"bad", w.platform, &registryv1.ListEffectiveAttachmentsRequest{Parent: "accounts/acme/projects/-", PageSize: -1}, invalidFields("page_size", "parent")},
		{"no project", w.platform, &registryv1.ListEffectiveAttachmentsRequest{Parent: "accounts/acme/projects/none"}, notFound("accounts/acme/projects/none")},
		{"another project's token", w.platform, &registryv1.ListEffectiveAttachmentsRequest{Parent: other, PageToken: first.GetNextPageToken()}, badPageToken},
		{"another list's token", w.platform, &registryv1.ListEffectiveAttachmentsRequest{Parent: stack, PageToken: foreign}, badPageToken},
		{"another account", w.limited, &registryv1.ListEffectiveAttachmentsRequest{Parent: "accounts/umbrella/projects/none"}, otherAccount},
		{"the vault", w.vault, &registryv1.ListEffectiveAttachmentsRequest{Parent: stack}, callerRefused},
		{"the broker", w.broker, &registryv1.ListEffectiveAttachmentsRequest{Parent: stack}, callerRefused},
		{"a stranger", w.stranger, &registryv1.ListEffectiveAttachmentsRequest{Parent: stack}, unknownCaller},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.by.attachments.ListEffectiveAttachments(ctx, tt.req)
			tt.want.check(t, err)
		})
	}
}
