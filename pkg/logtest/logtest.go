// Package logtest keeps what is logged or printed while a test runs, for the test to read.
package logtest

import (
	"bytes"
	"sync"
)

// Transcript is what was written so far. Any number may write it while others read. It may outlive its test, as goroutines of libraries do that write it.
type Transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to it.
func (t *Transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

// String is all of it.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}
