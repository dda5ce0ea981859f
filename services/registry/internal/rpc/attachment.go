package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/resource"
)

// attachmentField is the resource's field in requests, attachmentList what its page tokens are bound to.
const (
	attachmentField = "attachment"
	attachmentList  = "attachments"
)

// attachmentService implements registryv1.AttachmentServiceServer.
type attachmentService struct {
	registryv1.UnsafeAttachmentServiceServer
	store store
}

// attachmentName reads the name in a field of a request.
func attachmentName(field, name string) (attachment.Name, error) {
	parsed, ok := attachment.ParseName(name)
	if !ok {
		return parsed, invalid(field, "must be accounts/{account}/projects/{project}/attachments/{attachment}")
	}
	return parsed, nil
}

func (s attachmentService) CreateAttachment(ctx context.Context, req *registryv1.CreateAttachmentRequest) (*registryv1.Attachment, error) {
	to, err := projectName("parent", req.GetParent())
	if err != nil {
		return nil, statusOf(err)
	}
	of, err := integrationName("attachment.integration", req.GetAttachment().GetIntegration())
	if err != nil {
		return nil, statusOf(err)
	}
	if of.Account != to.Account {
		return nil, statusOf(invalid("attachment.integration", "must be of the project's account"))
	}
	name := attachment.Name{Account: to.Account, Project: to.ID, ID: of.ID}
	created, err := s.store.CreateAttachment(ctx, time.Now(), name, specOfAttachment(req.GetAttachment()), strings.ToLower(req.GetRequestId()))
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfAttachment(created), nil
}

func (s attachmentService) GetAttachment(ctx context.Context, req *registryv1.GetAttachmentRequest) (*registryv1.Attachment, error) {
	name, err := attachmentName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.Attachment(ctx, name)
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfAttachment(found), nil
}

func (s attachmentService) ListAttachments(ctx context.Context, req *registryv1.ListAttachmentsRequest) (*registryv1.ListAttachmentsResponse, error) {
	page, err := resource.NewPage(s.store.Incarnation(), attachmentList, req.GetParent(), req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, statusOf(err)
	}
	found, at, err := s.store.Attachments(ctx, page)
	if err != nil {
		return nil, statusOf(err)
	}
	items, more := pageOf(found, page.Size, messageOfAttachment)
	resp := &registryv1.ListAttachmentsResponse{Attachments: items, Cursor: at.Cursor(), Revision: at.Revision}
	if more {
		resp.NextPageToken = resource.PageToken(at.Incarnation, attachmentList, page.Parent, items[len(items)-1].GetName())
	}
	return resp, nil
}

func (s attachmentService) UpdateAttachment(ctx context.Context, req *registryv1.UpdateAttachmentRequest) (*registryv1.Attachment, error) {
	given := req.GetAttachment()
	name, err := attachmentName("attachment.name", given.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	updated, err := s.store.UpdateAttachment(ctx, time.Now(), name, given.GetEtag(), func(current attachment.Attachment) (attachment.Spec, error) {
		message := messageOfAttachment(current)
		if err := merge(req.GetUpdateMask(), attachmentField, message, given); err != nil {
			return attachment.Spec{}, err
		}
		return specOfAttachment(message), nil
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfAttachment(updated), nil
}

func (s attachmentService) DeleteAttachment(ctx context.Context, req *registryv1.DeleteAttachmentRequest) (*emptypb.Empty, error) {
	name, err := attachmentName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	if err := s.store.DeleteAttachment(ctx, time.Now(), name, req.GetEtag()); err != nil {
		return nil, statusOf(err)
	}
	return &emptypb.Empty{}, nil
}
