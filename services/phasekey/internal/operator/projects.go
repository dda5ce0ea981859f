package operator

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

var projectView = view[*registryv1.Project]{
	{head: "NAME", cell: func(p *registryv1.Project) string { return id(p.GetName()) }},
	{label: "Resource", cell: (*registryv1.Project).GetName},
	{head: "KIND", cell: func(p *registryv1.Project) string { return word(p.GetKind()) }},
	{head: "DISPLAY NAME", label: "Display name", cell: (*registryv1.Project).GetDisplayName},
	{head: "LABELS", cell: func(p *registryv1.Project) string { return strings.Join(p.GetLabels(), ", ") }},
	{head: "AGE", label: "Created", cell: func(p *registryv1.Project) string { return age(p.GetCreateTime()) }},
	{label: "Etag", cell: (*registryv1.Project).GetEtag},
}

func projects(o *options) *cobra.Command {
	return noun("projects", "The platform's stacks and modules, as the registry mirrors them",
		o.listProjects(), o.getProject(), o.setProject(), o.deleteProject())
}

func (s *session) project(given string) (registryv1.ProjectServiceClient, string, error) {
	name, err := s.in("projects", given)
	if err != nil {
		return nil, "", err
	}
	conn, err := s.registry()
	return registryv1.NewProjectServiceClient(conn), name, err
}

func (o *options) listProjects() *cobra.Command {
	var filter, order string
	c := o.long(o.watchable(o.verb("list", "Show an account's projects", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		parent, err := s.parent()
		if err != nil {
			return err
		}
		conn, err := s.registry()
		if err != nil {
			return err
		}
		client := registryv1.NewProjectServiceClient(conn)
		return show(ctx, s.printer, projectView, func(ctx context.Context, size int32, token string) (*registryv1.ListProjectsResponse, error) {
			return client.ListProjects(ctx, &registryv1.ListProjectsRequest{Parent: parent, PageSize: size, PageToken: token, Filter: filter, OrderBy: order})
		}, func(r *registryv1.ListProjectsResponse) *[]*registryv1.Project { return &r.Projects })
	})))
	c.Flags().StringVar(&filter, "filter", "", `which, after AIP-160: 'kind = KIND_STACK AND labels:"production"'`)
	c.Flags().StringVar(&order, "order-by", "", "after AIP-132: 'create_time desc'")
	return c
}

func (o *options) getProject() *cobra.Command {
	return o.watchable(o.verb("get PROJECT", "Show a project", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.project(args[0])
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, projectView, func(ctx context.Context) (*registryv1.Project, error) {
			return client.GetProject(ctx, &registryv1.GetProjectRequest{Name: name})
		})
	}))
}

func (o *options) setProject() *cobra.Command {
	var (
		kind, display, etag string
		labels              []string
		c                   *cobra.Command
	)
	c = o.verb("set PROJECT", "Make a project, or change what is given of it", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.project(args[0])
		if err != nil {
			return err
		}
		wanted := &registryv1.Project{Name: name, DisplayName: display, Labels: labels, Etag: etag}
		if wanted.Kind, err = parse[registryv1.Project_Kind](kind); err != nil {
			return fmt.Errorf("--kind: %w", err)
		}
		set, err := client.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
			Project: wanted, AllowMissing: true, UpdateMask: mask(c.Flags(), map[string]string{"display-name": "display_name", "label": "labels"}),
		})
		if err != nil {
			return err
		}
		return card(s.printer, projectView, set)
	})
	flags := c.Flags()
	flags.StringVar(&kind, "kind", "stack", "what it is: "+strings.Join(choices[registryv1.Project_Kind](), " or ")+"; cannot be changed")
	flags.StringVar(&display, "display-name", "", "for people")
	flags.StringArrayVar(&labels, "label", nil, "a label; repeatable")
	flags.StringVar(&etag, "etag", "", "change only what has this etag")
	enumFlag(c, "kind", choices[registryv1.Project_Kind]())
	return c
}

func (o *options) deleteProject() *cobra.Command {
	var etag string
	c := o.careful(o.verb("delete PROJECT", "Delete a project", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.project(args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("Delete %s", name); err != nil {
			return err
		}
		if _, err := client.DeleteProject(ctx, &registryv1.DeleteProjectRequest{Name: name, Etag: etag}); err != nil {
			return err
		}
		s.note("%s is deleted", name)
		return nil
	}))
	c.Flags().StringVar(&etag, "etag", "", "delete only what has this etag")
	return c
}
