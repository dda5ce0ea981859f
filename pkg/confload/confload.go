// Package confload reads a service's configuration: one strict YAML file, the environment, and flags.
//
// It guarantees that a key which the configuration does not have is refused, with its line; that all problems are told at
// once, not the first; and that a later source wins: what the struct holds (defaults) < the file < PHASEKEY_<KEY> in the
// environment < --<key>=value. Lists of structures and maps come from the file only. Unknown environment variables are
// not refused: container platforms set some that begin like ours. It does not read secrets: a configuration names the files they stand in.
//
// The tricky idea: the file is walked as a syntax tree beside the struct's type, key by key, instead of being decoded in one go,
// since a decoder stops at its first problem. The same walk over the type yields the flags and variables, so there is one list of keys.
package confload

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// envPrefix begins the name of every environment variable of ours.
const envPrefix = "PHASEKEY_"

// Action is what main does after Load.
type Action int

// The actions. Exit is the zero value, so that a forgotten error starts nothing.
const (
	// Exit: --help or --check-config was asked for and answered, or there was an error.
	Exit Action = iota
	// Run: the configuration is complete and valid.
	Run
)

// Config is a service's configuration: a pointer to a struct with yaml tags that holds the defaults.
type Config interface {
	// Validate returns all problems at once (errors.Join), each naming its key.
	Validate() error
}

// Error is all that is wrong with a configuration.
type Error struct {
	// Problems are one a line, without secrets.
	Problems []string
}

// Error implements error.
func (e *Error) Error() string {
	return "configuration: " + strings.Join(e.Problems, "\nconfiguration: ")
}

// Load fills cfg from all sources and validates it. Args are without the program's name (os.Args[1:]); env is as of
// os.Environ. The flags besides those for keys are --config FILE, --check-config, which prints the redacted
// configuration to out if it is good, and --help. An error is an *Error, except for one of out's.
func Load(name string, args, env []string, out io.Writer, cfg Config) (Action, error) {
	root := reflect.ValueOf(cfg)
	if root.Kind() != reflect.Pointer || root.IsNil() || root.Elem().Kind() != reflect.Struct {
		return Exit, fmt.Errorf("configuration is a %T, not a pointer to a struct", cfg)
	}
	l := loader{keys: keysOf("", root.Elem()), vars: map[string]string{}, flags: map[string]string{}}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			l.vars[k] = v
		}
	}
	l.parse(args)
	if l.help {
		return Exit, l.usage(out, name)
	}

	whole := l.file(root.Elem())
	for _, k := range l.keys {
		if s, ok := l.vars[k.env()]; ok {
			l.set(k, k.env(), s)
		}
		if s, ok := l.flags[k.path]; ok {
			l.set(k, "--"+k.path, s)
		}
	}
	if whole {
		// Without the file everything would be missing, which says nothing.
		l.validate(cfg)
	}
	if len(l.problems) > 0 {
		return Exit, &Error{Problems: l.problems}
	}
	if l.check {
		_, err := fmt.Fprintf(out, "# %s: configuration is good\n%s", name, Dump(cfg))
		return Exit, err
	}
	return Run, nil
}

// loader gathers what Load needs, and all problems.
type loader struct {
	keys        []key
	vars, flags map[string]string
	config      string
	check, help bool
	problems    []string
}

// problem notes something that is wrong.
func (l *loader) problem(format string, args ...any) {
	l.problems = append(l.problems, fmt.Sprintf(format, args...))
}

// key is one scalar of the configuration.
type key struct {
	path string // dotted, as in the file
	v    reflect.Value
}

// env is the key's environment variable.
func (k key) env() string { return envPrefix + strings.ToUpper(strings.ReplaceAll(k.path, ".", "_")) }

// keysOf lists the scalars below a struct.
func keysOf(prefix string, v reflect.Value) []key {
	var keys []key
	for _, f := range fieldsOf(v) {
		path := prefix + f.name
		switch {
		case f.v.Kind() == reflect.Struct && !isScalar(f.v):
			keys = append(keys, keysOf(path+".", f.v)...)
		case isScalar(f.v):
			keys = append(keys, key{path, f.v})
		}
	}
	return keys
}

// field is one field of a struct under its name in the file.
type field struct {
	name string
	v    reflect.Value
}

// fieldsOf lists a struct's fields, inlined ones in their place.
func fieldsOf(v reflect.Value) []field {
	var out []field
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-":
		case slices.Contains(strings.Split(opts, ","), "inline"):
			out = append(out, fieldsOf(v.Field(i))...)
		case name == "":
			out = append(out, field{strings.ToLower(f.Name), v.Field(i)})
		default:
			out = append(out, field{name, v.Field(i)})
		}
	}
	return out
}

