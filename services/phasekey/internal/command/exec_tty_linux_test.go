package command_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asShell makes this test binary a small shell with job control, for one job.
const asShell = "TEST_AS_SHELL"

// shell runs its arguments as the foreground job of its terminal, continues it whenever it stops, and says what happens.
func shell(args []string) int {
	signal.Ignore(syscall.SIGTTOU)
	_ = os.Unsetenv(asShell)
	job := exec.Command(args[0], args[1:]...) //nolint:noctx // a child of a test
	job.Stdin, job.Stdout, job.Stderr = os.Stdin, os.Stdout, os.Stderr
	job.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: 0}
	if err := job.Start(); err != nil {
		fmt.Println("shell:", err)
		return 1
	}
	pid := job.Process.Pid
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WUNTRACED, nil); err != nil {
			fmt.Println("shell:", err)
			return 1
		}
		has, _ := unix.IoctlGetInt(0, unix.TIOCGPGRP)
		if !status.Stopped() {
			fmt.Printf("shell: exit %d, the job has the terminal: %t\n", status.ExitStatus(), has == pid)
			return 0
		}
		fmt.Printf("shell: stopped, the job has the terminal: %t\n", has == pid)
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, unix.Getpgrp())
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, pid)
		_ = unix.Kill(-pid, unix.SIGCONT)
	}
}

// tellTerminal says who has the terminal, and which signals come from it.
func tellTerminal() int {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCONT, syscall.SIGWINCH)
	has := func() bool {
		group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
		return err == nil && group == unix.Getpgrp()
	}
	fmt.Println("child: foreground", has(), "own group", unix.Getpgrp() == os.Getpid())
	for s := range got {
		switch s {
		case syscall.SIGCONT:
			fmt.Println("child: continued")
		case syscall.SIGTERM:
			fmt.Println("child: foreground at last", has())
			return 4
		default:
			fmt.Println("child:", s)
		}
	}
	return 0
}

// pty is a terminal: what is written to keys is typed, what it shows arrives in screen.
func pty(t *testing.T) (keys *os.File, slave *os.File, screen *lines) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = &lines{arrived: make(chan struct{}, 1)}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		// It ends with an error when nobody has the terminal open any more.
		_, _ = io.Copy(screen, keys)
	}()
	t.Cleanup(func() {
		_ = slave.Close()
		<-copied
		_ = keys.Close()
	})
	return keys, slave, screen
}

// onTerminal runs phasekey in a session whose terminal is a new one; through is what stands before it.
func onTerminal(t *testing.T, s *setting, stdout *os.File, through ...string) (*exec.Cmd, *os.File, *lines) {
	t.Helper()
	keys, slave, screen := pty(t)
	cmd := exec.CommandContext(t.Context(), self(t), append(s.flags(), "--", self(t), "terminal")...)
	if len(through) > 0 {
		cmd.Args = append(through, cmd.Args[1:]...)
		cmd.Env = append(os.Environ(), asShell+"=1", asPhasekey+"=1", asChild+"=1")
	} else {
		cmd.Env = append(os.Environ(), asPhasekey+"=1", asChild+"=1")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, keys, screen
}

func TestExec_HasTheTerminal(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	cmd, keys, screen := onTerminal(t, s, nil)
	screen.waitFor(t, "child: foreground true own group true")
	_, _ = io.WriteString(keys, "\x03")
	screen.waitFor(t, "child: interrupt")
	if err := unix.IoctlSetWinsize(int(keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 132}); err != nil {
		t.Fatal(err)
	}
	screen.waitFor(t, "child: window changed")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 4 {
		t.Errorf("exit code %d", got)
	}
	screen.waitFor(t, "at last true")
	if n := strings.Count(screen.String(), "child: window changed"); n != 1 {
		t.Errorf("the window's change came %d times", n)
	}
	if n := strings.Count(screen.String(), "child: interrupt"); n != 1 {
		t.Errorf("Ctrl-C came %d times", n)
	}
}

func TestExec_StopsAndContinuesForTheShell(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	cmd, keys, screen := onTerminal(t, s, nil, self(t), self(t))
	screen.waitFor(t, "child: foreground true own group true")
	_, _ = io.WriteString(keys, "\x1a")
	screen.waitFor(t, "shell: stopped, the job has the terminal: true")
	screen.waitFor(t, "child: continued")
	_, _ = io.WriteString(keys, "\x03")
	screen.waitFor(t, "child: interrupt")
	_ = unix.Kill(onlyChild(t, cmd.Process.Pid), unix.SIGTERM)
	screen.waitFor(t, "child: foreground at last true")
	screen.waitFor(t, "shell: exit 4, the job has the terminal: true")
	_ = cmd.Wait()
}

// onlyChild is a process's one child. The kernel lists it below the thread that started it, which may be any.
func onlyChild(t *testing.T, pid int) int {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, thread := range threads {
		listed, err := os.ReadFile(thread)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, strings.Fields(string(listed))...)
	}
	if len(children) != 1 {
		t.Fatalf("%d has the children %v, want one", pid, children)
	}
	child, err := strconv.Atoi(children[0])
	if err != nil {
		t.Fatal(err)
	}
	return child
}

func TestExec_SharesTheTerminalInAPipeline(t *testing.T) {
	s := newSetting(t)
	s.vault.Always(credential())
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{arrived: make(chan struct{}, 1)}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(out, from)
	}()
	defer func() {
		<-copied
		_ = from.Close()
	}()
	cmd, keys, _ := onTerminal(t, s, to)
	_ = to.Close()
	out.waitFor(t, "child: foreground true own group false")
	_, _ = io.WriteString(keys, "\x03")
	out.waitFor(t, "child: interrupt")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 4 {
		t.Errorf("exit code %d", got)
	}
	if n := strings.Count(out.String(), "child: interrupt"); n != 1 {
		t.Errorf("Ctrl-C came %d times", n)
	}
}
