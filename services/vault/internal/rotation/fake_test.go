package rotation_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/rotation"
)

// fakeKeyring binds texts to identities without hiding them well.
type fakeKeyring struct{}

func (fakeKeyring) Seal(identity string, text secret.Text) ([]byte, error) {
	out := []byte(identity + "|" + text.Expose())
	for i := range out {
		out[i] ^= 0x5a
	}
	return out, nil
}

func (fakeKeyring) Open(_ context.Context, identity string, sealed []byte) (secret.Text, error) {
	out := bytes.Clone(sealed)
	for i := range out {
		out[i] ^= 0x5a
	}
	text, ok := strings.CutPrefix(string(out), identity+"|")
	if !ok {
		return secret.Text{}, errors.New("sealed under another identity")
	}
	return secret.New(text), nil
}

// fakeRegistry takes reports.
type fakeRegistry struct {
	mu      sync.Mutex
	err     error
	reports []rotation.Report
	refused int
}

func (r *fakeRegistry) Report(_ context.Context, _ election.Mastership, report rotation.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		r.refused++
		return r.err
	}
	r.reports = append(r.reports, report)
	return nil
}

func (r *fakeRegistry) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *fakeRegistry) counts() (taken, refused int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reports), r.refused
}

// all returns every report.
func (r *fakeRegistry) all() []rotation.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reports)
}

// last returns the last report, in short: each condition's reason, with a + when it holds.
func (r *fakeRegistry) last() (report rotation.Report, short string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.reports) == 0 {
		return rotation.Report{}, ""
	}
	report = r.reports[len(r.reports)-1]
	var words []string
	for _, c := range report.Conditions {
		word := c.Reason
		if c.True {
			word += "+"
		}
		words = append(words, word)
	}
	return report, strings.Join(words, " ")
}
