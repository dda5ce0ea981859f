package child

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heedsStops says that a signal to stop can be taken, and its default action had again when it is wanted.
const heedsStops = true

// action is what a process does about a signal, as the kernel has it (struct sigaction, which is larger on no platform). Zero is the default, with
// nothing masked.
type action [8]uint64

// setAction sets what is done about a signal, and tells what was. Go's runtime never gives a signal that it has handled its
// default action back (signal.Reset ignores SIGTSTP and writes stack traces on SIGQUIT), so the kernel is asked.
func setAction(s syscall.Signal, next, former *action) bool {
	_, _, failed := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(next)), uintptr(unsafe.Pointer(former)), 8, 0, 0) //nolint:gosec // a system call takes addresses
	return failed == 0
}

// toDefault gives a signal its default action. SIGKILL has no other.
func toDefault(s syscall.Signal) bool { return s == syscall.SIGKILL || setAction(s, &action{}, nil) }

// byDefault does something while a signal has its default action.
func byDefault(s syscall.Signal, do func()) {
	var former action
	if setAction(s, &action{}, &former) {
		defer setAction(s, &former, nil)
	}
	do()
}
