// Package contexts keeps the file that says where deployments of Phasekey are, and who one is to them.
//
// It guarantees that a file which it cannot read to the last key is refused and left as it is, and that it is replaced whole or not
// at all. It holds no secret: certificates and keys are named by their files.
package contexts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Context is one deployment, as one identity sees it.
type Context struct {
	// Registry, Broker and Vault are gRPC targets, such as "registry.example.com:7451"; empty where it is not used.
	Registry string `yaml:"registry,omitempty"`
	Broker   string `yaml:"broker,omitempty"`
	Vault    string `yaml:"vault,omitempty"`
	// RegistryID, BrokerID and VaultID are the SPIFFE IDs that they must have.
	RegistryID string `yaml:"registry_id,omitempty"`
	BrokerID   string `yaml:"broker_id,omitempty"`
	VaultID    string `yaml:"vault_id,omitempty"`
	// CAFile verifies them; CertFile and KeyFile say who one is. PEM.
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// Account is meant where a command is given an ID instead of a name.
	Account string `yaml:"account,omitempty"`
}

// File is all contexts, and which of them is meant where none is named.
type File struct {
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts"`
}

// ErrNone means that a context is needed, and none is there.
var ErrNone = errors.New("no context: make one with `phasekey context set`")

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// DefaultPath is where the file is, unless it is said otherwise.
func DefaultPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("folder for configuration: %w", err)
	}
	return filepath.Join(dir, "phasekey", "contexts.yaml"), nil
}

// Load reads the file. One that is not there has no contexts.
func Load(path string) (File, error) {
	file := File{Contexts: map[string]Context{}}
	text, err := os.ReadFile(path) //nolint:gosec // the user's own file, which the user names
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read contexts: %w", err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&file); err != nil {
		return File{}, fmt.Errorf("read contexts from %s: %s", path, strings.SplitN(err.Error(), "\n", 2)[0])
	}
	if file.Contexts == nil {
		file.Contexts = map[string]Context{}
	}
	return file, nil
}

// Save replaces the file; only its owner may read it.
func (f File) Save(path string) error {
	text, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	next, err := os.CreateTemp(filepath.Dir(path), ".contexts-*")
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	_, err = next.Write(text)
	if err = errors.Join(err, next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write contexts: %w", err), os.Remove(next.Name()))
	}
	return nil
}

// Get returns the context of a name, or the current one for "".
func (f File) Get(name string) (Context, error) {
	if name == "" {
		name = f.Current
	}
	if name == "" {
		return Context{}, ErrNone
	}
	c, ok := f.Contexts[name]
	if !ok {
		return Context{}, fmt.Errorf("no context is called %q; there is %s", name, f.list())
	}
	return c, nil
}

// Set adds or replaces a context. The first one becomes the current one.
func (f *File) Set(name string, c Context) error {
	if !validName.MatchString(name) {
		return errors.New("a context's name is 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit")
	}
	if err := c.validate(); err != nil {
		return err
	}
	f.Contexts[name] = c
	if f.Current == "" {
		f.Current = name
	}
	return nil
}

// Use makes a context the current one.
func (f *File) Use(name string) error {
	if _, err := f.Get(name); err != nil {
		return err
	}
	f.Current = name
	return nil
}

// Delete removes a context. Without the current one, none is current.
func (f *File) Delete(name string) error {
	if _, err := f.Get(name); err != nil {
		return err
	}
	delete(f.Contexts, name)
	if f.Current == name {
		f.Current = ""
	}
	return nil
}

// Names are all contexts' names, in order.
func (f File) Names() []string { return slices.Sorted(maps.Keys(f.Contexts)) }

func (f File) list() string {
	if len(f.Contexts) == 0 {
		return "none"
	}
	return strings.Join(f.Names(), ", ")
}

func (c Context) validate() error {
	var problems []error
	if c.Registry == "" && c.Broker == "" && c.Vault == "" {
		problems = append(problems, errors.New("at least one of --registry, --broker and --vault is needed"))
	}
	for _, file := range [][2]string{{"--ca", c.CAFile}, {"--cert", c.CertFile}, {"--key", c.KeyFile}} {
		if file[1] == "" {
			problems = append(problems, errors.New(file[0]+" is needed"))
		} else if !filepath.IsAbs(file[1]) {
			problems = append(problems, fmt.Errorf("%s: %s is no absolute path", file[0], file[1]))
		}
	}
	return errors.Join(problems...)
}
