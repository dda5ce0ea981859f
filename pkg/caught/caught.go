// Package caught turns a panic into an error, which is handled where it is no more than the failure of what panicked.
package caught

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// PanicError is a panic.
type PanicError struct {
	Value any
	// Stack is where it came from.
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Panic returns what f returns, or a PanicError when it panics. runtime.Goexit goes its way.
func Panic(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}

// errExited is returned for a function that neither returned nor panicked: it ended its goroutine.
var errExited = errors.New("goroutine has ended itself")

// Apart runs f on a goroutine of its own, waits for it, and returns what it returns, or a PanicError. A goroutine's stack stays as large as its deepest
// call has made it; so whoever waits for long, as do thousands of others, has deep work done apart.
func Apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errExited
		defer func() { done <- err }()
		err = Panic(f)
	}()
	return <-done
}
