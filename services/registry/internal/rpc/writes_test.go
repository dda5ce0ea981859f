package rpc_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/store"
)

// everywhere runs a test on a peopled world on each engine.
func everywhere(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		w := newWorldOn(t, db, quota.Default())
		w.people(t)
		test(t, w)
	})
}

const (
	newcomer = "accounts/acme/integrations/newcomer"
	absent   = "accounts/acme/integrations/absent"
)

// write is a call that changes something, as what came of it.
type write struct {
	name    string
	creates bool
	call    func(ctx context.Context, validateOnly bool) (proto.Message, error)
}

// writes are one of each kind that succeed in a peopled world, in this order.
func (w *world) writes() []write {
	p := w.platform
	project := &registryv1.Project{Kind: registryv1.Project_KIND_STACK, Labels: []string{"b", "a"}}
	return []write{
		{"create an integration", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{Parent: "accounts/acme", IntegrationId: "newcomer", Integration: newIntegration(), RequestId: requestID, ValidateOnly: trial})
		}},
		{"create an integration by an update", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			i := newIntegration()
			i.Name = absent
			return p.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: i, UpdateMask: paths("labels"), AllowMissing: true, ValidateOnly: trial})
		}},
		{"update an integration", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: &registryv1.Integration{Name: spare, DisplayName: "Changed"}, UpdateMask: paths("display_name"), AllowMissing: true, ValidateOnly: trial})
		}},
		{"create a project", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{Parent: "accounts/acme", ProjectId: "newcomer", Project: project, RequestId: requestID, ValidateOnly: trial})
		}},
		{"create a project by an update", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			given := proto.CloneOf(project)
			given.Name = none
			return p.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: given, AllowMissing: true, ValidateOnly: trial})
		}},
		{"update a project", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: stack, Labels: []string{"x"}}, UpdateMask: paths("labels"), ValidateOnly: trial})
		}},
		{"attach", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{Parent: module, Attachment: &registryv1.Attachment{Integration: spare, Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}}, RequestId: requestID, ValidateOnly: trial})
		}},
		{"attach by an update", true, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: &registryv1.Attachment{Name: none + "/attachments/spare"}, UpdateMask: paths("accesses"), AllowMissing: true, ValidateOnly: trial})
		}},
		{"update an attachment", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: &registryv1.Attachment{Name: attached, SubscriptionId: nobody}, UpdateMask: paths("subscription_id"), AllowMissing: true, ValidateOnly: trial})
		}},
		{"detach", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.attachments.DeleteAttachment(ctx, &registryv1.DeleteAttachmentRequest{Name: attached, ValidateOnly: trial})
		}},
		{"delete a project", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: stack, Force: true, ValidateOnly: trial})
		}},
		{"delete an integration", false, func(ctx context.Context, trial bool) (proto.Message, error) {
			return p.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: bare, Force: true, ValidateOnly: trial})
		}},
	}
}

// everything is all there is, as it is read.
func (w *world) everything(t *testing.T) []string {
	t.Helper()
	var all []string
	integrations, err := w.vault.integrations.ListIntegrations(t.Context(), &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
	must(t, err)
	for _, one := range integrations.GetIntegrations() {
		all = append(all, one.String())
	}
	projects, err := w.vault.projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: "accounts/-"})
	must(t, err)
	for _, one := range projects.GetProjects() {
		all = append(all, one.String())
	}
	attachments, err := w.vault.attachments.ListAttachments(t.Context(), &registryv1.ListAttachmentsRequest{Parent: "accounts/-/projects/-"})
	must(t, err)
	for _, one := range attachments.GetAttachments() {
		all = append(all, one.String())
	}
	return all
}

// tagged is what can be told of a resource without knowing its kind.
type tagged interface {
	GetUid() string
	GetEtag() string
}

