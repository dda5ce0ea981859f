// Package caught turns a panic into an error, which is handled where it is no more than the failure of what panicked.
package caught

import (
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
