// Package task runs a process as a list of tasks.
//
// It guarantees that all tasks are started in order; that the first one to end, by itself or by the context, ends all of
// them; that they are stopped one after another in reverse order, each given its grace, so that what was started first
// (stores) outlives what uses it (servers); and that the reason of the first failure is returned. A panic in a task is a
// failure with its stack. It does not guarantee that a task which ignores its context stops: such a task is named in
// the error and left behind, because waiting for it would hold the process for ever.
//
// The tricky idea: the tasks' contexts do not descend from the caller's cancellation. If they did, one signal would stop
// all tasks at once and there would be no order to keep.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"phasekey.dev/pkg/caught"
)

// DefaultGrace is the time a task without a Grace of its own is given to stop.
const DefaultGrace = 10 * time.Second

// ErrGrace is wrapped by Run's error for each task that did not stop within its grace.
var ErrGrace = errors.New("task did not stop within its grace")

// Task is one part of a process.
type Task struct {
	// Name stands in logs and errors.
	Name string
	// Run works until ctx ends. Returning before that, even nil, stops the whole process. An error that is ctx's own
	// after ctx ended is a clean stop.
	Run func(ctx context.Context) error
	// Grace is how long Run may take to return once its context has ended; zero means DefaultGrace.
	Grace time.Duration
}

// outcome is how a task ended. Err is nil for a clean end.
type outcome struct {
	index int
	err   error
}

// Run starts the tasks and waits until all have stopped, or have outlived their grace. It returns nil when ctx ended, or
// a task returned nil, and all stopped cleanly; else the failures, the first one first (errors.Join). The values of ctx
// reach the tasks, its deadline and cancellation do not.
func Run(ctx context.Context, log *slog.Logger, tasks ...Task) error {
	ended := make(chan outcome, len(tasks))
	cancels := make([]context.CancelFunc, len(tasks))
	for i, t := range tasks {
		taskCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancels[i] = cancel
		go func() { ended <- outcome{index: i, err: protect(taskCtx, t)} }()
	}

	r := running{tasks: tasks, ended: ended, done: make([]bool, len(tasks))}
	if len(tasks) > 0 {
		select {
		case <-ctx.Done():
			log.InfoContext(ctx, "stopping")
		case o := <-ended:
			log.InfoContext(ctx, "task ended, stopping", slog.String("task", tasks[o.index].Name))
			r.note(o)
		}
	}
	for i := len(tasks) - 1; i >= 0; i-- {
		cancels[i]()
		r.await(i)
	}
	return errors.Join(r.failures...)
}

// running is what Run knows about its tasks while it stops them. Only Run's goroutine touches it.
type running struct {
	tasks    []Task
	ended    <-chan outcome
	done     []bool
	failures []error
}

// note records that a task has ended.
func (r *running) note(o outcome) {
	r.done[o.index] = true
	if o.err != nil {
		r.failures = append(r.failures, fmt.Errorf("task %s: %w", r.tasks[o.index].Name, o.err))
	}
}

// await waits until task i has ended or its grace is over, noting whichever tasks end meanwhile.
func (r *running) await(i int) {
	if r.done[i] {
		return
	}
	grace := r.tasks[i].Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for !r.done[i] {
		select {
		case o := <-r.ended:
			r.note(o)
		case <-timer.C:
			// A process that stood still finds both: what has ended by now has ended in time.
			for len(r.ended) > 0 {
				r.note(<-r.ended)
			}
			if r.done[i] {
				return
			}
			r.failures = append(r.failures, fmt.Errorf("task %s: %w (%s)", r.tasks[i].Name, ErrGrace, grace))
			return
		}
	}
}

// protect runs a task, turns a panic into an error, and an error that only repeats the context's end into none.
func protect(ctx context.Context, t Task) error {
	err := caught.Panic(func() error { return t.Run(ctx) })
	if p := (*caught.PanicError)(nil); errors.As(err, &p) {
		return fmt.Errorf("%w\n%s", err, p.Stack)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
