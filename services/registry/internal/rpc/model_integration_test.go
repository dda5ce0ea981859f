package rpc_test

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// modelIntegration is an integration as the model has it.
type modelIntegration struct {
	name, uid, display, subscription, etag string
	labels                                 []string
	auto, deleting, everActive             bool
	conditions                             map[string]observed
	fence                                  fence
	// told is the state as the registry told it, empty in the model, which derives it.
	told string
}

// mistaken is what nobody can have meant.
func (i *modelIntegration) mistaken() bool {
	return i.auto && (i.subscription == "" || len(i.labels) == 0) || slices.Contains(i.labels, mistake)
}

func (p *player) createIntegration(ctx context.Context) {
	name := p.integration()
	n := &modelIntegration{name: name, display: p.pick("One", "Two"), subscription: p.pick("", subscription), labels: p.labels("autoattach:"), auto: p.yes()}
	requestID, earlier := p.draw(accountOf(name))
	if earlier != nil && p.yes() {
		again := *earlier.what.(*modelIntegration)
		n, name = &again, again.name
	}
	contents := contentsOf(name, n.display, n.subscription, sorted(n.labels), n.auto)
	asked := *n
	var want refused
	switch {
	case n.mistaken():
		want = "INVALID_FIELDS"
	case earlier != nil:
		want = earlier.repeated(contents)
	case p.m.integrations[name] != nil:
		want = "RESOURCE_EXISTS"
	case p.m.count(accountOf(name), "integrations") >= modelQuota:
		want = "QUOTA_EXCEEDED"
	}
	made, ok := calls(ctx, p, fmt.Sprintf("create %+v by %q", *n, requestID), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		return p.by.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: accountOf(name), IntegrationId: idOf(name), ValidateOnly: validateOnly, RequestId: requestID, Integration: &registryv1.Integration{
				DisplayName: n.display, TenantId: tenant, DefaultSubscriptionId: n.subscription, Labels: n.labels, AutoAttach: n.auto,
			},
		})
	})
	if ok && p.made(request{parent: accountOf(name), id: requestID, contents: contents, what: &asked}, earlier, made) {
		p.saw(made)
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
		case next.mistaken():
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
		case next.mistaken():
			want = "INVALID_FIELDS"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("update %v to %v, missing %t", paths, given, missing), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		return p.by.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
			Integration: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, AllowMissing: missing, ValidateOnly: validateOnly,
		})
	})
	if ok {
		p.saw(got)
	}
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
		case mismatch(req.GetEtag(), n.etag) != "":
			want = "ETAG_MISMATCH"
		case n.deleting:
		case attached && !force:
			want = "INTEGRATION_ATTACHED"
		}
	}
	got, ok := calls(ctx, p, fmt.Sprintf("delete %v", req), want, func(ctx context.Context, validateOnly bool) (*registryv1.Integration, error) {
		req.ValidateOnly = validateOnly
		return p.by.integrations.DeleteIntegration(ctx, req)
	})
	if ok && n != nil {
		p.saw(got)
		p.old = append(p.old, n.etag)
		n.deleting, n.etag = true, got.GetEtag()
		maps.DeleteFunc(p.m.attachments, func(_ string, a *modelAttachment) bool { return a.integration == name })
	}
}
