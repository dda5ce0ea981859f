package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// projectField is the resource's field in requests.
const projectField = "project"

// projectService implements registryv1.ProjectServiceServer.
type projectService struct {
	registryv1.UnsafeProjectServiceServer
	stores
}

// projectName reads the name in a field of a request.
func projectName(field, name string) (project.Name, error) {
	parsed, ok := project.ParseName(name)
	if !ok {
		return parsed, invalid(field, "must be accounts/{account}/projects/{project}")
	}
	return parsed, nil
}

func (s projectService) CreateProject(ctx context.Context, req *registryv1.CreateProjectRequest) (*registryv1.Project, error) {
	name, err := projectName("project_id", req.GetParent()+"/projects/"+req.GetProjectId())
	if err != nil {
		return nil, statusOf(err)
	}
	spec := specOfProject(req.GetProject()).Normal()
	if err := resource.Invalid(projectField+".", spec.Check()...); err != nil {
		return nil, statusOf(err)
	}
	created, err := s.to(req.GetValidateOnly()).CreateProject(ctx, time.Now(), name, spec, strings.ToLower(req.GetRequestId()))
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfProject(created), req.GetValidateOnly()), nil
}

func (s projectService) GetProject(ctx context.Context, req *registryv1.GetProjectRequest) (*registryv1.Project, error) {
	name, err := projectName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	found, err := s.store.Project(ctx, name)
	if err != nil {
		return nil, statusOf(err)
	}
	return messageOfProject(found), nil
}

func (s projectService) ListProjects(ctx context.Context, req *registryv1.ListProjectsRequest) (*registryv1.ListProjectsResponse, error) {
	items, next, at, err := list(ctx, projectLists, s.store, req, s.store.Projects)
	if err != nil {
		return nil, statusOf(err)
	}
	return &registryv1.ListProjectsResponse{Projects: items, NextPageToken: next, Cursor: at.Cursor(), Revision: at.Revision}, nil
}

func (s projectService) UpdateProject(ctx context.Context, req *registryv1.UpdateProjectRequest) (*registryv1.Project, error) {
	given := req.GetProject()
	name, err := projectName("project.name", given.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	if err := checkMask(req.GetUpdateMask(), given); err != nil {
		return nil, statusOf(err)
	}
	want := func(current project.Project) (project.Spec, error) {
		message := messageOfProject(current)
		if err := merge(req.GetUpdateMask(), projectField, message, given); err != nil {
			return project.Spec{}, err
		}
		spec := specOfProject(message).Normal()
		return spec, resource.Invalid(projectField+".", spec.CheckChange(current.Spec)...)
	}
	var missing func() (project.Spec, error)
	if req.GetAllowMissing() {
		missing = func() (project.Spec, error) {
			spec := specOfProject(given).Normal()
			return spec, resource.Invalid(projectField+".", spec.Check()...)
		}
	}
	updated, err := s.to(req.GetValidateOnly()).UpdateProject(ctx, time.Now(), name, given.GetEtag(), want, missing)
	if err != nil {
		return nil, statusOf(err)
	}
	return told(messageOfProject(updated), req.GetValidateOnly()), nil
}

func (s projectService) DeleteProject(ctx context.Context, req *registryv1.DeleteProjectRequest) (*emptypb.Empty, error) {
	name, err := projectName("name", req.GetName())
	if err != nil {
		return nil, statusOf(err)
	}
	err = s.to(req.GetValidateOnly()).DeleteProject(ctx, time.Now(), name, req.GetEtag(), req.GetForce())
	if req.GetAllowMissing() && errors.Is(err, resource.ErrNotFound) {
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &emptypb.Empty{}, nil
}
