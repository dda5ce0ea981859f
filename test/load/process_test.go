package load

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"phasekey.dev/test/internal/rigtest"
)

// clockTick is the unit of the times in /proc/PID/stat.
const clockTick = 10 * time.Millisecond

// memoryOf is what a process has of the machine's.
func memoryOf(t *testing.T, p *rigtest.Process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	rigtest.Must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			rigtest.Must(t, err)
			return kib << 10
		}
	}
	t.Fatalf("/proc says nothing of the memory of %s", p.Name)
	return 0
}

// processorTime is what processes have had of the machine's processors, all together. One that is over counts for nothing.
func processorTime(t *testing.T, pids ...int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The second field is a name in parentheses, which may hold anything.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			rigtest.Must(t, err)
			sum += time.Duration(ticks) * clockTick
		}
	}
	return sum
}
