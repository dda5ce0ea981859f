package fault

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/test/internal/rigtest"
)

// perGrant is how many runners follow by one grant: all that may.
const perGrant = 4

// follower is a runner that does nothing but hold what it is given.
type follower struct {
	*runner.Runner
	way   *rigtest.Way
	of    *integration
	grant string // its name
	lease string // the first that it was given
}

// moved judges that the runner was never without a stream, although each vault was stopped.
func (f *follower) moved(t *testing.T) {
	t.Helper()
	if moves, gaps, _ := f.way.Seen(); len(gaps) > 0 || moves == 0 {
		t.Errorf("a runner of %s moved %d times with two streams, and was without any after: %v", f.of.name, moves, gaps)
	}
}

// follow has runners follow every integration until the test ends. Each says when it holds nothing, or another lease.
func (w *world) follow(t *testing.T) (all []*follower) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for n, i := range w.integrations {
		conn := w.runners(t)
		if n%2 == 0 {
			conn = w.balanced(t)
		}
		grant, err := w.grant(ctx, i, "drained", time.Hour)
		rigtest.Must(t, err)
		for n := range perGrant {
			own := &rigtest.Way{ClientConn: conn}
			r, err := runner.New(runner.Config{Conn: own, Grant: secret.New(grant.GetToken()), Log: slog.New(slog.DiscardHandler)})
			rigtest.Must(t, err)
			running.Go(func() {
				if err := r.Run(ctx); err != nil {
					w.judge.fail("follower %d of %s: %v", n, i.name, err)
				}
			})
			c, err := r.Credential(ctx)
			rigtest.Must(t, err)
			f := &follower{Runner: r, way: own, of: i, grant: grant.GetName(), lease: c.Lease}
			all = append(all, f)
			running.Go(func() {
				for rest(ctx) {
					c, err := held(ctx, r, false)
					if ctx.Err() == nil && (err != nil || c.Lease != f.lease) {
						w.judge.fail("follower %d of %s holds lease %q, not %q: %v", n, i.name, c.Lease, f.lease, err)
					}
				}
			})
		}
	}
	return all
}

// drain stops each vault in order, as a new release does: everybody opens a stream to another one before the one to it ends, and hears of a rotation from
// there, under the lease that they had.
func (w *world) drain(t *testing.T) {
	t.Helper()
	followers := w.follow(t)
	for _, v := range w.vaults {
		v.Stop(t)
		w.rotated(t, again)
		newest := map[string]int{}
		for _, i := range w.integrations {
			rigtest.Await(t, again, func(ctx context.Context) error {
				versions, err := w.versions(ctx, i)
				newest[i.name] = active(versions)
				return err
			})
		}
		for _, f := range followers {
			rigtest.Await(t, again, func(ctx context.Context) error {
				c, err := f.Credential(ctx)
				if err == nil && c.Version < int64(newest[f.of.name]) {
					return notYet("with %s stopped, a runner of %s has version %d, not %d", v.Name, f.of.name, c.Version, newest[f.of.name])
				}
				return err
			})
		}
		v.Start(t)
	}
	for _, f := range followers {
		f.moved(t)
	}
	open := map[string]bool{}
	for _, f := range followers {
		rigtest.Await(t, again, func(ctx context.Context) error {
			found, err := w.vaults[0].leases.ListLeases(ctx, &vaultv1.ListLeasesRequest{Parent: f.grant, PageSize: 10})
			if err != nil {
				return err
			}
			if n := len(found.GetLeases()); n != perGrant {
				return fmt.Errorf("%s has %d leases, for %d runners", f.grant, n, perGrant)
			}
			for _, l := range found.GetLeases() {
				if l.GetState() == vaultv1.Lease_STATE_OPEN {
					open[l.GetName()[strings.LastIndexByte(l.GetName(), '/')+1:]] = true
				}
			}
			return nil
		})
		if !open[f.lease] {
			t.Errorf("lease %s of %s is not open any more", f.lease, f.grant)
		}
	}
	w.judge.pronounce(t)
}