func TestValidateOnly_AnswersAsTheWriteWouldAndChangesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		for _, one := range w.writes() {
			before, at := w.everything(t), w.head(t)
			tried, err := one.call(t.Context(), true)
			if err != nil {
				t.Fatalf("%s, validated: %v", one.name, err)
			}
			if after := w.everything(t); w.head(t) != at || !slices.Equal(before, after) {
				t.Fatalf("%s, validated, changed %q to %q, revision %d to %d", one.name, before, after, at, w.head(t))
			}
			done, err := one.call(t.Context(), false)
			if err != nil || w.head(t) == at {
				t.Fatalf("%s: %v, head %d", one.name, err, w.head(t))
			}
			ignore := []protoFields{
				{&registryv1.Integration{}, []protoName{"create_time", "update_time", "delete_time", "etag"}},
				{&registryv1.Project{}, []protoName{"create_time", "update_time", "etag"}},
				{&registryv1.Attachment{}, []protoName{"create_time", "update_time", "etag"}},
			}
			if r, ok := tried.(tagged); ok && r.GetEtag() != "" {
				t.Errorf("%s, validated, gave the etag %q of what there is not", one.name, r.GetEtag())
			}
			if one.creates {
				if r := tried.(tagged); r.GetUid() != "" {
					t.Errorf("%s, validated, gave the UID %q of what there is not", one.name, r.GetUid())
				}
				for i := range ignore {
					ignore[i].names = append(ignore[i].names, "uid")
				}
			}
			wantMessage(t, done, tried, ignore...)
		}
	})
}

func TestValidateOnly_RemembersNoRequest(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		create := func(display string, trial bool) (*registryv1.Integration, error) {
			return w.platform.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
				Parent: "accounts/acme", IntegrationId: "newcomer", RequestId: requestID, ValidateOnly: trial,
				Integration: changed(func(i *registryv1.Integration) { i.DisplayName = display }),
			})
		}
		_, err := create("One", true)
		must(t, err)
		made, err := create("Two", false)
		must(t, err)
		// What was really asked is remembered, also when it is validated.
		again, err := create("Two", true)
		must(t, err)
		wantMessage(t, made, again, protoFields{&registryv1.Integration{}, []protoName{"etag"}})
		_, err = create("One", true)
		refusal{code: codes.AlreadyExists, reason: "REQUEST_ID_REUSED", metadata: "requestId=" + requestID}.check(t, err)
	})
}

