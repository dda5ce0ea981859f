package rpc_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// modelAttachment is an attachment as the model has it.
type modelAttachment struct {
	name, integration, project, subscription, etag string
	read, write                                    bool
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

func (p *player) accesses() []typev1.Access {
	return [][]typev1.Access{
		nil, {typev1.Access_ACCESS_READ}, {typev1.Access_ACCESS_WRITE}, {typev1.Access_ACCESS_WRITE, typev1.Access_ACCESS_READ},
	}[p.dice.IntN(4)]
}

// accesses are those that the attachment is for, one by one.
func (a *modelAttachment) accesses() (all []typev1.Access) {
	if a.read {
		all = append(all, typev1.Access_ACCESS_READ)
	}
	if a.write {
		all = append(all, typev1.Access_ACCESS_WRITE)
	}
	return all
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
	requestID, earlier := p.draw(project)
	if earlier != nil && p.yes() {
		again := *earlier.what.(*modelAttachment)
		a, integration = &again, again.integration
		accesses = a.accesses()
	}
	contents := contentsOf(a.name, a.read, a.write, a.subscription)
	asked := *a
	var want refused
	i := p.m.integrations[integration]
	switch {
	case earlier != nil:
		want = earlier.repeated(contents)
	case p.m.projects[project] == nil || i == nil:
		want = "RESOURCE_NOT_FOUND"
	case i.deleting:
		want = "INTEGRATION_DELETING"
	case p.m.attachments[a.name] != nil:
		want = "RESOURCE_EXISTS"
	case p.taken(a):
		want = "ACCESS_TAKEN"
	}
	got, ok := calls(ctx, p, fmt.Sprintf("attach %+v by %q", *a, requestID), want, func(ctx context.Context, validateOnly bool) (*registryv1.Attachment, error) {
		return p.by.attachments.CreateAttachment(ctx, &registryv1.CreateAttachmentRequest{
			Parent: project, Attachment: &registryv1.Attachment{Integration: integration, Accesses: accesses, SubscriptionId: a.subscription}, ValidateOnly: validateOnly,
			RequestId: requestID,
		})
	})
	if ok && p.made(request{parent: project, id: requestID, contents: contents, what: &asked}, earlier, got) {
		p.saw(got)
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
		return p.by.attachments.UpdateAttachment(ctx, &registryv1.UpdateAttachmentRequest{
			Attachment: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"accesses"}}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	if ok {
		p.saw(got)
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
		return p.by.attachments.DeleteAttachment(ctx, req)
	})
	if ok && a != nil {
		p.old = append(p.old, a.etag)
		delete(p.m.attachments, name)
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
	got, err := p.by.attachments.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: to.name})
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
