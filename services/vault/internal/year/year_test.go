package year_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"phasekey.dev/services/vault/internal/lease"
)

// What is lived through, by flags of the test.
var (
	seed         = flag.Uint64("year.seed", 1, "the seed")                                                                //nolint:gochecknoglobals // flags are
	days         = flag.Int("year.days", 0, "so many days; 30 by default, 3 under the race detector")                     //nolint:gochecknoglobals // flags are
	integrations = flag.Int("year.integrations", 20, "so many integrations")                                              //nolint:gochecknoglobals // flags are
	federated    = flag.Int("year.federated", 10, "one of so many integrations has no secret")                            //nolint:gochecknoglobals // flags are
	leases       = flag.Int("year.leases", 8, "so many runners at a time")                                                //nolint:gochecknoglobals // flags are
	table        = flag.String("year.table", "", "add a line on each seed to the table in this file")                     //nolint:gochecknoglobals // flags are
	pauses       = flag.Float64("year.pauses", 1, "so many times as many pauses with a request of a master's on its way") //nolint:gochecknoglobals // flags are
	progress     = flag.Bool("year.progress", false, "say each day how it stands")                                        //nolint:gochecknoglobals // flags are
)

func TestYear(t *testing.T) {
	logging.Disable() // it tells of every connection that is refused
	// A world is small, and what it throws away is much.
	percent := debug.SetGCPercent(400)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	set := settings{seed: *seed, replicas: 2 + int(*seed%3), integrations: *integrations, federated: *federated, leases: *leases, days: *days}
	// A death costs a shard up to its lock's life, in which nobody works. With more integrations there are more steps in a day, and deaths must not outnumber the
	// lives of locks: what has no master for most of the day cannot be rotated by anybody.
	set.killChance, set.pauseChance = min(0.0025, 0.15/float64(set.integrations)), min(0.0005, 0.03/float64(set.integrations))
	set.masterPauseChance = *pauses * 4 * set.pauseChance
	if set.days == 0 {
		set.days = defaultDays
	}
	began := time.Now()
	var line string
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, set)
		w.run(t.Context(), func(day int) {
			if *progress {
				fmt.Fprintf(os.Stderr, "seed %d, day %d of %d: %d rotations, %d lives\n", set.seed, day, set.days, w.judge.counted("rotations"), w.judge.counted("lives"))
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
		line = w.line()
	})
	took := time.Since(began).Round(time.Second)
	t.Logf("seed %d: %d integrations, %d runners, %d replicas, %d days in %s", set.seed, set.integrations, set.leases, set.replicas, set.days, took)
	if *table != "" {
		must(t, tabulate(*table, fmt.Sprintf("%s %s |\n", line, took)))
	}
}

const heading = "| seed | integrations | leases | replicas | days | rotations | deaths, at so many steps | pauses | faults | deliveries | violations | took |\n" +
	"|---|---|---|---|---|---|---|---|---|---|---|---|\n"

// line is what the table says of a world, but for how long it took.
func (w *world) line() string {
	deaths, steps := w.judge.deaths()
	return fmt.Sprintf("| %d | %d | %d | %d | %d | %d | %d, %d | %d | %d | %d | %d |", w.set.seed, w.set.integrations, w.set.leases, w.set.replicas, w.days, w.judge.counted("rotations"), deaths, steps,
		w.judge.counted("paused past the lock's life", "pauses with a request on the way"),
		w.judge.counted(string(noRedis), "one replica cut off from Redis", "Redis emptied", string(noSQL), string(noEntra), string(noGraph), string(throttled), string(lossy), string(noRegistry),
			string(noSecrets), string(shortLives), "consent withdrawn", "principal disabled"),
		w.judge.counted("deliveries of "+string(lease.AccessToken), "deliveries of "+string(lease.ClientSecret)), len(w.failed()))
}

// tabulate adds a line to the table in a file, which it begins if there is none.
func tabulate(file, line string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	at, err := f.Stat()
	if err == nil && at.Size() == 0 {
		line = heading + line
	}
	if err == nil {
		_, err = f.WriteString(line)
	}
	return errors.Join(err, f.Close())
}
