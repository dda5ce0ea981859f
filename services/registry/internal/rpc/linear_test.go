package rpc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/store"
)

// version is one state of a project: its text, and the etag that stands for it.
type version struct{ text, etag string }

// asked is an update, or a read when it has no text.
type asked struct{ text, etag string }

// answered is what came of it; refused means that the etag was not the current one.
type answered struct {
	version

	refused bool
}

// etagRegister is what updates by etag are: a register with compare-and-set, of which each state has an etag that is known only when it
// is told.
var etagRegister = porcupine.Model{ //nolint:gochecknoglobals // a description, nothing that changes
	Init: func() any { return version{} },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(version), input.(asked), output.(answered)
		switch {
		case in.text == "":
			return out.version == now, now
		case in.etag != "" && in.etag != now.etag:
			return out.refused, now
		default:
			return !out.refused && out.text == in.text && out.etag != now.etag, out.version
		}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// Concurrent updates by etag are as if one came after the other, at some moment between their call and their answer, at whichever replica.
func TestUpdates_AreLinearizable(t *testing.T) {
	sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
		replicas := []*world{newWorldOn(t, db, quota.Default()), newWorldOn(t, db, quota.Default())}
		w := replicas[0]
		p := w.project(t, "acme", "contended")
		begin := time.Now()
		var (
			mu      sync.Mutex
			history []porcupine.Operation
		)
		// The first operation makes the register what it is.
		first, err := w.platform.projects.UpdateProject(t.Context(), change(p.GetName(), asked{text: "first"}))
		must(t, err)
		history = append(history, porcupine.Operation{ClientId: 0, Input: asked{text: "first"}, Call: -2, Output: answered{version: versionOf(first)}, Return: -1})

		var all sync.WaitGroup
		for client := range 6 {
			all.Go(func() {
				dice := rand.New(rand.NewPCG(uint64(begin.UnixNano()), uint64(client)))
				known := ""
				for n := range 40 {
					in := asked{text: fmt.Sprintf("%d of %d", n, client), etag: known}
					switch dice.IntN(4) {
					case 0:
						in = asked{}
					case 1:
						in.etag = ""
					}
					call := time.Since(begin)
					out, err := perform(t.Context(), replicas[client%len(replicas)], p.GetName(), in)
					back := time.Since(begin)
					if err != nil {
						t.Error(err)
						return
					}
					if !out.refused {
						known = out.etag
					}
					mu.Lock()
					history = append(history, porcupine.Operation{ClientId: client + 1, Input: in, Call: int64(call), Output: out, Return: int64(back)})
					mu.Unlock()
				}
			})
		}
		all.Wait()
		refused := 0
		for _, o := range history {
			if o.Output.(answered).refused {
				refused++
			}
		}
		if refused == 0 || refused > len(history)*9/10 {
			t.Errorf("%d of %d were refused: that proves little", refused, len(history))
		}
		if result := porcupine.CheckOperationsTimeout(etagRegister, history, time.Minute); result != porcupine.Ok {
			t.Errorf("%d operations: %s", len(history), result)
		}
	})
}

func versionOf(p *registryv1.Project) version {
	return version{text: p.GetDisplayName(), etag: p.GetEtag()}
}

func change(name string, in asked) *registryv1.UpdateProjectRequest {
	return &registryv1.UpdateProjectRequest{
		Project: &registryv1.Project{Name: name, DisplayName: in.text, Etag: in.etag}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
	}
}

func perform(ctx context.Context, w *world, name string, in asked) (answered, error) {
	if in.text == "" {
		got, err := w.platform.projects.GetProject(ctx, &registryv1.GetProjectRequest{Name: name})
		return answered{version: versionOf(got)}, err
	}
	got, err := w.platform.projects.UpdateProject(ctx, change(name, in))
	if rpcerr.Reason(err) == "ETAG_MISMATCH" {
		return answered{refused: true}, nil
	}
	return answered{version: versionOf(got)}, err
}
