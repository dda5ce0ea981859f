package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/resource"
)

// attachmentField is the resource's field in requests.
const attachmentField = "attachment"

// attachmentService implements registryv1.AttachmentServiceServer.
type attachmentService struct {
	registryv1.UnsafeAttachmentServiceServer
	stores
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
	created, err := s.to(req.GetValidateOnly()).CreateAttachment(ctx, time.Now(), name, specOfAttachment(req.GetAttachment()), strings.ToLower(req.GetRequestId()))
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfAttachment(created), req.GetValidateOnly()), nil
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
	items, next, at, err := list(ctx, attachmentLists, s.store, req, s.store.Attachments)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.ListAttachmentsResponse{Attachments: items, NextPageToken: next, Cursor: at.Cursor(), Revision: at.Revision}, nil
}

func (s attachmentService) UpdateAttachment(ctx context.Context, req *registryv1.UpdateAttachmentRequest) (*registryv1.Attachment, error) {
	given := req.GetAttachment()
	name, err := attachmentName("attachment.name", given.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	if err := checkMask(req.GetUpdateMask(), given); err != nil {
		return nil, statusOf(err)
	}
	want := func(current attachment.Attachment) (attachment.Spec, error) {
		message := messageOfAttachment(current)
		if err := merge(req.GetUpdateMask(), attachmentField, message, given); err != nil {
			return attachment.Spec{}, err
		}
		return specOfAttachment(message), nil
	}
	var missing func() (attachment.Spec, error)
	if req.GetAllowMissing() {
		missing = func() (attachment.Spec, error) {
			// The name says which integration it is; who says it again must say the same.
			if of := given.GetIntegration(); of != "" && of != name.IntegrationName().String() {
				return attachment.Spec{}, invalid("attachment.integration", "must be the one whose ID ends the attachment's name")
			}
			return specOfAttachment(given), nil
		}
	}
	updated, err := s.to(req.GetValidateOnly()).UpdateAttachment(ctx, time.Now(), name, given.GetEtag(), want, missing)
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfAttachment(updated), req.GetValidateOnly()), nil
}

func (s attachmentService) DeleteAttachment(ctx context.Context, req *registryv1.DeleteAttachmentRequest) (*emptypb.Empty, error) {
	name, err := attachmentName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	err = s.to(req.GetValidateOnly()).DeleteAttachment(ctx, time.Now(), name, req.GetEtag())
	if req.GetAllowMissing() && errors.Is(err, resource.ErrNotFound) {
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &emptypb.Empty{}, nil
}