// isScalar reports whether a value can be said in one word (or, for strings, several with commas between).
func isScalar(v reflect.Value) bool {
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return true
	}
	switch v.Kind() {
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Slice:
		return v.Type().Elem().Kind() == reflect.String
	default:
		return false
	}
}

// parse reads the flags: --key=value, --key value, and --key alone for switches.
func (l *loader) parse(args []string) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		word, ok := strings.CutPrefix(arg, "--")
		if arg == "-h" {
			word, ok = "help", true
		}
		if !ok || word == "" {
			l.problem("unexpected argument %q", arg)
			continue
		}
		name, value, given := strings.Cut(word, "=")
		i := slices.IndexFunc(l.keys, func(k key) bool { return k.path == name })
		isSwitch := name == "help" || name == "check-config" || i >= 0 && l.keys[i].v.Kind() == reflect.Bool
		if name != "help" && name != "check-config" && name != "config" && i < 0 {
			l.problem("unknown flag --%s (see --help)", name)
			continue
		}
		if !given && isSwitch {
			value = "true"
		} else if !given {
			if len(args) == 0 {
				l.problem("flag --%s needs a value", name)
				continue
			}
			value, args = args[0], args[1:]
		}
		switch name {
		case "help":
			l.help = true
		case "check-config":
			on, err := strconv.ParseBool(value)
			if err != nil {
				l.problem("--check-config: want true or false")
			}
			l.check = on
		case "config":
			l.config = value
		default:
			l.flags[name] = value
		}
	}
}

// file reads the configuration file, if there is one, and reports whether it could be read at all.
func (l *loader) file(root reflect.Value) bool {
	path := l.config
	if path == "" {
		path = l.vars[envPrefix+"CONFIG"]
	}
	if path == "" {
		return true
	}
	b, err := os.ReadFile(path) //nolint:gosec // the file that the operator names
	if err != nil {
		l.problem("%v", err)
		return false
	}
	problems, ok := decode(b, root)
	for _, p := range problems {
		l.problem("%s:%s", path, p)
	}
	return ok
}

// set gives a key a value that stands in a flag or a variable.
func (l *loader) set(k key, where, s string) {
	if err := setScalar(k.v, s); err != nil {
		l.problem("%s: %v", where, err)
	}
}

// setScalar parses s as v's type. Errors do not repeat s.
func setScalar(v reflect.Value, s string) error {
	if _, ok := v.Interface().(time.Duration); ok {
		d, err := time.ParseDuration(s)
		if err != nil {
			return errors.New(`want a duration such as "1m30s"`)
		}
		v.SetInt(int64(d))
		return nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(s))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("want true or false")
		}
		v.SetBool(b)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(s, v.Type().Bits())
		if err != nil {
			return errors.New("want a number")
		}
		v.SetFloat(f)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil {
			return errors.New("want a whole number that is not negative and not too large")
		}
		v.SetUint(n)
	case reflect.Slice:
		parts := reflect.MakeSlice(v.Type(), 0, 0)
		for p := range strings.SplitSeq(s, ",") {
			if p = strings.TrimSpace(p); p != "" {
				parts = reflect.Append(parts, reflect.ValueOf(p).Convert(v.Type().Elem()))
			}
		}
		v.Set(parts)
	default:
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			return errors.New("want a whole number that is not too large")
		}
		v.SetInt(n)
	}
	return nil
}

// validate notes what the configuration itself finds wrong, one problem for each of its joined errors.
func (l *loader) validate(cfg Config) {
	err := cfg.Validate()
	if err == nil {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		l.problem("%s", line)
	}
}

// usage writes what --help shows.
func (l *loader) usage(out io.Writer, name string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: %s [--config FILE] [--check-config] [--KEY=VALUE …]\n\n"+
		"Keys, as flags, in the file (nested by dots), and as environment variables; flags win over the environment, it over the file:\n", name)
	for _, k := range l.keys {
		fmt.Fprintf(&b, "  --%s (%s)", k.path, k.env())
		if !k.v.IsZero() {
			fmt.Fprintf(&b, " default %v", k.v.Interface())
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// userinfo is a password inside a URL.
var userinfo = regexp.MustCompile(`(://[^/@\s:]*):[^/@\s]+@`)

// Dump returns the configuration as YAML, for the log at start. A secret.Text is redacted as everywhere, and so is a
// password that somebody put into a URL against our advice.
func Dump(cfg any) string {
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Sprintf("# %v\n", err)
	}
	return userinfo.ReplaceAllString(string(b), "$1:[redacted]@")
}
