package year_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9/logging"

	"phasekey.dev/services/vault/internal/lease"
)

// What is lived through, by flags of the test.
var (
	seed         = flag.Uint64("year.seed", 1, "the seed")                                                                              //nolint:gochecknoglobals // flags are
	days         = flag.Int("year.days", 0, "so many days; 30 by default, 3 under the race detector")                                   //nolint:gochecknoglobals // flags are
	integrations = flag.Int("year.integrations", 20, "so many integrations")                                                            //nolint:gochecknoglobals // flags are
	federated    = flag.Int("year.federated", 10, "one of so many integrations has no secret")                                          //nolint:gochecknoglobals // flags are
	leases       = flag.Int("year.leases", 8, "so many runners at a time")                                                              //nolint:gochecknoglobals // flags are
	table        = flag.String("year.table", "", "add a line on each seed to the table in this file")                                   //nolint:gochecknoglobals // flags are
	pauses       = flag.Float64("year.pauses", 1, "so many times as many pauses with a request of a master's on its way")               //nolint:gochecknoglobals // flags are
	kept         = flag.String("year.journal", "", "keep what happened in this folder, also when nothing was violated")                 //nolint:gochecknoglobals // flags are
	judged       = flag.String("year.judge", "", "live through nothing, but judge again by the journal in this file")                   //nolint:gochecknoglobals // flags are
	replay       = flag.Int("year.replay", 0, "live through the seed up to so many times, until something is violated")                 //nolint:gochecknoglobals // flags are
	proofs       = flag.Int("year.proofs", 0, "demand so many proofs in a row, whatever the vault is told; to have something violated") //nolint:gochecknoglobals // flags are
	progress     = flag.Bool("year.progress", false, "say each day how it stands")                                                      //nolint:gochecknoglobals // flags are
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
	set.proofs = *proofs
	set.masterPauseChance = *pauses * 4 * set.pauseChance
	if set.days == 0 {
		set.days = defaultDays
	}
	if *judged != "" {
		again(t, *judged)
		return
	}
	if *replay > 0 {
		liveAgain(t)
		return
	}
	live(t, set)
}

// liveAgain lives through a seed until something is violated, each time in a process of its own: go-redis keeps timers, which are a bubble's.
func liveAgain(t *testing.T) {
	t.Helper()
	for n := 1; n <= *replay; n++ {
		attempt := exec.CommandContext(t.Context(), os.Args[0], append(slices.Clone(os.Args[1:]), "-test.run=^TestYear$", "-test.count=1", "-year.replay=0")...)
		attempt.Stdout, attempt.Stderr = os.Stdout, os.Stderr
		err := attempt.Run()
		if _, failed := errors.AsType[*exec.ExitError](err); failed {
			t.Errorf("seed %d failed at attempt %d of %d, as it says above", *seed, n, *replay)
			return
		}
		must(t, err)
	}
	t.Logf("seed %d did not fail in %d attempts", *seed, *replay)
}

// live lives through a world, and tells of it.
func live(t *testing.T, set settings) {
	t.Helper()
	began := time.Now()
	told, file := begin(t, set.seed)
	defer end(t, told, file)
	var line string
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, set, told)
		w.run(t.Context(), func(day int) {
			if *progress {
				fmt.Fprintf(os.Stderr, "seed %d, day %d of %d: %d rotations, %d lives\n", set.seed, day, set.days, told.counted("rotations"), told.counted("lives"))
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
		line = w.line()
	})
	took := time.Since(began).Round(time.Second)
	t.Log(told.judge.report())
	t.Logf("seed %d: %d integrations, %d runners, %d replicas, %d days in %s", set.seed, set.integrations, set.leases, set.replicas, set.days, took)
	if *table != "" {
		must(t, tabulate(*table, fmt.Sprintf("%s %s |\n", line, took)))
	}
}

// begin begins a seed's journal.
func begin(t *testing.T, seed uint64) (*journal, string) {
	t.Helper()
	file, err := os.CreateTemp(*kept, fmt.Sprintf("year-%d-*.jsonl.gz", seed))
	must(t, err)
	told, err := newJournal(file)
	must(t, err)
	return told, file.Name()
}

// end judges again by a journal, which must come to the same, and removes the file when there is nothing to look at.
func end(t *testing.T, told *journal, file string) {
	t.Helper()
	must(t, told.close())
	j, cut, err := judgeAgain(file)
	must(t, err)
	if diff := cmp.Diff(told.judge.failures, j.failures); diff != "" || cut {
		t.Errorf("judged again by its journal, cut short: %t, violations differ:\n%s", cut, diff)
	}
	if diff := cmp.Diff(told.judge.report(), j.report()); diff != "" {
		t.Errorf("judged again by its journal, what happened differs:\n%s", diff)
	}
	if !t.Failed() && *kept == "" {
		must(t, os.Remove(file))
		return
	}
	t.Logf("the journal is %s; judge again by it with -year.judge", file)
}

// again judges by a journal.
func again(t *testing.T, file string) {
	t.Helper()
	j, cut, err := judgeAgain(file)
	must(t, err)
	for _, failure := range j.failures {
		t.Error(failure)
	}
	t.Log(j.report())
	if cut {
		t.Logf("the journal ends at %s, as its process did", j.now)
	}
}

const heading = "| seed | integrations | leases | replicas | days | rotations | deaths, at so many steps | pauses | faults | deliveries | violations | took |\n" +
	"|---|---|---|---|---|---|---|---|---|---|---|---|\n"

// line is what the table says of a world, but for how long it took.
func (w *world) line() (line string) {
	w.journal.ask(func(j *judge) {
		deaths, steps := j.deaths()
		line = fmt.Sprintf("| %d | %d | %d | %d | %d | %d | %d, %d | %d | %d | %d | %d |", w.set.seed, w.set.integrations, w.set.leases, w.set.replicas, w.days, j.counted("rotations"), deaths, steps,
			j.counted("paused past the lock's life", "pauses with a request on the way"),
			j.counted(string(noRedis), "one replica cut off from Redis", "Redis emptied", string(noSQL), string(noEntra), string(noGraph), string(throttled), string(lossy), string(noRegistry),
				string(noSecrets), string(shortLives), "consent withdrawn", "principal disabled"),
			j.counted("deliveries of "+string(lease.AccessToken), "deliveries of "+string(lease.ClientSecret)), len(j.failures))
	})
	return line
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
