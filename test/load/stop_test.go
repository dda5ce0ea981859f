package load

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/test/internal/rigtest"
)

// stops measures a vault that is stopped in order with all streams on it: how many runners were never without one, and when the last was served by
// another. They are runners as they are, and not what reads like one, for it is they who move.
func (s *stage) stops(t *testing.T, suite *suite, name string, n, perConnection int) {
	t.Helper()
	first, second := suite.vaults[0], suite.vaults[1]
	grants := suite.grant(t, (n+leasesPerGrant-1)/leasesPerGrant)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	leave := func() {
		cancel()
		running.Wait()
	}
	defer leave()
	var conns []*grpc.ClientConn
	for range (n + perConnection - 1) / perConnection {
		conn, err := s.world.connect(first, second)
		rigtest.Must(t, err)
		defer func() { rigtest.Must(t, conn.Close()) }()
		conns = append(conns, conn)
	}
	ways := make([]*rigtest.Way, n)
	places, failures := make(chan struct{}, openAtOnce), make(chan error, 2*n)
	var coming sync.WaitGroup
	for i := range n {
		places <- struct{}{}
		ways[i] = &rigtest.Way{ClientConn: conns[i/perConnection]}
		r, err := runner.New(runner.Config{Conn: ways[i], Grant: secret.New(grants[i/leasesPerGrant].GetToken()), Log: slog.New(slog.DiscardHandler)})
		rigtest.Must(t, err)
		running.Go(func() {
			if err := r.Run(ctx); err != nil {
				failures <- err
			}
		})
		coming.Go(func() {
			defer func() { <-places }()
			waiting, done := context.WithTimeout(ctx, callTimeout)
			defer done()
			if _, err := r.Credential(waiting); err != nil {
				failures <- err
			}
		})
	}
	coming.Wait()
	select {
	case err := <-failures:
		t.Fatalf("a runner of %s: %v", first.Name, err)
	default:
	}
	began := time.Now()
	first.Stop(t)
	stopped := time.Now()
	kept, last := 0, began
	for _, way := range ways {
		rigtest.Await(t, scaled(gatherTime, n), func(context.Context) error {
			_, gaps, newest := way.Seen()
			switch {
			case newest.IsZero():
				return errors.New("a runner has no stream")
			case len(gaps) == 0:
				kept++
			}
			if newest.After(last) {
				last = newest
			}
			return nil
		})
	}
	label := fmt.Sprintf("%d runners, connections %s", n, name)
	s.report.add(label+": never without a stream in a stop", "%", "", bound{}, 100*float64(kept)/float64(n))
	s.report.add(label+": all elsewhere after", "s", "", bound{}, last.Sub(began).Seconds())
	s.say("%s stopped in %.1f s: %d of %d runners were never without a stream, the last came elsewhere after %.1f s", first.Name, stopped.Sub(began).Seconds(), kept, n, last.Sub(began).Seconds())
	leave()
	first.Start(t)
}
