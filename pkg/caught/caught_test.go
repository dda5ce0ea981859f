package caught_test

import (
	"errors"
	"runtime"
	"testing"

	"phasekey.dev/pkg/caught"
)

func TestApart(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		do   func() error
		want func(err error) bool
	}{
		"returns":          {func() error { return nil }, func(err error) bool { return err == nil }},
		"fails":            {func() error { return boom }, func(err error) bool { return errors.Is(err, boom) }},
		"ends itself":      {func() error { runtime.Goexit(); return nil }, func(err error) bool { return err != nil }},
		"panics, and why":  {func() error { panic("boom") }, func(err error) bool { p, ok := errors.AsType[*caught.PanicError](err); return ok && p.Value == "boom" }}, //nolint:forbidigo // what is tested
		"is done when due": {func() error { runtime.Gosched(); return boom }, func(err error) bool { return errors.Is(err, boom) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := caught.Apart(tt.do); !tt.want(err) {
				t.Errorf("%v", err)
			}
		})
	}
}
