package app_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldbtest"
)

// writer creates projects, and renames each once, one after another, and repeats what was not acknowledged.
type writer struct {
	name     string
	projects registryv1.ProjectServiceClient

	mu sync.Mutex
	// acknowledged are the projects as they were last acknowledged, by name.
	acknowledged map[string]*registryv1.Project
	repeats      int
}

// persist calls until the answer is one, or ctx ends. Nothing else than that the database is away, or that it goes too fast, is a reason to come back.
func (w *writer) persist(ctx context.Context, call func() error) error {
	for {
		err := call()
		switch status.Code(err) {
		case codes.Unavailable, codes.ResourceExhausted:
			w.mu.Lock()
			w.repeats++
			w.mu.Unlock()
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(10*time.Millisecond, rpcerr.RetryDelay(err))):
		}
	}
}

func (w *writer) run(ctx context.Context) error {
	acknowledge := func(p *registryv1.Project) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.acknowledged[p.GetName()] = p
	}
	for n := 0; ctx.Err() == nil; n++ {
		var p *registryv1.Project
		create := &registryv1.CreateProjectRequest{
			Parent: "accounts/acme", ProjectId: fmt.Sprintf("%s-%d", w.name, n), RequestId: uuid.NewString(),
			Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, DisplayName: "new"},
		}
		// A call is not given up halfway, or nobody would know what became of it.
		err := w.persist(context.WithoutCancel(ctx), func() (err error) {
			p, err = w.projects.CreateProject(context.WithoutCancel(ctx), create)
			return err
		})
		if err != nil {
			return fmt.Errorf("create %s: %w", create.GetProjectId(), err)
		}
		acknowledge(p)
		// By etag: a rename that happened without being acknowledged shows by the refusal of its repeat.
		rename := &registryv1.UpdateProjectRequest{
			Project:    &registryv1.Project{Name: p.GetName(), DisplayName: "renamed", Etag: p.GetEtag()},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
		}
		tries := 0
		err = w.persist(context.WithoutCancel(ctx), func() (err error) {
			tries++
			p, err = w.projects.UpdateProject(context.WithoutCancel(ctx), rename)
			return err
		})
		if tries > 1 && rpcerr.Reason(err) == "ETAG_MISMATCH" {
			err = w.persist(context.WithoutCancel(ctx), func() (err error) {
				p, err = w.projects.GetProject(context.WithoutCancel(ctx), &registryv1.GetProjectRequest{Name: rename.GetProject().GetName()})
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("rename %s: %w", create.GetProjectId(), err)
		}
		acknowledge(p)
	}
	return nil
}

func (w *writer) progress() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acknowledged)
}

// follower watches, and comes back with its last cursor.
type follower struct {
	watches registryv1.WatchServiceClient

	mu     sync.Mutex
	events []*registryv1.Event
	resume int
}

func (f *follower) run(ctx context.Context, cursor string) error {
	for ctx.Err() == nil {
		stream, err := f.watches.Watch(ctx, &registryv1.WatchRequest{Cursor: cursor})
		for err == nil {
			var resp *registryv1.WatchResponse
			if resp, err = stream.Recv(); err != nil {
				break
			}
			cursor = resp.GetCursor()
			f.mu.Lock()
			f.events = append(f.events, resp.GetEvents()...)
			f.mu.Unlock()
		}
		if ctx.Err() == nil && status.Code(err) != codes.Unavailable {
			return fmt.Errorf("watch: %w", err)
		}
		f.mu.Lock()
		f.resume++
		f.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

func (f *follower) reached() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.events) == 0 {
		return 0
	}
	return f.events[len(f.events)-1].GetRevision()
}

