package rpc_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/services/registry/internal/resource"
)

// Names of the world that refusals happen in.
const (
	reader = "accounts/acme/integrations/reader" // attached to stack for READ
	writer = "accounts/acme/integrations/writer" // attached to stack for WRITE
	spare  = "accounts/acme/integrations/spare"
	bare   = "accounts/acme/integrations/bare" // without a subscription, attached to module for READ
	doomed = "accounts/acme/integrations/doomed"
	alien  = "accounts/umbrella/integrations/alien"
	stack  = "accounts/acme/projects/stack"
	module = "accounts/acme/projects/module"
	none   = "accounts/acme/projects/none"

	attached = stack + "/attachments/reader"
)

func refusingWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.people(t)
	return w
}

// people makes what refusals need.
func (w *world) people(t testing.TB) {
	t.Helper()
	for _, name := range []string{reader, writer, spare, bare, doomed, alien} {
		ids, _ := resource.SplitName(name, "accounts", "integrations")
		w.integration(t, ids[0], ids[1])
	}
	w.project(t, "acme", "stack")
	w.project(t, "acme", "module")
	w.attachment(t, stack, reader, typev1.Access_ACCESS_READ)
	w.attachment(t, stack, writer, typev1.Access_ACCESS_WRITE)
	w.attachment(t, module, bare, typev1.Access_ACCESS_READ)
	if _, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: bare, DisplayName: "x", TenantId: tenant}, UpdateMask: paths("default_subscription_id"),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.platform.integrations.DeleteIntegration(t.Context(), &registryv1.DeleteIntegrationRequest{Name: doomed}); err != nil {
		t.Fatal(err)
	}
}

func paths(p ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: p} }

// changed is a valid integration, changed.
func changed(change func(i *registryv1.Integration)) *registryv1.Integration {
	i := newIntegration()
	change(i)
	return i
}

