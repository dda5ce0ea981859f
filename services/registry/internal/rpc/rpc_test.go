package rpc_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/services/registry/internal/resource"
)

func wantMessage(t *testing.T, want, got proto.Message, ignore ...protoFields) {
	t.Helper()
	options := []cmp.Option{protocmp.Transform()}
	for _, i := range ignore {
		options = append(options, protocmp.IgnoreFields(i.of, i.names...))
	}
	if diff := cmp.Diff(want, got, options...); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

type protoName = protoreflect.Name

type protoFields struct {
	of    proto.Message
	names []protoName
}

func TestIntegration_Lifecycle(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	created, err := w.limited.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
		Parent: "accounts/acme", IntegrationId: "net",
		Integration: &registryv1.Integration{
			Name: "accounts/acme/integrations/ignored", DisplayName: "Net", TenantId: strings.ToUpper(tenant),
			AllowedAudiences:  []string{"https://vault.example", "api://app"},
			DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET, typev1.Material_MATERIAL_ACCESS_TOKEN},
			Uid:               "ignored", State: registryv1.Integration_STATE_ACTIVE, ClientId: "ignored", Etag: "ignored",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if created.GetUid() == "ignored" || created.GetEtag() == "" || created.GetCreateTime() == nil {
		t.Fatalf("created %v", created)
	}
	want := &registryv1.Integration{
		Name: "accounts/acme/integrations/net", Uid: created.GetUid(), DisplayName: "Net", TenantId: tenant, Cloud: "public",
		CredentialKind: typev1.CredentialKind_CREDENTIAL_KIND_CLIENT_SECRET, AllowedAudiences: []string{"api://app", "https://vault.example"},
		DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_CLIENT_SECRET},
		RotationPeriod:    durationpb.New(24 * time.Hour), State: registryv1.Integration_STATE_PROVISIONING, Etag: created.GetEtag(),
		CreateTime: created.GetCreateTime(), UpdateTime: created.GetCreateTime(),
	}
	wantMessage(t, want, created)
	for name, c := range map[string]clients{"limited": w.limited, "operator": w.operator, "vault": w.vault, "broker": w.broker} {
		got, err := c.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: want.GetName()})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantMessage(t, want, got)
	}

	report := func(change func(*registryv1.ReportConditionsRequest)) {
		t.Helper()
		req := &registryv1.ReportConditionsRequest{IntegrationUid: created.GetUid(), Mastership: &registryv1.Mastership{Epoch: 1, Holder: holder}}
		change(req)
		if _, err := w.vault.status.ReportConditions(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	get := func() *registryv1.Integration {
		t.Helper()
		got, err := w.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: want.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	report(func(r *registryv1.ReportConditionsRequest) {
		r.ApplicationDisplayName, r.ClientId = "phasekey Net 1234", nobody
		r.Conditions = []*registryv1.Condition{{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: registryv1.Condition_STATUS_TRUE, Reason: "Replicated", Message: "everywhere"}}
	})
	got := get()
	if got.GetState() != registryv1.Integration_STATE_AWAITING_CONSENT || got.GetEtag() != created.GetEtag() || got.GetClientId() != nobody ||
		got.GetConditions()[0].GetReason() != "Replicated" || got.GetConditions()[0].GetLastTransitionTime() == nil {
		t.Fatalf("reported: %v", got)
	}
	report(func(r *registryv1.ReportConditionsRequest) {
		r.ServicePrincipalObjectId = otherHolder
		r.Conditions = []*registryv1.Condition{
			{Type: registryv1.Condition_TYPE_CREDENTIAL_READY, Status: registryv1.Condition_STATUS_TRUE},
			{Type: registryv1.Condition_TYPE_CONSENTED, Status: registryv1.Condition_STATUS_TRUE},
		}
	})
	if got := get(); got.GetState() != registryv1.Integration_STATE_ACTIVE || got.GetServicePrincipalObjectId() != otherHolder {
		t.Fatalf("reported: %v", got)
	}

	deleted, err := w.limited.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: want.GetName(), Etag: created.GetEtag()})
	if err != nil || deleted.GetState() != registryv1.Integration_STATE_DELETING || deleted.GetDeleteTime() == nil {
		t.Fatalf("deleted: %v, %v", deleted, err)
	}
	wantMessage(t, deleted, get())
	report(func(r *registryv1.ReportConditionsRequest) { r.ApplicationRemoved = true })
	_, err = w.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: want.GetName()})
	notFound(want.GetName()).check(t, err)
	if again := w.integration(t, "acme", "net"); again.GetUid() == created.GetUid() {
		t.Fatal("a UID was used again")
	}
}