func TestAllowMissing(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		ctx, p := t.Context(), w.platform
		update := func(change func(*registryv1.Integration)) (*registryv1.Integration, error) {
			i := changed(change)
			i.Name = absent
			return p.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: i, UpdateMask: paths("display_name"), AllowMissing: true})
		}
		attach := func(change func(*registryv1.Attachment)) (*registryv1.Attachment, error) {
			a := &registryv1.Attachment{Name: module + "/attachments/spare", Accesses: []typev1.Access{typev1.Access_ACCESS_WRITE}}
			change(a)
			return p.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: a, UpdateMask: paths("subscription_id"), AllowMissing: true})
		}
		head := w.head(t)
		for _, tt := range []struct {
			name string
			call func() error
			want refusal
		}{
			{"an integration, with an etag", func() error { _, err := update(func(i *registryv1.Integration) { i.Etag = "x" }); return err }, etagMismatch},
			{"an integration, without what creation needs", func() error { _, err := update(func(i *registryv1.Integration) { i.TenantId = "" }); return err }, invalidFields("integration.tenant_id")},
			{"an integration in a home tenant", func() error {
				_, err := update(func(i *registryv1.Integration) { i.TenantId = homeTenant })
				return err
			}, refusal{code: codes.InvalidArgument, reason: "HOME_TENANT", fields: []string{"integration.tenant_id"}}},
			{"an integration in another account", func() error {
				_, err := w.limited.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: changed(func(i *registryv1.Integration) { i.Name = "accounts/umbrella/integrations/x" }), AllowMissing: true})
				return err
			}, otherAccount},
			{"an integration that is being deleted", func() error {
				_, err := p.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: changed(func(i *registryv1.Integration) { i.Name = doomed }), AllowMissing: true})
				return err
			}, refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING", metadata: "name=" + doomed}},
			{"an attachment, with an etag", func() error { _, err := attach(func(a *registryv1.Attachment) { a.Etag = "x" }); return err }, etagMismatch},
			{"an attachment of another integration than its name's", func() error { _, err := attach(func(a *registryv1.Attachment) { a.Integration = writer }); return err }, invalidFields("attachment.integration")},
			{"an attachment to no project", func() error {
				_, err := attach(func(a *registryv1.Attachment) { a.Name = none + "/attachments/spare" })
				return err
			}, notFound(none)},
			{"an attachment of no integration", func() error {
				_, err := attach(func(a *registryv1.Attachment) { a.Name = module + "/attachments/absent" })
				return err
			}, notFound(absent)},
			{"an attachment of what is being deleted", func() error {
				_, err := attach(func(a *registryv1.Attachment) { a.Name = module + "/attachments/doomed" })
				return err
			}, refusal{code: codes.FailedPrecondition, reason: "INTEGRATION_DELETING", metadata: "name=" + doomed}},
			{"an attachment for a taken access", func() error { _, err := attach(func(a *registryv1.Attachment) { a.Accesses = nil }); return err }, refusal{code: codes.FailedPrecondition, reason: "ACCESS_TAKEN", metadata: "access=READ"}},
		} {
			t.Run(tt.name, func(t *testing.T) { tt.want.check(t, tt.call()) })
		}
		for name, call := range map[string]func() (proto.Message, error){
			"an integration": func() (proto.Message, error) {
				return p.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: absent, AllowMissing: true})
			},
			"an integration of an etag": func() (proto.Message, error) {
				return p.integrations.DeleteIntegration(ctx, &registryv1.DeleteIntegrationRequest{Name: absent, Etag: "x", AllowMissing: true})
			},
			"a project": func() (proto.Message, error) {
				return p.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: none, AllowMissing: true})
			},
			"an attachment": func() (proto.Message, error) {
				return p.attachments.DeleteAttachment(ctx, &registryv1.DeleteAttachmentRequest{Name: none + "/attachments/spare", AllowMissing: true})
			},
		} {
			got, err := call()
			must(t, err)
			if proto.Size(got) != 0 {
				t.Errorf("the deletion of %s that is not there says %v", name, got)
			}
		}
		// It allows what is missing, not what is stale.
		_, err := p.projects.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: stack, Etag: "x", AllowMissing: true})
		etagMismatch.check(t, err)
		if w.head(t) != head {
			t.Fatalf("something changed: revision %d, then %d", head, w.head(t))
		}
		made, err := update(func(i *registryv1.Integration) { i.Labels, i.AutoAttach = []string{"autoattach:prod"}, true })
		must(t, err)
		if made.GetTenantId() != tenant || !made.GetAutoAttach() || made.GetUid() == "" {
			t.Errorf("what was missing is %v: not all of it was taken", made)
		}
		// Its labels attach at once.
		_, err = p.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: module, Labels: []string{"prod"}}, UpdateMask: paths("labels")})
		must(t, err)
		resolved, err := w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: module, Phase: typev1.Phase_PHASE_APPLYING})
		if err != nil || resolved.GetIntegration() != absent {
			t.Fatalf("resolved %v, %v", resolved, err)
		}
		tied, err := attach(func(a *registryv1.Attachment) { a.Integration = spare })
		must(t, err)
		if tied.GetIntegration() != spare || tied.GetProjectUid() == "" || tied.GetIntegrationUid() == "" {
			t.Errorf("attached %v", tied)
		}
		// Now there is one, and the mask counts.
		same, err := attach(func(a *registryv1.Attachment) { a.Accesses, a.SubscriptionId = nil, nobody })
		must(t, err)
		if same.GetUid() != tied.GetUid() || len(same.GetAccesses()) != 1 || same.GetSubscriptionId() != nobody {
			t.Errorf("updated to %v", same)
		}
	})
}

