package rpc

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

var errPending = status.Error(codes.Unimplemented, "pending")

func (integrationService) BatchGetIntegrations(context.Context, *registryv1.BatchGetIntegrationsRequest) (*registryv1.BatchGetIntegrationsResponse, error) {
	return nil, errPending
}

func (projectService) BatchGetProjects(context.Context, *registryv1.BatchGetProjectsRequest) (*registryv1.BatchGetProjectsResponse, error) {
	return nil, errPending
}

func (attachmentService) BatchGetAttachments(context.Context, *registryv1.BatchGetAttachmentsRequest) (*registryv1.BatchGetAttachmentsResponse, error) {
	return nil, errPending
}
