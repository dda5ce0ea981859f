//go:build unix

package child

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// raiseTakes is how long a signal to ourselves may take to end us.
const raiseTakes = time.Second

// Exit is how a program ended.
type Exit struct {
	// Code is its exit code: 128 plus Signal's number if one ended it.
	Code int
	// Signal ended it; zero means that it ended by itself.
	Signal syscall.Signal
}

// BySignal is the exit of a program that a signal ended.
func BySignal(s syscall.Signal) Exit { return Exit{Code: 128 + int(s), Signal: s} }

// Die ends this process by a signal, as if that had not been handled, so that whoever waits for us sees how the program
// ended, which a shell decides by (a script goes on after exit code 130, and not after SIGINT). It leaves no core file. It
// returns if the signal does not end us, as none but SIGKILL ends the first process of a container.
func Die(s syscall.Signal) {
	// The program has left a core file, if any is wanted.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if !toDefault(s) {
		return
	}
	_ = unix.Kill(unix.Getpid(), s)
	<-time.After(raiseTakes)
}