func TestBatchGet(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		integrations := func(c clients, parent string, names ...string) ([]string, error) {
			got, err := c.integrations.BatchGetIntegrations(ctx, &registryv1.BatchGetIntegrationsRequest{Parent: parent, Names: names})
			var all []string
			for _, one := range got.GetIntegrations() {
				all = append(all, one.GetName())
			}
			return all, err
		}
		projects := func(c clients, parent string, names ...string) ([]string, error) {
			got, err := c.projects.BatchGetProjects(ctx, &registryv1.BatchGetProjectsRequest{Parent: parent, Names: names})
			var all []string
			for _, one := range got.GetProjects() {
				all = append(all, one.GetName())
			}
			return all, err
		}
		attachments := func(c clients, parent string, names ...string) ([]string, error) {
			got, err := c.attachments.BatchGetAttachments(ctx, &registryv1.BatchGetAttachmentsRequest{Parent: parent, Names: names})
			var all []string
			for _, one := range got.GetAttachments() {
				all = append(all, one.GetName())
			}
			return all, err
		}
		type get = func(c clients, parent string, names ...string) ([]string, error)
		const acme, umbrella = "accounts/acme", "accounts/umbrella"
		writes, bares := stack+"/attachments/writer", module+"/attachments/bare"
		many := slices.Repeat([]string{spare}, 101)
		for i := range many {
			many[i] += strings.Repeat("x", i%50) + strings.Repeat("y", i/50)
		}
		for _, tt := range []struct {
			name   string
			get    get
			by     clients
			parent string
			names  []string
			want   refusal // the zero one is none
		}{
			{"integrations in their order", integrations, w.limited, acme, []string{writer, bare, doomed, reader}, refusal{}},
			{"one integration", integrations, w.vault, umbrella, []string{alien}, refusal{}},
			{"projects", projects, w.operator, acme, []string{stack, module}, refusal{}},
			{"projects the other way", projects, w.vault, acme, []string{module, stack}, refusal{}},
			{"attachments of a project", attachments, w.limited, stack, []string{writes, attached}, refusal{}},
			{"attachments of several projects", attachments, w.vault, acme + "/projects/-", []string{writes, bares, attached}, refusal{}},

			{"the first missing integration", integrations, w.limited, acme, []string{reader, newcomer, absent}, notFound(newcomer)},
			{"a missing project", projects, w.limited, acme, []string{none, stack}, notFound(none)},
			{"a missing attachment", attachments, w.limited, stack, []string{attached, stack + "/attachments/bare"}, notFound(stack + "/attachments/bare")},
			{"integrations of another parent", integrations, w.platform, acme, []string{reader, alien, spare, umbrella + "/integrations/x"}, invalidFields("names[1]", "names[3]")},
			{"projects of another parent", projects, w.platform, umbrella, []string{stack}, invalidFields("names[0]")},
			{"attachments of another project", attachments, w.platform, stack, []string{attached, bares}, invalidFields("names[1]")},
			{"attachments of another account", attachments, w.platform, umbrella + "/projects/-", []string{attached}, invalidFields("names[0]")},
			{"integrations of another account, limited", integrations, w.limited, acme, []string{reader, alien}, otherAccount},
			{"integrations there are not of another account, limited", integrations, w.limited, acme, []string{reader, umbrella + "/integrations/none"}, otherAccount},
			{"projects of another account, limited", projects, w.limited, acme, []string{stack, umbrella + "/projects/x"}, otherAccount},
			{"attachments of another account, limited", attachments, w.limited, acme + "/projects/-", []string{attached, umbrella + "/projects/x/attachments/y"}, otherAccount},
			{"another account, limited", integrations, w.limited, umbrella, []string{alien}, otherAccount},
			{"nothing", integrations, w.platform, acme, nil, invalidFields("names")},
			{"one twice", integrations, w.platform, acme, []string{reader, spare, reader}, invalidFields("names")},
			{"too many", integrations, w.platform, acme, many, invalidFields("names")},
			{"no names of the kind", projects, w.platform, acme, []string{stack, reader}, invalidFields("names[1]")},
			{"a wildcard for the account", attachments, w.vault, "accounts/-/projects/-", []string{attached}, invalidFields("parent")},
			{"integrations by the broker", integrations, w.broker, acme, []string{reader}, callerRefused},
			{"projects by the broker", projects, w.broker, acme, []string{stack}, callerRefused},
			{"attachments by a stranger", attachments, w.stranger, stack, []string{attached}, unknownCaller},
		} {
			t.Run(tt.name, func(t *testing.T) {
				got, err := tt.get(tt.by, tt.parent, tt.names...)
				if tt.want.code != codes.OK {
					tt.want.check(t, err)
					return
				}
				if err != nil || !slices.Equal(got, tt.names) {
					t.Fatalf("got %q, %v, want %q", got, err, tt.names)
				}
			})
		}
		// All of it, as Get gives it.
		one, err := w.limited.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: bare})
		must(t, err)
		batch, err := w.limited.integrations.BatchGetIntegrations(ctx, &registryv1.BatchGetIntegrationsRequest{Parent: acme, Names: []string{bare}})
		must(t, err)
		wantMessage(t, one, batch.GetIntegrations()[0])
	})
}

