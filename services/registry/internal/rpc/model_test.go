package rpc_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/store"
)

// The registry as anybody would explain it: three maps, and the rules one after another. Random calls are made of both, and
// both must say the same.

type modelIntegration struct {
	name, uid, display, subscription, etag string
	labels                                 []string
	auto, deleting                         bool
}

// attachesNothing is what nobody can have meant.
func (i *modelIntegration) attachesNothing() bool {
	return i.auto && (i.subscription == "" || len(i.labels) == 0)
}

type modelProject struct {
	name, uid, display, etag string
	labels                   []string
}

type modelAttachment struct {
	name, integration, project, subscription, etag string
	read, write                                    bool
}

type model struct {
	integrations map[string]*modelIntegration
	projects     map[string]*modelProject
	attachments  map[string]*modelAttachment
}

const modelQuota = 3

// refused is how a call ends that does not succeed; empty when it does.
type refused string

func (m *model) count(account, what string) int {
	n := 0
	var names []string
	switch what {
	case "integrations":
		names = slices.Collect(maps.Keys(m.integrations))
	case "projects":
		names = slices.Collect(maps.Keys(m.projects))
	}
	for _, name := range names {
		if strings.HasPrefix(name, account+"/") {
			n++
		}
	}
	return n
}

// gives are the accesses that an integration is a candidate for in a project, and whether by an attachment.
func (m *model) gives(p *modelProject, i *modelIntegration) (read, write, explicit bool) {
	if i.deleting || accountOf(i.name) != accountOf(p.name) {
		return false, false, false
	}
	if a := m.attachments[p.name+"/attachments/"+idOf(i.name)]; a != nil {
		return a.read, a.write, true
	}
	return m.automatic(p, i), m.automatic(p, i), false
}

func (m *model) automatic(p *modelProject, i *modelIntegration) bool {
	return i.auto && !i.deleting && accountOf(i.name) == accountOf(p.name) &&
		slices.ContainsFunc(p.labels, func(label string) bool { return slices.Contains(i.labels, "autoattach:"+label) })
}

// winner is the name of the integration that a project gets, empty for none.
func (m *model) winner(p *modelProject, write bool) *modelIntegration {
	var automatic *modelIntegration
	for _, name := range slices.Sorted(maps.Keys(m.integrations)) {
		i := m.integrations[name]
		r, w, explicit := m.gives(p, i)
		switch {
		case write && !w || !write && !r:
		case explicit:
			return i
		case automatic == nil:
			automatic = i
		}
	}
	return automatic
}

func (m *model) subscriptionOf(p *modelProject, i *modelIntegration) string {
	if a := m.attachments[p.name+"/attachments/"+idOf(i.name)]; a != nil && a.subscription != "" {
		return a.subscription
	}
	return i.subscription
}

func accountOf(name string) string { return strings.Join(strings.Split(name, "/")[:2], "/") }
func idOf(name string) string      { return name[strings.LastIndex(name, "/")+1:] }

// player makes random calls.
type player struct {
	t    *testing.T
	w    *world
	dice *rand.Rand
	m    model
	// old are etags that were current once.
	old []string
	// trace is what was called, for a failure.
	trace []string
}

func (p *player) pick(all ...string) string { return all[p.dice.IntN(len(all))] }
func (p *player) yes() bool                 { return p.dice.IntN(2) == 0 }

func (p *player) account() string { return "accounts/" + p.pick("acme", "beta") }
func (p *player) integration() string {
	return p.account() + "/integrations/" + p.pick("a", "b", "c", "d") // one more than the quota
}
func (p *player) project() string { return p.account() + "/projects/" + p.pick("p", "q") }

func (p *player) labels(prefix string) []string {
	var labels []string
	for _, label := range []string{"prod", "net"} {
		if p.yes() {
			labels = append(labels, prefix+label)
		}
	}
	return labels
}

