package task_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"phasekey.dev/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken = errors.New("broken")

// journal notes what happened in which order.
type journal struct {
	mu   sync.Mutex
	said []string
}

func (j *journal) say(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said = append(j.said, s)
}

// obedient takes a while to stop, as asked.
func (j *journal) obedient(name string, takes time.Duration) task.Task {
	return task.Task{Name: name, Grace: 5 * time.Second, Run: func(ctx context.Context) error {
		<-ctx.Done()
		j.say(name + " told")
		<-time.After(takes)
		j.say(name + " stopped")
		return ctx.Err()
	}}
}

func TestRun_StopsInReverseOrder(t *testing.T) {
	t.Parallel()
	after := func(d time.Duration, err error) task.Task {
		return task.Task{Name: "ender", Run: func(context.Context) error {
			<-time.After(d)
			return err
		}}
	}
	for _, tt := range []struct {
		name string
		end  []task.Task
		want error
	}{
		{name: "on the context's end"},
		{name: "on a failure", end: []task.Task{after(time.Second, errBroken)}, want: errBroken},
		{name: "on an end without failure", end: []task.Task{after(time.Second, nil)}},
		{name: "on another context's error", end: []task.Task{after(time.Second, context.DeadlineExceeded)}, want: context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var j journal
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				tasks := append([]task.Task{j.obedient("store", time.Second), j.obedient("server", 3*time.Second)}, tt.end...)
				began := time.Now()
				err := task.Run(ctx, slog.New(slog.DiscardHandler), tasks...)
				if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if tt.want != nil && !strings.Contains(err.Error(), "task ender") {
					t.Errorf("%v does not name the task", err)
				}
				if diff := cmp.Diff([]string{"server told", "server stopped", "store told", "store stopped"}, j.said); diff != "" {
					t.Error(diff)
				}
				if took := time.Since(began); took > 6*time.Second {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func TestRun_Panic(t *testing.T) {
	t.Parallel()
	err := task.Run(t.Context(), slog.New(slog.DiscardHandler), task.Task{Name: "wild", Run: func(context.Context) error { panic("ouch") }}) //nolint:forbidigo // what is tested
	if err == nil || !strings.Contains(err.Error(), "task wild: panic: ouch") || !strings.Contains(err.Error(), "task_test.go") {
		t.Errorf("got %v", err)
	}
}

// A task that does not stop is named, and those below it are stopped all the same.
func TestRun_Grace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		release := make(chan struct{})
		deaf := task.Task{Name: "deaf", Run: func(context.Context) error {
			<-release
			return nil
		}}
		failing := task.Task{Name: "failing", Run: func(context.Context) error { return errBroken }}
		began := time.Now()
		err := task.Run(t.Context(), slog.New(slog.DiscardHandler), j.obedient("store", 0), deaf, failing)
		if !errors.Is(err, errBroken) || !errors.Is(err, task.ErrGrace) || !strings.Contains(err.Error(), "task deaf") {
			t.Errorf("got %v", err)
		}
		if !strings.HasPrefix(err.Error(), "task failing: broken") {
			t.Errorf("the first failure is not first: %v", err)
		}
		if took := time.Since(began); took != task.DefaultGrace {
			t.Errorf("took %s", took)
		}
		if diff := cmp.Diff([]string{"store told", "store stopped"}, j.said); diff != "" {
			t.Error(diff)
		}
		close(release)
	})
}

// A failure while stopping is not lost behind the one that began it.
func TestRun_SecondFailure(t *testing.T) {
	t.Parallel()
	errClose := errors.New("close store")
	err := task.Run(t.Context(), slog.New(slog.DiscardHandler),
		task.Task{Name: "store", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return errClose
		}},
		task.Task{Name: "server", Run: func(context.Context) error { return errBroken }},
	)
	if !errors.Is(err, errBroken) || !errors.Is(err, errClose) {
		t.Errorf("got %v", err)
	}
}

func TestRun_NoTasks(t *testing.T) {
	t.Parallel()
	if err := task.Run(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
