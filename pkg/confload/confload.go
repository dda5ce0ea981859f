// Package confload reads a service's configuration.
package confload

import (
	"errors"
	"io"
)

// Action is what main does after Load.
type Action int

// The actions. Exit is the zero value, so that a forgotten error starts nothing.
const (
	// Exit: --help or --check-config was asked for and answered.
	Exit Action = iota
	// Run: the configuration is complete and valid.
	Run
)

// Config is a service's configuration: a pointer to a struct with yaml tags, holding the defaults.
type Config interface {
	// Validate returns all problems at once (errors.Join), each naming its key.
	Validate() error
}

// Load fills cfg: defaults it holds < the file of --config < environment PHASEKEY_<KEY> < flags --<key>=value. Args are
// without the program's name (os.Args[1:]), env is as of os.Environ(). Help and the result of --check-config go to out.
// The error lists every problem, one a line.
func Load(name string, args, env []string, out io.Writer, cfg Config) (Action, error) {
	return Exit, errors.ErrUnsupported
}

// Dump returns the configuration as YAML for the log at start. Secrets stand in files, of which it names the paths;
// a secret.Text is redacted.
func Dump(cfg any) string { return "" }
