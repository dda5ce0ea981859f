package rpc_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// TestWatch_AStuckWatcherHoldsNobody has one of many watchers take nothing while far more is changed than its connection takes: writes go on, everybody
// else is told of all of it, and so is the stuck one when it goes on.
func TestWatch_AStuckWatcherHoldsNobody(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		const watchers, changes = 30, 120
		page, err := w.vault.projects.ListProjects(t.Context(), &registryv1.ListProjectsRequest{Parent: "accounts/-"})
		must(t, err)
		open := func() registryv1.WatchService_WatchClient {
			stream, err := w.vault.watch.Watch(t.Context(), &registryv1.WatchRequest{Cursor: page.GetCursor()})
			must(t, err)
			return stream
		}
		// told reads on to the last change.
		told := func(stream registryv1.WatchService_WatchClient) error {
			for last := page.GetRevision(); last < page.GetRevision()+changes; {
				got, err := stream.Recv()
				if err != nil {
					return err
				}
				for _, e := range got.GetEvents() {
					if e.GetRevision() != last+1 || e.GetProject().GetName() != stack {
						return fmt.Errorf("after %d came %v", last, e)
					}
					last++
				}
			}
			return nil
		}
		stuck := open()
		var all sync.WaitGroup
		for range watchers {
			stream := open()
			all.Go(func() {
				if err := told(stream); err != nil {
					t.Error(err)
				}
			})
		}
		var labels []string
		for i := range 50 {
			labels = append(labels, fmt.Sprintf("%02d%s", i, strings.Repeat("\U00010400", 78)))
		}
		for i := range changes {
			_, err := w.platform.projects.UpdateProject(t.Context(), &registryv1.UpdateProjectRequest{
				Project: &registryv1.Project{Name: stack, DisplayName: fmt.Sprint(i), Labels: labels}, UpdateMask: paths("display_name", "labels"),
			})
			must(t, err)
		}
		all.Wait()
		must(t, told(stuck))
	})
}
