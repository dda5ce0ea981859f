package e2e

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/logtest"
)

// seed decides the moments.
const seed = 3

// moments says how often, and within which time of its beginning, each step of the demo's story is disturbed. Step 0 is the start
// of the process, before any step. The times are less than what a step takes: what is left of the last one costs another story.
var moments = []struct {
	times  int
	within time.Duration
}{
	{5, 30 * time.Millisecond},
	{3, 1500 * time.Millisecond},
	{6, 5 * time.Second},
	{2, 2 * time.Second},
	{2, 20 * time.Millisecond},
	{5, 150 * time.Millisecond},
	{4, 80 * time.Millisecond},
	{8, 9 * time.Second},
	{3, 250 * time.Millisecond},
	{8, 10 * time.Second},
	{4, 1500 * time.Millisecond},
}

// stepLine is how the demo says that it begins a step.
var stepLine = regexp.MustCompile(`^\s*[0-9.]+s  (\d+)\. `)

// storyRun is one life of the demo.
type storyRun struct {
	command *exec.Cmd
	steps   chan int // the steps that it begins; closed at its end
	ended   chan error
}

func tellStory(t *testing.T, dir string, out io.Writer) *storyRun {
	t.Helper()
	path, err := binary("phasekey-dev")
	if err != nil {
		t.Fatal(err)
	}
	s := &storyRun{command: exec.Command(path, "demo", "--dir", dir), steps: make(chan int, 100), ended: make(chan error, 1)}
	s.command.Stderr = out
	stdout, err := s.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.steps)
		lines := bufio.NewScanner(io.TeeReader(stdout, out))
		for lines.Scan() {
			if begun := stepLine.FindStringSubmatch(lines.Text()); begun != nil {
				n, _ := strconv.Atoi(begun[1])
				s.steps <- n
			}
		}
		s.ended <- errors.Join(lines.Err(), s.command.Wait())
	}()
	return s
}

// disturb plays the story, and sends it the signal so often in each step, at random moments; then it lets it come to its end.
// What is left of a step's times because the step was over first goes to the next; what is left at the end, to another story
// on the same folder. It returns how often it did.
func disturb(t *testing.T, dir string, out io.Writer, signal syscall.Signal, left []int) (done int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, uint64(signal)))
	for life := 1; ; life++ {
		if life > 200 {
			t.Fatal("the story does not end")
		}
		run := tellStory(t, dir, out)
		step, disturbed := 0, false
		arm := func() <-chan time.Time {
			if left[step] == 0 {
				return nil
			}
			return time.After(time.Duration(random.Int64N(int64(moments[step].within))))
		}
		moment := arm()
		for running := true; running; {
			select {
			case n, ok := <-run.steps:
				if !ok {
					running = false
					break
				}
				if step > 0 {
					left[n] += left[step]
					left[step] = 0
				}
				step = n
				moment = arm()
			case <-moment:
				moment = nil
				err := run.command.Process.Signal(signal)
				if errors.Is(err, os.ErrProcessDone) {
					break // it was through before
				}
				if err != nil {
					t.Fatal(err)
				}
				disturbed = true
				if signal != syscall.SIGKILL {
					select {
					case err := <-run.ended:
						run.ended <- err
					case <-time.After(5 * time.Second):
						t.Errorf("it did not stop within five seconds of %s in step %d", signal, step)
						_ = run.command.Process.Kill()
					}
				}
				left[step]--
				done++
			}
		}
		err := <-run.ended
		var exit *exec.ExitError
		switch {
		case err == nil && slices.Max(left) == 0:
			return done
		case err == nil: // another story, for what is left
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled(): // on Unix it is one
		case signal == syscall.SIGINT && disturbed && errors.As(err, &exit):
		default:
			t.Fatalf("life %d ended by itself: %v", life, err)
		}
	}
}

