package fault

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/test/internal/rigtest"
)

const (
	// registryKills is how often the registry is killed, and writesBetween how much each writer is acknowledged before.
	registryKills, writesBetween = 5, 15
	registryWriters              = 4
)

// projectWriter creates projects and renames each, one after another, and repeats what was not answered.
type projectWriter struct {
	number   int
	projects registryv1.ProjectServiceClient
	written  atomic.Int64
	// acknowledged are the projects as the registry last answered, repeats how many calls were not answered; read when the writer has ended.
	acknowledged []*registryv1.Project
	repeats      int
}

// persist calls until there is an answer.
func (w *projectWriter) persist(ctx context.Context, call func() error) error {
	for {
		err := call()
		switch status.Code(err) {
		case codes.Unavailable:
			w.repeats++
		case codes.ResourceExhausted: // too fast
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// write goes on until stop is closed; ctx ends what never succeeds.
func (w *projectWriter) write(ctx context.Context, stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		id := fmt.Sprintf("writer-%d-%d", w.number, n)
		var made *registryv1.Project
		err := w.persist(ctx, func() (err error) {
			made, err = w.projects.CreateProject(ctx, &registryv1.CreateProjectRequest{
				Parent: account, ProjectId: id, RequestId: fmt.Sprintf("%08x-0000-4000-8000-%012x", w.number, n),
				Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK, DisplayName: "new"},
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("create %s: %w", id, err)
		}
		var renamed *registryv1.Project
		err = w.persist(ctx, func() (err error) {
			renamed, err = w.projects.UpdateProject(ctx, &registryv1.UpdateProjectRequest{
				Project: &registryv1.Project{Name: made.GetName(), DisplayName: "renamed"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("rename %s: %w", id, err)
		}
		if renamed.GetUid() != made.GetUid() {
			return fmt.Errorf("%s was made anew", id)
		}
		w.acknowledged = append(w.acknowledged, renamed)
		w.written.Add(1)
	}
}

// TestRegistry_KilledUnderLoad kills a registry that keeps its resources in SQLite while there are writes: it starts again, over whatever the last transaction
// left behind, and what it acknowledged is there, once. It shows that nothing is acknowledged before it is committed; that a commit waits for the disk it
// does not, since a killed process leaves its writes to the kernel.
func TestRegistry_KilledUnderLoad(t *testing.T) {
	t.Parallel()
	w := rigtest.New(t)
	address := w.At(7441)
	registry := &rigtest.Process{Name: "registryd", Answers: []string{address}, Command: []string{rigtest.Binary(t, "registryd"), "--config", w.Configure(t, "registry", map[string]any{
		"listen": address, "home_tenants": []string{"6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f000f"}, "quotas": map[string]any{"projects": 1_000_000},
		"database": map[string]any{"driver": "sqlite", "path": filepath.Join(w.Dir, "registry.db")},
		"tls":      w.Certificate(t, "registry").Config(), "identities": rigtest.Identities("platform"),
	})}}
	registry.Start(t)
	t.Cleanup(func() { registry.Stop(t) })
	projects := registryv1.NewProjectServiceClient(w.Dial(t, address, "registry"))

	var all sync.WaitGroup
	stop := make(chan struct{})
	var writers []*projectWriter
	for i := range registryWriters {
		one := &projectWriter{number: i, projects: projects}
		writers = append(writers, one)
		all.Go(func() {
			if err := one.write(t.Context(), stop); err != nil {
				t.Error(err)
			}
		})
	}
	progress := func() {
		t.Helper()
		for _, one := range writers {
			enough := one.written.Load() + writesBetween
			rigtest.Await(t, rigtest.StartTimeout, func(context.Context) error {
				if now := one.written.Load(); now < enough && !t.Failed() {
					return notYet("writer %d has written %d of %d", one.number, now, enough)
				}
				return nil
			})
		}
	}
	for range registryKills {
		progress()
		registry.Kill(t)
		registry.Start(t)
	}
	progress()
	close(stop)
	all.Wait()

	stored := map[string]*registryv1.Project{}
	var page *registryv1.ListProjectsResponse
	var err error
	for page == nil || page.GetNextPageToken() != "" {
		page, err = projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: account, PageSize: 1000, PageToken: page.GetNextPageToken()})
		rigtest.Must(t, err)
		for _, p := range page.GetProjects() {
			stored[p.GetName()] = p
		}
	}
	acknowledged, repeats := 0, 0
	for _, one := range writers {
		acknowledged += len(one.acknowledged)
		repeats += one.repeats
		for _, want := range one.acknowledged {
			if got := stored[want.GetName()]; got.GetUid() != want.GetUid() || got.GetEtag() != want.GetEtag() || got.GetDisplayName() != "renamed" {
				t.Errorf("acknowledged is %v, stored %v", want, got)
			}
		}
	}
	// Every writer has had its last call answered, so there is nothing else, and each was written twice.
	if len(stored) != acknowledged || page.GetRevision() != int64(2*acknowledged) {
		t.Errorf("%d projects at revision %d, of which %d were acknowledged", len(stored), page.GetRevision(), acknowledged)
	}
	if repeats == 0 {
		t.Error("no call was left without an answer: nothing was killed in the midst of anything")
	}
	t.Logf("%d projects through %d kills; %d calls were repeated", acknowledged, registryKills, repeats)
}