// Each path by itself, so that none hides behind another.
func TestUpdate_Paths(t *testing.T) {
	w := newWorld(t)
	w.people(t)
	ctx, head := t.Context(), w.head(t)
	integration, err := w.platform.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: reader})
	must(t, err)
	project, err := w.platform.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: stack})
	must(t, err)
	attachment, err := w.platform.attachments.GetAttachment(ctx, &registryv1.GetAttachmentRequest{Name: attached})
	must(t, err)
	for _, tt := range []struct {
		kind  string
		given interface {
			proto.Message
			GetName() string
		}
		update func(given proto.Message, name string, missing bool, mask ...string) error
		// nothing are paths that name no field.
		nothing []string
		// fixed are the fields that cannot be changed, with what each would become; nil for nothing.
		fixed map[string]any
		// written are those that the registry alone writes.
		written []string
	}{
		{
			"integration", integration,
			func(given proto.Message, name string, missing bool, mask ...string) error {
				i := proto.CloneOf(given.(*registryv1.Integration))
				i.Name = name
				_, err := w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{Integration: i, UpdateMask: paths(mask...), AllowMissing: missing})
				return err
			},
			[]string{"", "*", "nothing", "displayName", "display_name.x", "labels.0", "labels[0]", "allowed_audiences.*", "rotation_period.minutes", "rotation_period.seconds.x"},
			map[string]any{"tenant_id": nil, "cloud": "china"},
			[]string{
				"name", "uid", "state", "conditions", "conditions.status", "client_id", "create_time", "create_time.seconds", "update_time", "delete_time",
				"application_display_name", "service_principal_object_id",
			},
		},
		{
			"project", project,
			func(given proto.Message, name string, missing bool, mask ...string) error {
				p := proto.CloneOf(given.(*registryv1.Project))
				p.Name = name
				_, err := w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: p, UpdateMask: paths(mask...), AllowMissing: missing})
				return err
			},
			[]string{"", "*", "auto_attach", "labels.x"},
			map[string]any{"kind": nil},
			[]string{"name", "uid", "create_time", "update_time"},
		},
		{
			"attachment", attachment,
			func(given proto.Message, name string, missing bool, mask ...string) error {
				a := proto.CloneOf(given.(*registryv1.Attachment))
				a.Name = name
				_, err := w.platform.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{Attachment: a, UpdateMask: paths(mask...), AllowMissing: missing})
				return err
			},
			[]string{"", "*", "labels", "accesses.READ"},
			map[string]any{"integration": nil},
			[]string{"name", "uid", "integration_uid", "project_uid", "create_time", "update_time"},
		},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			name := tt.given.GetName()
			fields := tt.given.ProtoReflect().Descriptor().Fields()
			emptied := func(field string) proto.Message {
				given := proto.Clone(tt.given)
				root, _, _ := strings.Cut(field, ".")
				given.ProtoReflect().Clear(fields.ByName(protoreflect.Name(root)))
				return given
			}
			with := func(field string, value any) proto.Message {
				given := emptied(field)
				if value != nil {
					given.ProtoReflect().Set(fields.ByName(protoreflect.Name(field)), protoreflect.ValueOf(value))
				}
				return given
			}
			for _, path := range tt.nothing {
				for _, missing := range []bool{false, true} {
					// The field that can be changed stays as it is: whatever is refused is the path.
					invalidFields("update_mask").check(t, tt.update(tt.given, name, missing, "etag", path))
				}
				// A resource that would be created is not.
				invalidFields("update_mask").check(t, tt.update(emptied("etag"), strings.Replace(name, "/reader", "/spare", 1)+"x", true, "etag", path))
			}
			for path, value := range tt.fixed {
				invalidFields(tt.kind+"."+path).check(t, tt.update(with(path, value), name, false, "etag", path))
			}
			for _, path := range tt.written {
				must(t, tt.update(emptied(path), name, false, path))
			}
			// The etag is no part of what is wanted: to name it says nothing.
			must(t, tt.update(tt.given, name, false, "etag"))
			// Who names all that was read changes nothing.
			var all []string
			for i := range fields.Len() {
				all = append(all, string(fields.Get(i).Name()))
			}
			must(t, tt.update(tt.given, name, false, all...))
			must(t, tt.update(tt.given, name, true, all...))
			if w.head(t) != head {
				t.Errorf("revision %d of %d", w.head(t), head)
			}
		})
	}
}