func TestUpdateIntegration_Masks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mask   *fieldmaskpb.FieldMask
		given  func(i *registryv1.Integration)
		change func(i *registryv1.Integration) // of the result, against what was created
	}{
		{"one field", paths("display_name"),
			func(i *registryv1.Integration) { i.DisplayName, i.DefaultSubscriptionId = "New", nobody },
			func(i *registryv1.Integration) { i.DisplayName = "New" }},
		{"a field cleared", paths("default_subscription_id", "etag"),
			func(i *registryv1.Integration) { i.DisplayName, i.DefaultSubscriptionId = "New", "" },
			func(i *registryv1.Integration) { i.DefaultSubscriptionId = "" }},
		{"the audiences replaced", paths("allowed_audiences"),
			func(i *registryv1.Integration) { i.AllowedAudiences = []string{"https://c.example"} },
			func(i *registryv1.Integration) { i.AllowedAudiences = []string{"https://c.example"} }},
		{"the materials replaced", paths("delivery_materials"),
			func(i *registryv1.Integration) {
				i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}
			},
			func(i *registryv1.Integration) {
				i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}
			}},
		{"the materials cleared", paths("delivery_materials"),
			func(i *registryv1.Integration) { i.DisplayName = "New" },
			func(i *registryv1.Integration) { i.DeliveryMaterials = nil }},
		{"the materials set to what none means", nil,
			func(i *registryv1.Integration) {
				i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN}
			},
			func(i *registryv1.Integration) { i.DeliveryMaterials = nil }},
		{"back to the default period", paths("rotation_period"),
			func(i *registryv1.Integration) { i.RotationPeriod = nil },
			func(i *registryv1.Integration) { i.RotationPeriod = durationpb.New(24 * time.Hour) }},
		{"part of a period", paths("rotation_period.seconds"),
			func(i *registryv1.Integration) { i.RotationPeriod = durationpb.New(3 * time.Hour) },
			func(i *registryv1.Integration) { i.RotationPeriod = durationpb.New(3*time.Hour + time.Millisecond) }},
		{"what is set", nil,
			func(i *registryv1.Integration) {
				i.DisplayName, i.DefaultSubscriptionId, i.RotationPeriod = "New", "", durationpb.New(5*time.Hour)
			},
			func(i *registryv1.Integration) { i.DisplayName, i.RotationPeriod = "New", durationpb.New(5*time.Hour) }},
		{"what is set, an empty mask", paths(),
			func(i *registryv1.Integration) { i.DisplayName = "New" },
			func(i *registryv1.Integration) { i.DisplayName = "New" }},
		{"what is set, output fields and all", nil,
			func(i *registryv1.Integration) {
				i.DisplayName, i.Uid, i.State, i.ClientId, i.Cloud = "New", nobody, registryv1.Integration_STATE_ACTIVE, nobody, "public"
				i.TenantId = strings.ToUpper(tenant)
			},
			func(i *registryv1.Integration) { i.DisplayName = "New" }},
		{"everything", paths("*"),
			func(i *registryv1.Integration) {
				i.DisplayName, i.DefaultSubscriptionId, i.AllowedAudiences = "New", "", nil
			},
			func(i *registryv1.Integration) {
				i.DisplayName, i.DefaultSubscriptionId, i.AllowedAudiences, i.RotationPeriod = "New", "", nil, durationpb.New(24*time.Hour)
				i.DeliveryMaterials = nil
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			created, err := w.platform.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
				Parent: "accounts/acme", IntegrationId: "net",
				Integration: changed(func(i *registryv1.Integration) {
					i.AllowedAudiences, i.RotationPeriod = []string{"https://a.example", "https://b.example"}, durationpb.New(2*time.Hour+time.Millisecond)
					i.DeliveryMaterials = []typev1.Material{typev1.Material_MATERIAL_ACCESS_TOKEN, typev1.Material_MATERIAL_CLIENT_SECRET}
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			given := changed(tt.given)
			given.Name, given.Etag = created.GetName(), created.GetEtag()
			want := proto.CloneOf(created)
			tt.change(want)
			updated, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{Integration: given, UpdateMask: tt.mask})
			if err != nil {
				t.Fatal(err)
			}
			wantMessage(t, want, updated, protoFields{created, []protoName{"etag", "update_time"}})
			if updated.GetEtag() == created.GetEtag() || w.head(t) != 2 {
				t.Fatalf("etag %s, then %s; head %d", created.GetEtag(), updated.GetEtag(), w.head(t))
			}
			// What was read, sent back as it is, changes nothing.
			same, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{Integration: updated})
			if err != nil || w.head(t) != 2 {
				t.Fatalf("sent back: %v, head %d", err, w.head(t))
			}
			wantMessage(t, updated, same)
		})
	}
}

