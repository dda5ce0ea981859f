package rpc

import (
	"context"
	"fmt"
	"strings"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// batchNames reads the names of a batch, and refuses, naming them all, those that are not of the parent.
func batchNames[N any](names []string, parse func(name string) (N, bool), ofParent func(N) bool) ([]N, error) {
	all := make([]N, len(names))
	var bad []resource.Violation
	for i, name := range names {
		var ok bool
		if all[i], ok = parse(name); !ok || !ofParent(all[i]) {
			bad = append(bad, resource.Violation{Field: fmt.Sprintf("names[%d]", i), Description: "must be of the parent"})
		}
	}
	return all, resource.Invalid("", bad...)
}

// messagesOf converts what was found.
func messagesOf[T, M any](found []T, convert func(T) M) []M {
	all := make([]M, len(found))
	for i, one := range found {
		all[i] = convert(one)
	}
	return all
}

func (s integrationService) BatchGetIntegrations(ctx context.Context, req *registryv1.BatchGetIntegrationsRequest) (*registryv1.BatchGetIntegrationsResponse, error) {
	account := strings.TrimPrefix(req.GetParent(), "accounts/")
	names, err := batchNames(req.GetNames(), integration.ParseName, func(n integration.Name) bool { return n.Account == account })
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.BatchIntegrations(ctx, names)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.BatchGetIntegrationsResponse{Integrations: messagesOf(found, messageOfIntegration)}, nil
}

func (s projectService) BatchGetProjects(ctx context.Context, req *registryv1.BatchGetProjectsRequest) (*registryv1.BatchGetProjectsResponse, error) {
	account := strings.TrimPrefix(req.GetParent(), "accounts/")
	names, err := batchNames(req.GetNames(), project.ParseName, func(n project.Name) bool { return n.Account == account })
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.BatchProjects(ctx, names)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.BatchGetProjectsResponse{Projects: messagesOf(found, messageOfProject)}, nil
}

func (s attachmentService) BatchGetAttachments(ctx context.Context, req *registryv1.BatchGetAttachmentsRequest) (*registryv1.BatchGetAttachmentsResponse, error) {
	// The proto allows the wildcard for the project only.
	parent, all := strings.CutSuffix(req.GetParent(), "/projects/"+resource.Wildcard)
	names, err := batchNames(req.GetNames(), attachment.ParseName, func(n attachment.Name) bool {
		return all && "accounts/"+n.Account == parent || n.ProjectName().String() == parent
	})
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.BatchAttachments(ctx, names)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.BatchGetAttachmentsResponse{Attachments: messagesOf(found, messageOfAttachment)}, nil
}
