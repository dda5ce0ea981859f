package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"phasekey.dev/pkg/secret"
)

const canary = "CANARY-4711"

// holder has a secret where fmt may not call methods: in an unexported field.
type holder struct {
	Open   secret.Text
	hidden secret.Text
	list   []secret.Text
	byKey  map[string]secret.Text
}

func TestText_NeverPrints(t *testing.T) {
	t.Parallel()
	s := secret.New(canary)
	h := holder{Open: s, hidden: s, list: []secret.Text{s}, byKey: map[string]secret.Text{"a": s}}
	var out bytes.Buffer
	for _, v := range []any{s, &s, h, &h, []any{s, h}, map[string]any{"a": h}, fmt.Errorf("wrapped %v %+v", s, h)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
	}
	y, err := yaml.Marshal(struct{ S secret.Text }{s})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(y)
	if strings.Contains(out.String(), canary) || strings.Contains(out.String(), fmt.Sprintf("%x", canary)) {
		t.Errorf("a secret was printed:\n%s", out.String())
	}
	if !strings.Contains(string(y), secret.Redacted) {
		t.Errorf("yaml is %s", y)
	}
}

func TestText_Equal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		a, b secret.Text
		want bool
	}{
		{"the same text", secret.New(canary), secret.New(canary), true},
		{"another text", secret.New(canary), secret.New(canary + "x"), false},
		{"both empty", secret.Text{}, secret.New(""), true},
		{"one empty", secret.Text{}, secret.New("x"), false},
	} {
		if got := tt.a.Equal(tt.b); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	if !secret.New("").IsZero() || secret.New("x").IsZero() || secret.New(canary).Expose() != canary {
		t.Error("IsZero or Expose")
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tt := range []struct {
		name, content, want string
		is                  error
		fails               bool // with any error
	}{
		{name: "without line break", content: canary, want: canary},
		{name: "with line breaks", content: canary + "\r\n\n", want: canary},
		{name: "blanks are part of it", content: " " + canary + " \n", want: " " + canary + " "},
		{name: "empty", content: "\n", is: secret.ErrEmpty},
		{name: "missing", is: os.ErrNotExist},
		{name: "endless", content: strings.Repeat("x", 1<<17), fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, tt.name)
			if tt.name != "missing" {
				if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := secret.ReadFile(path)
			if tt.fails && err != nil {
				return
			}
			if !errors.Is(err, tt.is) || got.Expose() != tt.want {
				t.Errorf("got %q, %v", got.Expose(), err)
			}
		})
	}
}