// TestUpdate_MirrorsAgain: what docs/registry.md tells a platform to say whenever a project is made or changed can be said again.
func TestUpdate_MirrorsAgain(t *testing.T) {
	w := newWorld(t)
	mirror := func(change func(*registryv1.Project)) (*registryv1.Project, error) {
		p := &registryv1.Project{Name: "accounts/acme/projects/network", Kind: registryv1.Project_KIND_STACK, DisplayName: "Network", Labels: []string{"production", "team:network"}}
		change(p)
		return w.platform.projects.UpdateProject(t.Context(), &registryv1.UpdateProjectRequest{Project: p, UpdateMask: paths("kind", "display_name", "labels"), AllowMissing: true})
	}
	made, err := mirror(func(*registryv1.Project) {})
	must(t, err)
	again, err := mirror(func(*registryv1.Project) {})
	must(t, err)
	wantMessage(t, made, again)
	renamed, err := mirror(func(p *registryv1.Project) { p.DisplayName = "Networks" })
	if err != nil || renamed.GetDisplayName() != "Networks" || renamed.GetUid() != made.GetUid() {
		t.Errorf("got %v, %v", renamed, err)
	}
	_, err = mirror(func(p *registryv1.Project) { p.Kind = registryv1.Project_KIND_MODULE })
	invalidFields("project.kind").check(t, err)
}

// TestUpdate_EmptyCloudIsTheDefault: what was created by a mask that names a cloud, which is left to be the default, can be said again; and it never
// takes an integration out of another cloud.
func TestUpdate_EmptyCloudIsTheDefault(t *testing.T) {
	w := newWorld(t)
	mirror := func(id, cloud string) (*registryv1.Integration, error) {
		i := changed(func(i *registryv1.Integration) { i.Name, i.Cloud = "accounts/acme/integrations/"+id, cloud })
		return w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{
			Integration: i, UpdateMask: paths("display_name", "tenant_id", "cloud", "default_subscription_id"), AllowMissing: true,
		})
	}
	made, err := mirror("net", "")
	must(t, err)
	for _, cloud := range []string{"", "public"} {
		again, err := mirror("net", cloud)
		must(t, err)
		wantMessage(t, made, again)
	}
	_, err = mirror("net", "china")
	invalidFields("integration.cloud").check(t, err)
	_, err = mirror("elsewhere", "china")
	must(t, err)
	_, err = mirror("elsewhere", "")
	invalidFields("integration.cloud").check(t, err)
	// Who names no fields says nothing of those that are empty.
	renamed, err := w.platform.integrations.UpdateIntegration(t.Context(), &registryv1.UpdateIntegrationRequest{
		Integration: &registryv1.Integration{Name: "accounts/acme/integrations/elsewhere", DisplayName: "Elsewhere"},
	})
	if err != nil || renamed.GetCloud() != "china" || renamed.GetDisplayName() != "Elsewhere" {
		t.Errorf("got %v, %v", renamed, err)
	}
}