func TestRefusals(t *testing.T) {
	w := refusingWorld(t)
	uid := func(name string) string {
		got, err := w.platform.integrations.GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetUid()
	}
	spareUID := uid(spare)
	master := func(epoch int64, holder string) *registryv1.Mastership {
		return &registryv1.Mastership{Shard: 1, Epoch: epoch, Holder: holder}
	}
	if _, err := w.vault.status.ReportConditions(t.Context(), &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(5, holder)}); err != nil {
		t.Fatal(err)
	}

	createIntegration := func(c clients, parent, id string, i *registryv1.Integration) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: parent, IntegrationId: id, Integration: i})
			return err
		}
	}
	updateIntegration := func(name, etag string, mask *fieldmaskpb.FieldMask, change func(i *registryv1.Integration)) func(context.Context) error {
		return func(ctx context.Context) error {
			i := changed(change)
			i.Name, i.Etag = name, etag
			_, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: i, UpdateMask: mask})
			return err
		}
	}
	deleteIntegration := func(name, etag string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.platform.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: name, Etag: etag})
			return err
		}
	}
	getIntegration := func(c clients, name string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: name})
			return err
		}
	}
	listIntegrations := func(c clients, parent, token string, size int32) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: parent, PageToken: token, PageSize: size})
			return err
		}
	}
	createProject := func(c clients, parent, id string, p *registryv1.Project) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{Parent: parent, ProjectId: id, Project: p})
			return err
		}
	}
	updateProject := func(missing bool, mask *fieldmaskpb.FieldMask, p *registryv1.Project) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: p, UpdateMask: mask, AllowMissing: missing})
			return err
		}
	}
	deleteProject := func(name, etag string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.platform.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: name, Etag: etag})
			return err
		}
	}
	listProjects := func(c clients, parent, token string, size int32) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.projects.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: parent, PageToken: token, PageSize: size})
			return err
		}
	}
	createAttachment := func(c clients, parent string, a *registryv1.Attachment) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{Parent: parent, Attachment: a})
			return err
		}
	}
	updateAttachment := func(mask *fieldmaskpb.FieldMask, a *registryv1.Attachment) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.platform.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: a, UpdateMask: mask})
			return err
		}
	}
	deleteAttachment := func(name, etag string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.platform.attachments.DeleteAttachment(ctx, &registryv1.DeleteAttachmentRequest{Name: name, Etag: etag})
			return err
		}
	}
	listAttachments := func(c clients, parent, token string, size int32) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: parent, PageToken: token, PageSize: size})
			return err
		}
	}
	resolve := func(c clients, project string, phase typev1.Phase) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project, Phase: phase})
			return err
		}
	}
	report := func(c clients, req *registryv1.ReportConditionsRequest) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.status.ReportConditions(ctx, req)
			return err
		}
	}
	follow := func(c clients, cursor string) func(context.Context) error {
		return func(ctx context.Context) error {
			stream, err := c.watch.Watch(ctx, &registryv1.WatchRequest{Cursor: cursor})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}
	}
	token := pagetoken.Scope{Incarnation: w.store.Incarnation(), Key: w.store.PageKey(), List: "integrations", Parent: "accounts/acme"}.SealTexts(reader)
	ready := &registryv1.Condition{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: registryv1.Condition_STATUS_TRUE}
	here := resource.Position{Incarnation: w.store.Incarnation()}

	for _, tt := range []struct {
		name string
		call func(context.Context) error
		want refusal
	}{
		{"create integration: nothing", createIntegration(w.platform, "", "", nil), invalidFields("integration", "integration_id", "parent")},
		{"create integration: bad IDs", createIntegration(w.platform, "accounts/-", "A", newIntegration()), invalidFields("integration_id", "parent")},
		{"create integration: empty", createIntegration(w.platform, "accounts/acme", "x", &registryv1.Integration{}), invalidFields("integration.display_name", "integration.tenant_id")},
		{"create integration: direction mark", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.DisplayName = "a\u202eb" })), invalidFields("integration.display_name")},
		{"create integration: misleading", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.DisplayName = "Micr\u043esoft" })), invalidFields("integration.display_name")},
		{"create integration: only spaces", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.DisplayName = "  " })), invalidFields("integration.display_name")},
		{"create integration: rotates too often", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.RotationPeriod = durationpb.New(1e9) })), invalidFields("integration.rotation_period")},
		{"create integration: bad audience", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.AllowedAudiences = []string{"https://good", "http://bad"} })), invalidFields("integration.allowed_audiences[1]")},
		{"create integration: a material twice", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) {
			i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET, typev1.Material_MATERIAL_CLIENT_SECRET}
		})), invalidFields("integration.delivery_materials")},
		{"create integration: no material", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) {
			i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_UNSPECIFIED}
		})), invalidFields("integration.delivery_materials[1]")},
		{"create integration: an unknown material", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) {
			i.DeliveryMaterials = []typev1.Material{99}
		})), invalidFields("integration.delivery_materials[0]")},
		{"create integration: no such cloud", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.Cloud = "pubic" })), refusal{code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: []string{"integration.cloud"}, says: "public, china"}},
		{"create integration: attached by itself to nothing", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.AutoAttach, i.Labels = true, []string{"prod"} })), invalidFields("integration.auto_attach")},
		{"create integration: a space before the label", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.Labels = []string{"autoattach: prod"} })), invalidFields("integration.labels")},
		{"create integration: home tenant", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.TenantId = homeTenant })), refusal{code: codes.InvalidArgument, reason: "HOME_TENANT", fields: []string{"integration.tenant_id"}}},
		{"create integration: home tenant in capitals", createIntegration(w.platform, "accounts/acme", "x", changed(func(i *registryv1.Integration) { i.TenantId = strings.ToUpper(homeTenant) })), refusal{code: codes.InvalidArgument, reason: "HOME_TENANT", fields: []string{"integration.tenant_id"}}},
		{"create integration: exists", createIntegration(w.platform, "accounts/acme", "reader", newIntegration()), refusal{code: codes.AlreadyExists, reason: "RESOURCE_EXISTS", metadata: "name=" + reader}},
		{"create integration: another account", createIntegration(w.limited, "accounts/umbrella", "x", newIntegration()), otherAccount},
		{"create integration: vault", createIntegration(w.vault, "accounts/acme", "x", newIntegration()), callerRefused},
		{"create integration: stranger", createIntegration(w.stranger, "accounts/acme", "x", newIntegration()), unknownCaller},

		{"get integration: bad name", getIntegration(w.platform, "accounts/acme/integrations/-"), invalidFields("name")},
		{"get integration: none", getIntegration(w.platform, "accounts/acme/integrations/none"), notFound("accounts/acme/integrations/none")},
		{"get integration: another account's", getIntegration(w.limited, alien), otherAccount},
		{"get integration: another account's that is not", getIntegration(w.limited, "accounts/umbrella/integrations/none"), otherAccount},

		{"list integrations: bad", listIntegrations(w.platform, "acme", "", -1), invalidFields("page_size", "parent")},
		{"list integrations: all, limited", listIntegrations(w.limited, "accounts/-", "", 0), otherAccount},
		{"list integrations: broker", listIntegrations(w.broker, "accounts/acme", "", 0), callerRefused},
		{"list integrations: no token", listIntegrations(w.platform, "accounts/acme", "x", 0), badPageToken},
		{"list integrations: another account's token", listIntegrations(w.platform, "accounts/umbrella", token, 0), badPageToken},
		{"list projects: another list's token", listProjects(w.platform, "accounts/acme", token, 0), badPageToken},
		{"list projects: bad", listProjects(w.platform, "", "", -1), invalidFields("page_size", "parent")},
		{"list projects: all, limited", listProjects(w.limited, "accounts/-", "", 0), otherAccount},
		{"list attachments: another list's token", listAttachments(w.platform, stack, token, 0), badPageToken},
		{"list attachments: bad", listAttachments(w.platform, "accounts/acme", "", -1), invalidFields("page_size", "parent")},
		{"list attachments: of no project", listAttachments(w.platform, none, "", 0), notFound(none)},
		{"list attachments: all, limited", listAttachments(w.limited, "accounts/-/projects/-", "", 0), otherAccount},

		{"update integration: nothing", func(ctx context.Context) error {
			_, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{})
			return err
		}, invalidFields("integration")},
		{"update integration: bad name", updateIntegration("reader", "", nil, func(*registryv1.Integration) {}), invalidFields("integration.name")},
		{"update integration: none", updateIntegration("accounts/acme/integrations/none", "", nil, func(*registryv1.Integration) {}), notFound("accounts/acme/integrations/none")},
		{"update integration: stale", updateIntegration(reader, "stale", nil, func(i *registryv1.Integration) { i.DisplayName = "x" }), etagMismatch},
		{"update integration: being deleted", updateIntegration(doomed, "", nil, func(i *registryv1.Integration) { i.DisplayName = "x" }), refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING", subject: doomed, metadata: "name=" + doomed}},
		{"update integration: unknown, and what can be named", updateIntegration(reader, "", paths("display_name", "nothing", "tenant_id", "state", "conditions", "name", "display_name.x"), func(i *registryv1.Integration) { i.DisplayName = "x" }), invalidFields("update_mask")},
		{"update integration: star and more", updateIntegration(reader, "", paths("*", "display_name"), func(i *registryv1.Integration) { i.DisplayName = "x" }), invalidFields("update_mask")},
		{"update integration: another tenant", updateIntegration(reader, "", nil, func(i *registryv1.Integration) { i.TenantId, i.Cloud = subscription, "china" }), invalidFields("integration.cloud", "integration.tenant_id")},
		{"update integration: another tenant, by star", updateIntegration(reader, "", paths("*"), func(i *registryv1.Integration) { i.TenantId = subscription }), invalidFields("integration.tenant_id")},
		{"update integration: no material", updateIntegration(reader, "", paths("delivery_materials"), func(i *registryv1.Integration) {
			i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_UNSPECIFIED}
		}), invalidFields("integration.delivery_materials[0]")},
		{"update integration: a kind that the materials do not fit", updateIntegration(reader, "", paths("credential_kind", "delivery_materials"), func(i *registryv1.Integration) {
			i.CredentialKind, i.DeliveryMaterials = typev1.CredentialKind_CREDENTIAL_KIND_FEDERATED, []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}
		}), invalidFields("integration.delivery_materials")},
		{"update integration: misleading", updateIntegration(reader, "", paths("display_name"), func(i *registryv1.Integration) { i.DisplayName = "go to www.evil.example" }), invalidFields("integration.display_name")},
		{"update integration: only spaces", updateIntegration(reader, "", paths("display_name"), func(i *registryv1.Integration) { i.DisplayName = " " }), invalidFields("integration.display_name")},
		{"update integration: limited", func(ctx context.Context) error {
			_, err := w.limited.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: changed(func(i *registryv1.Integration) { i.Name = alien })})
			return err
		}, otherAccount},

		{"delete integration: nothing", deleteIntegration("", ""), invalidFields("name")},
		{"delete integration: none", deleteIntegration("accounts/acme/integrations/none", ""), notFound("accounts/acme/integrations/none")},
		{"delete integration: stale", deleteIntegration(spare, "stale"), etagMismatch},
		{"delete integration: attached", deleteIntegration(reader, ""), refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_ATTACHED", subject: reader, metadata: "attachments=1"}},

		{"create project: nothing", createProject(w.platform, "", "", nil), invalidFields("parent", "project", "project_id")},
		{"create project: no kind", createProject(w.platform, "accounts/acme", "x", &registryv1.Project{}), invalidFields("project.kind")},
		{"create project: a prefix without a label", createProject(w.platform, "accounts/acme", "x", &registryv1.Project{Kind: registryv1.Project_KIND_STACK, Labels: []string{"autoattach:"}}), invalidFields("project.labels")},
		{"update project: a space before the label", updateProject(false, paths("labels"), &registryv1.Project{Name: stack, Labels: []string{"a", "autoattach: b"}}), invalidFields("project.labels")},
		{"update project: none, a space before the label", updateProject(true, nil, &registryv1.Project{Name: none, Kind: registryv1.Project_KIND_STACK, Labels: []string{"autoattach: b"}}), invalidFields("project.labels")},
		{"create project: exists", createProject(w.platform, "accounts/acme", "stack", &registryv1.Project{Kind: registryv1.Project_KIND_STACK}), refusal{code: codes.AlreadyExists, reason: "RESOURCE_EXISTS", metadata: "name=" + stack}},
		{"create project: another account", createProject(w.limited, "accounts/umbrella", "x", &registryv1.Project{Kind: registryv1.Project_KIND_STACK}), otherAccount},
		{"get project: none", func(ctx context.Context) error {
			_, err := w.platform.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: none})
			return err
		}, notFound(none)},
		{"get project: bad name", func(ctx context.Context) error {
			_, err := w.platform.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: "stack"})
			return err
		}, invalidFields("name")},
		{"update project: none", updateProject(false, nil, &registryv1.Project{Name: none, Kind: registryv1.Project_KIND_STACK}), notFound(none)},
		{"update project: bad name", updateProject(true, nil, &registryv1.Project{Name: "x", Kind: registryv1.Project_KIND_STACK}), invalidFields("project.name")},
		{"update project: none, with etag", updateProject(true, nil, &registryv1.Project{Name: none, Kind: registryv1.Project_KIND_STACK, Etag: "x"}), etagMismatch},
		{"update project: stale", updateProject(false, nil, &registryv1.Project{Name: stack, Kind: registryv1.Project_KIND_STACK, DisplayName: "x", Etag: "x"}), etagMismatch},
		{"update project: another kind", updateProject(false, nil, &registryv1.Project{Name: stack, Kind: registryv1.Project_KIND_MODULE}), invalidFields("project.kind")},
		{"update project: immutable", updateProject(false, paths("kind", "uid"), &registryv1.Project{Name: stack, Kind: registryv1.Project_KIND_MODULE}), invalidFields("project.kind")},
		{"update project: unknown, and there is none", updateProject(false, paths("nothing"), &registryv1.Project{Name: none, Kind: registryv1.Project_KIND_STACK}), invalidFields("update_mask")},
		{"update project: unknown, and it would be created", updateProject(true, paths("nothing"), &registryv1.Project{Name: none, Kind: registryv1.Project_KIND_STACK}), invalidFields("update_mask")},
		{"delete project: nothing", deleteProject("", ""), invalidFields("name")},
		{"delete project: none", deleteProject(none, ""), notFound(none)},
		{"delete project: stale", deleteProject(stack, "stale"), etagMismatch},
		{"delete project: attached", deleteProject(stack, ""), refusal{code: codes.FailedPrecondition, reason: "PROJECT_ATTACHED", subject: stack, metadata: "attachments=2"}},

		{"attach: nothing", createAttachment(w.platform, "", nil), invalidFields("attachment", "parent")},
		{"attach: bad", createAttachment(w.platform, stack, &registryv1.Attachment{Integration: "spare", SubscriptionId: "x", Accesses: []typev1.Access{0}}), invalidFields("attachment.accesses[0]", "attachment.integration", "attachment.subscription_id")},
		{"attach: another account's integration", createAttachment(w.platform, stack, &registryv1.Attachment{Integration: alien}), invalidFields("attachment.integration")},
		{"attach: another account's integration, limited", createAttachment(w.limited, stack, &registryv1.Attachment{Integration: alien}), otherAccount},
		{"attach: no project", createAttachment(w.platform, none, &registryv1.Attachment{Integration: spare}), notFound(none)},
		{"attach: no integration", createAttachment(w.platform, stack, &registryv1.Attachment{Integration: "accounts/acme/integrations/none"}), notFound("accounts/acme/integrations/none")},
		{"attach: twice", createAttachment(w.platform, stack, &registryv1.Attachment{Integration: reader}), refusal{code: codes.AlreadyExists, reason: "RESOURCE_EXISTS", metadata: "name=" + attached}},
		{"attach: access taken", createAttachment(w.platform, stack, &registryv1.Attachment{Integration: spare, Accesses: []typev1.Access{typev1.Access_ACCESS_READ}}), refusal{code: codes.FailedPrecondition, reason: "ACCESS_TAKEN", subject: attached, metadata: "attachment=" + attached}},
		{"attach: being deleted", createAttachment(w.platform, module, &registryv1.Attachment{Integration: doomed, Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}}), refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING", metadata: "name=" + doomed}},
		{"get attachment: none", func(ctx context.Context) error {
			_, err := w.platform.attachments.GetAttachment(ctx, &registryv1.GetAttachmentRequest{Name: stack + "/attachments/none"})
			return err
		}, notFound(stack + "/attachments/none")},
		{"get attachment: bad name", func(ctx context.Context) error {
			_, err := w.platform.attachments.GetAttachment(ctx, &registryv1.GetAttachmentRequest{Name: stack})
			return err
		}, invalidFields("name")},
		{"update attachment: none", updateAttachment(nil, &registryv1.Attachment{Name: stack + "/attachments/none", Integration: spare}), notFound(stack + "/attachments/none")},
		{"update attachment: bad name", updateAttachment(nil, &registryv1.Attachment{Name: stack, Integration: spare}), invalidFields("attachment.name")},
		{"update attachment: stale", updateAttachment(nil, &registryv1.Attachment{Name: attached, Integration: reader, SubscriptionId: subscription, Etag: "x"}), etagMismatch},
		{"update attachment: another integration", updateAttachment(nil, &registryv1.Attachment{Name: attached, Integration: spare}), invalidFields("attachment.integration")},
		{"update attachment: immutable", updateAttachment(paths("integration", "integration_uid", "integration"), &registryv1.Attachment{Name: attached, Integration: writer}), invalidFields("attachment.integration")},
		{"update attachment: access taken", updateAttachment(paths("accesses"), &registryv1.Attachment{Name: attached, Integration: reader}), refusal{code: codes.FailedPrecondition, reason: "ACCESS_TAKEN", subject: stack + "/attachments/writer", metadata: "attachment=" + stack + "/attachments/writer"}},
		{"detach: nothing", deleteAttachment("", ""), invalidFields("name")},
		{"detach: none", deleteAttachment(stack+"/attachments/none", ""), notFound(stack + "/attachments/none")},
		{"detach: stale", deleteAttachment(attached, "stale"), etagMismatch},

		{"resolve: nothing", resolve(w.platform, "", 0), invalidFields("phase", "project")},
		{"resolve: unknown phase", resolve(w.platform, stack, 99), invalidFields("phase")},
		{"resolve: no project", resolve(w.vault, none, typev1.Phase_PHASE_PLANNING), notFound(none)},
		{"resolve: nothing attached", resolve(w.vault, module, typev1.Phase_PHASE_APPLYING), refusal{code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED", subject: module, metadata: "access=WRITE", says: "attach an integration to it for WRITE"}},
		{"resolve: no subscription", resolve(w.vault, module, typev1.Phase_PHASE_PLANNING), refusal{code: codes.FailedPrecondition, reason: "NO_SUBSCRIPTION", subject: module + "/attachments/bare", metadata: "integration=" + bare}},
		{"resolve: broker", resolve(w.broker, stack, typev1.Phase_PHASE_PLANNING), callerRefused},
		{"resolve: another account", resolve(w.limited, "accounts/umbrella/projects/x", typev1.Phase_PHASE_PLANNING), otherAccount},

		{"report: nothing", report(w.vault, &registryv1.ReportConditionsRequest{}), invalidFields("integration_uid", "mastership")},
		{"report: bad", report(w.vault, &registryv1.ReportConditionsRequest{
			IntegrationUid: spareUID, ClientId: "x", Mastership: &registryv1.Mastership{Shard: -1},
			Conditions: []*registryv1.Condition{{Reason: "no word"}},
		}), invalidFields("client_id", "conditions[0].reason", "conditions[0].status", "conditions[0].type", "mastership.epoch", "mastership.holder", "mastership.shard")},
		{"report: a condition twice", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(5, holder), Conditions: []*registryv1.Condition{ready, ready}}), invalidFields("conditions[1].type")},
		{"report: none", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: nobody, Mastership: master(5, holder), Conditions: []*registryv1.Condition{ready}}), notFound("integration " + nobody)},
		{"report: removed, though wanted", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(5, holder), ApplicationRemoved: true}), invalidFields("application_removed")},
		{"report: older epoch", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(4, holder), Conditions: []*registryv1.Condition{ready}}), refusal{code: codes.FailedPrecondition, reason: "REPORT_FENCED", subject: "shard 1"}},
		{"report: older epoch of another shard", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: &registryv1.Mastership{Shard: 3, Epoch: 4, Holder: otherHolder}, Conditions: []*registryv1.Condition{ready}}), refusal{code: codes.FailedPrecondition, reason: "REPORT_FENCED", subject: "integration " + spareUID}},
		{"report: same epoch, another holder", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(5, otherHolder), Conditions: []*registryv1.Condition{ready}}), refusal{code: codes.FailedPrecondition, reason: "REPORT_FENCED"}},
		{"report: an epoch of the far future", report(w.vault, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(1<<62, holder), Conditions: []*registryv1.Condition{ready}}), invalidFields("mastership.epoch")},
		{"report: operator", report(w.operator, &registryv1.ReportConditionsRequest{IntegrationUid: spareUID, Mastership: master(5, holder)}), callerRefused},

		{"watch: nothing", follow(w.vault, ""), invalidFields("cursor")},
		{"watch: garbage", follow(w.vault, "garbage"), badCursor},
		{"watch: foreign", follow(w.vault, resource.Position{Incarnation: nobody, Revision: 1}.Cursor()), badCursor},
		{"watch: future", follow(w.vault, resource.Position{Incarnation: here.Incarnation, Revision: 1_000_000}.Cursor()), badCursor},
		{"watch: platform", follow(w.platform, here.Cursor()), callerRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := w.head(t)
			tt.want.check(t, tt.call(t.Context()))
			if after := w.head(t); after != before {
				t.Errorf("something was stored: revision %d, then %d", before, after)
			}
		})
	}
}

