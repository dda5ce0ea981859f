package confload_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/confload"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/secret"
)

type listen struct {
	Address string        `yaml:"address"`
	Timeout time.Duration `yaml:"timeout"`
}

type identity struct {
	ID       string   `yaml:"id"`
	Accounts []string `yaml:"accounts"`
}

type config struct {
	Listen     listen            `yaml:"listen"`
	Log        obs.LogConfig     `yaml:"log"`
	Shards     int               `yaml:"shards"`
	Reflection bool              `yaml:"reflection"`
	Rate       float64           `yaml:"rate"`
	Burst      uint16            `yaml:"burst"`
	Hosts      []string          `yaml:"hosts"`
	Identities []identity        `yaml:"identities"`
	Clouds     map[string]listen `yaml:"clouds"`
	Optional   *listen           `yaml:"optional"`
	Inline     `yaml:",inline"`
	Token      secret.Text `yaml:"-"`
}

// Inline is a part that stands at the same level.
type Inline struct {
	KeyFile string `yaml:"key_file"`
}

func (c *config) Validate() error {
	var errs []error
	if c.Listen.Address == "" {
		errs = append(errs, errors.New("listen.address is required"))
	}
	if c.Shards < 1 {
		errs = append(errs, errors.New("shards must be positive"))
	}
	return errors.Join(errs...)
}

func defaults() *config { return &config{Shards: 4, Hosts: []string{"default"}} }

