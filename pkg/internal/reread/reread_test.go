package reread_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/internal/reread"
)

func TestFiles_AreUsedWhenTheyChange(t *testing.T) {
	folder := t.TempDir()
	first, second := filepath.Join(folder, "first"), filepath.Join(folder, "second")
	bad := errors.New("bad")
	synctest.Test(t, func(t *testing.T) {
		var uses []string
		var told []error
		files := reread.New(func(contents [][]byte) error {
			uses = append(uses, string(bytes.Join(contents, []byte("+"))))
			if bytes.Equal(contents[0], []byte("bad")) {
				return bad
			}
			return nil
		}, first, second, "")
		if changed, err := files.Read(); changed || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without files: %t, %v", changed, err)
		}
		for _, step := range []struct {
			name, first, second string
			uses                []string
			told                error
			silent              bool
		}{
			{name: "empty ones", uses: []string{"++"}},
			{name: "the same", silent: true},
			{name: "one that changes", first: "a", uses: []string{"a++"}},
			{name: "the other", first: "a", second: "b", uses: []string{"a+b+"}},
			{name: "what cannot be used", first: "bad", second: "b", uses: []string{"bad+b+"}, told: bad},
			{name: "nor a second time", first: "bad", second: "b", silent: true},
			{name: "what was there before that", first: "a", second: "b", uses: []string{"a+b+"}},
			{name: "one that is gone", first: "gone", told: os.ErrNotExist},
			{name: "and is back as it was", first: "a", second: "b", uses: []string{"a+b+"}},
		} {
			uses, told = nil, nil
			for name, text := range map[string]string{first: step.first, second: step.second} {
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if step.first == "gone" {
				if err := os.Remove(first); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			files.Follow(ctx, time.Minute, func(err error) { told = append(told, err) })
			cancel()
			if !slices.Equal(uses, step.uses) {
				t.Errorf("%s: used are %q, want %q", step.name, uses, step.uses)
			}
			if step.silent != (len(told) == 0) || !step.silent && (len(told) != 1 || !errors.Is(told[0], step.told)) {
				t.Errorf("%s: told is %v, want %v", step.name, told, step.told)
			}
		}
	})
}
