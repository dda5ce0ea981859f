// Package rpc serves the registry's API: it turns messages into the domain's terms, calls the store, and turns results and
// refusals back. What a field may hold is checked before by the server's chain, as the protos say; what the protos cannot say
// is checked here, by the domain's rules.
package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/change"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

// store keeps the resources. Its errors are those of the domain packages.
type store interface {
	// Incarnation is the database's, as last seen.
	Incarnation() string
	// PageKey is what the database's page tokens are sealed with.
	PageKey() secret.Text
	// Head is the newest position.
	Head(ctx context.Context) (resource.Position, error)

	CreateIntegration(ctx context.Context, now time.Time, name integration.Name, spec integration.Spec, requestID string) (integration.Integration, error)
	Integration(ctx context.Context, name integration.Name) (integration.Integration, error)
	// BatchIntegrations, BatchProjects and BatchAttachments are as of one moment, and in the order of the names.
	BatchIntegrations(ctx context.Context, names []integration.Name) ([]integration.Integration, error)
	// Integrations, Projects and Attachments give one more than the page's size where there is more; rest is where to go on
	// when too few have passed, of all that one page may read.
	Integrations(ctx context.Context, page resource.Page, passes func(integration.Integration) bool) (found []integration.Integration, rest resource.Place, at resource.Position, err error)
	UpdateIntegration(ctx context.Context, now time.Time, name integration.Name, etag string, want func(integration.Integration) (integration.Spec, error), missing func() (integration.Spec, error)) (integration.Integration, error)
	DeleteIntegration(ctx context.Context, now time.Time, name integration.Name, etag string, force bool) (integration.Integration, error)

	CreateProject(ctx context.Context, now time.Time, name project.Name, spec project.Spec, requestID string) (project.Project, error)
	Project(ctx context.Context, name project.Name) (project.Project, error)
	BatchProjects(ctx context.Context, names []project.Name) ([]project.Project, error)
	Projects(ctx context.Context, page resource.Page, passes func(project.Project) bool) (found []project.Project, rest resource.Place, at resource.Position, err error)
	UpdateProject(ctx context.Context, now time.Time, name project.Name, etag string, want func(project.Project) (project.Spec, error), missing func() (project.Spec, error)) (project.Project, error)
	DeleteProject(ctx context.Context, now time.Time, name project.Name, etag string, force bool) error

	CreateAttachment(ctx context.Context, now time.Time, name attachment.Name, spec attachment.Spec, requestID string) (attachment.Attachment, error)
	Attachment(ctx context.Context, name attachment.Name) (attachment.Attachment, error)
	BatchAttachments(ctx context.Context, names []attachment.Name) ([]attachment.Attachment, error)
	Attachments(ctx context.Context, page resource.Page, passes func(attachment.Attachment) bool) (found []attachment.Attachment, rest resource.Place, at resource.Position, err error)
	UpdateAttachment(ctx context.Context, now time.Time, name attachment.Name, etag string, want func(attachment.Attachment) (attachment.Spec, error), missing func() (attachment.Spec, error)) (attachment.Attachment, error)
	DeleteAttachment(ctx context.Context, now time.Time, name attachment.Name, etag string) error
	// EffectiveAttachments gives one more than the page's size where there is more.
	EffectiveAttachments(ctx context.Context, name project.Name, page resource.Page) ([]attachment.Effective, resource.Position, error)
	ResolveAccess(ctx context.Context, name project.Name, access attachment.Access) (attachment.Resolution, resource.Position, error)

	Report(ctx context.Context, now time.Time, by integration.Mastership, uid string, report integration.Report) error
	RemoveIntegration(ctx context.Context, now time.Time, by integration.Mastership, uid string, removable func(integration.Integration) error) error
}

// stores are the store and its trial.
type stores struct {
	store, trial store
}

// to is where a write goes.
func (s stores) to(validateOnly bool) store {
	if validateOnly {
		return s.trial
	}
	return s.store
}

// told is the answer to a write. One that was only tried has no etag: the state that it would stand for is nobody's yet, and by the time it is used could be
// another's, which a write guarded by it would then overwrite.
func told[M proto.Message](m M, validateOnly bool) M {
	if validateOnly {
		r := m.ProtoReflect()
		r.Clear(r.Descriptor().Fields().ByName("etag"))
	}
	return m
}

// watcher tells of changes; see watch.Hub.
type watcher interface {
	Watch(ctx context.Context, cursor resource.Position, send func(changes []change.Change, at resource.Position) error) error
}

// Config is what the services are made from.
type Config struct {
	Store store
	// Trial is the same store, which keeps nothing of what is written to it: for validate_only.
	Trial   store
	Watcher watcher
	// Rules are the deployment's.
	Rules integration.Rules
}

// Register returns the function that registers the registry's services with a server.
func Register(cfg Config) func(grpc.ServiceRegistrar) {
	return func(to grpc.ServiceRegistrar) {
		stores := stores{store: cfg.Store, trial: cfg.Trial}
		registryv1.RegisterIntegrationServiceServer(to, integrationService{stores: stores, rules: cfg.Rules})
		registryv1.RegisterProjectServiceServer(to, projectService{stores: stores})
		registryv1.RegisterAttachmentServiceServer(to, attachmentService{stores: stores})
		registryv1.RegisterStatusServiceServer(to, statusService{store: cfg.Store})
		registryv1.RegisterWatchServiceServer(to, watchService{watcher: cfg.Watcher})
	}
}