func TestDemo_SurvivesKills(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), &logtest.Transcript{}
	defer func() {
		if t.Failed() {
			t.Log(tail(out.String()))
		}
	}()
	left := make([]int, len(moments))
	for step, m := range moments {
		left[step] = m.times
	}
	if killed := disturb(t, dir, out, syscall.SIGKILL, left); killed != 50 {
		t.Errorf("killed %d times, not 50", killed)
	}
	if !strings.Contains(out.String(), "demo: ok") {
		t.Error("the story did not end well")
	}
	if shown := leaked(out.String()); shown != nil {
		t.Errorf("the output shows %v", shown)
	}
	judge(t, dir, strings.Count(out.String(), "demo: ok"))
	awaitNoProcess(t, dir)
}

func TestDemo_StopsInOrderAtAnyMoment(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), &logtest.Transcript{}
	defer func() {
		if t.Failed() {
			t.Log(tail(out.String()))
		}
	}()
	left := make([]int, len(moments))
	for step := range left {
		left[step] = 1
	}
	if interrupted := disturb(t, dir, out, syscall.SIGINT, left); interrupted != len(moments) {
		t.Errorf("interrupted %d times, not %d", interrupted, len(moments))
	}
	text := out.String()
	if !strings.Contains(text, "demo: ok") {
		t.Error("the story did not end well")
	}
	for _, unwanted := range []string{"did not stop within its grace", "panic", "level=ERROR"} {
		if strings.Contains(text, unwanted) {
			t.Errorf("stopping, it said %q", unwanted)
		}
	}
	judge(t, dir, strings.Count(text, "demo: ok"))
	awaitNoProcess(t, dir)
}

// judge goes through the simulator's journal when so many stories are through: for each two applications were made, each once
// and for good deleted, and every secret that ever was had been removed before; with one principal and one role each.
func judge(t *testing.T, dir string, stories int) {
	t.Helper()
	sim, err := entrasim.New(entrasim.Config{StateDir: filepath.Join(dir, "entra")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	}()
	type application struct {
		added, removed, principals, deleted, purged int
		live                                        map[string]bool
	}
	made := map[string]*application{}
	roles := 0
	for _, e := range sim.Journal(entrasim.Query{}) {
		if e.Kind == "application.created" && e.Actor != "control" {
			if made[e.Application] != nil {
				t.Errorf("application %s was made twice", e.Application)
			}
			made[e.Application] = &application{live: map[string]bool{}}
		}
		a := made[e.Application]
		if e.Kind == "role.assigned" && a == nil {
			roles++
		}
		if a == nil {
			continue // the platform's own
		}
		switch e.Kind {
		case "principal.created":
			a.principals++
		case "password.added":
			a.added++
			a.live[e.KeyID] = true
		case "password.removed":
			a.removed++
			if !a.live[e.KeyID] {
				t.Errorf("secret %s of %s was removed, and was not there", e.KeyID, e.Application)
			}
			delete(a.live, e.KeyID)
		case "application.deleted":
			a.deleted++
			if len(a.live) != 0 {
				t.Errorf("%d secrets of %s were left when it was deleted", len(a.live), e.Application)
			}
		case "application.purged":
			a.purged++
		}
	}
	if len(made) != 2*stories {
		t.Errorf("%d applications were made for %d stories", len(made), stories)
	}
	for id, a := range made {
		t.Logf("application %s: %d secrets added, %d removed", id, a.added, a.removed)
		if a.principals != 1 || a.deleted != 1 || a.purged != 1 || a.added < 2 || a.added != a.removed {
			t.Errorf("application %s: %+v", id, *a)
		}
	}
	if roles != 2*stories {
		t.Errorf("%d roles were assigned for %d stories", roles, stories)
	}
}

// awaitNoProcess waits until no process is left that works on the folder: children of a killed one end by themselves.
func awaitNoProcess(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var still []string
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range processes {
			if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), dir) {
				still = append(still, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
		if len(still) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("still running: %q", still)
			return
		case <-tick.C:
		}
	}
}
