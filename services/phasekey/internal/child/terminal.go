//go:build unix

package child

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminal is this process's controlling terminal; nil if it has none.
type terminal struct{ file *os.File }

// openTerminal returns the controlling terminal, nil if there is none.
func openTerminal() *terminal {
	file, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	return &terminal{file: file}
}

func (t *terminal) close() {
	if t != nil {
		_ = t.file.Close()
	}
}

// fd is the terminal's descriptor.
func (t *terminal) fd() int { return int(t.file.Fd()) }

// foreground reports whether the terminal is this process's group's.
func (t *terminal) foreground() bool {
	if t == nil {
		return false
	}
	group, err := unix.IoctlGetInt(t.fd(), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// give makes a group the terminal's foreground, if that is ours to give.
func (t *terminal) give(group int) {
	if t.foreground() {
		_ = unix.IoctlSetPointerInt(t.fd(), unix.TIOCSPGRP, group)
	}
}

// take makes this process's group the terminal's foreground again, if the given group is.
func (t *terminal) take(group int) {
	if t == nil {
		return
	}
	if has, err := unix.IoctlGetInt(t.fd(), unix.TIOCGPGRP); err == nil && has == group {
		_ = unix.IoctlSetPointerInt(t.fd(), unix.TIOCSPGRP, unix.Getpgrp())
	}
}

// allTerminals reports whether all of these are terminals.
func allTerminals(files ...*os.File) bool {
	for _, f := range files {
		if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err != nil {
			return false
		}
	}
	return true
}
