// Package secret holds text that must not be seen: client secrets, tokens, grants, passwords.
//
// It guarantees that a Text gives "[redacted]" to everything that prints or encodes by itself: fmt with any verb, slog,
// encoding/json, YAML, and text encodings in general. It does not guarantee that memory is wiped, nor anything about the
// string once Expose has returned it; calls of Expose are few and are found by name.
//
// The tricky idea: the text sits behind a pointer. fmt cannot call methods on the unexported fields of somebody else's
// struct and prints their contents instead, but below the top level it prints a pointer as an address. So a Text
// stays hidden even there, where String and Format are never asked.
package secret

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// Redacted is what stands where a secret would have stood.
const Redacted = "[redacted]"

// maxFile bounds ReadFile, in bytes: a secret is short, and a wrong path may name something endless.
const maxFile = 64 << 10

// ErrEmpty is returned by ReadFile for a file without text.
var ErrEmpty = errors.New("secret file is empty")

// Text is a secret text. The zero value is the empty text. A Text is immutable and safe to share; it cannot be compared
// with == (which does not compile), only with Equal.
type Text struct {
	_ [0]func()
	p *string
}

// New hides s.
func New(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{p: &s}
}

// ReadFile hides the contents of a file, without trailing line breaks. An empty file is ErrEmpty, so that a mount
// which is not there yet does not become an empty password.
func ReadFile(path string) (Text, error) {
	f, err := os.Open(path) //nolint:gosec // the file that the configuration names
	if err != nil {
		return Text{}, fmt.Errorf("read secret: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Text{}, fmt.Errorf("read secret %s: %w", path, err)
	}
	if len(b) > maxFile {
		return Text{}, fmt.Errorf("read secret %s: more than %d bytes", path, maxFile)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return Text{}, fmt.Errorf("read secret %s: %w", path, ErrEmpty)
	}
	return New(string(b)), nil
}

// Expose returns the text itself. Whoever calls it keeps it out of logs, errors and URLs.
func (t Text) Expose() string {
	if t.p == nil {
		return ""
	}
	return *t.p
}

// Equal compares in a time that tells nothing about the texts, their lengths included.
func (t Text) Equal(o Text) bool {
	a, b := sha256.Sum256([]byte(t.Expose())), sha256.Sum256([]byte(o.Expose()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// IsZero reports whether the text is empty.
func (t Text) IsZero() bool { return t.p == nil }

// String returns Redacted.
func (Text) String() string { return Redacted }

// GoString returns Redacted.
func (Text) GoString() string { return Redacted }

// Format writes Redacted whatever the verb.
func (Text) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, Redacted) }

// MarshalText returns Redacted. There is no UnmarshalText: a secret is never written into a configuration.
func (Text) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON returns Redacted as a JSON string.
func (Text) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// LogValue returns Redacted.
func (Text) LogValue() slog.Value { return slog.StringValue(Redacted) }
