package rpc_test

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// modelProject is a project as the model has it.
type modelProject struct {
	name, uid, display, etag string
	labels                   []string
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
		case slices.Contains(given.GetLabels(), mistake):
			want = "INVALID_FIELDS"
		case p.m.count(accountOf(name), "projects") >= modelQuota:
			want = "QUOTA_EXCEEDED"
		}
	default:
		given.Etag = p.etag(n.etag)
		want = mismatch(given.GetEtag(), n.etag)
		if want == "" && slices.Contains(given.GetLabels(), mistake) {
			want = "INVALID_FIELDS"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("write %v, missing %t", given, missing), want, func(ctx context.Context, validateOnly bool) (*registryv1.Project, error) {
		return p.by.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
			Project: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name", "labels"}}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	if ok {
		p.saw(got)
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
		return p.by.projects.DeleteProject(ctx, req)
	})
	if ok && n != nil {
		p.old = append(p.old, n.etag)
		delete(p.m.projects, name)
		maps.DeleteFunc(p.m.attachments, func(_ string, a *modelAttachment) bool { return a.project == name })
	}
}
