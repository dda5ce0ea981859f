package rpc_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// FuzzMask: whatever a mask says, an update is refused as invalid and changes nothing, or changes only fields that the mask names, and
// none that is output only or cannot be changed. A mask by which nothing can be updated creates nothing either.
func FuzzMask(f *testing.F) {
	for _, seed := range []string{
		"display_name", "display_name,default_subscription_id", "*", "", "rotation_period.seconds", "rotation_period.nanos,etag", "state", "name", "uid",
		"conditions.status", "allowed_audiences.x", "allowed_audiences[0]", "allowed_audiences.0", "delivery_materials", ".", "..", "display_name.", "*,*",
		"*,display_name", "*.seconds", "conditions.*", "nothing", "displayName", "rotation_period.seconds.x", "\u202e", "labels,auto_attach", "labels.*",
		"tenant_id", "kind", "integration", "accesses", "subscription_id,accesses", "etag", "create_time.seconds", "display_name,display_name", " display_name",
		"integration.display_name", "`display_name`",
	} {
		f.Add(seed, "New")
	}
	w, round := newWorld(f), 0
	f.Fuzz(func(t *testing.T, mask, text string) {
		ctx := t.Context()
		// Each has an account to itself.
		round++
		account := fmt.Sprint("a", round)
		integration, project := w.integration(t, account, "net"), w.project(t, account, "stack")
		attachment := w.attachment(t, project.GetName(), integration.GetName())
		head := w.head(t)
		var named []string
		if mask != "" {
			named = strings.Split(mask, ",")
		}
		whole := mask == "" || mask == "*"
		judge := func(created, updated proto.Message, err error) {
			t.Helper()
			what := created.ProtoReflect().Descriptor()
			if err != nil {
				// Text that is not UTF-8 does not even leave the client.
				if code := status.Code(err); code != codes.InvalidArgument && code != codes.Internal || w.head(t) != head {
					t.Fatalf("%s, mask %q: %v, head %d of %d", what.Name(), mask, err, w.head(t), head)
				}
				return
			}
			head = w.head(t)
			for i := range what.Fields().Len() {
				field := what.Fields().Get(i)
				if field.Name() == "etag" || field.Name() == "update_time" || updated.ProtoReflect().Get(field).Equal(created.ProtoReflect().Get(field)) {
					continue
				}
				declared, _ := proto.GetExtension(field.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
				fixed := slices.ContainsFunc(declared, func(b annotations.FieldBehavior) bool {
					return b == annotations.FieldBehavior_OUTPUT_ONLY || b == annotations.FieldBehavior_IMMUTABLE || b == annotations.FieldBehavior_IDENTIFIER
				})
				isNamed := slices.ContainsFunc(named, func(p string) bool {
					root, _, _ := strings.Cut(p, ".")
					return field.Name() == protoreflect.Name(root)
				})
				if fixed || !whole && !isNamed {
					t.Fatalf("mask %q changed %s", mask, field.FullName())
				}
			}
		}

		i := proto.CloneOf(integration)
		i.DisplayName, i.DefaultSubscriptionId, i.Labels, i.AutoAttach = text, nobody, []string{"autoattach:x"}, true
		i.RotationPeriod, i.AllowedAudiences = durationpb.New(3600e9+5e6), []string{"https://new.example"}
		i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}
		i.State, i.ClientId, i.CreateTime = registryv1.Integration_STATE_ACTIVE, nobody, nil
		gotIntegration, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: i, UpdateMask: paths(named...)})
		judge(integration, gotIntegration, err)

		p := proto.CloneOf(project)
		p.DisplayName, p.Labels, p.Uid, p.CreateTime = text, []string{"x"}, nobody, nil
		gotProject, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: p, UpdateMask: paths(named...), AllowMissing: true})
		judge(project, gotProject, err)

		a := proto.CloneOf(attachment)
		a.Accesses, a.SubscriptionId, a.IntegrationUid, a.ProjectUid = []typev1.Access{typev1.Access_ACCESS_READ}, nobody, nobody, nobody
		gotAttachment, err := w.platform.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: a, UpdateMask: paths(named...)})
		judge(attachment, gotAttachment, err)

		// What is created is all that is given, whatever the mask names.
		_, maskErr := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
			Project: &registryv1.Project{Name: project.GetName(), Kind: project.GetKind(), DisplayName: "Other"}, UpdateMask: paths(named...),
		})
		created, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
			Project:    &registryv1.Project{Name: "accounts/" + account + "/projects/other", Kind: registryv1.Project_KIND_MODULE, DisplayName: "Other", Labels: []string{"y"}},
			UpdateMask: paths(named...), AllowMissing: true,
		})
		if status.Code(err) != status.Code(maskErr) {
			t.Fatalf("mask %q: an update is answered with %v, a creation with %v", mask, maskErr, err)
		}
		if err == nil && (created.GetKind() != registryv1.Project_KIND_MODULE || created.GetDisplayName() != "Other" || len(created.GetLabels()) != 1) {
			t.Fatalf("mask %q: created %v", mask, created)
		}
	})
}