func TestProject_Lifecycle(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	created := w.project(t, "acme", "stack")
	got, err := w.vault.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: created.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, created, got)
	updated, err := w.limited.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
		Project: &registryv1.Project{Name: created.GetName(), Kind: created.GetKind(), DisplayName: "Stack", Etag: created.GetEtag()}, UpdateMask: paths("display_name"),
	})
	if err != nil || updated.GetDisplayName() != "Stack" || updated.GetEtag() == created.GetEtag() {
		t.Fatalf("updated: %v, %v", updated, err)
	}
	made, err := w.limited.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
		Project:    &registryv1.Project{Name: "accounts/acme/projects/made", Kind: registryv1.Project_KIND_MODULE, DisplayName: "Made"},
		UpdateMask: paths("display_name"), AllowMissing: true,
	})
	if err != nil || made.GetKind() != registryv1.Project_KIND_MODULE || made.GetDisplayName() != "Made" {
		t.Fatalf("made: %v, %v", made, err)
	}
	w.integration(t, "acme", "net")
	w.attachment(t, created.GetName(), "accounts/acme/integrations/net")
	if _, err := w.limited.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: created.GetName(), Force: true, Etag: updated.GetEtag()}); err != nil {
		t.Fatal(err)
	}
	_, err = w.platform.attachments.GetAttachment(ctx, &registryv1.GetAttachmentRequest{Name: created.GetName() + "/attachments/net"})
	notFound(created.GetName()+"/attachments/net").check(t, err)
	_, err = w.platform.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: created.GetName()})
	notFound(created.GetName()).check(t, err)
}

