//go:build unix && !linux

package child

import "syscall"

// dieWithUs does nothing: this system does not watch over parents.
func dieWithUs(*syscall.SysProcAttr) {}