// Whoever takes the last label away, or sets auto_attach before there is one, is told so, in whatever order.
func TestRefusals_AttachedByItselfToNothing(t *testing.T) {
	w := newWorld(t)
	name := w.integration(t, "acme", "auto").GetName()
	for _, step := range []struct {
		name   string
		labels []string
		auto   bool
		mask   []string
		want   string // the field that is refused
	}{
		{"switched on, without a label", nil, true, []string{"auto_attach"}, "integration.auto_attach"},
		{"another label", []string{"prod"}, false, []string{"labels"}, ""},
		{"switched on, without one that attaches", nil, true, []string{"auto_attach"}, "integration.auto_attach"},
		{"both, but the label is wrong", []string{"autoattach: prod"}, true, []string{"labels", "auto_attach"}, "integration.labels"},
		{"the label first", []string{"autoattach:prod"}, false, []string{"labels"}, ""},
		{"and then switched on", nil, true, []string{"auto_attach"}, ""},
		{"the last label gone", nil, false, []string{"labels"}, "integration.auto_attach"},
		{"all labels gone that attach", []string{"prod"}, false, []string{"labels"}, "integration.auto_attach"},
		{"another one", []string{"autoattach:dev", "prod"}, false, []string{"labels"}, ""},
		{"the last label gone, and switched off", nil, false, []string{"labels", "auto_attach"}, ""},
		{"both at once", []string{"autoattach:prod"}, true, []string{"auto_attach", "labels"}, ""},
		{"switched off first", nil, false, []string{"auto_attach"}, ""},
		{"and then the label", nil, false, []string{"labels"}, ""},
	} {
		_, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{
			Integration: &registryv1.Integration{Name: name, Labels: step.labels, AutoAttach: step.auto}, UpdateMask: paths(step.mask...),
		})
		switch {
		case step.want != "":
			invalidFields(step.want).check(t, err)
		case err != nil:
			t.Errorf("%s: %v", step.name, err)
		}
	}
}

