//go:build unix

// Package child runs a program as if it had been started in this process's place.
//
// It guarantees that signals sent to this process reach the program, that the program has the terminal if this process
// had it, that stopping it (Ctrl-Z) stops this process for the shell to see and continuing continues both, and that the
// program's end is told exactly. Other open descriptors are inherited as they would have been. It does not guarantee
// anything about the program's own children, which may outlive it, as they might have without us.
//
// A signal to stop that is sent to this process alone (kill -TSTP) goes the same way round: the program is stopped, that is seen, and then we
// stop.
//
// The tricky idea: the program normally gets a process group of its own, so that a Ctrl-C arrives there once and not
// again through us. But in a pipeline on a terminal the neighbours (a pager, say) are in our group and need the terminal too: there
// the program stays in our group, and what the terminal sends to all of it is not forwarded.
package child

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KillAfter is how long a program that is told to terminate may take. Terraform needs it to write its state.
const KillAfter = 30 * time.Second

// stopTakes is how long after its SIGTSTP a process has surely stopped, if it does.
const stopTakes = time.Second

// Config is what to run.
type Config struct {
	// Path is the program's file, Args its arguments, from its name on.
	Path string
	Args []string
	// Env is its whole environment.
	Env []string
	// Stdin, Stdout and Stderr are its own.
	Stdin, Stdout, Stderr *os.File
	Log                   *slog.Logger
}

// Forwarded returns the signals that Run wants to be given. Those that this process was started to ignore (by nohup, say)
// are not among them, so that the program ignores them too.
func Forwarded() []os.Signal {
	var all []os.Signal
	for _, s := range []syscall.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
	} {
		if !signal.Ignored(s) {
			all = append(all, s)
		}
	}
	return all
}

// Ends reports whether a signal ends a process that does nothing about it, of those that are forwarded.
func Ends(s syscall.Signal) bool {
	return s != syscall.SIGWINCH && s != syscall.SIGCONT
}

// process is the running program.
type process struct {
	pid       int
	shared    bool // it is in our process group
	tty       *terminal
	stopping  atomic.Bool    // stop is at work, and will resume the program
	continued chan struct{}  // somebody continued us meanwhile
	stops     chan os.Signal // somebody wants us to stop, us alone
}

// Run starts the program, hands it what comes by signals, and returns how it ended. When ctx ends the program gets SIGTERM, and after
// KillAfter its group SIGKILL. The error is for a program that could not be started or waited for.
func Run(ctx context.Context, cfg Config, signals <-chan os.Signal) (Exit, error) {
	tty := openTerminal()
	defer tty.close()
	p := &process{
		shared:    tty.foreground() && !allTerminals(cfg.Stdin, cfg.Stdout, cfg.Stderr),
		tty:       tty,
		continued: make(chan struct{}, 1),
		stops:     make(chan os.Signal, 1),
	}

	type result struct {
		exit Exit
		err  error
	}
	started, ended := make(chan error, 1), make(chan result, 1)
	go func() {
		// The kernel's watch over our death is one thread's: it must be this one, until the program has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.start(cfg)
		started <- err
		if err == nil {
			exit, err := p.wait(cfg.Log)
			ended <- result{exit, err}
		}
	}()
	if err := <-started; err != nil {
		return Exit{}, fmt.Errorf("start %s: %w", cfg.Path, err)
	}
	// Only who does not listen to SIGTTOU may take the terminal back from the background. The program has been started
	// and does not inherit this.
	signal.Ignore(syscall.SIGTTOU)
	defer tty.take(p.pid)
	if heedsStops && !p.shared && !signal.Ignored(syscall.SIGTSTP) {
		signal.Notify(p.stops, syscall.SIGTSTP)
		defer signal.Stop(p.stops)
	}

	stop := ctx.Done()
	var kill <-chan time.Time
	for {
		select {
		case r := <-ended:
			if r.err != nil {
				return Exit{}, fmt.Errorf("wait for %s: %w", cfg.Path, r.err)
			}
			return r.exit, nil
		case s := <-signals:
			if number, ok := s.(syscall.Signal); ok {
				p.forward(number)
			}
		case <-p.stops:
			// Its whole group, as a terminal would.
			_ = unix.Kill(-p.pid, unix.SIGTSTP)
		case <-stop:
			stop = nil
			kill = time.After(KillAfter)
			p.send(syscall.SIGTERM)
		case <-kill:
			p.killAll()
		}
	}
}

// start starts the program. Signals that this process ignores stay ignored in it, all others get their default.
func (p *process) start(cfg Config) error {
	attr := &syscall.SysProcAttr{Setpgid: !p.shared}
	if !p.shared && p.tty.foreground() {
		attr.Foreground = true
		attr.Ctty = p.tty.fd()
	}
	dieWithUs(attr)
	started, err := os.StartProcess(cfg.Path, cfg.Args, &os.ProcAttr{
		Env:   cfg.Env,
		Files: []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr},
		Sys:   attr,
	})
	if err != nil {
		return err
	}
	p.pid = started.Pid
	// From here on it is waited for by its number, to learn of stops too.
	return started.Release()
}

// wait follows the program to its end.
func (p *process) wait(log *slog.Logger) (Exit, error) {
	options := unix.WUNTRACED
	if p.shared {
		// The terminal stops us together, and the shell sees it.
		options = 0
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(p.pid, &status, options, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return Exit{}, err
		case status.Stopped():
			log.Debug("command stopped", slog.String("signal", status.StopSignal().String()))
			p.tty.take(p.pid)
			p.stop()
		case status.Signaled():
			return BySignal(status.Signal()), nil
		case status.Exited():
			return Exit{Code: status.ExitStatus()}, nil
		}
	}
}

// stop stops our group as the program's was stopped, for the shell to see. Whoever continues us continues the program.
// Where nobody could, the kernel does not stop us, and the program goes on.
func (p *process) stop() {
	select {
	case <-p.continued:
	default:
	}
	p.stopping.Store(true)
	// This one is for us, not for the program.
	byDefault(syscall.SIGTSTP, func() {
		_ = unix.Kill(0, unix.SIGTSTP)
		// We stop a moment later, on another thread, so that this returns says nothing.
		unstopped := time.NewTimer(stopTakes)
		defer unstopped.Stop()
		select {
		case <-p.continued:
		case <-unstopped.C:
		}
	})
	p.stopping.Store(false)
	// Only now: whoever sees the program go on may want both to stop again, and that signal has to be taken.
	p.resume()
}

// resume continues the program's group, with the terminal if we were given it back.
func (p *process) resume() {
	p.tty.give(p.pid)
	_ = unix.Kill(-p.pid, unix.SIGCONT)
}

// forward passes a signal on.
func (p *process) forward(s syscall.Signal) {
	switch {
	case s == syscall.SIGCONT && !p.shared:
		if !p.stopping.Load() {
			p.resume()
			return
		}
		select {
		case p.continued <- struct{}{}:
		default:
		}
	case p.shared && slices.Contains([]syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGCONT}, s):
		// The terminal, or the shell, sent it to the program as well.
	default:
		p.send(s)
	}
}

// send gives the program a signal. It may have ended, which Run is about to learn.
func (p *process) send(s syscall.Signal) { _ = unix.Kill(p.pid, s) }

// killAll ends the program, and its group if that is not ours.
func (p *process) killAll() {
	if p.shared {
		p.send(syscall.SIGKILL)
		return
	}
	_ = unix.Kill(-p.pid, unix.SIGKILL)
}
