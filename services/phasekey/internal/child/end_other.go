//go:build unix && !linux

package child

import (
	"os/signal"
	"slices"
	"syscall"
)

// heedsStops says that a signal to stop cannot be taken: Go's runtime would not give it its default action back.
const heedsStops = false

// toDefault gives a signal its default action, if Go's runtime lets it have that.
func toDefault(s syscall.Signal) bool {
	signal.Reset(s)
	return slices.Contains([]syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGUSR1, syscall.SIGUSR2}, s)
}

// byDefault does something. A signal to stop has its default action all the time.
func byDefault(_ syscall.Signal, do func()) { do() }