func TestAttachment_LifecycleAndResolve(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	project := w.project(t, "acme", "stack")
	net, other := w.integration(t, "acme", "net"), w.integration(t, "acme", "other")
	created := w.attachment(t, project.GetName(), net.GetName())
	want := &registryv1.Attachment{
		Name: project.GetName() + "/attachments/net", Uid: created.GetUid(), Integration: net.GetName(), IntegrationUid: net.GetUid(),
		ProjectUid: project.GetUid(), Accesses: []typev1.Access{typev1.Access_ACCESS_READ, typev1.Access_ACCESS_WRITE},
		Etag: created.GetEtag(), CreateTime: created.GetCreateTime(), UpdateTime: created.GetCreateTime(),
	}
	wantMessage(t, want, created)
	updated, err := w.limited.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{
		Attachment: &registryv1.Attachment{Name: created.GetName(), Integration: net.GetName(), Accesses: []typev1.Access{typev1.Access_ACCESS_READ}, Etag: created.GetEtag()},
	})
	if err != nil || len(updated.GetAccesses()) != 1 || updated.GetEtag() == created.GetEtag() {
		t.Fatalf("updated: %v, %v", updated, err)
	}
	writes, err := w.limited.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
		Parent:     project.GetName(),
		Attachment: &registryv1.Attachment{Integration: other.GetName(), Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}, SubscriptionId: strings.ToUpper(nobody)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for phase, want := range map[typev1.Phase]*registryv1.ResolveAccessResponse{
		typev1.Phase_PHASE_INITIALIZING: {Access: typev1.Access_ACCESS_READ},
		typev1.Phase_PHASE_PLANNING:     {Access: typev1.Access_ACCESS_READ},
		typev1.Phase_PHASE_APPLYING:     {Access: typev1.Access_ACCESS_WRITE},
		typev1.Phase_PHASE_DESTROYING:   {Access: typev1.Access_ACCESS_WRITE},
		typev1.Phase_PHASE_PERFORMING:   {Access: typev1.Access_ACCESS_WRITE},
		typev1.Phase_PHASE_TESTING:      {Access: typev1.Access_ACCESS_WRITE},
	} {
		t.Run(phase.String(), func(t *testing.T) {
			a, i, subscription := updated, net, subscription
			if want.GetAccess() == typev1.Access_ACCESS_WRITE {
				a, i, subscription = writes, other, nobody
			}
			want.Integration, want.IntegrationUid, want.ProjectUid = i.GetName(), i.GetUid(), project.GetUid()
			want.Attachment, want.AttachmentUid, want.TenantId, want.SubscriptionId = a.GetName(), a.GetUid(), tenant, subscription
			want.Incarnation, want.Revision = w.store.Incarnation(), w.head(t)
			for _, c := range []clients{w.vault, w.limited, w.operator} {
				got, err := c.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project.GetName(), Phase: phase})
				if err != nil {
					t.Fatal(err)
				}
				wantMessage(t, want, got)
			}
		})
	}
	if _, err := w.limited.attachments.DeleteAttachment(ctx, &registryv1.DeleteAttachmentRequest{Name: writes.GetName(), Etag: writes.GetEtag()}); err != nil {
		t.Fatal(err)
	}
	_, err = w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project.GetName(), Phase: typev1.Phase_PHASE_APPLYING})
	refusal{code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED", metadata: "access=WRITE"}.check(t, err)
	if _, err := w.limited.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: net.GetName(), Force: true}); err != nil {
		t.Fatal(err)
	}
	_, err = w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: project.GetName(), Phase: typev1.Phase_PHASE_PLANNING})
	refusal{code: codes.FailedPrecondition, reason: "NOTHING_ATTACHED", metadata: "access=READ"}.check(t, err)
}

