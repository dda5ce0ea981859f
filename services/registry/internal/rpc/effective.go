package rpc

import (
	"context"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/pagetoken"
	"phasekey.dev/services/registry/internal/attachment"
)

// effectiveList is what its page tokens are bound to.
const effectiveList = "effectiveAttachments"

func (s attachmentService) ListEffectiveAttachments(ctx context.Context, req *registryv1.ListEffectiveAttachmentsRequest) (*registryv1.ListEffectiveAttachmentsResponse, error) {
	to, err := projectName("parent", req.GetParent())
	if err != nil {
		return nil, statusOf(err)
	}
	scope := pagetoken.Scope{List: effectiveList, Parent: req.GetParent()}
	page, err := pageFor(ctx, s.store, &scope, nil, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, statusOf(err)
	}
	found, at, err := s.store.EffectiveAttachments(ctx, to, page)
	if err != nil {
		return nil, statusOf(err)
	}
	if err := readAt(&scope, req.GetPageToken(), at); err != nil {
		return nil, statusOf(err)
	}
	items, more := pageOf(found, page.Size, messageOfEffective)
	resp := &registryv1.ListEffectiveAttachmentsResponse{EffectiveAttachments: items, Revision: at.Revision}
	if more {
		resp.NextPageToken = scope.SealTexts(found[len(items)-1].Place())
	}
	return resp, nil
}

func (s attachmentService) ResolveAccess(ctx context.Context, req *registryv1.ResolveAccessRequest) (*registryv1.ResolveAccessResponse, error) {
	name, err := projectName("project", req.GetProject())
	if err != nil {
		return nil, statusOf(err)
	}
	access, ok := attachment.AccessOf(wordOf[attachment.Phase](req.GetPhase(), prefixPhase))
	if !ok {
		return nil, statusOf(invalid("phase", "must be a phase"))
	}
	resolved, at, err := s.store.ResolveAccess(ctx, name, access)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &registryv1.ResolveAccessResponse{
		Access:         messageOfAccess(resolved.Access),
		Integration:    resolved.Integration.Name.String(),
		IntegrationUid: resolved.Integration.UID,
		ProjectUid:     resolved.ProjectUID,
		TenantId:       resolved.Integration.Spec.TenantID,
		SubscriptionId: resolved.SubscriptionID(),
		Incarnation:    at.Incarnation,
		Revision:       at.Revision,
		Labels:         resolved.Labels,
	}
	if by := resolved.Explicit; by != nil {
		resp.Attachment, resp.AttachmentUid = by.Name.String(), by.UID
	}
	return resp, nil
}

func messageOfEffective(e attachment.Effective) *registryv1.EffectiveAttachment {
	m := &registryv1.EffectiveAttachment{
		Integration:    e.Integration.Name.String(),
		IntegrationUid: e.Integration.UID,
		Labels:         e.Labels,
		Accesses:       messagesOfAccesses(e.Gives),
		SubscriptionId: e.SubscriptionID(),
	}
	if e.Explicit != nil {
		m.Attachment = e.Explicit.Name.String()
	}
	for _, o := range e.Outranked {
		m.OutrankedAccesses = append(m.OutrankedAccesses, &registryv1.OutrankedAccess{Access: messageOfAccess(o.Access), Integration: o.By.String()})
	}
	return m
}
