package rpc_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// picture is everything there is, as lines.
type picture []string

func pictureOf(integrations map[string]*modelIntegration, projects map[string]*modelProject, attachments map[string]*modelAttachment) picture {
	var lines picture
	for _, i := range integrations {
		lines = append(lines, fmt.Sprintf("%s uid=%s display=%s subscription=%s labels=%v auto=%t state=%s conditions=%s etag=%s",
			i.name, i.uid, i.display, i.subscription, i.labels, i.auto, cmp.Or(i.told, i.state()), i.known(), i.etag))
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
	conditions := map[string]observed{}
	for _, c := range i.GetConditions() {
		conditions[strings.TrimPrefix(c.GetType().String(), "TYPE_")] = observed{status: strings.TrimPrefix(c.GetStatus().String(), "STATUS_"), reason: c.GetReason()}
	}
	f.integrations[i.GetName()] = &modelIntegration{
		name: i.GetName(), uid: i.GetUid(), display: i.GetDisplayName(), subscription: i.GetDefaultSubscriptionId(), labels: i.GetLabels(),
		auto: i.GetAutoAttach(), told: strings.TrimPrefix(i.GetState().String(), "STATE_"), conditions: conditions, etag: i.GetEtag(),
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
	integrations, err := p.w.vault.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: p.everything()})
	must(t, err)
	for _, i := range integrations.GetIntegrations() {
		got.integration(i)
	}
	projects, err := p.w.vault.projects.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: p.everything()})
	must(t, err)
	for _, one := range projects.GetProjects() {
		got.project(one)
	}
	attachments, err := p.w.vault.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: p.everything() + "/projects/-"})
	must(t, err)
	for _, a := range attachments.GetAttachments() {
		got.attachment(a)
	}
	p.compare("lists", got)
	p.batch(ctx)
	p.find(ctx)
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
		got, err := p.by.integrations.BatchGetIntegrations(ctx, &registryv1.BatchGetIntegrationsRequest{Parent: account, Names: names})
		told(names, func(name string) string {
			if i := p.m.integrations[name]; i != nil {
				return i.etag
			}
			return ""
		}, tags(got.GetIntegrations()), err)
	}
	if names := p.some(of(slices.Collect(maps.Keys(p.m.projects))), account+"/projects/nowhere"); len(names) > 0 {
		got, err := p.by.projects.BatchGetProjects(ctx, &registryv1.BatchGetProjectsRequest{Parent: account, Names: names})
		told(names, func(name string) string {
			if one := p.m.projects[name]; one != nil {
				return one.etag
			}
			return ""
		}, tags(got.GetProjects()), err)
	}
	if names := p.some(of(slices.Collect(maps.Keys(p.m.attachments))), account+"/projects/p/attachments/nowhere"); len(names) > 0 {
		got, err := p.by.attachments.BatchGetAttachments(ctx, &registryv1.BatchGetAttachmentsRequest{Parent: account + "/projects/-", Names: names})
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
	if diff := gocmp.Diff(want, pictureOf(got.integrations, got.projects, got.attachments)); diff != "" {
		p.t.Fatalf("%s: -model +registry\n%s\n%s", what, diff, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
}