// etag is the current one, an old one, or none.
func (p *player) etag(current string) string {
	switch p.dice.IntN(4) {
	case 0:
		if len(p.old) > 0 {
			return p.old[p.dice.IntN(len(p.old))]
		}
		return ""
	case 1:
		return current
	default:
		return ""
	}
}

func mismatch(given, current string) refused {
	if given != "" && given != current {
		return "ETAG_MISMATCH"
	}
	return ""
}

// ended compares how a call ended with how it should have.
func (p *player) ended(what string, want refused, err error) bool {
	p.t.Helper()
	p.trace = append(p.trace, fmt.Sprintf("%s → %q", what, want))
	if got := refused(rpcerr.Reason(err)); err != nil && (got != want || want == "") || err == nil && want != "" {
		p.t.Fatalf("got %v, want %q\n%s", err, want, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
	return err == nil
}

// calls makes a call, and half the time first asks whether it would succeed, which must say the same and change nothing.
func calls[M proto.Message](ctx context.Context, p *player, what string, want refused, call func(ctx context.Context, validateOnly bool) (M, error)) (M, bool) {
	p.t.Helper()
	var tried M
	asked := p.yes()
	if asked {
		before := p.w.head(p.t)
		var err error
		tried, err = call(ctx, true)
		p.ended(what+", validated", want, err)
		if after := p.w.head(p.t); after != before {
			p.t.Fatalf("%s, validated, made revision %d of %d", what, after, before)
		}
	}
	got, err := call(ctx, false)
	ok := p.ended(what, want, err)
	if would, is := any(tried).(tagged); ok && asked && is && would.GetUid() != "" {
		if did := any(got).(tagged); would.GetUid() != did.GetUid() || would.GetEtag() != "" {
			p.t.Fatalf("%s gave %v, and validated %v", what, got, tried)
		}
	}
	return got, ok
}

// step makes one call.
func (p *player) step(ctx context.Context) {
	// Weighted so that there is something to change.
	switch n := p.dice.IntN(20); {
	case n < 4:
		p.createIntegration(ctx)
	case n < 6:
		p.updateIntegration(ctx)
	case n < 7:
		p.deleteIntegration(ctx)
	case n < 8:
		p.forgetIntegration(ctx)
	case n < 11:
		p.writeProject(ctx)
	case n < 12:
		p.deleteProject(ctx)
	case n < 16:
		p.attach(ctx)
	case n < 18:
		p.updateAttachment(ctx)
	default:
		p.detach(ctx)
	}
}

func (p *player) createIntegration(ctx context.Context) {
	name := p.integration()
	n := &modelIntegration{name: name, display: p.pick("One", "Two"), subscription: p.pick("", subscription), labels: p.labels("autoattach:"), auto: p.yes()}
	var want refused
	switch {
	case n.attachesNothing():
		want = "INVALID_FIELDS"
	case p.m.integrations[name] != nil:
		want = "RESOURCE_EXISTS"
	case p.m.count(accountOf(name), "integrations") >= modelQuota:
		want = "QUOTA_EXCEEDED"
	}
	made, ok := calls(ctx, p, fmt.Sprintf("create %+v", *n), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		return p.w.platform.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: accountOf(name), IntegrationId: idOf(name), ValidateOnly: validateOnly, Integration: &registryv1.Integration{
				DisplayName: n.display, TenantId: tenant, DefaultSubscriptionId: n.subscription, Labels: n.labels, AutoAttach: n.auto,
			},
		})
	})
	if ok {
		n.uid, n.etag, n.labels = made.GetUid(), made.GetEtag(), sorted(n.labels)
		p.m.integrations[name] = n
	}
}

