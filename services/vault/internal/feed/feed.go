// Package feed copies what the registry wants into the vault's own database, so that nothing on the way of a credential
// asks another service.
//
// It lists once, then follows the registry's changes in commit order. Every replica runs one; the store lets only the first
// to bring a revision apply it. While the registry is away the copy grows old, and the store refuses deliveries from one that
// is too old; when the registry's database has been replaced, or has forgotten our cursor, everything is listed again.
//
// The tricky idea is the list: its pages are read at different revisions. They are put together with every change since
// the first page, in memory, up to the revision of the last page, and only that whole replaces the copy.
package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/services/vault/internal/store"
)

const (
	// silence is how long a stream may say nothing, bookmarks included, before it is taken for dead.
	silence     = 30 * time.Second
	firstPause  = 200 * time.Millisecond
	maxPause    = 15 * time.Second
	allAccounts = "accounts/-"
	allProjects = "accounts/-/projects/-"
	pageSize    = 1000
)

var errSilent = fmt.Errorf("the registry was silent for %s", silence)

// Registry is what the feed asks of the registry: its generated clients.
type Registry struct {
	Integrations registryv1.IntegrationServiceClient
	Projects     registryv1.ProjectServiceClient
	Attachments  registryv1.AttachmentServiceClient
	Watch        registryv1.WatchServiceClient
}

// projection is where the copy is kept.
type projection interface {
	Projection(ctx context.Context) (store.Projection, error)
	AdvanceProjection(ctx context.Context, now time.Time, at store.Projection, changed store.Wanted) error
	ReplaceProjection(ctx context.Context, now time.Time, at store.Projection, all store.Wanted) error
	ForgetCursor(ctx context.Context, cursor string) error
}

// Config is what a Feed needs; all of it is required.
type Config struct {
	Registry Registry
	Store    projection
	// Changed is called after changes were applied; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Feed follows the registry. Make one with New.
type Feed struct {
	config Config
}

// New makes a Feed. It starts nothing.
func New(config Config) *Feed { return &Feed{config: config} }

// Run follows the registry until ctx ends; it returns nil then, and never otherwise.
func (f *Feed) Run(ctx context.Context) error {
	pause := firstPause
	for ctx.Err() == nil {
		progressed, interruption := f.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if progressed {
			pause = firstPause
		}
		f.config.Log.WarnContext(ctx, "following the registry was interrupted", "error", interruption, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)): //nolint:gosec // jitter
		}
		pause = min(2*pause, maxPause)
	}
	return nil //nolint:nilerr // interruptions were logged, and ended by following again
}

// follow goes on from where the copy is, or lists everything, until something breaks. It tells whether the copy got anywhere.
func (f *Feed) follow(ctx context.Context) (progressed bool, err error) {
	at, err := f.config.Store.Projection(ctx)
	if err != nil {
		return false, err
	}
	cursor := at.Cursor
	var whole *snapshot
	if cursor == "" {
		if whole, err = f.list(ctx); err != nil {
			return false, err
		}
		cursor = whole.cursor
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	stream, err := f.config.Registry.Watch.Watch(ctx, &registryv1.WatchRequest{Cursor: cursor})
	if err != nil {
		return false, err
	}
	for {
		message, err := receive(stream)
		if status.Code(err) == codes.OutOfRange {
			// The registry's database was replaced or restored, or has forgotten what came after our cursor.
			return progressed, errors.Join(err, f.config.Store.ForgetCursor(ctx, cursor))
		}
		if err != nil {
			return progressed, errors.Join(err, context.Cause(ctx))
		}
		watchdog.Reset(silence)
		switch {
		case whole == nil:
			err = f.advance(ctx, message)
		case !whole.apply(message):
			continue
		default:
			err = f.replace(ctx, whole, message)
			whole = nil
		}
		if err != nil {
			return progressed, err
		}
		progressed = true
	}
}

func receive(stream grpc.ServerStreamingClient[registryv1.WatchResponse]) (*registryv1.WatchResponse, error) {
	message, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the registry ended the stream")
	}
	return message, err
}

func (f *Feed) replace(ctx context.Context, whole *snapshot, message *registryv1.WatchResponse) error {
	now := time.Now()
	if err := f.config.Store.ReplaceProjection(ctx, now, position(now, message), whole.wanted()); err != nil {
		return err
	}
	f.config.Log.InfoContext(ctx, "copied the registry", "revision", message.GetRevision(),
		"integrations", len(whole.integrations), "projects", len(whole.projects), "attachments", len(whole.attachments))
	f.config.Changed()
	return nil
}

func (f *Feed) advance(ctx context.Context, message *registryv1.WatchResponse) error {
	now := time.Now()
	if err := f.config.Store.AdvanceProjection(ctx, now, position(now, message), latest(message)); err != nil {
		return err
	}
	if len(message.GetEvents()) > 0 {
		f.config.Changed()
	}
	return nil
}

func position(now time.Time, message *registryv1.WatchResponse) store.Projection {
	return store.Projection{
		Incarnation:  message.GetIncarnation(),
		Revision:     message.GetRevision(),
		Cursor:       message.GetCursor(),
		BookmarkTime: now,
	}
}

func (f *Feed) list(ctx context.Context) (*snapshot, error) {
	whole := newSnapshot()
	integrations := &registryv1.ListIntegrationsRequest{Parent: allAccounts, PageSize: pageSize}
	for {
		page, err := f.config.Registry.Integrations.ListIntegrations(ctx, integrations)
		if err != nil {
			return nil, fmt.Errorf("list integrations: %w", err)
		}
		whole.page(page.GetCursor(), page.GetRevision())
		for _, i := range page.GetIntegrations() {
			whole.integrations[i.GetUid()] = integration(i, page.GetRevision())
		}
		if integrations.PageToken = page.GetNextPageToken(); page.GetNextPageToken() == "" {
			break
		}
	}
	projects := &registryv1.ListProjectsRequest{Parent: allAccounts, PageSize: pageSize}
	for {
		page, err := f.config.Registry.Projects.ListProjects(ctx, projects)
		if err != nil {
			return nil, fmt.Errorf("list projects: %w", err)
		}
		whole.page(page.GetCursor(), page.GetRevision())
		for _, p := range page.GetProjects() {
			whole.projects[p.GetUid()] = project(p, page.GetRevision())
		}
		if projects.PageToken = page.GetNextPageToken(); page.GetNextPageToken() == "" {
			break
		}
	}
	attachments := &registryv1.ListAttachmentsRequest{Parent: allProjects, PageSize: pageSize}
	for {
		page, err := f.config.Registry.Attachments.ListAttachments(ctx, attachments)
		if err != nil {
			return nil, fmt.Errorf("list attachments: %w", err)
		}
		whole.page(page.GetCursor(), page.GetRevision())
		for _, a := range page.GetAttachments() {
			whole.attachments[a.GetUid()] = attachment(a, page.GetRevision())
		}
		if attachments.PageToken = page.GetNextPageToken(); page.GetNextPageToken() == "" {
			return whole, nil
		}
	}
}