func TestLists_PageByPage(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var want [3][]string
	for i := range 5 {
		id := fmt.Sprint("r", i)
		want[0] = append(want[0], w.integration(t, "acme", id).GetName())
		want[1] = append(want[1], w.project(t, "acme", id).GetName())
		want[2] = append(want[2], w.attachment(t, "accounts/acme/projects/"+id, "accounts/acme/integrations/"+id).GetName())
	}
	w.integration(t, "umbrella", "r0")

	type page struct {
		names        []string
		next, cursor string
		revision     int64
	}
	lists := []func(parent, token string, size int32) (page, error){
		func(parent, token string, size int32) (page, error) {
			got, err := w.limited.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: parent, PageToken: token, PageSize: size})
			p := page{next: got.GetNextPageToken(), cursor: got.GetCursor(), revision: got.GetRevision()}
			for _, i := range got.GetIntegrations() {
				p.names = append(p.names, i.GetName())
			}
			return p, err
		},
		func(parent, token string, size int32) (page, error) {
			got, err := w.limited.projects.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: parent, PageToken: token, PageSize: size})
			p := page{next: got.GetNextPageToken(), cursor: got.GetCursor(), revision: got.GetRevision()}
			for _, i := range got.GetProjects() {
				p.names = append(p.names, i.GetName())
			}
			return p, err
		},
		func(parent, token string, size int32) (page, error) {
			got, err := w.limited.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: parent + "/projects/-", PageToken: token, PageSize: size})
			p := page{next: got.GetNextPageToken(), cursor: got.GetCursor(), revision: got.GetRevision()}
			for _, i := range got.GetAttachments() {
				p.names = append(p.names, i.GetName())
			}
			return p, err
		},
	}
	for i, list := range lists {
		for _, size := range []int32{0, 1, 2, 5, 5000} {
			t.Run(fmt.Sprintf("%d by %d", i, size), func(t *testing.T) {
				var names []string
				token := ""
				for {
					p, err := list("accounts/acme", token, size)
					if err != nil {
						t.Fatal(err)
					}
					if p.revision != w.head(t) || p.cursor != (resource.Position{Incarnation: w.store.Incarnation(), Revision: p.revision}).Cursor() {
						t.Fatalf("page is of %d, cursor %s", p.revision, p.cursor)
					}
					names = append(names, p.names...)
					if token = p.next; token == "" {
						break
					}
				}
				if diff := cmp.Diff(want[i], names); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
			})
		}
	}
	// Who has no limit may list all accounts.
	for _, c := range []clients{w.platform, w.vault, w.operator} {
		got, err := c.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
		if err != nil || len(got.GetIntegrations()) != 6 {
			t.Fatalf("got %d integrations, %v", len(got.GetIntegrations()), err)
		}
	}
}

// TestLists_BoundBytes: a page of the largest integrations that there can be, and a batch of as many as may be, stay below what clients usually take, a page not by much.
func TestLists_BoundBytes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const widest = "\U00010400" // a letter of four bytes
	big := newIntegration()
	big.DisplayName = strings.Repeat(widest, 60)
	for i := range 20 {
		big.AllowedAudiences = append(big.AllowedAudiences, fmt.Sprintf("https://a%02d%s", i, strings.Repeat("x", 200-len("https://a00"))))
	}
	for i := range 50 {
		big.Labels = append(big.Labels, fmt.Sprintf("%02d%s", i, strings.Repeat(widest, 78)))
	}
	const many = 150
	for i := range many {
		created, err := w.platform.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: "accounts/acme", IntegrationId: fmt.Sprint("i", i), Integration: big})
		if err != nil {
			t.Fatal(err)
		}
		req := &registryv1.ReportConditionsRequest{
			IntegrationUid: created.GetUid(), Mastership: &registryv1.Mastership{Epoch: 1, Holder: holder}, ApplicationDisplayName: strings.Repeat(widest, 256),
		}
		for kind := range registryv1.Condition_Type_name {
			if kind != 0 {
				req.Conditions = append(req.Conditions, &registryv1.Condition{
					Type: registryv1.Condition_Type(kind), Status: registryv1.Condition_STATUS_FALSE, Reason: strings.Repeat("X", 60), Message: strings.Repeat(widest, 1000),
				})
			}
		}
		if _, err := w.vault.status.ReportConditions(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	usual := grpc.MaxCallRecvMsgSize(4 << 20)
	seen, token := 0, ""
	batch := &registryv1.BatchGetIntegrationsRequest{Parent: "accounts/acme"}
	for {
		got, err := w.platform.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/acme", PageSize: 1000, PageToken: token}, usual)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(got.GetIntegrations())
		for _, i := range got.GetIntegrations()[:min(len(got.GetIntegrations()), 100-len(batch.GetNames()))] {
			batch.Names = append(batch.Names, i.GetName())
		}
		if token = got.GetNextPageToken(); token == "" {
			break
		}
		if size := proto.Size(got); size < 3<<20-64<<10 || size > 3<<20 {
			t.Errorf("a page of %d has %d bytes", len(got.GetIntegrations()), size)
		}
	}
	if seen != many {
		t.Fatalf("saw %d of %d", seen, many)
	}
	got, err := w.platform.integrations.BatchGetIntegrations(ctx, batch, usual)
	if err != nil || len(got.GetIntegrations()) != 100 {
		t.Errorf("a batch gave %d, %v", len(got.GetIntegrations()), err)
	}
	t.Logf("the largest integration has %d bytes, a batch of them %d", proto.Size(got.GetIntegrations()[0]), proto.Size(got))
	// The same for watching them all.
	stream, err := w.vault.watch.Watch(ctx, &registryv1.WatchRequest{Cursor: resource.Position{Incarnation: w.store.Incarnation()}.Cursor()}, usual)
	if err != nil {
		t.Fatal(err)
	}
	for events := 0; events < 2*many; {
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		events += len(got.GetEvents())
	}
}

