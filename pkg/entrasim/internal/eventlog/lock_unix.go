//go:build unix

package eventlog

import (
	"os"
	"syscall"
)

// lock refuses a second process on the same file; the kernel lets go of it
// when the file is closed or the process dies.
func lock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
