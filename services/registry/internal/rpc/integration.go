package rpc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/resource"
)

// integrationField is the resource's field in requests.
const integrationField = "integration"

// integrationService implements registryv1.IntegrationServiceServer.
type integrationService struct {
	registryv1.UnsafeIntegrationServiceServer
	stores
	rules integration.Rules
}

// check finds what the domain's rules forbid in what a request says of a new integration.
func (s integrationService) check(spec integration.Spec) error {
	violations, err := s.rules.Check(spec)
	if err != nil {
		return err
	}
	return resource.Invalid(integrationField+".", violations...)
}

// integrationName reads the name in a field of a request.
func integrationName(field, name string) (integration.Name, error) {
	parsed, ok := integration.ParseName(name)
	if !ok {
		return parsed, invalid(field, "must be accounts/{account}/integrations/{integration}")
	}
	return parsed, nil
}

func (s integrationService) CreateIntegration(ctx context.Context, req *registryv1.CreateIntegrationRequest) (*registryv1.Integration, error) {
	name, err := integrationName("integration_id", req.GetParent()+"/integrations/"+req.GetIntegrationId())
	if err != nil {
		return nil, statusOf(err)
	}
	spec := specOfIntegration(req.GetIntegration()).Normal()
	if err := s.check(spec); err != nil {
		return nil, statusOf(err)
	}
	created, err := s.to(req.GetValidateOnly()).CreateIntegration(ctx, time.Now(), name, spec, strings.ToLower(req.GetRequestId()))
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfIntegration(created), req.GetValidateOnly()), nil
}

func (s integrationService) GetIntegration(ctx context.Context, req *registryv1.GetIntegrationRequest) (*registryv1.Integration, error) {
	name, err := integrationName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.Integration(ctx, name)
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfIntegration(found), nil
}

func (s integrationService) ListIntegrations(ctx context.Context, req *registryv1.ListIntegrationsRequest) (*registryv1.ListIntegrationsResponse, error) {
	items, next, at, err := list(ctx, integrationLists, s.store, req, s.store.Integrations)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.ListIntegrationsResponse{Integrations: items, NextPageToken: next, Cursor: at.Cursor(), Revision: at.Revision}, nil
}

func (s integrationService) UpdateIntegration(ctx context.Context, req *registryv1.UpdateIntegrationRequest) (*registryv1.Integration, error) {
	given := req.GetIntegration()
	name, err := integrationName("integration.name", given.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	if err := checkMask(req.GetUpdateMask(), given); err != nil {
		return nil, statusOf(err)
	}
	if given.GetCloud() == "" && slices.Contains(req.GetUpdateMask().GetPaths(), "cloud") {
		// Whoever names it and leaves it empty says the default, as at creation, which a repeat must be able to say again.
		given = proto.CloneOf(given)
		given.Cloud = integration.DefaultCloud
	}
	want := func(current integration.Integration) (integration.Spec, error) {
		message := messageOfIntegration(current)
		if err := merge(req.GetUpdateMask(), integrationField, message, given); err != nil {
			return integration.Spec{}, err
		}
		spec := specOfIntegration(message).Normal()
		return spec, resource.Invalid(integrationField+".", s.rules.CheckChange(current.Spec, spec)...)
	}
	var missing func() (integration.Spec, error)
	if req.GetAllowMissing() {
		missing = func() (integration.Spec, error) {
			spec := specOfIntegration(given).Normal()
			return spec, s.check(spec)
		}
	}
	updated, err := s.to(req.GetValidateOnly()).UpdateIntegration(ctx, time.Now(), name, given.GetEtag(), want, missing)
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfIntegration(updated), req.GetValidateOnly()), nil
}

func (s integrationService) DeleteIntegration(ctx context.Context, req *registryv1.DeleteIntegrationRequest) (*registryv1.Integration, error) {
	name, err := integrationName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	deleted, err := s.to(req.GetValidateOnly()).DeleteIntegration(ctx, time.Now(), name, req.GetEtag(), req.GetForce())
	if req.GetAllowMissing() && errors.Is(err, resource.ErrNotFound) {
		return &registryv1.Integration{}, nil
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfIntegration(deleted), req.GetValidateOnly()), nil
}