func TestRefusals_RequestIDReused(t *testing.T) {
	w := refusingWorld(t)
	ctx := t.Context()
	want := refusal{code: codes.AlreadyExists, reason: "REQUEST_ID_REUSED", metadata: "requestId=" + requestID}

	req := &registryv1.CreateIntegrationRequest{Parent: "accounts/acme", IntegrationId: "new", Integration: newIntegration(), RequestId: strings.ToUpper(requestID)}
	first, err := w.platform.integrations.CreateIntegration(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	req.RequestId = requestID // a UUID is the same in any case
	again, err := w.platform.integrations.CreateIntegration(ctx, req)
	if err != nil || again.GetUid() != first.GetUid() {
		t.Fatalf("repeat: %v, %v", again, err)
	}
	req.Integration.DisplayName = "other"
	_, err = w.platform.integrations.CreateIntegration(ctx, req)
	want.check(t, err)

	project := &registryv1.CreateProjectRequest{Parent: "accounts/acme", ProjectId: "new", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK}, RequestId: requestID}
	if _, err := w.platform.projects.CreateProject(ctx, project); err != nil {
		t.Fatal(err)
	}
	project.ProjectId = "newer"
	_, err = w.platform.projects.CreateProject(ctx, project)
	want.check(t, err)

	attachment := &registryv1.CreateAttachmentRequest{Parent: "accounts/acme/projects/new", Attachment: &registryv1.Attachment{Integration: spare}, RequestId: requestID}
	if _, err := w.platform.attachments.CreateAttachment(ctx, attachment); err != nil {
		t.Fatal(err)
	}
	attachment.Attachment.SubscriptionId = subscription
	_, err = w.platform.attachments.CreateAttachment(ctx, attachment)
	want.check(t, err)
}