// TestWatch_Steps is one story, told to a watcher step by step.
func TestWatch_Steps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx := t.Context()
		first, err := w.vault.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
		if err != nil {
			t.Fatal(err)
		}
		open := func(cursor string) registryv1.WatchService_WatchClient {
			stream, err := w.vault.watch.Watch(ctx, &registryv1.WatchRequest{Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			return stream
		}
		stream := open(first.GetCursor())
		cursor := first.GetCursor()
		var net *registryv1.Integration
		for _, step := range []struct {
			name string
			do   func()
			// want are the events of the next message: kind, name, state or "deleted".
			want []string
		}{
			{"a bookmark at once", func() {}, nil},
			{"create", func() { net = w.integration(t, "acme", "net") }, []string{"integration accounts/acme/integrations/net PROVISIONING"}},
			{"allow the secret to be delivered", func() {
				if _, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
					Integration: &registryv1.Integration{Name: net.GetName(), DeliveryMaterials: []typev1.Material{typev1.Material_MATERIAL_CLIENT_SECRET}},
					UpdateMask:  paths("delivery_materials"),
				}); err != nil {
					t.Fatal(err)
				}
			}, []string{"integration accounts/acme/integrations/net PROVISIONING CLIENT_SECRET"}},
			{"a project", func() { w.project(t, "acme", "stack") }, []string{"project accounts/acme/projects/stack"}},
			{"attach", func() { w.attachment(t, stack, net.GetName()) }, []string{"attachment accounts/acme/projects/stack/attachments/net"}},
			{"a bookmark while idle", func() { time.Sleep(5 * time.Second) }, nil},
			{"report", func() {
				w.report(t, net.GetUid(), &registryv1.Condition{Type: registryv1.Condition_TYPE_APPLICATION_READY, Status: registryv1.Condition_STATUS_TRUE})
			}, []string{"integration accounts/acme/integrations/net AWAITING_CONSENT CLIENT_SECRET"}},
			{"another account", func() { w.project(t, "umbrella", "stack") }, []string{"project accounts/umbrella/projects/stack"}},
			{"resume after a break", func() { stream = open(cursor) }, nil},
			{"delete by force", func() {
				if _, err := w.platform.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: net.GetName(), Force: true}); err != nil {
					t.Fatal(err)
				}
			}, []string{"attachment accounts/acme/projects/stack/attachments/net deleted", "integration accounts/acme/integrations/net DELETING CLIENT_SECRET"}},
			{"gone", func() {
				if _, err := w.vault.status.ReportConditions(ctx, &registryv1.ReportConditionsRequest{
					IntegrationUid: net.GetUid(), Mastership: &registryv1.Mastership{Epoch: 1, Holder: holder}, ApplicationRemoved: true,
				}); err != nil {
					t.Fatal(err)
				}
			}, []string{"integration accounts/acme/integrations/net DELETING CLIENT_SECRET deleted"}},
			{"an update of nothing, then a bookmark", func() {
				if _, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: stack, Kind: registryv1.Project_KIND_STACK}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
			}, nil},
		} {
			step.do()
			got, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			cursor = got.GetCursor()
			if diff := cmp.Diff(step.want, describe(got)); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", step.name, diff)
			}
			if got.GetRevision() != w.head(t) || got.GetIncarnation() != w.store.Incarnation() {
				t.Fatalf("%s: revision %d, incarnation %s", step.name, got.GetRevision(), got.GetIncarnation())
			}
		}

		// From the beginning, everything again; from a compacted revision, nothing.
		got, err := open(first.GetCursor()).Recv()
		if err != nil || len(got.GetEvents()) != 9 {
			t.Fatalf("again: %d events, %v", len(got.GetEvents()), err)
		}
		for i, e := range got.GetEvents() {
			if e.GetRevision() != int64(i)+1 {
				t.Fatalf("event %d has revision %d", i, e.GetRevision())
			}
		}
		if err := w.store.Compact(ctx, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		_, err = open(first.GetCursor()).Recv()
		badCursor.check(t, err)
		if got, err := open(cursor).Recv(); err != nil || got.GetCursor() != cursor {
			t.Fatalf("from the newest: %v, %v", got, err)
		}

		// The server stops.
		if err := w.server.Stop(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		refusal{code: codes.Unavailable, reason: "DRAINING"}.check(t, err)
	})
}