const good = `
# a comment
listen:
  address: "127.0.0.1:1"
  timeout: 1m30s
log: {level: debug, format: text}
shards: 7
rate: 0.5
burst: 12
hosts: [a, b]
identities:
  - id: spiffe://x/a
    accounts: ["*"]
  - id: spiffe://x/b
clouds:
  public: {address: x}
optional:
  address: here
key_file: /k
`

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad_Precedence(t *testing.T) {
	t.Parallel()
	path := write(t, good)
	got := defaults()
	action, err := confload.Load("noted",
		[]string{"--config", path, "--shards=9", "--reflection", "--hosts", "x, y"},
		[]string{"PHASEKEY_SHARDS=8", "PHASEKEY_LISTEN_TIMEOUT=5s", "PHASEKEY_LOG_LEVEL=warn", "PHASEKEY_REGISTRY_PORT=tcp://10.0.0.1:1", "PATH=/bin"},
		&bytes.Buffer{}, got)
	if action != confload.Run || err != nil {
		t.Fatal(action, err)
	}
	want := &config{
		Listen: listen{"127.0.0.1:1", 5 * time.Second}, Log: obs.LogConfig{Level: 4, Format: obs.FormatText}, Shards: 9, Reflection: true,
		Rate: .5, Burst: 12, Hosts: []string{"x", "y"}, Identities: []identity{{"spiffe://x/a", []string{"*"}}, {"spiffe://x/b", nil}},
		Clouds: map[string]listen{"public": {Address: "x"}}, Optional: &listen{Address: "here"}, Inline: Inline{"/k"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	t.Run("file by the environment, and defaults", func(t *testing.T) {
		t.Parallel()
		got := defaults()
		action, err := confload.Load("noted", nil, []string{"PHASEKEY_CONFIG=" + write(t, "listen: {address: x}\nshards:\n")}, &bytes.Buffer{}, got)
		if action != confload.Run || err != nil || got.Shards != 4 || got.Listen.Address != "x" {
			t.Errorf("%v %v %+v", action, err, got)
		}
	})
}

func TestLoad_AllProblems(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		file      string
		args, env []string
		want      []string // each a problem; FILE stands for the path
	}{
		{
			name: "of every kind",
			file: "listen:\n  adress: x\n  timeout: soon\nshards: many\nlog: {level: loud, format: xml}\nidentities:\n  - id: [a]\n    role: x\n  - nonsense\nclouds:\n  public: {addr: x}\nextra: 1\nhosts: {a: b}\n",
			args: []string{"--unknown=1", "positional", "--burst=-1", "--rate", "fast"},
			env:  []string{"PHASEKEY_REFLECTION=perhaps"},
			want: []string{
				"unknown flag --unknown (see --help)", `unexpected argument "positional"`,
				`FILE:2: unknown key "listen.adress"`, "FILE:3: listen.timeout:", "FILE:4: shards:", "FILE:5: log.level:", "FILE:5: log.format:",
				"FILE:7: identities[0].id: want a single value", `FILE:8: unknown key "identities[0].role"`, "FILE:9: identities[1]: want keys and values",
				`FILE:11: unknown key "clouds.public.addr"`, `FILE:12: unknown key "extra"`, "FILE:13: hosts: want a list",
				"PHASEKEY_REFLECTION: want true or false", "--rate: want a number", "--burst: want a whole number",
				"listen.address is required",
			},
		},
		{name: "of validation", file: "shards: 0", want: []string{"listen.address is required", "shards must be positive"}},
		{name: "anchors", file: "listen: &a {address: x}\nclouds: {public: *a}", want: []string{"FILE:1: listen: anchors", "FILE:2: clouds.public: anchors", "listen.address is required"}},
		{name: "two documents", file: "listen: {address: x}\n---\nshards: 2\n", want: []string{"FILE:3: a second document"}},
		{name: "a key twice", file: "shards: 2\nshards: 3\n", want: []string{"FILE:2: "}},
		{name: "no YAML", file: "listen: [\n", want: []string{"FILE:"}},
		{name: "a list instead", file: "- a\n", want: []string{"FILE:1: want keys and values", "listen.address is required"}},
		{name: "a flag without value", file: good, args: []string{"--shards"}, want: []string{"flag --shards needs a value"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, tt.file)
			action, err := confload.Load("noted", append([]string{"--config=" + path}, tt.args...), tt.env, &bytes.Buffer{}, defaults())
			var e *confload.Error
			if action != confload.Exit || !errors.As(err, &e) {
				t.Fatalf("%v, %v", action, err)
			}
			left := e.Problems
			for _, w := range tt.want {
				w = strings.ReplaceAll(w, "FILE", path)
				found := false
				for i, p := range left {
					if strings.HasPrefix(p, w) {
						left, found = append(left[:i:i], left[i+1:]...), true
						break
					}
				}
				if !found {
					t.Errorf("does not say %s", w)
				}
			}
			if len(left) > 0 {
				t.Errorf("says also:\n%s", strings.Join(left, "\n"))
			}
		})
	}
	t.Run("a missing file", func(t *testing.T) {
		t.Parallel()
		_, err := confload.Load("noted", []string{"--config=/nonexistent.yaml"}, nil, &bytes.Buffer{}, defaults())
		if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "/nonexistent.yaml") {
			t.Errorf("got %v", err)
		}
	})
}

func TestLoad_CheckAndHelp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		want []string
		bad  bool
	}{
		{name: "check", args: []string{"--check-config", "--config=" + write(t, good)}, want: []string{"noted: configuration is good", "shards: 7", "timeout: 1m30s"}},
		{name: "check of a bad one", args: []string{"--check-config", "--shards=0"}, bad: true},
		{name: "help", args: []string{"--help"}, want: []string{"--listen.address (PHASEKEY_LISTEN_ADDRESS)", "--shards (PHASEKEY_SHARDS) default 4", "--key_file (PHASEKEY_KEY_FILE)"}},
		{name: "short help", args: []string{"-h"}, want: []string{"usage: noted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			action, err := confload.Load("noted", tt.args, nil, &out, defaults())
			if action != confload.Exit || (err != nil) != tt.bad {
				t.Errorf("%v, %v", action, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("%s\nlacks %q", out.String(), w)
				}
			}
		})
	}
}

func TestDump_Redacts(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-31"
	got := confload.Dump(struct {
		S    secret.Text `yaml:"s"`
		DSN  string      `yaml:"dsn"`
		Wait time.Duration
	}{secret.New(canary), "postgres://user:" + canary + "@host/db", time.Minute})
	if strings.Contains(got, canary) || !strings.Contains(got, "user:[redacted]@host") || !strings.Contains(got, "1m0s") {
		t.Error(got)
	}
}