// updateIntegration updates one, or creates it by allow_missing.
func (p *player) updateIntegration(ctx context.Context) {
	name, missing := p.integration(), p.yes()
	n := p.m.integrations[name]
	given := &registryv1.Integration{
		Name: name, TenantId: tenant, DisplayName: p.pick("One", "Two"), Labels: p.labels("autoattach:"), AutoAttach: p.yes(),
		DefaultSubscriptionId: p.pick("", subscription),
	}
	var paths []string
	for _, path := range []string{"display_name", "labels", "auto_attach", "default_subscription_id"} {
		if p.yes() {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		paths = []string{"display_name"}
	}
	next := modelIntegration{name: name}
	var want refused
	switch {
	case n == nil && !missing:
		want = "RESOURCE_NOT_FOUND"
	case n == nil:
		given.Etag = p.etag("")
		next.display, next.labels, next.auto, next.subscription = given.GetDisplayName(), given.GetLabels(), given.GetAutoAttach(), given.GetDefaultSubscriptionId()
		switch {
		case given.GetEtag() != "":
			want = "ETAG_MISMATCH"
		case next.attachesNothing():
			want = "INVALID_FIELDS"
		case p.m.count(accountOf(name), "integrations") >= modelQuota:
			want = "QUOTA_EXCEEDED"
		}
	default:
		given.Etag = p.etag(n.etag)
		next = *n
		for _, path := range paths {
			switch path {
			case "display_name":
				next.display = given.GetDisplayName()
			case "labels":
				next.labels = given.GetLabels()
			case "auto_attach":
				next.auto = given.GetAutoAttach()
			case "default_subscription_id":
				next.subscription = given.GetDefaultSubscriptionId()
			}
		}
		switch {
		case mismatch(given.GetEtag(), n.etag) != "":
			want = "ETAG_MISMATCH"
		case n.deleting:
			want = "INTEGRATION_DELETING"
		case next.attachesNothing():
			want = "INVALID_FIELDS"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("update %v to %v, missing %t", paths, given, missing), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		return p.w.platform.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
			Integration: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	switch {
	case ok && n == nil:
		next.uid, next.etag, next.labels = got.GetUid(), got.GetEtag(), sorted(next.labels)
		p.m.integrations[name] = &next
	case ok:
		same := n.display == next.display && n.auto == next.auto && n.subscription == next.subscription && slices.Equal(n.labels, sorted(next.labels))
		if (got.GetEtag() == n.etag) != same {
			p.t.Fatalf("etag went from %s to %s, the same: %t", n.etag, got.GetEtag(), same)
		}
		p.old = append(p.old, n.etag)
		next.etag, next.labels = got.GetEtag(), sorted(next.labels)
		*n = next
	}
}

func sorted(labels []string) []string { return slices.Sorted(slices.Values(labels)) }

// gone is how the deletion of what is not there ends.
func gone(allowMissing bool) refused {
	if allowMissing {
		return ""
	}
	return "RESOURCE_NOT_FOUND"
}

func (p *player) deleteIntegration(ctx context.Context) {
	name, force, missing := p.integration(), p.yes(), p.yes()
	n := p.m.integrations[name]
	var want refused
	req := &registryv1.DeleteIntegrationRequest{Name: name, Force: force, AllowMissing: missing}
	attached := false
	if n == nil {
		want, req.Etag = gone(missing), p.etag("")
	} else {
		req.Etag = p.etag(n.etag)
		for _, a := range p.m.attachments {
			attached = attached || a.integration == name
		}
		for _, pr := range p.m.projects {
			attached = attached || p.m.automatic(pr, n)
		}
		switch {
		case n.deleting:
		case mismatch(req.GetEtag(), n.etag) != "":
			want = "ETAG_MISMATCH"
		case attached && !force:
			want = "INTEGRATION_ATTACHED"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("delete %v", req), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		req.ValidateOnly = validateOnly
		return p.w.platform.integrations.DeleteIntegration(ctx, req)
	})
	if ok && n != nil {
		p.old = append(p.old, n.etag)
		n.deleting, n.etag = true, got.GetEtag()
		maps.DeleteFunc(p.m.attachments, func(_ string, a *modelAttachment) bool { return a.integration == name })
	}
}

// forgetIntegration is what the vault does when the application is gone for good.
func (p *player) forgetIntegration(ctx context.Context) {
	name := p.integration()
	n := p.m.integrations[name]
	if n == nil {
		return
	}
	var want refused
	if !n.deleting {
		want = "INVALID_FIELDS"
	}
	_, err := p.w.vault.status.ReportConditions(ctx, &registryv1.ReportConditionsRequest{
		IntegrationUid: n.uid, Mastership: &registryv1.Mastership{Shard: 0, Epoch: 1, Holder: holder}, ApplicationRemoved: true,
	})
	if p.ended("forget "+name, want, err) {
		delete(p.m.integrations, name)
	}
}

// writeProject creates a project, or updates it, by allow_missing.
func (p *player) writeProject(ctx context.Context) {
	name, missing := p.project(), p.yes()
	n := p.m.projects[name]
	given := &registryv1.Project{Name: name, Kind: registryv1.Project_KIND_STACK, DisplayName: p.pick("One", "Two"), Labels: p.labels("")}
	var want refused
	switch {
	case n == nil && !missing:
		want = "RESOURCE_NOT_FOUND"
	case n == nil:
		given.Etag = p.etag("")
		switch {
		case given.GetEtag() != "":
			want = "ETAG_MISMATCH"
		case p.m.count(accountOf(name), "projects") >= modelQuota:
			want = "QUOTA_EXCEEDED"
		}
	default:
		given.Etag = p.etag(n.etag)
		want = mismatch(given.GetEtag(), n.etag)
	}
	got, ok := calls(ctx, p, fmt.Sprintf("write %v, missing %t", given, missing), want, func(ctx context.Context, validateOnly bool) (*registryv1.Project, error) {
		return p.w.platform.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
			Project: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name", "labels"}}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	if ok {
		if n != nil {
			p.old = append(p.old, n.etag)
		}
		p.m.projects[name] = &modelProject{name: name, uid: got.GetUid(), display: given.GetDisplayName(), labels: sorted(given.GetLabels()), etag: got.GetEtag()}
	}
}

func (p *player) deleteProject(ctx context.Context) {
	name, force, missing := p.project(), p.yes(), p.yes()
	n := p.m.projects[name]
	req := &registryv1.DeleteProjectRequest{Name: name, Force: force, AllowMissing: missing}
	attached := false
	for _, a := range p.m.attachments {
		attached = attached || a.project == name
	}
	var want refused
	if n == nil {
		want, req.Etag = gone(missing), p.etag("")
	} else {
		req.Etag = p.etag(n.etag)
		switch {
		case mismatch(req.GetEtag(), n.etag) != "":
			want = "ETAG_MISMATCH"
		case attached && !force:
			want = "PROJECT_ATTACHED"
		}
	}
	_, ok := calls(ctx, p, fmt.Sprintf("delete %v", req), want, func(ctx context.Context, validateOnly bool) (*emptypb.Empty, error) {
		req.ValidateOnly = validateOnly
		return p.w.platform.projects.DeleteProject(ctx, req)
	})
	if ok && n != nil {
		p.old = append(p.old, n.etag)
		delete(p.m.projects, name)
		maps.DeleteFunc(p.m.attachments, func(_ string, a *modelAttachment) bool { return a.project == name })
	}
}

func (p *player) accesses() []typev1.Access {
	return [][]typev1.Access{
		nil, {typev1.Access_ACCESS_READ}, {typev1.Access_ACCESS_WRITE}, {typev1.Access_ACCESS_WRITE, typev1.Access_ACCESS_READ},
	}[p.dice.IntN(4)]
}

func has(accesses []typev1.Access, a typev1.Access) bool {
	return len(accesses) == 0 || slices.Contains(accesses, a)
}

// taken tells whether another attachment of the project is for one of the accesses.
func (p *player) taken(a *modelAttachment) bool {
	for _, other := range p.m.attachments {
		if other.name != a.name && other.project == a.project && (a.read && other.read || a.write && other.write) {
			return true
		}
	}
	return false
}

func (p *player) attach(ctx context.Context) {
	project := p.project()
	integration := accountOf(project) + "/integrations/" + p.pick("a", "b", "c")
	accesses := p.accesses()
	a := &modelAttachment{
		name: project + "/attachments/" + idOf(integration), integration: integration, project: project, subscription: p.pick("", subscription),
		read: has(accesses, typev1.Access_ACCESS_READ), write: has(accesses, typev1.Access_ACCESS_WRITE),
	}
	var want refused
	i := p.m.integrations[integration]
	switch {
	case p.m.projects[project] == nil || i == nil:
		want = "RESOURCE_NOT_FOUND"
	case i.deleting:
		want = "INTEGRATION_DELETING"
	case p.m.attachments[a.name] != nil:
		want = "RESOURCE_EXISTS"
	case p.taken(a):
		want = "ACCESS_TAKEN"
	}
	got, ok := calls(ctx, p, fmt.Sprintf("attach %+v", *a), want, func(ctx context.Context, validateOnly bool) (*registryv1.Attachment, error) {
		return p.w.platform.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: project, Attachment: &registryv1.Attachment{Integration: integration, Accesses: accesses, SubscriptionId: a.subscription}, ValidateOnly: validateOnly,
		})
	})
	if ok {
		a.etag = got.GetEtag()
		p.m.attachments[a.name] = a
	}
}

// updateAttachment updates one, or creates it by allow_missing.
func (p *player) updateAttachment(ctx context.Context) {
	project, id, missing := p.project(), p.pick("a", "b", "c"), p.yes()
	name := project + "/attachments/" + id
	a := p.m.attachments[name]
	accesses := p.accesses()
	given := &registryv1.Attachment{Name: name, Accesses: accesses, SubscriptionId: p.pick("", subscription)}
	var want refused
	next := modelAttachment{}
	switch {
	case a == nil && !missing:
		want = "RESOURCE_NOT_FOUND"
	case a == nil:
		given.Etag = p.etag("")
		next = modelAttachment{
			name: name, integration: accountOf(project) + "/integrations/" + id, project: project, subscription: given.GetSubscriptionId(),
			read: has(accesses, typev1.Access_ACCESS_READ), write: has(accesses, typev1.Access_ACCESS_WRITE),
		}
		i := p.m.integrations[next.integration]
		switch {
		case given.GetEtag() != "":
			want = "ETAG_MISMATCH"
		case p.m.projects[project] == nil || i == nil:
			want = "RESOURCE_NOT_FOUND"
		case i.deleting:
			want = "INTEGRATION_DELETING"
		case p.taken(&next):
			want = "ACCESS_TAKEN"
		}
	default:
		given.Etag = p.etag(a.etag)
		next = *a
		next.read, next.write = has(accesses, typev1.Access_ACCESS_READ), has(accesses, typev1.Access_ACCESS_WRITE)
		switch {
		case mismatch(given.GetEtag(), a.etag) != "":
			want = "ETAG_MISMATCH"
		case next != *a && p.taken(&next):
			want = "ACCESS_TAKEN"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("update %v, missing %t", given, missing), want, func(ctx context.Context, validateOnly bool) (*registryv1.Attachment, error) {
		return p.w.platform.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{
			Attachment: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"accesses"}}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	if ok {
		if a != nil {
			p.old = append(p.old, a.etag)
		}
		next.etag = got.GetEtag()
		p.m.attachments[name] = &next
	}
}

func (p *player) detach(ctx context.Context) {
	name := p.project() + "/attachments/" + p.pick("a", "b", "c")
	a, missing := p.m.attachments[name], p.yes()
	req := &registryv1.DeleteAttachmentRequest{Name: name, AllowMissing: missing}
	var want refused
	if a == nil {
		want, req.Etag = gone(missing), p.etag("")
	} else {
		req.Etag = p.etag(a.etag)
		want = mismatch(req.GetEtag(), a.etag)
	}
	_, ok := calls(ctx, p, fmt.Sprintf("detach %v", req), want, func(ctx context.Context, validateOnly bool) (*emptypb.Empty, error) {
		req.ValidateOnly = validateOnly
		return p.w.platform.attachments.DeleteAttachment(ctx, req)
	})
	if ok && a != nil {
		p.old = append(p.old, a.etag)
		delete(p.m.attachments, name)
	}
}

// picture is everything there is, as lines.
type picture []string

func pictureOf(integrations map[string]*modelIntegration, projects map[string]*modelProject, attachments map[string]*modelAttachment) picture {
	var lines picture
	for _, i := range integrations {
		lines = append(lines, fmt.Sprintf("%s uid=%s display=%s subscription=%s labels=%v auto=%t deleting=%t etag=%s", i.name, i.uid, i.display, i.subscription, i.labels, i.auto, i.deleting, i.etag))
	}
	for _, p := range projects {
		lines = append(lines, fmt.Sprintf("%s uid=%s display=%s labels=%v etag=%s", p.name, p.uid, p.display, p.labels, p.etag))
	}
	for _, a := range attachments {
		lines = append(lines, fmt.Sprintf("%s of=%s read=%t write=%t subscription=%s etag=%s", a.name, a.integration, a.read, a.write, a.subscription, a.etag))
	}
	slices.Sort(lines)
	return lines
}

// fold is what a watcher has put together.
type fold struct {
	integrations map[string]*modelIntegration
	projects     map[string]*modelProject
	attachments  map[string]*modelAttachment
}

func newFold() *fold {
	return &fold{map[string]*modelIntegration{}, map[string]*modelProject{}, map[string]*modelAttachment{}}
}

func (f *fold) integration(i *registryv1.Integration) {
	f.integrations[i.GetName()] = &modelIntegration{
		name: i.GetName(), uid: i.GetUid(), display: i.GetDisplayName(), subscription: i.GetDefaultSubscriptionId(), labels: i.GetLabels(),
		auto: i.GetAutoAttach(), deleting: i.GetState() == registryv1.Integration_STATE_DELETING, etag: i.GetEtag(),
	}
}

func (f *fold) project(p *registryv1.Project) {
	f.projects[p.GetName()] = &modelProject{name: p.GetName(), uid: p.GetUid(), display: p.GetDisplayName(), labels: p.GetLabels(), etag: p.GetEtag()}
}

func (f *fold) attachment(a *registryv1.Attachment) {
	project, _, _ := strings.Cut(a.GetName(), "/attachments/")
	f.attachments[a.GetName()] = &modelAttachment{
		name: a.GetName(), integration: a.GetIntegration(), project: project, subscription: a.GetSubscriptionId(), etag: a.GetEtag(),
		read: slices.Contains(a.GetAccesses(), typev1.Access_ACCESS_READ), write: slices.Contains(a.GetAccesses(), typev1.Access_ACCESS_WRITE),
	}
}

// apply takes in a change. A name may be used again: what is gone is told apart by its UID.
func (f *fold) apply(t *testing.T, e *registryv1.Event) {
	t.Helper()
	switch r := e.GetResource().(type) {
	case *registryv1.Event_Integration:
		if f.integration(r.Integration); e.GetDeleted() {
			delete(f.integrations, r.Integration.GetName())
		}
	case *registryv1.Event_Project:
		if f.project(r.Project); e.GetDeleted() {
			delete(f.projects, r.Project.GetName())
		}
	case *registryv1.Event_Attachment:
		if f.attachment(r.Attachment); e.GetDeleted() {
			delete(f.attachments, r.Attachment.GetName())
		}
	default:
		t.Fatalf("event %v is of nothing", e)
	}
}

// look compares what the registry lists, resolves and explains with the model.
func (p *player) look(ctx context.Context) {
	t := p.t
	t.Helper()
	got := newFold()
	integrations, err := p.w.vault.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
	must(t, err)
	for _, i := range integrations.GetIntegrations() {
		got.integration(i)
	}
	projects, err := p.w.vault.projects.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: "accounts/-"})
	must(t, err)
	for _, one := range projects.GetProjects() {
		got.project(one)
	}
	attachments, err := p.w.vault.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: "accounts/-/projects/-"})
	must(t, err)
	for _, a := range attachments.GetAttachments() {
		got.attachment(a)
	}
	p.compare("lists", got)
	p.batch(ctx)
	for _, one := range p.m.projects {
		p.resolve(ctx, one)
		p.explain(ctx, one)
	}
}