func (w *world) report(t *testing.T, uid string, conditions ...*registryv1.Condition) {
	t.Helper()
	if _, err := w.vault.status.ReportConditions(t.Context(), &registryv1.ReportConditionsRequest{
		IntegrationUid: uid, Mastership: &registryv1.Mastership{Epoch: 1, Holder: holder}, Conditions: conditions,
	}); err != nil {
		t.Fatal(err)
	}
}

func describe(m *registryv1.WatchResponse) []string {
	var all []string
	for _, e := range m.GetEvents() {
		var text string
		switch r := e.GetResource().(type) {
		case *registryv1.Event_Integration:
			text = "integration " + r.Integration.GetName() + " " + strings.TrimPrefix(r.Integration.GetState().String(), "STATE_")
			for _, material := range r.Integration.GetDeliveryMaterials() {
				text += " " + strings.TrimPrefix(material.String(), "MATERIAL_")
			}
		case *registryv1.Event_Project:
			text = "project " + r.Project.GetName()
		case *registryv1.Event_Attachment:
			text = "attachment " + r.Attachment.GetName()
		}
		if e.GetDeleted() {
			text += " deleted"
		}
		all = append(all, text)
	}
	return all
}

func TestUpdate_NeedsNoMoreThanItsMask(t *testing.T) {
	w := newWorld(t)
	project := w.project(t, "acme", "stack")
	integration := w.integration(t, "acme", "net")
	attachment := w.attachment(t, project.GetName(), integration.GetName())
	ctx := t.Context()

	i, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: integration.GetName(), AllowedAudiences: []string{"https://vault.azure.net", "6dae42f8-4368-4678-94ff-3960e28e3630"}}, UpdateMask: paths("allowed_audiences"),
	})
	if err != nil || len(i.GetAllowedAudiences()) != 2 || i.GetDisplayName() != integration.GetDisplayName() {
		t.Errorf("integration: %v, %v", i, err)
	}
	p, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
		Project: &registryv1.Project{Name: project.GetName(), DisplayName: "Stack"}, UpdateMask: paths("display_name"),
	})
	if err != nil || p.GetDisplayName() != "Stack" || p.GetKind() != project.GetKind() {
		t.Errorf("project: %v, %v", p, err)
	}
	a, err := w.platform.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{
		Attachment: &registryv1.Attachment{Name: attachment.GetName(), SubscriptionId: subscription}, UpdateMask: paths("subscription_id"),
	})
	if err != nil || a.GetSubscriptionId() != subscription || a.GetIntegration() != integration.GetName() {
		t.Errorf("attachment: %v, %v", a, err)
	}
}