// await polls a condition that has half a minute to come true.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not in time", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestApp_PostgresRestartsUnderLoad stops PostgreSQL, in order and not, while there are writes: what was acknowledged is there afterwards, once, and who
// watched has seen every revision once and in order.
func TestApp_PostgresRestartsUnderLoad(t *testing.T) {
	server := sqldbtest.NewServer(t)
	f := newFixture(t, server.Config(t))
	const vaultID = "spiffe://phasekey.dev/vault"
	f.cfg.Identities = append(f.cfg.Identities, grpcserver.Identity{ID: vaultID, Role: "vault", Accounts: []string{grpcserver.AllAccounts}})
	f.cfg.Quotas.Projects = 1_000_000
	// A watch that cannot be served ends within the outage, and has to resume.
	f.cfg.BookmarkInterval = time.Second
	a, _ := f.run(t)
	conn := f.dial(t, a.Addr().String(), platformID)
	const service = "phasekey.registry.v1.ProjectService"
	awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
	projects := registryv1.NewProjectServiceClient(conn)
	list := func(token string) *registryv1.ListProjectsResponse {
		got, err := projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: "accounts/acme", PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	cursor := list("").GetCursor()

	watching, stopWatching := context.WithCancel(t.Context())
	defer stopWatching()
	writing, stopWriting := context.WithCancel(t.Context())
	defer stopWriting()
	var all, followed sync.WaitGroup
	follow := &follower{watches: registryv1.NewWatchServiceClient(f.dial(t, a.Addr().String(), vaultID))}
	followed.Go(func() {
		if err := follow.run(watching, cursor); err != nil {
			t.Error(err)
		}
	})
	var writers []*writer
	for i := range 4 {
		w := &writer{name: fmt.Sprint("w", i), projects: projects, acknowledged: map[string]*registryv1.Project{}}
		writers = append(writers, w)
		all.Go(func() {
			if err := w.run(writing); err != nil {
				t.Error(err)
			}
		})
	}
	progress := func(what string) {
		var before []int
		for _, w := range writers {
			before = append(before, w.progress())
		}
		await(t, what, func() bool {
			return !slices.ContainsFunc(writers, func(w *writer) bool { return w.progress() < before[slices.Index(writers, w)]+20 })
		})
	}
	progress("writes before anything happens")
	for _, how := range []sqldbtest.Ending{sqldbtest.Crash, sqldbtest.Shutdown, sqldbtest.Crash} {
		server.Stop(t, how)
		awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		server.Start(t)
		awaitHealth(t, conn, service, grpc_health_v1.HealthCheckResponse_SERVING)
		progress(fmt.Sprintf("writes after a %s", how))
	}
	stopWriting()
	all.Wait()

	stored := map[string]*registryv1.Project{}
	head, token := int64(0), ""
	for {
		page := list(token)
		for _, p := range page.GetProjects() {
			stored[p.GetName()] = p
		}
		head, token = page.GetRevision(), page.GetNextPageToken()
		if token == "" {
			break
		}
	}
	await(t, "the watch catches up", func() bool { return follow.reached() == head })
	stopWatching()
	followed.Wait()

	acknowledged, repeats := 0, 0
	for _, w := range writers {
		acknowledged += len(w.acknowledged)
		repeats += w.repeats
		for name, want := range w.acknowledged {
			got := stored[name]
			if got.GetUid() != want.GetUid() || got.GetEtag() != want.GetEtag() || got.GetDisplayName() != "renamed" {
				t.Errorf("acknowledged %v, stored is %v", want, got)
			}
		}
	}
	// Whoever was stopped has had its last call answered, so there is nothing else.
	if len(stored) != acknowledged || head != int64(2*acknowledged) {
		t.Errorf("%d projects at revision %d, of which %d were acknowledged", len(stored), head, acknowledged)
	}
	for i, e := range follow.events {
		if e.GetRevision() != int64(i+1) {
			t.Fatalf("event %d has revision %d", i+1, e.GetRevision())
		}
	}
	if repeats == 0 || follow.resume == 0 {
		t.Errorf("%d repeats, %d resumptions: nothing happened", repeats, follow.resume)
	}
	t.Logf("%d projects, %d revisions, %d repeats, %d resumptions", acknowledged, head, repeats, follow.resume)
}