// some are some of the names, in any order, and maybe one of nothing.
func (p *player) some(there []string, nowhere string) []string {
	names := slices.DeleteFunc(there, func(string) bool { return p.dice.IntN(4) == 0 })
	if p.dice.IntN(4) == 0 {
		names = append(names, nowhere)
	}
	p.dice.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// batch reads several at once, of which some may not be there.
func (p *player) batch(ctx context.Context) {
	p.t.Helper()
	account := p.account()
	of := func(names []string) []string {
		return slices.DeleteFunc(slices.Sorted(slices.Values(names)), func(name string) bool { return accountOf(name) != account })
	}
	// told compares what a batch gave: the etags tell which version it was.
	told := func(names []string, etagOf func(name string) string, got []tagged, err error) {
		p.t.Helper()
		var want refused
		for _, name := range names {
			if etagOf(name) == "" {
				want = "RESOURCE_NOT_FOUND"
			}
		}
		if !p.ended(fmt.Sprintf("batch %v", names), want, err) {
			return
		}
		for i, name := range names {
			if len(got) != len(names) || got[i].GetEtag() != etagOf(name) {
				p.t.Fatalf("the batch of %v gave %v", names, got)
			}
		}
	}
	if names := p.some(of(slices.Collect(maps.Keys(p.m.integrations))), account+"/integrations/nowhere"); len(names) > 0 {
		got, err := p.w.platform.integrations.BatchGetIntegrations(ctx, &registryv1.BatchGetIntegrationsRequest{Parent: account, Names: names})
		told(names, func(name string) string {
			if i := p.m.integrations[name]; i != nil {
				return i.etag
			}
			return ""
		}, tags(got.GetIntegrations()), err)
	}
	if names := p.some(of(slices.Collect(maps.Keys(p.m.projects))), account+"/projects/nowhere"); len(names) > 0 {
		got, err := p.w.platform.projects.BatchGetProjects(ctx, &registryv1.BatchGetProjectsRequest{Parent: account, Names: names})
		told(names, func(name string) string {
			if one := p.m.projects[name]; one != nil {
				return one.etag
			}
			return ""
		}, tags(got.GetProjects()), err)
	}
	if names := p.some(of(slices.Collect(maps.Keys(p.m.attachments))), account+"/projects/p/attachments/nowhere"); len(names) > 0 {
		got, err := p.w.platform.attachments.BatchGetAttachments(ctx, &registryv1.BatchGetAttachmentsRequest{Parent: account + "/projects/-", Names: names})
		told(names, func(name string) string {
			if a := p.m.attachments[name]; a != nil {
				return a.etag
			}
			return ""
		}, tags(got.GetAttachments()), err)
	}
}

func tags[M tagged](messages []M) []tagged {
	all := make([]tagged, len(messages))
	for i, m := range messages {
		all[i] = m
	}
	return all
}

func (p *player) compare(what string, got *fold) {
	p.t.Helper()
	want := pictureOf(p.m.integrations, p.m.projects, p.m.attachments)
	if diff := cmp.Diff(want, pictureOf(got.integrations, got.projects, got.attachments)); diff != "" {
		p.t.Fatalf("%s: -model +registry\n%s\n%s", what, diff, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
}

func (p *player) resolve(ctx context.Context, to *modelProject) {
	p.t.Helper()
	for phase, write := range map[typev1.Phase]bool{typev1.Phase_PHASE_PLANNING: false, typev1.Phase_PHASE_APPLYING: true} {
		want, reason := "", refused("")
		switch winner := p.m.winner(to, write); {
		case winner == nil:
			reason = "NOTHING_ATTACHED"
		case p.m.subscriptionOf(to, winner) == "":
			reason = "NO_SUBSCRIPTION"
		default:
			want = winner.uid + " " + p.m.subscriptionOf(to, winner)
		}
		got, err := p.w.vault.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: to.name, Phase: phase})
		if p.ended(fmt.Sprintf("resolve %s %s", to.name, phase), reason, err) {
			if gave := got.GetIntegrationUid() + " " + got.GetSubscriptionId(); gave != want {
				p.t.Fatalf("%s in %s gets %s, want %s", to.name, phase, gave, want)
			}
			if (got.GetAttachment() == "") != (len(got.GetLabels()) > 0) {
				p.t.Fatalf("%v says neither or both why", got)
			}
		}
	}
}

// explain compares the candidates: which there are, and what each gives.
func (p *player) explain(ctx context.Context, to *modelProject) {
	p.t.Helper()
	var want []string
	for _, i := range p.m.integrations {
		r, w, explicit := p.m.gives(to, i)
		if !r && !w {
			continue
		}
		line := fmt.Sprintf("%s explicit=%t", i.name, explicit)
		for _, access := range []struct {
			is    bool
			name  string
			write bool
		}{{r, "READ", false}, {w, "WRITE", true}} {
			if !access.is {
				continue
			}
			if winner := p.m.winner(to, access.write); winner == i {
				line += " gives " + access.name
			} else {
				line += " behind " + winner.name + " for " + access.name
			}
		}
		want = append(want, line)
	}
	got, err := p.w.platform.attachments.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: to.name})
	must(p.t, err)
	var have []string
	for _, e := range got.GetEffectiveAttachments() {
		line := fmt.Sprintf("%s explicit=%t", e.GetIntegration(), e.GetAttachment() != "")
		for _, access := range []typev1.Access{typev1.Access_ACCESS_READ, typev1.Access_ACCESS_WRITE} {
			name := strings.TrimPrefix(access.String(), "ACCESS_")
			if slices.Contains(e.GetAccesses(), access) {
				line += " gives " + name
			}
			for _, o := range e.GetOutrankedAccesses() {
				if o.GetAccess() == access {
					line += " behind " + o.GetIntegration() + " for " + name
				}
			}
		}
		have = append(have, line)
	}
	slices.Sort(want)
	slices.Sort(have)
	if diff := cmp.Diff(want, have); diff != "" {
		p.t.Fatalf("%s: -model +registry\n%s\n%s", to.name, diff, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is called in whatever order, the registry does what the model does; and whoever watched from the beginning has put
// together what the lists say.
func TestRegistry_DoesAsItsModel(t *testing.T) {
	const steps = 400
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		w := newWorldOn(t, db, quota.Config{Integrations: modelQuota, Projects: modelQuota, Attachments: 100})
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		p := &player{t: t, w: w, dice: rand.New(rand.NewPCG(seed, 0)), m: model{
			integrations: map[string]*modelIntegration{}, projects: map[string]*modelProject{}, attachments: map[string]*modelAttachment{},
		}}
		begin, err := w.vault.integrations.ListIntegrations(t.Context(), &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
		must(t, err)
		for range steps {
			p.step(t.Context())
			if p.dice.IntN(4) == 0 {
				p.look(t.Context())
			}
		}
		p.look(t.Context())
		told := newFold()
		watching, err := w.vault.watch.Watch(t.Context(), &registryv1.WatchRequest{Cursor: begin.GetCursor()})
		must(t, err)
		for head, last := w.head(t), int64(0); last < head; {
			message, err := watching.Recv()
			must(t, err)
			for _, e := range message.GetEvents() {
				if e.GetRevision() != last+1 {
					t.Fatalf("revision %d came after %d", e.GetRevision(), last)
				}
				last = e.GetRevision()
				told.apply(t, e)
			}
		}
		p.compare("what was watched", told)
	})
}
