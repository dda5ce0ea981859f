// Command phasekey runs a program with the credentials of one phase of one run.
package main

import (
	"os"

	"phasekey.dev/services/phasekey/internal/command"
)

func main() {
	os.Exit(command.Main(command.Process{
		Args:   os.Args[1:],
		Env:    os.Environ(),
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}))
}
