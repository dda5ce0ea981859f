package year_test

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9/logging"
)

// What is lived through, by flags of the test.
var (
	seed         = flag.Uint64("year.seed", 1, "the first seed")                                      //nolint:gochecknoglobals // flags are
	seeds        = flag.Int("year.seeds", 1, "so many seeds, from the first on")                      //nolint:gochecknoglobals // flags are
	days         = flag.Int("year.days", 0, "so many days; 30 by default, 3 under the race detector") //nolint:gochecknoglobals // flags are
	integrations = flag.Int("year.integrations", 20, "so many integrations")                          //nolint:gochecknoglobals // flags are
	federated    = flag.Int("year.federated", 10, "one of so many integrations has no secret")        //nolint:gochecknoglobals // flags are
	leases       = flag.Int("year.leases", 8, "so many runners at a time")                            //nolint:gochecknoglobals // flags are
	progress     = flag.Bool("year.progress", false, "say each day how it stands")                    //nolint:gochecknoglobals // flags are
)

func TestYear(t *testing.T) {
	logging.Disable() // it tells of every connection that is refused
	// A world is small, and what it throws away is much.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	set := settings{integrations: *integrations, federated: *federated, leases: *leases, days: *days, killChance: 0.002, pauseChance: 0.0005}
	if set.days == 0 {
		set.days = defaultDays
	}
	for n := range *seeds {
		set.seed = *seed + uint64(n)
		set.replicas = 2 + int(set.seed%3)
		t.Run(fmt.Sprintf("seed %d", set.seed), func(t *testing.T) {
			began := time.Now()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, set)
				w.run(t.Context(), func(day int) {
					if *progress {
						fmt.Fprintf(os.Stderr, "seed %d, day %d of %d: %d passwords made, %d lives\n", set.seed, day, set.days, w.judge.counts["passwords made"], w.judge.counts["lives"])
					}
				})
				for _, failure := range w.failed() {
					t.Error(failure)
				}
				if t.Failed() {
					for _, line := range w.log.last {
						t.Log(line[:len(line)-1])
					}
				}
				t.Log(w.judge.report())
			})
			t.Logf("%d integrations, %d runners, %d replicas, %d days in %s", set.integrations, set.leases, set.replicas, set.days, time.Since(began).Round(time.Second))
		})
	}
}
