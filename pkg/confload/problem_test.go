package confload_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/confload"
)

func TestProblems_AreALineEachWithItsKey(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	var problems confload.Problems
	problems.Add("fine", nil)
	problems.Add("disk", full)
	problems.Add("tls", errors.Join(errors.New("ca_file: gone"), errors.Join(errors.New("cert_file: old"), nil, errors.New("key_file: other"))))
	problems.Add("database", fmt.Errorf("dsn: %w: %w", errors.New("parse"), full))
	problems.Require("listen", "")
	problems.Require("name", "given")
	var got []string
	for _, p := range problems {
		got = append(got, p.Error())
	}
	if diff := cmp.Diff([]string{"disk: full", "tls: ca_file: gone", "tls: cert_file: old", "tls: key_file: other", "database: dsn: parse: full", "listen: required"}, got); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(problems...); !errors.Is(err, full) || !errors.Is(err, confload.ErrRequired) {
		t.Errorf("joined they are %v", err)
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		check func(text string) error
		good  []string
		bad   []string
	}{
		{
			name: "origin", check: confload.CheckOrigin, good: []string{"https://a.example", "https://a.example:8443", "https://[::1]:1"},
			bad: []string{"", "a.example", "http://a.example", "https://", "https://:443", "https://a.example/", "https://a.example/b", "https://a.example?b", "https://u@a.example", "https://a.example%zz"},
		},
		{
			name: "SPIFFE ID", check: confload.CheckSPIFFEID, good: []string{"spiffe://example.org/vault", "spiffe://example.org/ns/a/sa/b"},
			bad: []string{"", "example.org/vault", "https://example.org/vault", "spiffe://example.org", "spiffe://example.org/", "spiffe:///vault", "spiffe://%zz/a"},
		},
	} {
		for _, text := range tt.good {
			if err := tt.check(text); err != nil {
				t.Errorf("%s %q: %v", tt.name, text, err)
			}
		}
		for _, text := range tt.bad {
			if err := tt.check(text); err == nil {
				t.Errorf("%s %q is taken", tt.name, text)
			}
		}
	}
	for d, good := range map[time.Duration]bool{time.Second - 1: false, time.Second: true, time.Minute: true, time.Minute + 1: false} {
		if err := confload.CheckSpan(d, time.Second, time.Minute); (err == nil) != good {
			t.Error(fmt.Sprint(d), err)
		}
	}
}
